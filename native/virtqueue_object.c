// Virtqueue: the Python object around one ring.
//
// Not part of any cycle: a queue holds a memory and a string; elements do not hold queues.
#include "virtqueue.h"

#include <string.h>

struct virtqueue {
	PyObject_HEAD
	struct ring ring;
	PyObject *reason; // why it is broken, or NULL
	uint64_t serial;  // an element of a stopped ring must not enter its successor
	uint64_t desc_uva, avail_uva, used_uva;
	bool busy;
	bool broken; // for good; without memory and not broken it is lost
};

// The life of a ring ----------------------------------------------------------------------

static bool locate(struct virtqueue *self, const struct memory *memory)
{
	uint64_t size = self->ring.size, event = self->ring.event_idx ? 2 : 0;
	const struct {
		const char *name;
		uint64_t uva, align, length;
	} areas[] = {
		{"desc", self->desc_uva, 16, 16 * size},
		{"avail", self->avail_uva, 2, 4 + 2 * size + event},
		{"used", self->used_uva, 4, 4 + 8 * size + event},
	};
	uint8_t *host[3];

	for (size_t i = 0; i < Py_ARRAY_LENGTH(areas); i++) {
		host[i] = memory_find_uva(memory, areas[i].uva, areas[i].length);
		// The host's address too: it is the one that the CPU wants aligned.
		if (host[i] && !(areas[i].uva % areas[i].align) &&
		    !((uintptr_t)host[i] % areas[i].align))
			continue;
		raise_error(PyExc_ValueError, "%s: %llu bytes at 0x%llx are %s", areas[i].name,
			    (unsigned long long)areas[i].length, (unsigned long long)areas[i].uva,
			    host[i] ? "misaligned" : "not inside one writable region");
		return false;
	}
	self->ring.desc = host[0];
	self->ring.avail = (uint16_t *)host[1];
	self->ring.used = host[2];
	return true;
}

// With an exception set: the ring is never touched again, its memory is let go.
static void *break_ring(struct virtqueue *self)
{
	PyObject *type, *value, *traceback;

	PyErr_Fetch(&type, &value, &traceback);
	if (value && !self->reason) {
		self->reason = PyObject_Str(value);
		if (!self->reason)
			PyErr_Clear();
	}
	self->broken = true;
	Py_CLEAR(self->ring.memory);
	PyErr_Restore(type, value, traceback);
	return NULL;
}

static bool idle(struct virtqueue *self)
{
	// Another thread is copying without the GIL: a bug of ours, but no reason to crash.
	if (self->busy)
		PyErr_SetString(PyExc_RuntimeError, "the virtqueue is in use by another thread");
	return !self->busy;
}

static void raise_broken(struct virtqueue *self)
{
	struct state *state = state_of(Py_TYPE(self));

	if (self->reason)
		PyErr_Format(state->ring_error, "the ring is broken: %U", self->reason);
	else
		PyErr_SetString(state->ring_error, "the ring is broken");
}

static bool usable(struct virtqueue *self)
{
	if (!idle(self))
		return false;
	if (self->ring.memory)
		return true;
	if (self->broken)
		raise_broken(self);
	else
		PyErr_SetString(state_of(Py_TYPE(self))->ring_error,
				"the ring's memory is not in the memory table");
	return false;
}

// False with GuestFault set, and the ring broken.
static bool ring_guarded(struct virtqueue *self, guard_work *work, void *arg, uint64_t bytes)
{
	bool done;

	self->busy = true;
	done = guarded(state_of(Py_TYPE(self)), self->ring.memory, work, arg, bytes);
	self->busy = false;
	if (!done)
		break_ring(self);
	return done;
}

static PyObject *virtqueue_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"memory", "size", "desc",      "avail",
				"used",	  "base", "event_idx", NULL};
	_cleanup_pydecref_ struct virtqueue *self = NULL;
	struct starting s = {NULL};
	uint64_t desc, avail, used;
	uint32_t size;
	uint16_t base;
	PyObject *memory;
	int event_idx;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O&O&O&O&O&p:Virtqueue", names,
					 state_of(type)->guest_memory, &memory, to_u32, &size,
					 to_u64, &desc, to_u64, &avail, to_u64, &used, to_u16,
					 &base, &event_idx))
		return NULL;
	if (!size || size > MAX_CHAIN || (size & (size - 1))) {
		raise_error(PyExc_ValueError, "size %u is no power of two up to %u", size,
			    MAX_CHAIN);
		return NULL;
	}
	self = (struct virtqueue *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->serial = ++state_of(type)->queues;
	self->ring.size = size;
	self->desc_uva = desc;
	self->avail_uva = avail;
	self->used_uva = used;
	self->ring.next_avail = base;
	self->ring.event_idx = event_idx;
	if (!locate(self, (struct memory *)memory))
		return NULL;
	self->ring.memory = memory_ref(memory);
	s.ring = &self->ring;
	if (!ring_guarded(self, ring_start, &s, 0))
		return NULL;
	self->ring.next_used = self->ring.published = s.used_idx;
	return_ptr(self);
}

static PyObject *virtqueue_rebind(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"memory", NULL};
	struct virtqueue *self = (struct virtqueue *)object;
	PyObject *memory;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!:rebind", names,
					 state_of(Py_TYPE(object))->guest_memory, &memory))
		return NULL;
	if (!idle(self))
		return NULL;
	if (self->broken) {
		raise_broken(self);
		return NULL;
	}
	Py_CLEAR(self->ring.memory); // first: nothing may hold the old mapping, whatever comes
	if (!locate(self, (struct memory *)memory))
		return NULL;
	self->ring.memory = memory_ref(memory);
	Py_RETURN_NONE;
}

static void virtqueue_dealloc(PyObject *object)
{
	struct virtqueue *self = (struct virtqueue *)object;
	PyTypeObject *type = Py_TYPE(object);

	Py_XDECREF(self->reason);
	Py_XDECREF(self->ring.memory);
	type->tp_free(object);
	Py_DECREF(type);
}

// pop --------------------------------------------------------------------------------------

static PyObject *virtqueue_pop(PyObject *object, PyObject *const *args, Py_ssize_t count)
{
	struct virtqueue *self = (struct virtqueue *)object;
	struct state *state = state_of(Py_TYPE(object));
	_cleanup_pydecref_ PyObject *request = NULL;
	struct element *element;
	struct copying c;
	struct popping p; // 16 KiB that are not worth clearing: see below for what is read

	if (count > 1) {
		PyErr_SetString(PyExc_TypeError, "pop() takes one argument at most");
		return NULL;
	}
	if (!usable(self))
		return NULL;
	p.ring = &self->ring;
	p.arm = !count || args[0] != Py_False;
	p.empty = false;
	memset(&p.chain, 0, offsetof(struct chain, ranges));
	p.chain.memory = self->ring.memory;
	p.chain.table = self->ring.desc;
	p.chain.size = self->ring.size;
	if (!ring_guarded(self, ring_take, &p, 0))
		return NULL;
	if (p.empty)
		Py_RETURN_NONE;
	if (p.chain.fault) {
		char what[128];

		PyOS_snprintf(what, sizeof(what), p.chain.fault, (unsigned long long)p.chain.index,
			      (unsigned long long)p.chain.value);
		raise_error(state->ring_error, "next avail %u, head %u, size %u: %s%s",
			    self->ring.next_avail, p.chain.head, self->ring.size, what,
			    p.chain.indirect ? " (of the indirect table)" : "");
		return break_ring(self);
	}
	c.chain = &p.chain;
	c.length = p.chain.readable_bytes < MAX_REQUEST ? p.chain.readable_bytes : MAX_REQUEST;
	request = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)c.length);
	if (!request)
		return NULL;
	c.to = (uint8_t *)PyBytes_AS_STRING(request);
	element = element_new(state, &p.chain, request);
	if (!element)
		return NULL;
	if (!ring_guarded(self, ring_copy, &c, c.length)) {
		Py_DECREF(element);
		return NULL;
	}
	element->ring = self->serial;
	self->ring.next_avail++;
	self->ring.in_flight++;
	return (PyObject *)element;
}

static PyObject *virtqueue_spin(PyObject *object, PyObject *nanoseconds)
{
	struct virtqueue *self = (struct virtqueue *)object;
	struct spinning s = {.ring = &self->ring};

	if (!to_u64(nanoseconds, &s.nanoseconds) || !usable(self))
		return NULL;
	// Without the GIL: other threads have work to do.
	if (!ring_guarded(self, ring_spin, &s, GIL_BYTES + 1))
		return NULL;
	return PyBool_FromLong(s.found);
}

// push and publish -------------------------------------------------------------------------

static PyObject *virtqueue_push(PyObject *object, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"element", "response", NULL};
	struct virtqueue *self = (struct virtqueue *)object;
	struct state *state = state_of(Py_TYPE(object));
	_cleanup_buffer_ Py_buffer response = {NULL};
	struct pushing p = {.ring = &self->ring};
	struct element *element;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!y*:push", names, state->element, &element,
					 &response))
		return NULL;
	if (!usable(self))
		return NULL;
	if (element->ring != self->serial || element->pushed) {
		raise_error(PyExc_ValueError, "element with head %u %s", element->head,
			    element->pushed ? "was pushed before" : "is of another virtqueue");
		return NULL;
	}
	p.element = element;
	p.response = response.buf;
	p.length = (size_t)response.len;
	if (p.length > element->writable_bytes)
		p.length = element->writable_bytes;
	// The used length has 32 bits.
	if (p.length > UINT32_MAX)
		p.length = UINT32_MAX;
	if (!ring_guarded(self, ring_push, &p, p.length))
		return NULL;
	if (p.unmapped) {
		raise_error(state->ring_error,
			    "head %u: 0x%llx for the response is not in writable memory",
			    element->head, (unsigned long long)p.gpa);
		return break_ring(self);
	}
	element->pushed = true;
	self->ring.next_used++;
	self->ring.in_flight--;
	return PyLong_FromSize_t(p.length);
}

static PyObject *virtqueue_publish(PyObject *object, PyObject *Py_UNUSED(ignored))
{
	struct virtqueue *self = (struct virtqueue *)object;
	struct publishing p = {.ring = &self->ring};

	if (!usable(self))
		return NULL;
	if (self->ring.published == self->ring.next_used)
		Py_RETURN_FALSE;
	if (!ring_guarded(self, ring_publish, &p, 0))
		return NULL;
	self->ring.published = self->ring.next_used;
	self->ring.notified = true;
	return PyBool_FromLong(p.wanted);
}

static PyObject *virtqueue_next_avail(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromLong(((struct virtqueue *)self)->ring.next_avail);
}

static PyObject *virtqueue_in_flight(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromUnsignedLong(((struct virtqueue *)self)->ring.in_flight);
}

static PyMethodDef virtqueue_methods[] = {
	{"pop", (PyCFunction)(void (*)(void))virtqueue_pop, METH_FASTCALL},
	{"spin", virtqueue_spin, METH_O},
	{"push", (PyCFunction)(void (*)(void))virtqueue_push, METH_VARARGS | METH_KEYWORDS},
	{"publish", virtqueue_publish, METH_NOARGS},
	{"rebind", (PyCFunction)(void (*)(void))virtqueue_rebind, METH_VARARGS | METH_KEYWORDS},
	{NULL},
};

static PyGetSetDef virtqueue_getset[] = {
	{"next_avail", virtqueue_next_avail},
	{"in_flight", virtqueue_in_flight},
	{NULL},
};

static PyType_Slot virtqueue_slots[] = {
	{Py_tp_new, virtqueue_new},
	{Py_tp_dealloc, virtqueue_dealloc},
	{Py_tp_methods, virtqueue_methods},
	{Py_tp_getset, virtqueue_getset},
	{0, NULL},
};

PyType_Spec virtqueue_spec = {
	.name = "vgpud._native.Virtqueue",
	.basicsize = sizeof(struct virtqueue),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = virtqueue_slots,
};
