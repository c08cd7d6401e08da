#define _GNU_SOURCE
#include "harness.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

PyMODINIT_FUNC PyInit__native(void);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static PyObject *module;
static int ram = -1, rom = -1;
static bool is_cut;
static int lowest; // free descriptor when the input began

void require(bool condition, const char *what)
{
	if (condition)
		return;
	fprintf(stderr, "fuzz: %s\n", what);
	if (PyErr_Occurred())
		PyErr_Print();
	abort();
}

PyObject *native(const char *name)
{
	PyObject *found = PyObject_GetAttrString(module, name);

	require(found, name);
	Py_DECREF(found); // the module holds it
	return found;
}

bool came(PyObject *result, const char *allowed, const char *what)
{
	PyObject *raised = PyErr_Occurred();
	const char *name;

	require(!result == !!raised, "a result and an exception, or neither");
	if (result)
		return true;
	name = strrchr(((PyTypeObject *)raised)->tp_name, '.');
	name = name ? name + 1 : ((PyTypeObject *)raised)->tp_name;
	require(strstr(allowed, name), what);
	PyErr_Clear();
	return false;
}

uint64_t take(struct input *in, size_t bytes)
{
	uint64_t value = 0;
	size_t length = bytes < in->left ? bytes : in->left;

	memcpy(&value, in->at, length);
	in->at += length, in->left -= length;
	return value;
}

uint64_t take_number(struct input *in)
{
	static const uint64_t edges[] = {
		0, 1, 4, 0xFFF, 0x1000, HALF, 2 * HALF, 1ULL << 31, UINT32_MAX, 1ULL << 32,
		UINT64_MAX,
	};
	uint64_t how = take(in, 1);

	if (how < 128)
		return how;
	if (how < 192)
		return take(in, 2);
	if (how < 240)
		return edges[how % Py_ARRAY_LENGTH(edges)] + (int64_t)(int8_t)take(in, 1);
	return take(in, 8);
}

uint64_t take_address(struct input *in)
{
	static const uint64_t bases[] = {LOW, HIGH, HIGH - 16, READ_ONLY, TOP, 2 * HALF - 64};
	uint64_t how = take(in, 1);

	if (how >= 250)
		return take(in, 8);
	return bases[how % Py_ARRAY_LENGTH(bases)] + take(in, 2);
}

static PyObject *region(int fd, uint64_t gpa, uint64_t size, uint64_t offset)
{
	PyObject *made = PyObject_CallFunction(native("Region"), "iKKKK", fd, gpa, size,
					       UVA + gpa, offset);

	require(made, "a region");
	return made;
}

static PyObject *memory(PyObject *regions)
{
	PyObject *made = PyObject_CallFunctionObjArgs(native("GuestMemory"), regions, NULL);

	require(made, "a memory table");
	return made;
}

static int next_descriptor(void)
{
	int next = dup(ram);

	close(next);
	return next;
}

void guest_open(struct guest *guest)
{
	PyObject *low, *top, *regions, *fewer;

	lowest = next_descriptor();
	guest_cut(false);
	low = region(ram, LOW, HALF, 0);
	top = region(ram, TOP, 0x1000, 2 * HALF);
	regions = Py_BuildValue("(ONNO)", low, region(ram, HIGH, HALF, HALF),
				region(rom, READ_ONLY, 0x2000, 0), top);
	fewer = Py_BuildValue("(NN)", low, top);
	require(regions && fewer, "two memory tables");
	guest->memory = memory(regions);
	guest->smaller = memory(fewer);
	Py_DECREF(regions);
	Py_DECREF(fewer);
}

void guest_close(struct guest *guest)
{
	Py_CLEAR(guest->memory);
	Py_CLEAR(guest->smaller);
	require(next_descriptor() == lowest, "a descriptor was left open");
}

// By pwrite(), because the harness must not be the one that meets memory that is gone.
void guest_write(uint64_t gpa, const void *data, size_t length)
{
	uint64_t at = gpa >= TOP ? 2 * HALF + (gpa - TOP) : gpa;
	uint64_t end = is_cut ? HALF / 2 : 2 * HALF + 0x1000;

	if (at < end)
		require(pwrite(ram, data, length < end - at ? length : end - at, (off_t)at) > 0,
			"pwrite");
}

void guest_cut(bool cut)
{
	require(!ftruncate(ram, HALF / 2), "ftruncate");
	if (!cut)
		require(!ftruncate(ram, 2 * HALF + 0x1000), "ftruncate");
	is_cut = cut;
}

int LLVMFuzzerInitialize(int *Py_UNUSED(argc), char ***Py_UNUSED(argv))
{
	PyConfig config;
	int writable;

	require(!PyImport_AppendInittab("_native", PyInit__native), "inittab");
	PyConfig_InitPythonConfig(&config);
	config.install_signal_handlers = 0;
	require(!PyStatus_Exception(Py_InitializeFromConfig(&config)), "an interpreter");
	PyConfig_Clear(&config);
	module = PyImport_ImportModule("_native");
	require(module, "import _native");
	ram = memfd_create("guest", MFD_CLOEXEC);
	writable = memfd_create("firmware", MFD_CLOEXEC);
	require(ram >= 0 && writable >= 0 && !ftruncate(writable, 0x2000), "memfd_create");
	{
		char path[64];

		snprintf(path, sizeof(path), "/proc/self/fd/%d", writable);
		rom = open(path, O_RDONLY | O_CLOEXEC);
	}
	require(rom >= 0, "a descriptor that allows reading only");
	return 0;
}
