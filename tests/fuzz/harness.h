// What the fuzzers of the C extension share: an interpreter, a guest's memory, bytes to act on.
#ifndef HARNESS_H
#define HARNESS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

// The guest's memory table. LOW and HIGH touch for the guest and not in this process.
#define LOW 0x0ULL
#define HIGH 0x8000ULL
#define READ_ONLY 0x100000ULL
#define TOP 0xFFFFFFFFFFFFF000ULL // ends at 2**64
#define HALF 0x8000
#define UVA 0x7f0000000000ULL

struct input {
	const uint8_t *at;
	size_t left;
};

struct guest {
	PyObject *memory;  // GuestMemory of all regions
	PyObject *smaller; // of LOW and TOP only
};

// Bytes of the input; zeros when it is used up.
uint64_t take(struct input *in, size_t bytes);
// A number near one that matters, or any.
uint64_t take_number(struct input *in);
// A guest-physical address that is mostly memory, often near an edge.
uint64_t take_address(struct input *in);

void guest_open(struct guest *guest);
void guest_close(struct guest *guest);
void guest_write(uint64_t gpa, const void *data, size_t length);
// Memory above LOW's first half loses its file, or gets it back (zeroed).
void guest_cut(bool cut);

// The extension, and what it may raise.
PyObject *native(const char *name);
// True where `result` is a value. Else exactly one of `allowed` must have been raised.
bool came(PyObject *result, const char *allowed, const char *what);
void require(bool condition, const char *what);

#endif
