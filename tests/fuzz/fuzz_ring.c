// A driver that writes anything into its ring and its memory, at any time, and a device that pops,
// answers and publishes.
#include "harness.h"

#include <string.h>

#define DESC 0x0
#define AVAIL 0x1000
#define USED 0x1800
#define HELD 16

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct device {
	struct guest guest;
	uint32_t size;
	bool event_idx, broken, lost;
	PyObject *queue;
	PyObject *held[HELD];
	uint16_t avail;
};

static PyObject *call(PyObject *object, const char *name)
{
	return PyObject_CallMethod(object, name, NULL);
}

static uint64_t number(PyObject *object, const char *name)
{
	PyObject *value = PyObject_GetAttrString(object, name);
	uint64_t got;

	require(value, name);
	got = PyLong_AsUnsignedLongLong(value);
	Py_DECREF(value);
	return got;
}

static void drop(struct device *d)
{
	for (size_t i = 0; i < HELD; i++)
		Py_CLEAR(d->held[i]);
	Py_CLEAR(d->queue);
}

static void start(struct device *d, uint16_t base)
{
	drop(d);
	d->queue = PyObject_CallFunction(native("Virtqueue"), "OIKKKHO", d->guest.memory, d->size,
					 UVA + DESC, UVA + AVAIL, UVA + USED, base,
					 d->event_idx ? Py_True : Py_False);
	came(d->queue, "GuestFault", "a ring that is set up well");
	d->broken = d->lost = false;
	d->avail = base;
}

// After a step that may break the ring.
static bool served(struct device *d, PyObject *result, const char *allowed, const char *what)
{
	bool good = came(result, allowed, what);

	require(!good || !(d->broken || d->lost), "a ring that is broken or lost was served");
	if (!good && !d->lost)
		d->broken = true;
	return good;
}

static void pop(struct device *d)
{
	uint64_t before = number(d->queue, "in_flight");
	PyObject *element = call(d->queue, "pop");

	if (!served(d, element, "RingError GuestFault", "pop"))
		return;
	if (element == Py_None) {
		Py_DECREF(element);
		return;
	}
	require(number(d->queue, "in_flight") == before + 1, "one more is in flight");
	require(before < d->size, "no more chains than descriptors");
	require(number(element, "head") < d->size, "a head below the size");
	for (size_t i = 0; i < HELD; i++) {
		if (d->held[i])
			continue;
		d->held[i] = element;
		return;
	}
	Py_DECREF(element); // as a task that was cancelled: it is in flight for ever
}

static void push(struct device *d, struct input *in)
{
	static char answer[70000];
	size_t which = take(in, 1) % HELD, length = take(in, 1);
	PyObject *element = d->held[which], *written;

	if (!element)
		return;
	if (length > 250)
		length = sizeof(answer);
	memset(answer, 'A', sizeof(answer));
	written = PyObject_CallMethod(d->queue, "push", "Oy#", element, answer, (Py_ssize_t)length);
	if (served(d, written, "RingError GuestFault", "push")) {
		uint64_t told = PyLong_AsUnsignedLongLong(written);

		require(told <= length && told <= number(element, "writable"),
			"no more is said than was written");
		Py_DECREF(written);
		written = PyObject_CallMethod(d->queue, "push", "Oy#", element, answer, (Py_ssize_t)0);
		require(!came(written, "ValueError", "pushed twice"), "pushed twice");
	}
	Py_CLEAR(d->held[which]);
}

static void rebind(struct device *d, PyObject *memory)
{
	PyObject *result = PyObject_CallMethod(d->queue, "rebind", "O", memory);

	if (d->broken)
		require(!came(result, "RingError", "rebind"), "a broken ring was bound again");
	else
		d->lost = !came(result, "ValueError", "rebind");
	Py_XDECREF(result);
}

static void descriptor(struct input *in)
{
	struct {
		uint64_t addr;
		uint32_t len;
		uint16_t flags, next;
	} row;
	uint64_t table = take(in, 1), index = take(in, 1);

	row.addr = take_address(in);
	row.len = (uint32_t)take_number(in);
	row.flags = (uint16_t)take(in, 1);
	row.next = (uint16_t)take(in, 1);
	// In the ring's table, or where an indirect one may be.
	guest_write((table < 200 ? DESC : 0x2000) + 16 * index, &row, sizeof(row));
}

static void step(struct device *d, struct input *in)
{
	uint16_t value;
	PyObject *result;

	switch (take(in, 1) % 12) {
	case 0:
	case 1:
		descriptor(in);
		break;
	case 2: // offered as a driver does
		value = (uint16_t)take(in, 1);
		guest_write(AVAIL + 4 + 2 * (d->avail & (d->size - 1)), &value, 2);
		d->avail++;
		guest_write(AVAIL + 2, &d->avail, 2);
		break;
	case 3: { // any bytes anywhere
		uint64_t at = take_address(in), length = take(in, 1);

		if (length > in->left)
			length = in->left;
		if (length)
			guest_write(at, in->at, length);
		in->at += length, in->left -= length;
		break;
	}
	case 4:
		d->avail = (uint16_t)take(in, 2);
		guest_write(AVAIL + 2, &d->avail, 2);
		break;
	case 5:
	case 6:
		pop(d);
		break;
	case 7:
		push(d, in);
		break;
	case 8:
		result = call(d->queue, "publish");
		served(d, result, "RingError GuestFault", "publish");
		Py_XDECREF(result);
		break;
	case 9:
		rebind(d, take(in, 1) & 1 ? d->guest.memory : d->guest.smaller);
		break;
	case 10:
		guest_cut(take(in, 1) & 1);
		break;
	case 11:
		start(d, (uint16_t)take(in, 2));
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {data, size};
	struct device d = {.queue = NULL};
	uint64_t shape = take(&in, 1);

	d.size = 1u << (shape & 7);
	d.event_idx = shape & 8;
	guest_open(&d.guest);
	start(&d, (uint16_t)take(&in, 2));
	while (in.left && d.queue)
		step(&d, &in);
	drop(&d);
	guest_close(&d.guest);
	return 0;
}
