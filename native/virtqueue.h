// One ring between its Python object (virtqueue_object.c) and what is done to it (virtqueue.c).
#ifndef VIRTQUEUE_H
#define VIRTQUEUE_H

#include "vgpu.h"

struct used_elem {
	uint32_t id, len;
};

struct ring {
	struct memory *memory; // NULL once the ring is broken
	const uint8_t *desc;
	uint16_t *avail; // flags, idx, ring[size], used_event
	uint8_t *used;	 // flags, idx, ring[size] of used_elem, avail_event
	uint32_t size, in_flight;
	uint16_t next_avail, next_used, published;
	bool event_idx, notified;
};

// Guard work, each with its argument ------------------------------------------------------

struct starting {
	const struct ring *ring;
	uint16_t used_idx;
};

struct popping {
	const struct ring *ring;
	bool arm; // ask for a kick where it is empty
	bool empty;
	struct chain chain;
};

struct spinning {
	const struct ring *ring;
	uint64_t nanoseconds; // at most
	bool found;
};

struct copying {
	const struct chain *chain;
	uint8_t *to;
	size_t length;
};

struct pushing {
	const struct ring *ring;
	const struct element *element;
	const uint8_t *response;
	size_t length;
	bool unmapped;
	uint64_t gpa; // of what is
};

struct publishing {
	const struct ring *ring;
	bool wanted;
};

guard_work ring_start, ring_take, ring_spin, ring_copy, ring_push, ring_publish;

#endif
