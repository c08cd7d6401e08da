// One descriptor chain, as the driver wrote it (virtio 1.3, 2.7.5), into ranges that may be used.
#include "vgpu.h"

#include <string.h>

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct descriptor {
	uint64_t addr;
	uint32_t len;
	uint16_t flags, next;
};

static bool refuse(struct chain *chain, const char *format, uint64_t value)
{
	chain->fault = format;
	chain->value = value;
	return false;
}

// The table that the chain is in: the ring's own or one indirect table.
struct table {
	uint64_t gpa; // of the indirect one
	uint64_t entries;
	uint64_t steps;
};

static bool read_descriptor(struct guard *guard, struct chain *chain, const struct table *table,
			    struct descriptor *ret)
{
	uint64_t offset = chain->index * sizeof(*ret);

	if (chain->indirect) {
		if (!memory_load(guard, chain->memory, table->gpa + offset, ret, sizeof(*ret)))
			return refuse(chain, "indirect descriptor %llu at 0x%llx is not in memory",
				      table->gpa + offset);
	} else {
		guard_range(guard, chain->table + offset, sizeof(*ret));
		memcpy(ret, chain->table + offset, sizeof(*ret));
	}
	// The driver may write on: no field is ever read from the ring a second time.
	atomic_signal_fence(memory_order_seq_cst);
	return true;
}

static bool enter_indirect(struct chain *chain, struct table *table, const struct descriptor *d)
{
	if (chain->indirect)
		return refuse(chain, "descriptor %llu: nested indirect table at 0x%llx", d->addr);
	if (d->flags & NEXT)
		return refuse(chain, "descriptor %llu: indirect together with next %llu", d->next);
	if (!d->len || d->len % sizeof(*d))
		return refuse(chain, "descriptor %llu: indirect table of %llu bytes", d->len);
	if (d->addr + (d->len - 1) < d->addr)
		return refuse(chain, "descriptor %llu: indirect table at 0x%llx wraps", d->addr);
	*table = (struct table){.gpa = d->addr, .entries = d->len / sizeof(*d)};
	chain->indirect = true;
	chain->index = 0;
	return true;
}

static bool add_range(struct chain *chain, const struct descriptor *d)
{
	bool write = d->flags & WRITE;

	// Against an indirect table of 4 GiB, whose chain would be walked for seconds.
	if (chain->readable + chain->writable == MAX_CHAIN)
		return refuse(chain, "descriptor %llu: longer than %llu in all", MAX_CHAIN);
	if (!d->len)
		return refuse(chain, "descriptor %llu at 0x%llx is empty", d->addr);
	if (!write && chain->writable)
		return refuse(chain, "descriptor %llu at 0x%llx is readable after a writable one",
			      d->addr);
	if (!memory_covers(chain->memory, d->addr, d->len, write))
		return refuse(chain,
			      write ? "descriptor %llu: 0x%llx is not all in writable memory"
				    : "descriptor %llu: 0x%llx is not all in memory",
			      d->addr);
	chain->ranges[chain->readable + chain->writable] =
		(struct range){.gpa = d->addr, .length = d->len};
	if (write) {
		chain->writable++;
		chain->writable_bytes += d->len;
	} else {
		chain->readable++;
		chain->readable_bytes += d->len;
	}
	return true;
}

bool chain_walk(struct guard *guard, struct chain *chain)
{
	struct table table = {.entries = chain->size};

	chain->index = chain->head;
	for (;;) {
		struct descriptor d;

		// Whoever walks more descriptors than there are has met one of them twice.
		if (table.steps++ == table.entries)
			return refuse(chain, "descriptor %llu: a loop, or longer than %llu",
				      table.entries);
		if (!read_descriptor(guard, chain, &table, &d))
			return false;
		// Its write flag means nothing (2.7.5.3.2); direct ones may come before it.
		if (d.flags & INDIRECT) {
			if (!enter_indirect(chain, &table, &d))
				return false;
			continue;
		}
		if (!add_range(chain, &d))
			return false;
		if (!(d.flags & NEXT))
			return true;
		if (d.next >= table.entries)
			return refuse(chain, "descriptor %llu: next %llu is outside of the table",
				      d.next);
		chain->index = d.next;
	}
}

// Element: holds bytes and numbers, so it is in no cycle ----------------------------------

struct element *element_new(struct state *state, const struct chain *chain, PyObject *request)
{
	struct element *self =
		(struct element *)state->element->tp_alloc(state->element, chain->writable);

	if (!self)
		return NULL;
	self->request = Py_NewRef(request);
	self->head = chain->head;
	self->writable_bytes = chain->writable_bytes;
	memcpy(self->writable, chain->ranges + chain->readable,
	       chain->writable * sizeof(*self->writable));
	return self;
}

static void element_dealloc(PyObject *object)
{
	PyTypeObject *type = Py_TYPE(object);

	Py_XDECREF(((struct element *)object)->request);
	type->tp_free(object);
	Py_DECREF(type);
}

static PyObject *element_head(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromUnsignedLong(((struct element *)self)->head);
}

static PyObject *element_request(PyObject *self, void *Py_UNUSED(closure))
{
	return Py_NewRef(((struct element *)self)->request);
}

static PyObject *element_writable(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromUnsignedLongLong(((struct element *)self)->writable_bytes);
}

static PyGetSetDef element_getset[] = {
	{"head", element_head},
	{"request", element_request},
	{"writable", element_writable},
	{NULL},
};

static PyType_Slot element_slots[] = {
	{Py_tp_dealloc, element_dealloc},
	{Py_tp_getset, element_getset},
	{0, NULL},
};

PyType_Spec element_spec = {
	.name = "vgpud._native.Element",
	.basicsize = sizeof(struct element),
	.itemsize = sizeof(struct range),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
	.slots = element_slots,
};
