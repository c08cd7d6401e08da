// Tables and multi-phase initialisation. Docstrings are in vgpud/_native.pyi only.
#include "vgpu.h"

#include <unistd.h>

void raise_error(PyObject *type, const char *format, ...)
{
	char message[256];
	va_list args;

	va_start(args, format);
	PyOS_vsnprintf(message, sizeof(message), format, args);
	va_end(args);
	PyErr_SetString(type, message);
}

static int to_unsigned(PyObject *object, uint64_t max, uint64_t *ret)
{
	_cleanup_pydecref_ PyObject *number = PyNumber_Index(object);
	unsigned long long value;

	if (!number)
		return 0;
	value = PyLong_AsUnsignedLongLong(number);
	if (value == (unsigned long long)-1 && PyErr_Occurred()) {
		if (!PyErr_ExceptionMatches(PyExc_OverflowError))
			return 0;
		PyErr_Clear();
		PyErr_Format(PyExc_ValueError, "%R is not 0 to %llu", number,
			     (unsigned long long)max);
		return 0;
	}
	if (value > max) {
		raise_error(PyExc_ValueError, "%llu is not 0 to %llu", value,
			    (unsigned long long)max);
		return 0;
	}
	*ret = value;
	return 1;
}

int to_u16(PyObject *object, void *ret)
{
	uint64_t value;

	if (!to_unsigned(object, UINT16_MAX, &value))
		return 0;
	*(uint16_t *)ret = (uint16_t)value;
	return 1;
}

int to_u32(PyObject *object, void *ret)
{
	uint64_t value;

	if (!to_unsigned(object, UINT32_MAX, &value))
		return 0;
	*(uint32_t *)ret = (uint32_t)value;
	return 1;
}

int to_u64(PyObject *object, void *ret)
{
	return to_unsigned(object, UINT64_MAX, ret);
}

int to_fd(PyObject *object, void *ret)
{
	uint64_t value;

	if (!to_unsigned(object, INT_MAX, &value))
		return 0;
	*(int *)ret = (int)value;
	return 1;
}

PyObject *from_fd(int fd)
{
	PyObject *number = PyLong_FromLong(fd);

	if (!number)
		close(fd);
	return number;
}

int to_fd_or_none(PyObject *object, void *ret)
{
	if (object != Py_None)
		return to_fd(object, ret);
	*(int *)ret = -1;
	return 1;
}

static PyMethodDef module_methods[] = {
	{"transfer", (PyCFunction)(void (*)(void))transfer, METH_VARARGS | METH_KEYWORDS},
	{"copy_out", (PyCFunction)(void (*)(void))copy_out, METH_VARARGS | METH_KEYWORDS},
	{"gather", (PyCFunction)(void (*)(void))gather, METH_VARARGS | METH_KEYWORDS},
	{"udmabuf_create", (PyCFunction)(void (*)(void))udmabuf_create, METH_VARARGS | METH_KEYWORDS},
	{"vfio_device_info", (PyCFunction)(void (*)(void))vfio_device_info,
	 METH_VARARGS | METH_KEYWORDS},
	{"vfio_region_info", (PyCFunction)(void (*)(void))vfio_region_info,
	 METH_VARARGS | METH_KEYWORDS},
	{"vfio_probe_dma_buf", (PyCFunction)(void (*)(void))vfio_probe_dma_buf,
	 METH_VARARGS | METH_KEYWORDS},
	{"vfio_get_dma_buf", (PyCFunction)(void (*)(void))vfio_get_dma_buf,
	 METH_VARARGS | METH_KEYWORDS},
	{"pidfd_getfd", (PyCFunction)(void (*)(void))take_fd, METH_VARARGS | METH_KEYWORDS},
	{"landlock_restrict", (PyCFunction)(void (*)(void))landlock_restrict,
	 METH_VARARGS | METH_KEYWORDS},
	{"file_system", (PyCFunction)(void (*)(void))file_system, METH_VARARGS | METH_KEYWORDS},
	{NULL},
};

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **ret)
{
	*ret = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
	if (!*ret)
		return -1;
	return PyModule_AddType(module, *ret);
}

static int add_exception(PyObject *module, const char *name, const char *attribute, PyObject **ret)
{
	*ret = PyErr_NewException(name, NULL, NULL);
	if (!*ret)
		return -1;
	return PyModule_AddObjectRef(module, attribute, *ret);
}

static int module_exec(PyObject *module)
{
	struct state *state = PyModule_GetState(module);

	if (guard_install() < 0) {
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	if (add_exception(module, "vgpud._native.RingError", "RingError", &state->ring_error) < 0 ||
	    add_exception(module, "vgpud._native.GuestFault", "GuestFault", &state->guest_fault) < 0)
		return -1;
	if (add_type(module, &region_spec, &state->region) < 0 ||
	    add_type(module, &guest_memory_spec, &state->guest_memory) < 0 ||
	    add_type(module, &backing_spec, &state->backing) < 0 ||
	    add_type(module, &element_spec, &state->element) < 0 ||
	    add_type(module, &virtqueue_spec, &state->virtqueue) < 0)
		return -1;
	return PyModule_AddIntConstant(module, "MAX_REQUEST", MAX_REQUEST);
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
	struct state *state = PyModule_GetState(module);

	Py_VISIT(state->region);
	Py_VISIT(state->guest_memory);
	Py_VISIT(state->backing);
	Py_VISIT(state->element);
	Py_VISIT(state->virtqueue);
	Py_VISIT(state->ring_error);
	Py_VISIT(state->guest_fault);
	return 0;
}

static int module_clear(PyObject *module)
{
	struct state *state = PyModule_GetState(module);

	Py_CLEAR(state->region);
	Py_CLEAR(state->guest_memory);
	Py_CLEAR(state->backing);
	Py_CLEAR(state->element);
	Py_CLEAR(state->virtqueue);
	Py_CLEAR(state->ring_error);
	Py_CLEAR(state->guest_fault);
	return 0;
}

static void module_free(void *module)
{
	module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
	{Py_mod_exec, module_exec},
	{0, NULL},
};

static PyModuleDef module_def = {
	PyModuleDef_HEAD_INIT,
	.m_name = "vgpud._native",
	.m_size = sizeof(struct state),
	.m_methods = module_methods,
	.m_slots = module_slots,
	.m_traverse = module_traverse,
	.m_clear = module_clear,
	.m_free = module_free,
};

PyMODINIT_FUNC PyInit__native(void);
PyMODINIT_FUNC PyInit__native(void)
{
	return PyModuleDef_Init(&module_def);
}
