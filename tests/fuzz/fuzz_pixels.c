// Entries of a backing, and rectangles moved between guest pages and pixels. What transfer() and
// copy_out() write is compared with the same rows taken by read() and turned around one by one.
#include "harness.h"

#include <string.h>

#define SURFACE 8192
#define FILL 0xA5

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t orders[4][4] = {{0, 1, 2, 3}, {3, 2, 1, 0}, {2, 1, 0, 3}, {1, 2, 3, 0}};
// Where B, G, R and A are in the guest's pixel: B8G8R8A8, A8R8G8B8, R8G8B8A8, A8B8G8R8.

static PyObject *backing_of(PyObject *memory, struct input *in)
{
	static struct {
		uint64_t addr;
		uint32_t length, padding;
	} entries[256];
	size_t count = take(in, 1);

	for (size_t i = 0; i < count; i++) {
		entries[i].addr = take_address(in);
		entries[i].length = (uint32_t)take_number(in);
		entries[i].padding = (uint32_t)i;
		if (!in->left)
			count = i + 1;
	}
	return PyObject_CallFunction(native("Backing"), "Oy#", memory, (char *)entries,
				     (Py_ssize_t)(count * sizeof(*entries)));
}

// The row's bytes as read() has them, in B8G8R8A8; their number, or -1 where memory is gone.
static Py_ssize_t row_of(PyObject *backing, uint64_t offset, uint64_t bytes, unsigned int swizzle,
			 uint8_t *to)
{
	PyObject *read = PyObject_CallMethod(backing, "read", "KK", offset, bytes);
	Py_ssize_t length = -1;

	if (came(read, "GuestFault", "read")) {
		const uint8_t *from = (uint8_t *)PyBytes_AS_STRING(read);

		require((uint64_t)PyBytes_GET_SIZE(read) <= bytes, "read() gives no more than asked");
		length = PyBytes_GET_SIZE(read) & ~(Py_ssize_t)3;
		for (Py_ssize_t i = 0; i < length; i++)
			to[i] = from[(i & ~(Py_ssize_t)3) + orders[swizzle][i & 3]];
		Py_DECREF(read);
	}
	return length;
}

static void check(const uint8_t *surface, const uint8_t *expected, const char *what)
{
	require(!memcmp(surface, expected, SURFACE), what);
}

static void transfer(PyObject *backing, struct input *in)
{
	uint64_t stride = take_number(in), offset = take_number(in), pitch = take_number(in);
	unsigned int x = (unsigned int)take_number(in), y = (unsigned int)take_number(in);
	unsigned int width = (unsigned int)take_number(in), height = (unsigned int)take_number(in);
	unsigned int swizzle = (unsigned int)take(in, 1) & 3;
	PyObject *surface = PyByteArray_FromStringAndSize(NULL, SURFACE), *result;
	uint8_t expected[SURFACE];
	bool whole = true;

	require(surface, "a surface");
	memset(PyByteArray_AS_STRING(surface), FILL, SURFACE);
	memset(expected, FILL, SURFACE);
	result = PyObject_CallMethod(PyImport_AddModule("_native"),
				     "transfer", "OKIIIIIOKK", surface, stride, x, y, width, height,
				     swizzle, backing, offset, pitch);
	if (came(result, "ValueError GuestFault", "transfer")) {
		for (uint64_t row = 0, at = offset; width && row < height; row++) {
			whole = whole && row_of(backing, at, 4 * (uint64_t)width, swizzle,
						expected + (y + row) * stride + 4 * (uint64_t)x) >= 0;
			if (__builtin_add_overflow(at, pitch, &at))
				break;
		}
		if (whole)
			check((uint8_t *)PyByteArray_AS_STRING(surface), expected, "transfer()");
		Py_DECREF(result);
	}
	Py_DECREF(surface);
}

static void copy_out(PyObject *backing, struct input *in)
{
	uint64_t offset = take_number(in), stride = take_number(in);
	unsigned int x = (unsigned int)take_number(in), y = (unsigned int)take_number(in);
	unsigned int width = (unsigned int)take_number(in), height = (unsigned int)take_number(in);
	unsigned int swizzle = (unsigned int)take(in, 1) & 3;
	PyObject *out = PyByteArray_FromStringAndSize(NULL, SURFACE), *result;
	uint8_t expected[SURFACE];
	bool whole = true;

	require(out, "a buffer");
	memset(PyByteArray_AS_STRING(out), FILL, SURFACE);
	memset(expected, FILL, SURFACE);
	result = PyObject_CallMethod(PyImport_AddModule("_native"), "copy_out", "OKKIIIIIO", backing,
				     offset, stride, x, y, width, height, swizzle, out);
	if (came(result, "ValueError GuestFault", "copy_out")) {
		uint64_t bytes = 4 * (uint64_t)width;

		for (uint64_t row = 0; bytes && row < height; row++) {
			uint64_t at = offset + (y + row) * stride + 4 * (uint64_t)x;
			Py_ssize_t got = row_of(backing, at, bytes, swizzle, expected + row * bytes);

			require(got < 0 || (uint64_t)got == bytes, "all of it is in the backing");
			whole = whole && got >= 0;
		}
		if (whole)
			check((uint8_t *)PyByteArray_AS_STRING(out), expected, "copy_out()");
		Py_DECREF(result);
	}
	Py_DECREF(out);
}

static void runs(PyObject *backing, struct input *in)
{
	uint64_t size = take_number(in), total = 0;
	PyObject *runs = PyObject_CallMethod(backing, "runs", "K", size);

	if (!came(runs, "", "runs"))
		return;
	require(PyBytes_GET_SIZE(runs) % 24 == 0, "whole runs");
	for (Py_ssize_t i = 0; i < PyBytes_GET_SIZE(runs); i += 24) {
		struct {
			uint32_t region, flags;
			uint64_t offset, size;
		} run;

		memcpy(&run, PyBytes_AS_STRING(runs) + i, sizeof(run));
		require(run.region < 4 && !run.flags && run.size, "a run of a region");
		require(run.offset + run.size <= (run.region == 2 ? 0x2000 : 2 * HALF + 0x1000),
			"a run inside of its file");
		total += run.size;
	}
	// A page more than asked for at most: up to the end of the last one.
	require(total <= size || total - size < 0x1000, "no more than was asked for");
	Py_DECREF(runs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	struct guest guest;
	PyObject *backing;

	guest_open(&guest);
	for (uint64_t at = 0; at < 2 * HALF; at += 4096) {
		uint8_t page[4096];

		for (size_t i = 0; i < sizeof(page); i++)
			page[i] = (uint8_t)(at / 61 + i * 7 + i / 256);
		guest_write(at, page, sizeof(page));
	}
	backing = backing_of(guest.memory, &in);
	if (came(backing, "ValueError", "Backing")) {
		while (in.left) {
			switch (take(&in, 1) % 5) {
			case 0:
				transfer(backing, &in);
				break;
			case 1:
				copy_out(backing, &in);
				break;
			case 2:
				runs(backing, &in);
				break;
			case 3:
				guest_cut(take(&in, 1) & 1);
				break;
			case 4: {
				PyObject *memory = take(&in, 1) & 1 ? guest.memory : guest.smaller;
				PyObject *next = PyObject_CallMethod(backing, "rebind", "O", memory);

				if (came(next, "ValueError", "rebind"))
					Py_SETREF(backing, next);
				break;
			}
			}
		}
		Py_DECREF(backing);
	}
	guest_close(&guest);
	return 0;
}
