// Guest pages into B8G8R8A8 pixels.
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

static int to_swizzle(PyObject *object, void *ret)
{
	uint32_t number;

	if (!to_u32(object, &number))
		return 0;
	if (number >= Py_ARRAY_LENGTH(swizzles)) {
		raise_error(PyExc_ValueError, "swizzle %u is not 0 to 3", number);
		return 0;
	}
	*(swizzle_row **)ret = swizzles[number];
	return 1;
}

struct rectangle {
	const struct backing *backing;
	swizzle_row *swizzle;
	uint8_t *to;
	uint64_t stride, row_bytes, rows;
	uint64_t offset, src_stride; // in the backing
	uint64_t written;
	const volatile uint8_t *stop; // not NULL: another thread sets it to end the copy
	uint64_t looked; // `written` when it was last looked at
};

// A copy that is told to stop goes on for this many bytes at most: QEMU waits for it. Those of a
// device are uncached, 256 loads in the second; and it is not asked at all once told.
#define STOP_BYTES (256 * 1024)
#define STOP_DEVICE_BYTES (4 * 1024)

static bool stopped(struct rectangle *r, bool device)
{
	if (!r->stop || (!device && r->written - r->looked < STOP_BYTES))
		return false;
	r->looked = r->written;
	return *r->stop;
}

static void transfer_work(struct guard *guard, void *arg)
{
	struct rectangle *r = arg;
	bool device = memory_is_device(backing_memory(r->backing));
	uint64_t size = backing_size(r->backing), offset = r->offset;
	uint64_t step = device ? STOP_DEVICE_BYTES : UINT64_MAX; // a row has any length
	size_t hint = 0;

	for (uint64_t row = 0; row < r->rows && offset < size; row++) {
		uint64_t left = size - offset;
		uint64_t bytes = (r->row_bytes <= left ? r->row_bytes : left) & ~(uint64_t)3;
		uint8_t *to = r->to + row * r->stride;

		for (uint64_t done = 0, piece; done < bytes; done += piece) {
			if (stopped(r, device))
				return;
			piece = bytes - done <= step ? bytes - done : step;
			backing_load(guard, r->backing, &hint, offset + done, to + done, piece);
			r->written += piece;
		}
		if (r->swizzle)
			r->swizzle(to, bytes);
		// A guest's offset near 2**64 must not come back to the first rows.
		if (__builtin_add_overflow(offset, r->src_stride, &offset))
			return;
	}
}

PyObject *transfer(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"surface", "stride",  "x",	 "y",	   "width",	 "height",
				"swizzle", "backing", "offset", "src_stride", NULL};
	struct state *state = PyModule_GetState(module);
	_cleanup_buffer_ Py_buffer surface = {NULL};
	uint32_t x, y, width, height;
	struct rectangle r = {.written = 0};
	uint64_t right, last_row, start, end;
	PyObject *backing;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "w*O&O&O&O&O&O&O!O&O&:transfer", names,
					 &surface, to_u64, &r.stride, to_u32, &x, to_u32, &y,
					 to_u32, &width, to_u32, &height, to_swizzle, &r.swizzle,
					 state->backing, &backing, to_u64, &r.offset, to_u64,
					 &r.src_stride))
		return NULL;
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
	r.row_bytes = 4 * (uint64_t)width;
	r.rows = height;
	// Nothing to write: also keeps the pointer below from leaving the surface.
	if (!r.row_bytes || !r.rows)
		return PyLong_FromLong(0);
	r.to = (uint8_t *)surface.buf + y * r.stride + 4 * (uint64_t)x;
	if (!backing_require_mapped(state, r.backing) ||
	    !guarded(state, backing_memory(r.backing), transfer_work, &r, r.row_bytes * r.rows))
		return NULL;
	return PyLong_FromUnsignedLongLong(r.written);
}

// The bytes of a backing that a rectangle of a frame buffer touches end at `*end`.
static bool frame_end(const struct rectangle *r, uint64_t *end)
{
	uint64_t rows;

	return !__builtin_mul_overflow(r->rows - 1, r->src_stride, &rows) &&
	       !__builtin_add_overflow(rows, r->row_bytes, &rows) &&
	       !__builtin_add_overflow(rows, r->offset, end);
}

PyObject *copy_out(PyObject *module, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"backing", "offset", "stride",	"x",   "y",
				"width",   "height", "swizzle", "out", "stop", NULL};
	struct state *state = PyModule_GetState(module);
	_cleanup_buffer_ Py_buffer out = {NULL};
	_cleanup_buffer_ Py_buffer stop = {NULL};
	struct rectangle r = {.written = 0};
	uint64_t offset, skipped, end;
	uint32_t x, y, width, height;
	PyObject *backing;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O&O&O&O&O&O&O&w*|y*:copy_out", names,
					 state->backing, &backing, to_u64, &offset, to_u64,
					 &r.src_stride, to_u32, &x, to_u32, &y, to_u32, &width,
					 to_u32, &height, to_swizzle, &r.swizzle, &out, &stop))
		return NULL;
	r.backing = (struct backing *)backing;
	r.row_bytes = r.stride = 4 * (uint64_t)width;
	r.rows = height;
	if (stop.len > 0)
		r.stop = stop.buf;
	if (!width || !height)
		Py_RETURN_TRUE;
	if ((uint64_t)out.len / r.row_bytes < r.rows) {
		raise_error(PyExc_ValueError, "%ux%u pixels do not fit in %zd bytes", width,
			    height, out.len);
		return NULL;
	}
	if (__builtin_mul_overflow(y, r.src_stride, &skipped) ||
	    __builtin_add_overflow(skipped, 4 * (uint64_t)x, &skipped) ||
	    __builtin_add_overflow(skipped, offset, &r.offset) || !frame_end(&r, &end) ||
	    end > backing_size(r.backing)) {
		raise_error(PyExc_ValueError,
			    "%ux%u at %u,%u with a stride of %llu from %llu is not inside %llu bytes",
			    width, height, x, y, (unsigned long long)r.src_stride,
			    (unsigned long long)offset,
			    (unsigned long long)backing_size(r.backing));
		return NULL;
	}
	r.to = out.buf;
	if (!backing_require_mapped(state, r.backing) ||
	    !guarded(state, backing_memory(r.backing), transfer_work, &r, r.row_bytes * r.rows))
		return NULL;
	return PyBool_FromLong(r.written == r.row_bytes * r.rows);
}

// A surface is our own and sealed, or anonymous: no guard.
PyObject *gather(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"surface", "stride", "x", "y", "width", "height", NULL};
	_cleanup_pydecref_ PyObject *bytes = NULL;
	_cleanup_buffer_ Py_buffer surface = {NULL};
	uint64_t stride, row_bytes, last_row, end;
	uint32_t x, y, width, height;
	PyThreadState *thread = NULL;
	const uint8_t *from;
	char *to;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*O&O&O&O&O&:gather", names, &surface,
					 to_u64, &stride, to_u32, &x, to_u32, &y, to_u32, &width,
					 to_u32, &height))
		return NULL;
	row_bytes = 4 * (uint64_t)width;
	if (!width || !height)
		return PyBytes_FromStringAndSize(NULL, 0);
	last_row = (uint64_t)y + height - 1;
	if (4 * (uint64_t)x + row_bytes > stride ||
	    __builtin_mul_overflow(last_row, stride, &end) ||
	    __builtin_add_overflow(end, 4 * (uint64_t)x + row_bytes, &end) ||
	    end > (uint64_t)surface.len) {
		raise_error(PyExc_ValueError,
			    "%ux%u at %u,%u is not inside %zd bytes with a stride of %llu", width,
			    height, x, y, surface.len, (unsigned long long)stride);
		return NULL;
	}
	// No overflow: the rectangle is no larger than the surface.
	bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(row_bytes * height));
	if (!bytes)
		return NULL;
	to = PyBytes_AS_STRING(bytes);
	from = (const uint8_t *)surface.buf + y * stride + 4 * (uint64_t)x;
	if (row_bytes * height > GIL_BYTES)
		thread = PyEval_SaveThread();
	for (uint32_t row = 0; row < height; row++)
		memcpy(to + row * row_bytes, from + row * stride, row_bytes);
	if (thread)
		PyEval_RestoreThread(thread);
	return_ptr(bytes);
}
