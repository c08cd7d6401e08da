// The requests that a VFIO device is sent (<linux/vfio.h>): what it is, where its regions are,
// whether it exports dma-bufs, and a dma-buf of ranges of one region.
#include "vgpu.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/vfio.h>
#include <string.h>
#include <sys/ioctl.h>

#include "layout_gen.h"

// Older headers lack it: struct vfio_device_feature with a struct vfio_device_feature_dma_buf.
struct feature {
	uint32_t argsz, flags;
	uint32_t region_index, open_flags, dma_buf_flags, nr_ranges;
	struct {
		uint64_t offset, length;
	} ranges[];
};

_Static_assert(offsetof(struct feature, region_index) == VGPU_VFIO_DEVICE_FEATURE_SIZE, "head");
_Static_assert(sizeof(struct feature) == VGPU_VFIO_DEVICE_FEATURE_SIZE +
						 VGPU_VFIO_DEVICE_FEATURE_DMA_BUF_SIZE,
	       "dma_buf");
_Static_assert(sizeof(((struct feature *)NULL)->ranges[0]) == VGPU_VFIO_REGION_DMA_RANGE_SIZE,
	       "range");

// More than any region has: an area of a sparse one takes 16 bytes.
#define MAX_INFO (64 * 1024)

PyObject *vfio_device_info(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"device", NULL};
	struct vfio_device_info info = {.argsz = sizeof(info)};
	int device, result;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&:vfio_device_info", names, to_fd,
					 &device))
		return NULL;
	Py_BEGIN_ALLOW_THREADS
	result = ioctl(device, VGPU_IOCTL_VFIO_DEVICE_GET_INFO, &info);
	Py_END_ALLOW_THREADS
	if (result < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return Py_BuildValue("II", info.flags, info.num_regions);
}

PyObject *vfio_region_info(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"device", "index", NULL};
	_cleanup_pymem_ struct vfio_region_info *info = NULL;
	uint32_t index, room = sizeof(*info);
	int device;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&:vfio_region_info", names, to_fd,
					 &device, to_u32, &index))
		return NULL;
	// Twice where there are capabilities: the first answer says how much room they need.
	for (;;) {
		struct vfio_region_info *larger = PyMem_Realloc(info, room);
		int result;

		if (!larger)
			return PyErr_NoMemory();
		info = larger;
		memset(info, 0, room);
		info->argsz = room;
		info->index = index;
		Py_BEGIN_ALLOW_THREADS
		result = ioctl(device, VGPU_IOCTL_VFIO_DEVICE_GET_REGION_INFO, info);
		Py_END_ALLOW_THREADS
		if (result < 0)
			return PyErr_SetFromErrno(PyExc_OSError);
		if (info->argsz <= room || info->argsz > MAX_INFO)
			return PyBytes_FromStringAndSize((char *)info, room);
		room = info->argsz;
	}
}

PyObject *vfio_probe_dma_buf(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"device", NULL};
	struct feature feature = {
		.argsz = VGPU_VFIO_DEVICE_FEATURE_SIZE,
		.flags = VGPU_VFIO_DEVICE_FEATURE_DMA_BUF | VFIO_DEVICE_FEATURE_GET |
			 VFIO_DEVICE_FEATURE_PROBE,
	};
	int device, result;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&:vfio_probe_dma_buf", names, to_fd,
					 &device))
		return NULL;
	Py_BEGIN_ALLOW_THREADS // a device that sleeps is woken
	result = ioctl(device, VGPU_IOCTL_VFIO_DEVICE_FEATURE, &feature);
	Py_END_ALLOW_THREADS
	if (result < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	Py_RETURN_NONE;
}

PyObject *vfio_get_dma_buf(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
	static char *names[] = {"device", "region_index", "ranges", NULL};
	_cleanup_pymem_ struct feature *feature = NULL;
	_cleanup_buffer_ Py_buffer ranges = {NULL};
	uint32_t region_index;
	size_t count, size;
	int device, fd;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O&O&y*:vfio_get_dma_buf", names, to_fd,
					 &device, to_u32, &region_index, &ranges))
		return NULL;
	count = (size_t)ranges.len / sizeof(feature->ranges[0]);
	size = sizeof(*feature) + (size_t)ranges.len;
	if ((size_t)ranges.len % sizeof(feature->ranges[0]) || size > UINT32_MAX) {
		raise_error(PyExc_ValueError, "%zd bytes are no array of %zu-byte ranges",
			    ranges.len, sizeof(feature->ranges[0]));
		return NULL;
	}
	feature = PyMem_Malloc(size);
	if (!feature)
		return PyErr_NoMemory();
	*feature = (struct feature){
		.argsz = (uint32_t)size,
		.flags = VGPU_VFIO_DEVICE_FEATURE_DMA_BUF | VFIO_DEVICE_FEATURE_GET,
		.region_index = region_index,
		.open_flags = O_RDONLY | O_CLOEXEC,
		.nr_ranges = (uint32_t)count,
	};
	memcpy(feature->ranges, ranges.buf, (size_t)ranges.len);
	Py_BEGIN_ALLOW_THREADS
	fd = ioctl(device, VGPU_IOCTL_VFIO_DEVICE_FEATURE, feature);
	Py_END_ALLOW_THREADS
	if (fd < 0)
		return PyErr_SetFromErrno(PyExc_OSError);
	return from_fd(fd);
}
