// Region: one mapping, released by whoever drops it last.
#include "vgpu.h"

#include <errno.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

// hugetlbfs maps from a huge page's start only, and munmap() wants whole ones.
static uint64_t page_size(int fd)
{
	struct statfs fs;

	if (!fstatfs(fd, &fs) && fs.f_type == HUGETLBFS_MAGIC)
		return (uint64_t)fs.f_bsize;
	return (uint64_t)sysconf(_SC_PAGESIZE);
}

static int region_map(struct region *self, int fd, uint64_t offset)
{
	uint64_t page = page_size(fd), before = offset % page, length;
	void *map = MAP_FAILED;

	// What no off_t can say cannot be mapped; it is not worth an error, like other fds.
	if (__builtin_add_overflow(self->size, before + page - 1, &length) ||
	    length > PTRDIFF_MAX || offset > INT64_MAX - length)
		return 0;
	length -= length % page;
	for (int writable = !self->device; writable >= 0 && map == MAP_FAILED; writable--) {
		map = mmap(NULL, length, writable ? PROT_READ | PROT_WRITE : PROT_READ,
			   MAP_SHARED | MAP_NORESERVE, fd, (off_t)(offset - before));
		if (map == MAP_FAILED && errno == EBADF) {
			PyErr_SetFromErrno(PyExc_OSError);
			return -1;
		}
		self->writable = writable && map != MAP_FAILED;
	}
	if (map == MAP_FAILED)
		return 0;
	// The guest's secrets are not ours to write into a core dump.
	(void)madvise(map, length, MADV_DONTDUMP);
	self->map = map;
	self->map_length = length;
	self->host = (uint8_t *)map + before;
	return 0;
}

static PyObject *region_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"fd",		  "guest_phys_addr", "memory_size",
				"userspace_addr", "mmap_offset",     "device",
				NULL};
	_cleanup_pydecref_ struct region *self = NULL;
	uint64_t gpa, size, uva, offset;
	int fd, device = 0;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&O&O&O&|p:Region", names,
					 to_fd_or_none, &fd, to_u64, &gpa, to_u64, &size, to_u64,
					 &uva, to_u64, &offset, &device))
		return NULL;
	if (!size) {
		PyErr_SetString(PyExc_ValueError, "memory_size is 0");
		return NULL;
	}
	if (wraps(gpa, size) || wraps(uva, size) || wraps(offset, size)) {
		raise_error(PyExc_ValueError,
			    "0x%llx bytes at 0x%llx (0x%llx, file 0x%llx) wrap around 2**64",
			    (unsigned long long)size, (unsigned long long)gpa,
			    (unsigned long long)uva, (unsigned long long)offset);
		return NULL;
	}
	if (guard_install() < 0) {
		PyErr_SetFromErrno(PyExc_OSError);
		return NULL;
	}
	self = (struct region *)type->tp_alloc(type, 0);
	if (!self)
		return NULL;
	self->gpa = gpa;
	self->size = size;
	self->uva = uva;
	self->offset = offset;
	self->device = device;
	self->elsewhere = fd < 0;
	if (!self->elsewhere && region_map(self, fd, offset) < 0)
		return NULL;
	return_ptr(self);
}

static void region_dealloc(PyObject *object)
{
	struct region *self = (struct region *)object;
	PyTypeObject *type = Py_TYPE(object);

	if (self->map)
		munmap(self->map, self->map_length);
	type->tp_free(object);
	Py_DECREF(type);
}

static PyObject *region_gpa(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromUnsignedLongLong(((struct region *)self)->gpa);
}

static PyObject *region_size(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromUnsignedLongLong(((struct region *)self)->size);
}

static PyObject *region_uva(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromUnsignedLongLong(((struct region *)self)->uva);
}

static PyObject *region_offset(PyObject *self, void *Py_UNUSED(closure))
{
	return PyLong_FromUnsignedLongLong(((struct region *)self)->offset);
}

static PyObject *region_access(PyObject *object, void *Py_UNUSED(closure))
{
	struct region *self = (struct region *)object;

	return PyUnicode_FromString(self->writable ? "rw" : self->host ? "ro" : "none");
}

// Python's os.statvfs() has everything but the type.
PyObject *file_system(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"fd", NULL};
	struct statfs fs;
	int fd;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&:file_system", names, to_fd, &fd))
		return NULL;
	if (fstatfs(fd, &fs) < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return Py_BuildValue("KK", (unsigned long long)fs.f_type, (unsigned long long)fs.f_bsize);
}

static PyGetSetDef region_getset[] = {
	{"guest_phys_addr", region_gpa},
	{"memory_size", region_size},
	{"userspace_addr", region_uva},
	{"mmap_offset", region_offset},
	{"access", region_access},
	{NULL},
};

static PyType_Slot region_slots[] = {
	{Py_tp_new, region_new},
	{Py_tp_dealloc, region_dealloc},
	{Py_tp_getset, region_getset},
	{0, NULL},
};

PyType_Spec region_spec = {
	.name = "vgpud._native.Region",
	.basicsize = sizeof(struct region),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
	.slots = region_slots,
};
