// GuestMemory: the memory table, and translation with bounds.
//
// Not part of any cycle: a memory holds its regions, and a region holds nothing.
#include "vgpu.h"

#include <stdlib.h>
#include <string.h>

struct mapping {
	uint64_t gpa, last; // the last byte, so that a region may end at 2**64
	uint64_t offset;    // in the region's file
	uint8_t *host;
	size_t region; // its number in the table
	bool writable, elsewhere;
};

struct memory {
	PyObject_HEAD
	PyObject *regions; // tuple
	size_t count;
	bool device;
	struct mapping *mappings; // by gpa
};

// Translation ----------------------------------------------------------------------------

static struct region *region_at(const struct memory *memory, size_t i)
{
	return (struct region *)PyTuple_GET_ITEM(memory->regions, (Py_ssize_t)i);
}

static const struct mapping *memory_find(const struct memory *memory, uint64_t gpa)
{
	size_t low = 0, high = memory->count;

	while (low < high) {
		size_t middle = low + (high - low) / 2;

		if (memory->mappings[middle].gpa <= gpa)
			low = middle + 1;
		else
			high = middle;
	}
	if (!low || gpa > memory->mappings[low - 1].last)
		return NULL;
	return &memory->mappings[low - 1];
}

static uint64_t run_of(const struct mapping *mapping, uint64_t gpa, uint64_t length)
{
	uint64_t left = mapping->last - gpa;

	return length - 1 <= left ? length : left + 1;
}

uint8_t *memory_piece(const struct memory *memory, uint64_t gpa, uint64_t length, bool write,
		      uint64_t *run)
{
	const struct mapping *found = memory_find(memory, gpa);

	if (!found || !found->host || (write && !found->writable))
		return NULL;
	*run = run_of(found, gpa, length);
	return found->host + (gpa - found->gpa);
}

uint64_t memory_place(const struct memory *memory, uint64_t gpa, uint64_t length, size_t *region,
		      uint64_t *run)
{
	const struct mapping *found = memory_find(memory, gpa);

	*region = found->region;
	*run = run_of(found, gpa, length);
	return found->offset + (gpa - found->gpa);
}

bool memory_covers(const struct memory *memory, uint64_t gpa, uint64_t length, bool write)
{
	uint64_t run;

	if (wraps(gpa, length))
		return false;
	for (; length; gpa += run, length -= run)
		if (!memory_piece(memory, gpa, length, write, &run))
			return false;
	return true;
}

bool memory_backs(const struct memory *memory, uint64_t gpa, uint64_t length, uint8_t **host,
		  uint64_t *run)
{
	const struct mapping *found = memory_find(memory, gpa);

	if (!found || (!found->host && !found->elsewhere))
		return false;
	*host = found->host ? found->host + (gpa - found->gpa) : NULL;
	*run = run_of(found, gpa, length);
	return true;
}

bool memory_is_device(const struct memory *memory)
{
	return memory->device;
}

// Linear: asked three times when a ring starts, and QEMU may show one piece of RAM at two
// guest addresses, so that ranges of userspace addresses overlap and no order finds both.
uint8_t *memory_find_uva(const struct memory *memory, uint64_t uva, uint64_t length)
{
	for (size_t i = 0; i < memory->count; i++) {
		struct region *region = region_at(memory, i);

		if (region->writable && uva >= region->uva && length <= region->size &&
		    uva - region->uva <= region->size - length)
			return region->host + (uva - region->uva);
	}
	return NULL;
}

bool memory_find_host(const struct memory *memory, uintptr_t host, uint64_t *ret)
{
	for (size_t i = 0; i < memory->count; i++) {
		const struct mapping *m = &memory->mappings[i];

		if (m->host && host >= (uintptr_t)m->host &&
		    host - (uintptr_t)m->host <= m->last - m->gpa) {
			*ret = m->gpa + (host - (uintptr_t)m->host);
			return true;
		}
	}
	return false;
}

bool memory_load(struct guard *guard, const struct memory *memory, uint64_t gpa, void *ret,
		 size_t length)
{
	for (uint8_t *to = ret; length;) {
		uint64_t run;
		const uint8_t *from = memory_piece(memory, gpa, length, false, &run);

		if (!from)
			return false;
		guard_range(guard, from, run);
		memcpy(to, from, run);
		gpa += run, to += run, length -= run;
	}
	return true;
}

bool memory_store(struct guard *guard, const struct memory *memory, uint64_t gpa,
		  const void *data, size_t length)
{
	for (const uint8_t *from = data; length;) {
		uint64_t run;
		uint8_t *to = memory_piece(memory, gpa, length, true, &run);

		if (!to)
			return false;
		guard_range(guard, to, run);
		memcpy(to, from, run);
		gpa += run, from += run, length -= run;
	}
	return true;
}

// GuestMemory ----------------------------------------------------------------------------

struct memory *memory_ref(PyObject *object)
{
	return (struct memory *)Py_NewRef(object);
}

static int by_gpa(const void *a, const void *b)
{
	uint64_t left = ((const struct mapping *)a)->gpa, right = ((const struct mapping *)b)->gpa;

	return (left > right) - (left < right);
}

static PyObject *memory_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"regions", NULL};
	_cleanup_pydecref_ struct memory *self = NULL;
	PyObject *regions;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O:GuestMemory", names, &regions))
		return NULL;
	self = (struct memory *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->regions = PySequence_Tuple(regions);
	if (!self->regions)
		return NULL;
	self->mappings = PyMem_New(struct mapping, (size_t)PyTuple_GET_SIZE(self->regions));
	if (!self->mappings) {
		PyErr_NoMemory();
		return NULL;
	}
	for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(self->regions); i++) {
		PyObject *item = PyTuple_GET_ITEM(self->regions, i);
		struct region *region = (struct region *)item;

		if (!Py_IS_TYPE(item, state_of(type)->region)) {
			raise_error(PyExc_TypeError, "expected Region, not %.100s",
				    Py_TYPE(item)->tp_name);
			return NULL;
		}
		self->mappings[i] = (struct mapping){
			.gpa = region->gpa,
			.last = region->gpa + (region->size - 1),
			.offset = region->offset,
			.host = region->host,
			.region = (size_t)i,
			.writable = region->writable,
			.elsewhere = region->elsewhere,
		};
		self->device |= region->device;
		self->count++;
	}
	if (self->count)
		qsort(self->mappings, self->count, sizeof(*self->mappings), by_gpa);
	for (size_t i = 1; i < self->count; i++) {
		if (self->mappings[i].gpa > self->mappings[i - 1].last)
			continue;
		raise_error(PyExc_ValueError, "regions at 0x%llx and 0x%llx overlap",
			    (unsigned long long)self->mappings[i - 1].gpa,
			    (unsigned long long)self->mappings[i].gpa);
		return NULL;
	}
	return_ptr(self);
}

static void memory_dealloc(PyObject *object)
{
	struct memory *self = (struct memory *)object;
	PyTypeObject *type = Py_TYPE(object);

	PyMem_Free(self->mappings);
	Py_XDECREF(self->regions);
	type->tp_free(object);
	Py_DECREF(type);
}

struct reading {
	const struct memory *memory;
	uint64_t gpa;
	char *to;
	size_t length;
};

static void read_work(struct guard *guard, void *arg)
{
	struct reading *r = arg;

	memory_load(guard, r->memory, r->gpa, r->to, r->length);
}

static PyObject *memory_read(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"guest_phys_addr", "length", NULL};
	struct reading r = {.memory = (struct memory *)object};
	_cleanup_pydecref_ PyObject *bytes = NULL;
	uint64_t length;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&:read", names, to_u64, &r.gpa,
					 to_u64, &length))
		return NULL;
	if (length > PY_SSIZE_T_MAX || !memory_covers(r.memory, r.gpa, length, false)) {
		raise_error(PyExc_ValueError, "0x%llx bytes at 0x%llx are not all mapped",
			    (unsigned long long)length, (unsigned long long)r.gpa);
		return NULL;
	}
	bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
	if (!bytes)
		return NULL;
	r.to = PyBytes_AS_STRING(bytes);
	r.length = length;
	if (!guarded(state_of(Py_TYPE(object)), r.memory, read_work, &r, length))
		return NULL;
	return_ptr(bytes);
}

static PyObject *memory_regions(PyObject *self, void *Py_UNUSED(closure))
{
	return Py_NewRef(((struct memory *)self)->regions);
}

static PyMethodDef memory_methods[] = {
	{"read", (PyCFunction)(void (*)(void))memory_read, METH_VARARGS | METH_KEYWORDS},
	{NULL},
};

static PyGetSetDef memory_getset[] = {
	{"regions", memory_regions},
	{NULL},
};

static PyType_Slot memory_slots[] = {
	{Py_tp_new, memory_new},
	{Py_tp_dealloc, memory_dealloc},
	{Py_tp_methods, memory_methods},
	{Py_tp_getset, memory_getset},
	{0, NULL},
};

PyType_Spec guest_memory_spec = {
	.name = "vgpud._native.GuestMemory",
	.basicsize = sizeof(struct memory),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = memory_slots,
};
