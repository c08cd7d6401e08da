// The guest's driver and QEMU's end of the display socket, light enough not to be what is measured.
//
// Made by tests/bench/load.py with the machine's own compiler and called through ctypes, which lets
// go of the GIL. The rings are virtio 1.3's split ones with EVENT_IDX; memory is ours to write.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { NEXT = 1, WRITE = 2, HEADS = 16, ROOM = 512 };
enum { GET_FEATURES = 1, GET_INFO = 3, SCANOUT = 7, UPDATE = 8, BUFFER_UPDATE = 10, GET_EDID = 11 };

struct descriptor {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

struct used_elem {
	uint32_t id, len;
};

// Prepared by Python: where a request and the room for its answer are.
struct command {
	uint64_t request, response;
	uint32_t length, room;
};

struct ring {
	struct descriptor *desc;
	uint16_t *avail; // flags, idx, ring[size], used_event
	uint16_t *used;	 // flags, idx, ring[size] of used_elem, avail_event
	uint32_t size;
	int kick, call;
	uint16_t offered, seen;
};

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

// Two descriptors a slot; with `size / 2` commands in flight at most, a slot is free by then.
static void offer(struct ring *ring, const struct command *command, uint16_t index)
{
	uint16_t head = (uint16_t)(2 * (index & (ring->size / 2 - 1)));

	ring->desc[head] = (struct descriptor){command->request, command->length,
					       command->room ? NEXT : 0, head + 1};
	ring->desc[head + 1] = (struct descriptor){command->response, command->room, WRITE, 0};
	ring->avail[2 + (index & (ring->size - 1))] = head;
}

static int notify(struct ring *ring, uint16_t old)
{
	uint16_t *event = (uint16_t *)((uint8_t *)ring->used + 4 + 8 * ring->size);
	uint64_t one = 1;

	__atomic_store_n(&ring->avail[1], ring->offered, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if ((uint16_t)(ring->offered - __atomic_load_n(event, __ATOMIC_RELAXED) - 1) >=
	    (uint16_t)(ring->offered - old))
		return 0;
	return write(ring->kick, &one, sizeof(one)) == sizeof(one) ? 0 : -errno;
}

// Until everything offered is used, asleep; an interrupt only for the last, as Linux asks for it.
static int await_all(struct ring *ring, int timeout)
{
	for (;;) {
		struct pollfd poller = {.fd = ring->call, .events = POLLIN};
		uint64_t count;

		ring->avail[2 + ring->size] = (uint16_t)(ring->offered - 1);
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		ring->seen = __atomic_load_n(&ring->used[1], __ATOMIC_ACQUIRE);
		if (ring->seen == ring->offered)
			return 0;
		if (poll(&poller, 1, timeout) <= 0)
			return -ETIMEDOUT;
		if (read(ring->call, &count, sizeof(count)) < 0 && errno != EAGAIN)
			return -errno;
	}
}

// `operations` times all of `commands`, `window` to a kick; how long each operation took.
int run(struct ring *ring, const struct command *commands, uint32_t count, uint32_t window,
	uint32_t operations, uint64_t *nanoseconds, int timeout)
{
	if (!window || window > ring->size / 2)
		window = ring->size / 2;
	for (uint32_t i = 0; i < operations; i++) {
		uint64_t start = now();

		for (uint32_t done = 0; done < count;) {
			uint16_t old = ring->offered;
			int error;

			for (uint32_t n = 0; n < window && done < count; n++)
				offer(ring, &commands[done++], ring->offered++);
			error = notify(ring, old);
			if (!error)
				error = await_all(ring, timeout);
			if (error)
				return error;
		}
		nanoseconds[i] = now() - start;
	}
	return 0;
}

// The display ------------------------------------------------------------------------------

struct screen {
	uint32_t width, height;
	uint8_t *pixels;
};

struct display {
	int sock;
	pthread_t thread;
	_Atomic uint64_t bytes, updates, busy;
	_Atomic int error;
	struct screen screens[HEADS];
	uint8_t row[ROOM];
};

static bool receive(struct display *display, void *to, size_t size)
{
	for (uint8_t *at = to; size;) {
		ssize_t got = recv(display->sock, at, size, 0);

		if (got <= 0)
			return false;
		at += got, size -= (size_t)got;
		display->bytes += (uint64_t)got;
	}
	return true;
}

static bool answer(struct display *display, uint32_t request, const void *body, uint32_t size)
{
	uint32_t header[3] = {request, 4, size};

	return send(display->sock, header, sizeof(header), MSG_NOSIGNAL) == sizeof(header) &&
	       send(display->sock, body, size, MSG_NOSIGNAL) == (ssize_t)size;
}

static bool set_scanout(struct display *display, const uint32_t *body)
{
	struct screen *screen = &display->screens[body[0] % HEADS];
	size_t size = 4 * (size_t)body[1] * body[2];

	if (screen->width == body[1] && screen->height == body[2])
		return true;
	free(screen->pixels);
	*screen = (struct screen){body[1], body[2], calloc(1, size ? size : 1)};
	if (screen->pixels)
		memset(screen->pixels, 1, size); // its pages exist before anything is timed
	return screen->pixels;
}

static bool update(struct display *display)
{
	uint32_t at[5]; // scanout, x, y, width, height
	struct screen *screen;

	if (!receive(display, at, sizeof(at)) || at[0] >= HEADS)
		return false;
	screen = &display->screens[at[0]];
	if ((uint64_t)at[1] + at[3] > screen->width || (uint64_t)at[2] + at[4] > screen->height)
		return false;
	if (at[3] == screen->width) {
		if (!receive(display, screen->pixels + 4 * (size_t)at[2] * at[3],
			     4 * (size_t)at[3] * at[4]))
			return false;
	} else {
		// QEMU reads a message whole, then copies.
		size_t size = 4 * (size_t)at[3] * at[4];
		uint8_t *pixels = malloc(size);
		bool whole = pixels && receive(display, pixels, size);

		for (uint32_t row = 0; whole && row < at[4]; row++)
			memcpy(screen->pixels + 4 * ((at[2] + row) * (size_t)screen->width + at[1]),
			       pixels + 4 * (size_t)row * at[3], 4 * (size_t)at[3]);
		free(pixels);
		if (!whole)
			return false;
	}
	display->updates++;
	return true;
}

static bool serve_one(struct display *display)
{
	static const uint8_t info[1056];
	uint64_t features = 0;
	uint32_t header[3];

	display->busy = 0;
	if (!receive(display, header, sizeof(header)))
		return false;
	display->busy = 1;
	if (header[0] == UPDATE)
		return update(display);
	for (uint32_t left = header[2]; left;) {
		uint32_t size = left < ROOM ? left : ROOM;

		if (!receive(display, display->row, size))
			return false;
		left -= size;
	}
	switch (header[0]) {
	case GET_FEATURES:
		return answer(display, GET_FEATURES, &features, sizeof(features));
	case GET_INFO:
		return answer(display, GET_INFO, info, 408);
	case GET_EDID:
		return answer(display, GET_EDID, info, 1056);
	case SCANOUT:
		return set_scanout(display, (uint32_t *)display->row);
	default:
		return true;
	}
}

static void *serve(void *arg)
{
	struct display *display = arg;

	while (serve_one(display))
		;
	display->error = 1;
	display->busy = 0;
	return NULL;
}

struct display *display_start(int sock)
{
	struct display *display = calloc(1, sizeof(*display));

	if (!display)
		return NULL;
	display->sock = sock;
	if (pthread_create(&display->thread, NULL, serve, display)) {
		free(display);
		return NULL;
	}
	return display;
}

// Until everything that was sent is on the screen.
int display_settle(struct display *display)
{
	for (int quiet = 0, tries = 0; quiet < 3; tries++) {
		struct timespec pause = {.tv_nsec = 1000000};
		int unread = 0;

		if (display->error || tries > 5000 || ioctl(display->sock, FIONREAD, &unread) < 0)
			return -1;
		quiet = unread || display->busy ? 0 : quiet + 1;
		nanosleep(&pause, NULL);
	}
	return 0;
}

uint64_t display_updates(struct display *display)
{
	return display->updates;
}

const uint8_t *display_pixels(struct display *display, uint32_t head, uint32_t *size)
{
	size[0] = display->screens[head].width;
	size[1] = display->screens[head].height;
	return display->screens[head].pixels;
}

void display_stop(struct display *display)
{
	shutdown(display->sock, SHUT_RDWR);
	pthread_join(display->thread, NULL);
	close(display->sock);
	for (int i = 0; i < HEADS; i++)
		free(display->screens[i].pixels);
	free(display);
}
