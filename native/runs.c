// A backing as runs of its regions' files: what an exporter of dma-bufs is told.
#include "vgpu.h"

#include <linux/udmabuf.h>
#include <string.h>
#include <unistd.h>

// The kernel's own item, with the region's number in the place of its descriptor.
struct runs {
	struct udmabuf_create_item *items;
	size_t count, room;
};

static bool runs_append(struct runs *runs, uint32_t region, uint64_t offset, uint64_t length)
{
	if (runs->count) {
		struct udmabuf_create_item *last = &runs->items[runs->count - 1];

		// Segments that are apart for the guest may meet in a file.
		if (last->memfd == region && last->offset + last->size == offset) {
			last->size += length;
			return true;
		}
	}
	if (runs->count == runs->room) {
		size_t room = runs->room ? runs->room * 2 : 16;
		struct udmabuf_create_item *items = NULL;

		if (room <= PY_SSIZE_T_MAX / sizeof(*items))
			items = PyMem_Realloc(runs->items, room * sizeof(*items));
		if (!items) {
			PyErr_NoMemory();
			return false;
		}
		runs->items = items;
		runs->room = room;
	}
	runs->items[runs->count++] = (struct udmabuf_create_item){
		.memfd = region,
		.offset = offset,
		.size = length,
	};
	return true;
}

static bool runs_fill(struct runs *runs, const struct backing *backing, uint64_t size)
{
	uint64_t gpa, length;

	for (size_t i = 0; size && (length = backing_segment(backing, i, &gpa)); i++) {
		if (length > size)
			length = size;
		size -= length;
		while (length) {
			size_t region;
			uint64_t run;
			uint64_t offset = memory_place(backing_memory(backing), gpa, length,
						       &region, &run);

			if (!runs_append(runs, (uint32_t)region, offset, run))
				return false;
			gpa += run, length -= run;
		}
	}
	return true;
}

PyObject *backing_runs(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"size", NULL};
	const struct backing *self = (struct backing *)object;
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), size;
	_cleanup_pymem_ struct udmabuf_create_item *items = NULL;
	struct runs runs = {.items = NULL};
	bool done;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&:runs", names, to_u64, &size))
		return NULL;
	// The page that the last byte is on: what is behind it is not the picture's.
	size = size > UINT64_MAX - page ? UINT64_MAX : (size + page - 1) & ~(page - 1);
	done = runs_fill(&runs, self, size);
	items = runs.items;
	if (!done)
		return NULL;
	return PyBytes_FromStringAndSize((char *)items, (Py_ssize_t)(runs.count * sizeof(*items)));
}
