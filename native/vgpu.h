// What the files of the extension share. The rules are in README.md.
#ifndef VGPU_H
#define VGPU_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <setjmp.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__ || UINTPTR_MAX != UINT64_MAX
#error "the wire is little-endian and guest memory is mapped whole: 64-bit little-endian hosts only"
#endif

// RESOURCE_CREATE_BLOB (56 bytes) with the 16384 entries QEMU accepts at most, 16 bytes each.
#define MAX_REQUEST (56 + 16384 * 16)
// QEMU's VIRTQUEUE_MAX_SIZE: of a ring and of one chain, indirect descriptors included.
#define MAX_CHAIN 1024
// A longer copy costs more than giving the GIL away and taking it back.
#define GIL_BYTES (64 * 1024)

struct state {
	PyTypeObject *region, *guest_memory, *backing, *element, *virtqueue;
	PyObject *ring_error, *guest_fault;
	uint64_t queues; // made so far: the serial number of the last one
};

// Every type is final and made with its module, so this never fails.
static inline struct state *state_of(PyTypeObject *type)
{
	return PyType_GetModuleState(type);
}

// Cleanup attributes ---------------------------------------------------------------------

static inline void pydecref_p(void *p)
{
	Py_XDECREF(*(PyObject **)p);
}

static inline void pymem_free_p(void *p)
{
	PyMem_Free(*(void **)p);
}

static inline void release_buffer_p(Py_buffer *p)
{
	PyBuffer_Release(p); // does nothing where no buffer was taken
}

#define _cleanup_pydecref_ __attribute__((cleanup(pydecref_p)))
#define _cleanup_pymem_ __attribute__((cleanup(pymem_free_p)))
#define _cleanup_buffer_ __attribute__((cleanup(release_buffer_p)))
#define return_ptr(p)                                                                          \
	do {                                                                                   \
		__auto_type owned_ = (p);                                                      \
		(p) = NULL;                                                                    \
		return (void *)owned_;                                                         \
	} while (0)

// Exceptions, and converters for O&: TypeError for no integer, ValueError out of range -------

// PyErr_Format() of CPython 3.11 knows no %llx.
void raise_error(PyObject *type, const char *format, ...) __attribute__((format(printf, 2, 3)));
int to_u16(PyObject *object, void *ret);
int to_u32(PyObject *object, void *ret);
int to_u64(PyObject *object, void *ret);
int to_fd(PyObject *object, void *ret);
// A descriptor as an int that the caller owns; closed where there is no memory for the int.
PyObject *from_fd(int fd);
int to_fd_or_none(PyObject *object, void *ret); // -1 for None

// The guarded copy -----------------------------------------------------------------------

struct guard {
	volatile uintptr_t start, end; // the guest bytes being touched right now
	volatile uintptr_t fault;
	sigjmp_buf jump;
};

// Work touches guest memory after guard_range() only. It may be left in the middle: it owns
// nothing and calls no Python.
typedef void guard_work(struct guard *guard, void *arg);

struct memory;

int guard_install(void);
// Without the GIL where `bytes` are many or a device's. Sets GuestFault and returns false on a fault.
bool guarded(struct state *state, const struct memory *memory, guard_work *work, void *arg,
	     uint64_t bytes);

static inline void guard_range(struct guard *guard, const void *start, size_t length)
{
	// No access may move over the change of range: the handler would take it for a bug.
	atomic_signal_fence(memory_order_seq_cst);
	guard->start = (uintptr_t)start;
	guard->end = (uintptr_t)start + length;
	atomic_signal_fence(memory_order_seq_cst);
}

// Guest memory ---------------------------------------------------------------------------

struct region {
	PyObject_HEAD
	uint64_t gpa, size, uva;
	uint64_t offset; // of its first byte in the file
	uint8_t *host; // NULL: access is "none"
	bool writable;
	bool elsewhere; // no descriptor was given: for an exporter to take, never for us to touch
	bool device;	// memory of a device: uncached, read in wide loads
	void *map; // with the bytes before an mmap_offset inside of a page
	size_t map_length;
};

static inline bool wraps(uint64_t start, uint64_t length)
{
	return length && start + (length - 1) < start;
}

struct memory *memory_ref(PyObject *object);
// The mapping of [gpa, gpa + *run), *run being at most `length` (which is not 0); NULL where
// gpa is not mapped, or not for writing.
uint8_t *memory_piece(const struct memory *memory, uint64_t gpa, uint64_t length, bool write,
		      uint64_t *run);
// Where [gpa, gpa + *run) is: the number of its region in the table, the offset in the file.
// The range is mapped, as memory_piece() has it.
uint64_t memory_place(const struct memory *memory, uint64_t gpa, uint64_t length, size_t *region,
		      uint64_t *run);
bool memory_covers(const struct memory *memory, uint64_t gpa, uint64_t length, bool write);
// Whether a backing may have [gpa, gpa + *run): readable (`*host` is its mapping) or elsewhere
// (`*host` is NULL).
bool memory_backs(const struct memory *memory, uint64_t gpa, uint64_t length, uint8_t **host,
		  uint64_t *run);
// Whether some of it is a device's.
bool memory_is_device(const struct memory *memory);
// Whole in one writable region, in the front-end's address space; NULL if not.
uint8_t *memory_find_uva(const struct memory *memory, uint64_t uva, uint64_t length);
bool memory_find_host(const struct memory *memory, uintptr_t host, uint64_t *ret);
// Inside of guard work. False where the range is not all mapped.
bool memory_load(struct guard *guard, const struct memory *memory, uint64_t gpa, void *ret,
		 size_t length);
bool memory_store(struct guard *guard, const struct memory *memory, uint64_t gpa,
		  const void *data, size_t length);

// Backing --------------------------------------------------------------------------------

struct backing;
const struct memory *backing_memory(const struct backing *backing);
uint64_t backing_size(const struct backing *backing);
// False, with GuestFault set, where some of it is elsewhere: none of it is touched then.
bool backing_require_mapped(struct state *state, const struct backing *backing);
// The backing's segments in order: the bytes of number `i` and where they are; 0 after the last.
uint64_t backing_segment(const struct backing *backing, size_t i, uint64_t *gpa);
// Inside of guard work: `length` bytes from `offset`, all inside. `*hint` is where the last
// call ended (0 at first): the next row of a rectangle is found without a search.
void backing_load(struct guard *guard, const struct backing *backing, size_t *hint,
		  uint64_t offset, void *ret, uint64_t length);

// Descriptor chains ----------------------------------------------------------------------

struct range {
	uint64_t gpa;
	uint64_t length;
};

struct chain {
	const struct memory *memory;
	const uint8_t *table; // the ring's descriptor table, `size` descriptors
	uint32_t size;
	uint32_t head;
	// The result: readable ranges first, as in the chain.
	uint32_t readable, writable;
	bool indirect; // left the ring's table for an indirect one
	uint64_t readable_bytes, writable_bytes;
	// What is wrong, as a format of two numbers: the descriptor's index and `value`.
	const char *fault;
	uint64_t index, value;
	struct range ranges[MAX_CHAIN];
};

bool chain_walk(struct guard *guard, struct chain *chain);

struct element {
	PyObject_VAR_HEAD
	PyObject *request;
	uint64_t ring; // serial number of its Virtqueue: holding that would hold old mappings
	uint64_t writable_bytes;
	uint32_t head;
	bool pushed;
	struct range writable[];
};

struct element *element_new(struct state *state, const struct chain *chain, PyObject *request);

extern PyType_Spec region_spec, guest_memory_spec, backing_spec, element_spec, virtqueue_spec;

PyObject *transfer(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *copy_out(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *gather(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *backing_runs(PyObject *backing, PyObject *args, PyObject *kwargs);
PyObject *landlock_restrict(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *udmabuf_create(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *vfio_device_info(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *vfio_region_info(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *vfio_probe_dma_buf(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *vfio_get_dma_buf(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *take_fd(PyObject *module, PyObject *args, PyObject *kwargs);
PyObject *file_system(PyObject *module, PyObject *args, PyObject *kwargs);

#endif
