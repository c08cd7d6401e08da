// What the device does to a split virtqueue (virtio 1.3, 2.7). The only file with atomics.
#include "virtqueue.h"

#include <sched.h>
#include <string.h>
#include <time.h>

enum { NO_INTERRUPT = 1 };

// Fields of the rings. Each sets its own range, so none needs to know who calls. ------------

static uint16_t *used_field(const struct ring *ring, size_t offset)
{
	return (uint16_t *)(ring->used + offset);
}

static uint16_t load_avail_idx(struct guard *guard, const struct ring *ring)
{
	guard_range(guard, &ring->avail[1], 2);
	// Acquire: the ring entry and the descriptors were written before the index.
	return __atomic_load_n(&ring->avail[1], __ATOMIC_ACQUIRE);
}

// Relaxed: a single read that the compiler may not repeat; the order comes from elsewhere.
static uint16_t load_avail(struct guard *guard, const struct ring *ring, size_t field)
{
	guard_range(guard, &ring->avail[field], 2);
	return __atomic_load_n(&ring->avail[field], __ATOMIC_RELAXED);
}

static void store_used(struct guard *guard, const struct ring *ring, size_t offset,
		       uint16_t value)
{
	guard_range(guard, used_field(ring, offset), 2);
	__atomic_store_n(used_field(ring, offset), value, __ATOMIC_RELAXED);
}

void ring_start(struct guard *guard, void *arg)
{
	struct starting *s = arg;

	guard_range(guard, used_field(s->ring, 2), 2);
	// Relaxed: we are its only writer, and what we read is where we left it.
	s->used_idx = __atomic_load_n(used_field(s->ring, 2), __ATOMIC_RELAXED);
}

static void arm(struct guard *guard, const struct ring *ring)
{
	// With EVENT_IDX the flags must be 0 (2.7.10); without, 0 asks for kicks. Whoever had
	// the ring before us may have left a 1.
	store_used(guard, ring, 0, 0);
	if (ring->event_idx)
		store_used(guard, ring, 4 + sizeof(struct used_elem) * ring->size, ring->next_avail);
	// The driver writes its index, then reads this; we write this, then read its index. Only
	// a full fence between store and load keeps both from missing each other's write.
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
}

void ring_take(struct guard *guard, void *arg)
{
	struct popping *p = arg;
	const struct ring *ring = p->ring;
	uint16_t idx = load_avail_idx(guard, ring);
	uint16_t ahead;

	if (p->arm && idx == ring->next_avail) {
		arm(guard, ring);
		idx = load_avail_idx(guard, ring);
	}
	ahead = (uint16_t)(idx - ring->next_avail);
	p->empty = !ahead;
	if (p->empty)
		return;
	p->chain.index = idx;
	if (ahead > ring->size) {
		p->chain.fault = "avail idx %llu is %llu ahead";
		p->chain.value = ahead;
		return;
	}
	// No driver has more chains than descriptors: heads offered twice would let it park any
	// number of requests in our memory.
	if (ring->in_flight >= ring->size) {
		p->chain.fault = "avail idx %llu: %llu chains are in flight already";
		p->chain.value = ring->in_flight;
		return;
	}
	p->chain.head = load_avail(guard, ring, 2 + (ring->next_avail & (ring->size - 1)));
	if (p->chain.head >= ring->size) {
		p->chain.fault = "avail idx %llu: head %llu is not below the size";
		p->chain.value = p->chain.head;
		return;
	}
	chain_walk(guard, &p->chain);
}

static uint64_t nanoseconds_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static inline void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

// The CPU is given away all the time: a vCPU may be waiting for it.
void ring_spin(struct guard *guard, void *arg)
{
	struct spinning *s = arg;
	uint64_t end = nanoseconds_now() + s->nanoseconds;

	do {
		for (int i = 0; i < 16; i++, relax()) {
			s->found = load_avail_idx(guard, s->ring) != s->ring->next_avail;
			if (s->found)
				return;
		}
		sched_yield();
	} while (nanoseconds_now() < end);
}

// A second guarded call: the bytes object in between can be made outside of one only.
void ring_copy(struct guard *guard, void *arg)
{
	struct copying *c = arg;

	for (uint32_t i = 0; c->length; i++) {
		const struct range *range = &c->chain->ranges[i];
		size_t run = range->length < c->length ? range->length : c->length;

		memory_load(guard, c->chain->memory, range->gpa, c->to, run);
		c->to += run, c->length -= run;
	}
}

void ring_push(struct guard *guard, void *arg)
{
	struct pushing *p = arg;
	const struct ring *ring = p->ring;
	struct used_elem entry = {.id = p->element->head, .len = (uint32_t)p->length};
	uint8_t *slot;

	for (size_t i = 0, left = p->length; left; i++) {
		const struct range *range = &p->element->writable[i];
		size_t run = range->length < left ? range->length : left;

		if (!memory_store(guard, ring->memory, range->gpa, p->response, run)) {
			p->unmapped = true;
			p->gpa = range->gpa;
			return;
		}
		p->response += run, left -= run;
	}
	// No order needed yet: the driver reads an entry after the index of publish().
	slot = ring->used + 4 + sizeof(entry) * (ring->next_used & (ring->size - 1));
	guard_range(guard, slot, sizeof(entry));
	memcpy(slot, &entry, sizeof(entry));
}

void ring_publish(struct guard *guard, void *arg)
{
	struct publishing *p = arg;
	const struct ring *ring = p->ring;
	uint16_t seen;

	guard_range(guard, used_field(ring, 2), 2);
	// Release: whoever sees the index sees entries and responses.
	__atomic_store_n(used_field(ring, 2), ring->next_used, __ATOMIC_RELEASE);
	// As in arm(): the driver writes used_event (or the flags), then reads the index.
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	seen = load_avail(guard, ring, ring->event_idx ? 2 + ring->size : 0);
	if (!ring->event_idx)
		p->wanted = !(seen & NO_INTERRUPT);
	else
		// 2.7.10: was used_event passed by this step, modulo 2**16? A predecessor that
		// died between index and signal has left the driver waiting for an event that
		// is behind us, so the first step is always told.
		p->wanted = !ring->notified || (uint16_t)(ring->next_used - seen - 1) <
						     (uint16_t)(ring->next_used - ring->published);
}
