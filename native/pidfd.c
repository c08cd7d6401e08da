// A descriptor of another process.
#include "vgpu.h"

#include <sys/syscall.h>
#include <unistd.h>

// Not called after the system call: glibc exports that name, and its function would be found first.
PyObject *take_fd(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"pidfd", "fd", NULL};
	int pidfd, fd;
	long taken;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&:pidfd_getfd", names, to_fd, &pidfd,
					 to_fd, &fd))
		return NULL;
	taken = syscall(SYS_pidfd_getfd, pidfd, fd, 0); // glibc has a wrapper from 2.36 on
	if (taken < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return from_fd((int)taken);
}
