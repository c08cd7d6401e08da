// Guest pages into a surface of B8G8R8A8 pixels.
#include "vgpu.h"

#include <string.h>

// Row by row in place, right after the bytes came: they are still in the first-level cache,
// and a pixel that straddles two segments is whole again. memcpy, because a surface that is a
// slice may start anywhere. Each loop is one that compilers turn into vector code.
#define SWIZZLE(name, expression)                                                              \
	static void name(uint8_t *row, uint64_t bytes)                                         \
	{                                                                                      \
		for (uint64_t i = 0; i < bytes; i += 4) {                                      \
			uint32_t p;                                                            \
			memcpy(&p, row + i, 4);                                                \
			p = (expression);                                                      \
			memcpy(row + i, &p, 4);                                                \
		}                                                                              \
	}

SWIZZLE(from_rgba, (p & 0xff00ff00) | (p >> 16 & 0xff) | (p & 0xff) << 16)
SWIZZLE(from_abgr, (p >> 8) | (p << 24))

// In one loop gcc makes a bswap of it, which it cannot vectorise: half as fast as two.
static void from_argb(uint8_t *row, uint64_t bytes)
{
	from_abgr(row, bytes);
	from_rgba(row, bytes);
}

typedef void swizzle_row(uint8_t *row, uint64_t bytes);

static swizzle_row *const swizzles[] = {NULL, from_argb, from_rgba, from_abgr};

struct rectangle {
	const struct backing *backing;
	swizzle_row *swizzle;
	uint8_t *to;
	uint64_t stride, offset, row_bytes, rows;
	uint64_t written;
};

static void transfer_work(struct guard *guard, void *arg)
{
	struct rectangle *r = arg;
	uint64_t size = backing_size(r->backing), offset = r->offset;
	size_t hint = 0;

	for (uint64_t row = 0; row < r->rows && offset < size; row++) {
		uint64_t left = size - offset;
		uint64_t bytes = (r->row_bytes <= left ? r->row_bytes : left) & ~(uint64_t)3;
		uint8_t *to = r->to + row * r->stride;

		backing_load(guard, r->backing, &hint, offset, to, bytes);
		if (r->swizzle)
			r->swizzle(to, bytes);
		r->written += bytes;
		// A guest's offset near 2**64 must not come back to the first rows.
		if (__builtin_add_overflow(offset, r->stride, &offset))
			return;
	}
}

PyObject *transfer(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"surface", "stride",  "x",	 "y",	   "width",
				"height",  "swizzle", "backing", "offset", NULL};
	struct state *state = PyModule_GetState(module);
	_cleanup_buffer_ Py_buffer surface = {NULL};
	uint32_t x, y, width, height, swizzle;
	struct rectangle r = {.written = 0};
	uint64_t right, last_row, start, end;
	PyObject *backing;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*O&O&O&O&O&O&O!O&:transfer", names,
					 &surface, to_u64, &r.stride, to_u32, &x, to_u32, &y,
					 to_u32, &width, to_u32, &height, to_u32, &swizzle,
					 state->backing, &backing, to_u64, &r.offset))
		return NULL;
	if (swizzle >= Py_ARRAY_LENGTH(swizzles)) {
		raise_error(PyExc_ValueError, "swizzle %u is not 0 to 3", swizzle);
		return NULL;
	}
	right = 4 * ((uint64_t)x + width);
	last_row = (uint64_t)y + height - (height ? 1 : 0);
	if (right > r.stride || __builtin_mul_overflow(last_row, r.stride, &start) ||
	    __builtin_add_overflow(start, height ? right : 0, &end) ||
	    end > (uint64_t)surface.len) {
		raise_error(PyExc_ValueError,
			    "%ux%u at %u,%u is not inside %zd bytes with a stride of %llu", width,
			    height, x, y, surface.len, (unsigned long long)r.stride);
		return NULL;
	}
	r.backing = (struct backing *)backing;
	r.swizzle = swizzles[swizzle];
	r.row_bytes = 4 * (uint64_t)width;
	r.rows = height;
	// Nothing to write: also keeps the pointer below from leaving the surface.
	if (!r.row_bytes || !r.rows)
		return PyLong_FromLong(0);
	r.to = (uint8_t *)surface.buf + y * r.stride + 4 * (uint64_t)x;
	if (!guarded(state, backing_memory(r.backing), transfer_work, &r, r.row_bytes * r.rows))
		return NULL;
	return PyLong_FromUnsignedLongLong(r.written);
}
