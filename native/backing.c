// Guest pages behind a resource, found by offset.
//
// Not part of any cycle: a backing holds a memory, which holds regions.
#include "vgpu.h"

#include <string.h>

struct segment {
	uint64_t offset; // where it starts in the backing; it ends where the next one starts
	uint64_t gpa;
	uint8_t *host;
};

struct backing {
	PyObject_HEAD
	struct memory *memory;
	size_t count, room; // `count` segments and one more that holds the size
	bool elsewhere;	    // some of it is not mapped: no byte is touched
	struct segment *segments;
};

#define ENTRY_SIZE 16

const struct memory *backing_memory(const struct backing *backing)
{
	return backing->memory;
}

uint64_t backing_size(const struct backing *backing)
{
	return backing->segments[backing->count].offset;
}

uint64_t backing_segment(const struct backing *backing, size_t i, uint64_t *gpa)
{
	if (i >= backing->count)
		return 0;
	*gpa = backing->segments[i].gpa;
	return backing->segments[i + 1].offset - backing->segments[i].offset;
}

// Building -------------------------------------------------------------------------------

// Not PyMem_Resize(): that forgets the old block where there is no new one.
static bool backing_resize(struct backing *self, size_t room)
{
	struct segment *segments = NULL;

	if (room <= PY_SSIZE_T_MAX / sizeof(*segments))
		segments = PyMem_Realloc(self->segments, room * sizeof(*segments));
	if (!segments)
		return false;
	self->segments = segments;
	self->room = room;
	return true;
}

// There is always room for the segment that holds the size.
static int backing_grow(struct backing *self)
{
	if (self->count + 1 < self->room)
		return 0;
	if (backing_resize(self, self->room ? self->room * 2 : 16))
		return 0;
	PyErr_NoMemory();
	return -1;
}

static int backing_append(struct backing *self, uint64_t gpa, uint8_t *host, uint64_t length)
{
	struct segment *end = &self->segments[self->count];
	uint64_t offset = end->offset;

	if (self->count) {
		struct segment *last = end - 1;
		uint64_t last_length = offset - last->offset;

		// Contiguous for the guest too, so that rebind() can split it again.
		if (last->gpa + last_length == gpa &&
		    (host ? last->host && last->host + last_length == host : !last->host)) {
			end->offset = offset + length;
			return 0;
		}
	}
	*end = (struct segment){.offset = offset, .gpa = gpa, .host = host};
	self->count++;
	if (backing_grow(self) < 0)
		return -1;
	self->segments[self->count] = (struct segment){.offset = offset + length};
	return 0;
}

// 0 where the range is not all in memory that may be read or exported; -1 on MemoryError.
static int backing_resolve(struct backing *self, uint64_t gpa, uint64_t length)
{
	if (!length || wraps(gpa, length))
		return 0;
	while (length) {
		uint64_t run;
		uint8_t *host;

		if (!memory_backs(self->memory, gpa, length, &host, &run))
			return 0;
		self->elsewhere |= !host;
		if (backing_append(self, gpa, host, run) < 0)
			return -1;
		gpa += run, length -= run;
	}
	return 1;
}

static struct backing *backing_alloc(PyTypeObject *type, PyObject *memory)
{
	_cleanup_pydecref_ struct backing *self = (struct backing *)type->tp_alloc(type, 0);

	if (!self)
		return NULL;
	self->memory = memory_ref(memory);
	if (backing_grow(self) < 0)
		return NULL;
	self->segments[0] = (struct segment){.offset = 0};
	return_ptr(self);
}

static PyObject *backing_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"memory", "entries", NULL};
	_cleanup_pydecref_ struct backing *self = NULL;
	_cleanup_buffer_ Py_buffer entries = {NULL};
	PyObject *memory;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!y*:Backing", names,
					 state_of(type)->guest_memory, &memory, &entries))
		return NULL;
	if (entries.len % ENTRY_SIZE) {
		raise_error(PyExc_ValueError, "%zd bytes are no array of 16-byte entries",
			    entries.len);
		return NULL;
	}
	self = backing_alloc(type, memory);
	if (!self)
		return NULL;
	for (Py_ssize_t i = 0; i < entries.len / ENTRY_SIZE; i++) {
		struct {
			uint64_t addr;
			uint32_t length, padding;
		} entry;
		int found;

		memcpy(&entry, (const char *)entries.buf + i * ENTRY_SIZE, ENTRY_SIZE);
		// The caller's buffer may be writable elsewhere: the checked copy is the used one.
		atomic_signal_fence(memory_order_seq_cst);
		found = backing_resolve(self, entry.addr, entry.length);
		if (found < 0)
			return NULL;
		if (!found) {
			raise_error(PyExc_ValueError,
				    "entry %zd: %u bytes at 0x%llx are not in readable memory", i,
				    entry.length, (unsigned long long)entry.addr);
			return NULL;
		}
	}
	(void)backing_resize(self, self->count + 1); // kept too large otherwise
	return_ptr(self);
}

static PyObject *backing_rebind(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"memory", NULL};
	const struct backing *old = (struct backing *)object;
	_cleanup_pydecref_ struct backing *self = NULL;
	PyTypeObject *type = Py_TYPE(object);
	PyObject *memory;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!:rebind", names,
					 state_of(type)->guest_memory, &memory))
		return NULL;
	self = backing_alloc(type, memory);
	if (!self)
		return NULL;
	for (size_t i = 0; i < old->count; i++) {
		const struct segment *segment = &old->segments[i];
		uint64_t length = segment[1].offset - segment->offset;
		int found = backing_resolve(self, segment->gpa, length);

		if (found < 0)
			return NULL;
		if (!found) {
			raise_error(PyExc_ValueError,
				    "%llu bytes at 0x%llx are no longer in readable memory",
				    (unsigned long long)length, (unsigned long long)segment->gpa);
			return NULL;
		}
	}
	(void)backing_resize(self, self->count + 1); // kept too large otherwise
	return_ptr(self);
}

static void backing_dealloc(PyObject *object)
{
	struct backing *self = (struct backing *)object;
	PyTypeObject *type = Py_TYPE(object);

	PyMem_Free(self->segments);
	Py_XDECREF(self->memory);
	type->tp_free(object);
	Py_DECREF(type);
}

// Reading --------------------------------------------------------------------------------

static bool holds(const struct segment *segment, uint64_t offset)
{
	return segment[0].offset <= offset && offset < segment[1].offset;
}

static size_t backing_find(const struct backing *self, size_t hint, uint64_t offset)
{
	size_t low = 0, high = self->count;

	if (hint < self->count && holds(&self->segments[hint], offset))
		return hint;
	if (hint + 1 < self->count && holds(&self->segments[hint + 1], offset))
		return hint + 1;
	while (high - low > 1) {
		size_t middle = low + (high - low) / 2;

		if (self->segments[middle].offset <= offset)
			low = middle;
		else
			high = middle;
	}
	return low;
}

bool backing_require_mapped(struct state *state, const struct backing *backing)
{
	if (!backing->elsewhere)
		return true;
	PyErr_SetString(state->guest_fault, "device memory is not mapped here");
	return false;
}

// A device's memory is not cached: each load is a round trip to it, so few and wide ones. The
// loads are aligned, and each is made once, as the device expects of those that it was asked.
static void load_wide(uint8_t *to, const uint8_t *from, uint64_t length)
{
	typedef uint64_t wide __attribute__((vector_size(16)));

	for (; length && (uintptr_t)from % sizeof(wide); length--)
		*to++ = *(const volatile uint8_t *)from++;
	for (; length >= sizeof(wide); length -= sizeof(wide)) {
		wide value = *(const volatile wide *)(const volatile void *)from;

		memcpy(to, &value, sizeof(value));
		to += sizeof(value), from += sizeof(value);
	}
	for (; length; length--)
		*to++ = *(const volatile uint8_t *)from++;
}

void backing_load(struct guard *guard, const struct backing *backing, size_t *hint,
		  uint64_t offset, void *ret, uint64_t length)
{
	size_t i = backing_find(backing, *hint, offset);

	for (uint8_t *to = ret; length; i++) {
		const struct segment *segment = &backing->segments[i];
		uint64_t inside = offset - segment->offset;
		uint64_t run = segment[1].offset - offset;

		if (run > length)
			run = length;
		guard_range(guard, segment->host + inside, run);
		if (memory_is_device(backing->memory))
			load_wide(to, segment->host + inside, run);
		else
			memcpy(to, segment->host + inside, run);
		*hint = i;
		offset += run, to += run, length -= run;
	}
}

struct reading {
	const struct backing *backing;
	uint64_t offset;
	char *to;
	uint64_t length;
};

static void read_work(struct guard *guard, void *arg)
{
	struct reading *r = arg;
	size_t hint = 0;

	backing_load(guard, r->backing, &hint, r->offset, r->to, r->length);
}

static PyObject *backing_read(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"offset", "length", NULL};
	const struct backing *self = (struct backing *)object;
	_cleanup_pydecref_ PyObject *bytes = NULL;
	struct reading r = {.backing = self};
	uint64_t size = backing_size(self);

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&:read", names, to_u64, &r.offset,
					 to_u64, &r.length))
		return NULL;
	if (r.offset > size)
		r.offset = size;
	if (r.length > size - r.offset)
		r.length = size - r.offset;
	if (r.length > PY_SSIZE_T_MAX)
		return PyErr_NoMemory();
	if (!backing_require_mapped(state_of(Py_TYPE(object)), self))
		return NULL;
	bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)r.length);
	if (!bytes)
		return NULL;
	r.to = PyBytes_AS_STRING(bytes);
	if (!guarded(state_of(Py_TYPE(object)), self->memory, read_work, &r, r.length))
		return NULL;
	return_ptr(bytes);
}

static PyObject *backing_get_size(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromUnsignedLongLong(backing_size((struct backing *)self));
}

static PyObject *backing_get_segments(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromSize_t(((struct backing *)self)->count);
}

static PyObject *backing_get_mapped(PyObject *self, void *Py_UNUSED(closure))
{
	return PyBool_FromLong(!((struct backing *)self)->elsewhere);
}

static PyMethodDef backing_methods[] = {
	{"read", (PyCFunction)(void (*)(void))backing_read, METH_VARARGS | METH_KEYWORDS},
	{"rebind", (PyCFunction)(void (*)(void))backing_rebind, METH_VARARGS | METH_KEYWORDS},
	{"runs", (PyCFunction)(void (*)(void))backing_runs, METH_VARARGS | METH_KEYWORDS},
	{NULL},
};

static PyGetSetDef backing_getset[] = {
	{"size", backing_get_size},
	{"segments", backing_get_segments},
	{"mapped", backing_get_mapped},
	{NULL},
};

static PyType_Slot backing_slots[] = {
	{Py_tp_new, backing_new},
	{Py_tp_dealloc, backing_dealloc},
	{Py_tp_methods, backing_methods},
	{Py_tp_getset, backing_getset},
	{0, NULL},
};

PyType_Spec backing_spec = {
	.name = "vgpud._native.Backing",
	.basicsize = sizeof(struct backing),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = backing_slots,
};
