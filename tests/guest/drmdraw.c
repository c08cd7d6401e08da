/*
 * drmdraw: draws a known picture through DRM dumb buffers, with the kernel's own interface alone.
 *
 * Every pixel is a function of (x, y, seed), see pattern(); tests/guest/pattern.py is its twin, so the
 * host can say what each byte of a screenshot must be. One line per thing done goes to stdout; any
 * failure is one line on stderr and exit code 1.
 */
#define _GNU_SOURCE
#include "card.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include <linux/fb.h>

#define CURSOR_SIZE 64 /* the only size virtio-gpu has */

static struct {
	unsigned heads[MAX_HEADS], head_count;
	unsigned width, height; /* 0: the connector's preferred mode */
	uint32_t seed;
	unsigned flips, console_rows;
	bool stay, cursor, dirty;
	int cursor_x, cursor_y, hot_x, hot_y;
	unsigned x, y, w, h; /* the dirtied rectangle */
} options;

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

/* 0xRRGGBB. No two neighbours are equal; red tells x, green tells y, blue both and the 256x256 tile. */
static uint32_t pattern(uint32_t x, uint32_t y, uint32_t seed)
{
	uint32_t red = x + 31 * seed;
	uint32_t green = y + 17 * seed;
	uint32_t blue = x ^ y ^ (x >> 8) * 16 ^ (y >> 8) * 32 ^ 7 * seed;

	return (red & 255) << 16 | (green & 255) << 8 | (blue & 255);
}

static void draw(struct buffer *buffer, unsigned x, unsigned y, unsigned w, unsigned h, uint32_t seed)
{
	for (unsigned j = y; j < y + h; j++) {
		uint32_t *row = (uint32_t *)(void *)(buffer->pixels + (size_t)j * buffer->pitch);

		for (unsigned i = x; i < x + w; i++)
			row[i] = pattern(i, j, seed);
	}
}

/* Copies the rows of the console's own framebuffer that lie above options.console_rows. */
static void draw_console(struct buffer *buffer, unsigned width)
{
	struct fb_fix_screeninfo fix;
	struct fb_var_screeninfo var;
	int fb = open("/dev/fb0", O_RDONLY | O_CLOEXEC);

	if (fb < 0 || ioctl(fb, FBIOGET_FSCREENINFO, &fix) < 0 || ioctl(fb, FBIOGET_VSCREENINFO, &var) < 0)
		fail("/dev/fb0");
	if (var.xres < width || var.yres < options.console_rows || var.bits_per_pixel != 32) {
		errno = ERANGE;
		fail("the console is %ux%u, %u bits a pixel", var.xres, var.yres, var.bits_per_pixel);
	}
	for (unsigned y = 0; y < options.console_rows; y++)
		if (pread(fb, buffer->pixels + (size_t)y * buffer->pitch, (size_t)width * 4,
			  (off_t)y * fix.line_length) != (ssize_t)width * 4)
			fail("reading row %u of /dev/fb0", y);
	close(fb);
}

/* The picture of a head's buffer: seed + output for the first, one more for the second. */
static void paint(struct head *head, unsigned which)
{
	unsigned width = head->mode.hdisplay, height = head->mode.vdisplay, top = options.console_rows;
	struct buffer *buffer = &head->buffers[which];

	*buffer = new_buffer(width, height, true);
	if (top > height)
		top = height;
	if (top)
		draw_console(buffer, width);
	draw(buffer, 0, top, width, height - top, options.seed + head->output + which);
}

static void show(struct head *head)
{
	struct drm_mode_crtc crtc = {
		.crtc_id = head->crtc,
		.fb_id = head->buffers[0].fb,
		.set_connectors_ptr = (uintptr_t)&head->connector,
		.count_connectors = 1,
		.mode_valid = 1,
		.mode = head->mode,
	};

	ASK(DRM_IOCTL_MODE_SETCRTC, &crtc);
	printf("head=%u mode=%ux%u seed=%u\n", head->output, head->mode.hdisplay, head->mode.vdisplay,
	       options.seed + head->output);
}

/* Flips between the two buffers, each flip waited for. Ends on the first after an even number. */
static void flip(struct head *head)
{
	double begin = now_ms(), worst = 0;

	for (unsigned i = 1; i <= options.flips; i++) {
		struct drm_mode_crtc_page_flip request = {
			.crtc_id = head->crtc,
			.fb_id = head->buffers[i & 1].fb,
			.flags = DRM_MODE_PAGE_FLIP_EVENT,
		};
		char event[256];
		double sent = now_ms(), took;

		ASK(DRM_IOCTL_MODE_PAGE_FLIP, &request);
		if (read(card, event, sizeof event) <= 0)
			fail("waiting for page flip %u", i);
		took = now_ms() - sent;
		if (took > worst)
			worst = took;
	}
	printf("head=%u flips=%u total_ms=%.1f worst_ms=%.1f seed=%u\n", head->output, options.flips,
	       now_ms() - begin, worst, options.seed + head->output + (options.flips & 1));
}

/* Redraws one rectangle of the shown buffer with the next seed but one, and tells DRM only about it. */
static void redraw(struct head *head)
{
	struct buffer *shown = &head->buffers[options.flips & 1];
	struct drm_clip_rect clip = {
		.x1 = (uint16_t)options.x,
		.y1 = (uint16_t)options.y,
		.x2 = (uint16_t)(options.x + options.w),
		.y2 = (uint16_t)(options.y + options.h),
	};
	struct drm_mode_fb_dirty_cmd dirty = {
		.fb_id = shown->fb, .clips_ptr = (uintptr_t)&clip, .num_clips = 1};

	if (options.x + options.w > head->mode.hdisplay || options.y + options.h > head->mode.vdisplay) {
		errno = ERANGE;
		fail("--dirty does not fit the mode");
	}
	draw(shown, options.x, options.y, options.w, options.h, options.seed + head->output + 2);
	ASK(DRM_IOCTL_MODE_DIRTYFB, &dirty);
	printf("head=%u dirty=%u,%u,%u,%u\n", head->output, options.x, options.y, options.w, options.h);
}

static void show_cursor(struct head *head)
{
	struct buffer buffer = new_buffer(CURSOR_SIZE, CURSOR_SIZE, false);
	struct drm_mode_cursor2 cursor = {
		.flags = DRM_MODE_CURSOR_BO | DRM_MODE_CURSOR_MOVE,
		.crtc_id = head->crtc,
		.x = options.cursor_x,
		.y = options.cursor_y,
		.width = CURSOR_SIZE,
		.height = CURSOR_SIZE,
		.handle = buffer.handle,
		.hot_x = options.hot_x,
		.hot_y = options.hot_y,
	};

	draw(&buffer, 0, 0, CURSOR_SIZE, CURSOR_SIZE, options.seed);
	for (unsigned i = 0; i < CURSOR_SIZE * CURSOR_SIZE; i++)
		buffer.pixels[i * 4 + 3] = (uint8_t)(i * 255 / (CURSOR_SIZE * CURSOR_SIZE));
	ASK(DRM_IOCTL_MODE_CURSOR2, &cursor);
	printf("head=%u cursor=%d,%d\n", head->output, options.cursor_x, options.cursor_y);
}

static const char usage[] =
	"usage: drmdraw [--output N]... [--mode WxH] [--seed N] [--flips N] [--dirty X,Y,W,H]\n"
	"               [--cursor X,Y[,HOT_X,HOT_Y]] [--console ROWS] [--stay]\n"
	"  --output N      draw on output N (default 0); repeat it for several heads\n"
	"  --seed N        output N shows the pattern of seed + N\n"
	"  --flips N       then flip N times between that picture and the next seed's\n"
	"  --dirty ...     then redraw that rectangle with the next seed but one\n"
	"  --console ROWS  keep the console's picture in the first ROWS rows\n"
	"  --stay          keep the picture: a child stays until it is killed\n";

static void parse(int argc, char **argv)
{
	static const struct option names[] = {
		{"output", required_argument, NULL, 'o'}, {"mode", required_argument, NULL, 'm'},
		{"seed", required_argument, NULL, 's'},	  {"flips", required_argument, NULL, 'f'},
		{"dirty", required_argument, NULL, 'd'},  {"cursor", required_argument, NULL, 'c'},
		{"console", required_argument, NULL, 't'}, {"stay", no_argument, NULL, 'k'},
		{0}};
	bool good = true;
	int got;

	while ((got = getopt_long(argc, argv, "", names, NULL)) != -1) {
		switch (got) {
		case 'o':
			good = options.head_count < MAX_HEADS &&
			       sscanf(optarg, "%u", &options.heads[options.head_count++]) == 1;
			break;
		case 'm':
			good = sscanf(optarg, "%ux%u", &options.width, &options.height) == 2 &&
			       options.width && options.height && options.width <= 16384 &&
			       options.height <= 16384;
			break;
		case 's':
			good = sscanf(optarg, "%u", &options.seed) == 1;
			break;
		case 'f':
			good = sscanf(optarg, "%u", &options.flips) == 1;
			break;
		case 'd':
			options.dirty = true;
			good = sscanf(optarg, "%u,%u,%u,%u", &options.x, &options.y, &options.w,
				      &options.h) == 4 &&
			       (options.x | options.y | options.w | options.h) <= 16384;
			break;
		case 'c':
			options.cursor = true;
			good = sscanf(optarg, "%d,%d,%d,%d", &options.cursor_x, &options.cursor_y,
				      &options.hot_x, &options.hot_y) >= 2;
			break;
		case 't':
			good = sscanf(optarg, "%u", &options.console_rows) == 1;
			break;
		case 'k':
			options.stay = true;
			break;
		default:
			good = false;
		}
		if (!good)
			break;
	}
	if (!good || optind != argc) {
		fputs(usage, stderr);
		exit(2);
	}
	if (!options.head_count)
		options.head_count = 1;
}

/* In the child it returns the pipe to say "drawn" on; the parent waits for that and exits. */
static int leave_child(void)
{
	int ends[2];
	char drawn;

	if (pipe(ends) < 0)
		fail("pipe");
	fflush(stdout);
	switch (fork()) {
	case -1:
		fail("fork");
	case 0:
		close(ends[0]);
		return ends[1];
	default:
		close(ends[1]);
		exit(read(ends[0], &drawn, 1) == 1 ? 0 : 1);
	}
}

int main(int argc, char **argv)
{
	struct head heads[MAX_HEADS];
	int drawn = -1;

	parse(argc, argv);
	if (options.stay)
		drawn = leave_child();
	open_card();
	for (unsigned i = 0; i < options.head_count; i++) {
		heads[i] = find_head(options.heads[i], options.width, options.height);
		paint(&heads[i], 0);
		if (options.flips)
			paint(&heads[i], 1);
	}
	for (unsigned i = 0; i < options.head_count; i++) {
		show(&heads[i]);
		if (options.flips)
			flip(&heads[i]);
		if (options.dirty)
			redraw(&heads[i]);
		if (options.cursor)
			show_cursor(&heads[i]);
	}
	fflush(stdout);
	if (options.stay) {
		/* Whoever reads our output must see its end now, not when we are killed. */
		if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr))
			fail("/dev/null");
		if (write(drawn, "k", 1) != 1)
			fail("telling that all is drawn");
		for (;;)
			pause();
	}
	return 0;
}
