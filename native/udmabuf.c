// /dev/udmabuf: pages of memfds as a dma-buf.
#include "vgpu.h"

#include <linux/udmabuf.h>
#include <string.h>
#include <sys/ioctl.h>

#include "layout_gen.h"

// The argument of the ioctl: runs with the regions' descriptors in the place of their numbers.
static struct udmabuf_create_list *list_new(const Py_buffer *runs, const Py_buffer *fds)
{
	_cleanup_pymem_ struct udmabuf_create_list *list = NULL;
	size_t count = (size_t)runs->len / sizeof(list->list[0]);

	if ((size_t)runs->len % sizeof(list->list[0]) || count > UINT32_MAX) {
		raise_error(PyExc_ValueError, "%zd bytes are no array of %zu-byte runs", runs->len,
			    sizeof(list->list[0]));
		return NULL;
	}
	list = PyMem_Malloc(sizeof(*list) + (size_t)runs->len);
	if (!list) {
		PyErr_NoMemory();
		return NULL;
	}
	list->flags = UDMABUF_FLAGS_CLOEXEC;
	list->count = (uint32_t)count;
	memcpy(list->list, runs->buf, (size_t)runs->len);
	for (size_t i = 0; i < count; i++) {
		uint32_t region = list->list[i].memfd;
		int fd = -1;

		if (region < (size_t)fds->len / sizeof(fd))
			memcpy(&fd, (const char *)fds->buf + region * sizeof(fd), sizeof(fd));
		if (fd < 0) {
			raise_error(PyExc_ValueError, "run %zu: no descriptor for region %u", i,
				    region);
			return NULL;
		}
		list->list[i].memfd = (uint32_t)fd;
	}
	return_ptr(list);
}

PyObject *udmabuf_create(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"device", "runs", "fds", NULL};
	_cleanup_pymem_ struct udmabuf_create_list *list = NULL;
	_cleanup_buffer_ Py_buffer runs = {NULL};
	_cleanup_buffer_ Py_buffer fds = {NULL};
	int device, fd;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&y*y*:udmabuf_create", names, to_fd,
					 &device, &runs, &fds))
		return NULL;
	list = list_new(&runs, &fds);
	if (!list)
		return NULL;
	// Pages that the guest never touched are allocated and cleared in here: 64 MiB of them
	// take as long as a blink.
	Py_BEGIN_ALLOW_THREADS
	fd = ioctl(device, VGPU_IOCTL_UDMABUF_CREATE_LIST, list);
	Py_END_ALLOW_THREADS
	if (fd < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return from_fd(fd);
}
