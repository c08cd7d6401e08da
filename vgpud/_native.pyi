"""The C extension: guest memory, split virtqueues, pixels, dma-bufs of guest pages.

Only `vgpud.host` imports it. This stub is its only documentation; a test compares the
names of both. All addresses, sizes and offsets are in bytes, all integers of the wire
are little-endian. Nothing here interprets a command.

Memory of the guest may vanish under a copy (its file was truncated, a BAR was switched
off). Every access goes through one guarded copy that turns the SIGBUS into `GuestFault`.
"""

from collections.abc import Sequence
from typing import final

from typing_extensions import Buffer

class RingError(Exception):
    """The driver broke its virtqueue (virtio 1.3, 2.7); the ring must not be used again.

    The message names what is wrong: index, address or flag, as a number.
    """

class GuestFault(Exception):
    """Guest memory that was mapped could not be read or written: it has gone away."""

@final
class Region:
    """One region of the memory table, mapped shared.

    Mapped read-write; read-only where `fd` allows no more; not at all where it cannot be
    mapped (a dma-buf of device memory), in which case `access` is "none" and every access
    fails while the region still exists. `fd` is borrowed for the call only. The mapping
    is released when the last user of the object is gone.

    Without an `fd` it is not mapped on purpose: backings may have its pages, for an exporter,
    but they cannot be read. With `device` it is a device's memory, mapped read-only and read in
    aligned loads of 16 bytes, since nothing of it is cached.

    Raises ValueError for a size of 0 and for ranges that wrap around 2**64, OSError for an
    `fd` that is not open.
    """

    def __init__(
        self,
        fd: int | None,
        guest_phys_addr: int,
        memory_size: int,
        userspace_addr: int,
        mmap_offset: int,
        device: bool = False,
    ) -> None: ...
    @property
    def guest_phys_addr(self) -> int: ...
    @property
    def memory_size(self) -> int: ...
    @property
    def userspace_addr(self) -> int: ...
    @property
    def mmap_offset(self) -> int: ...
    @property
    def access(self) -> str:
        """ "rw", "ro" or "none"."""

@final
class GuestMemory:
    """An immutable snapshot of the memory table. It holds its regions.

    Raises ValueError where two regions overlap in guest-physical addresses.
    """

    def __init__(self, regions: Sequence[Region]) -> None: ...
    @property
    def regions(self) -> tuple[Region, ...]: ...
    def read(self, guest_phys_addr: int, length: int) -> bytes:
        """Raises ValueError where the range is not all mapped, GuestFault if it vanished."""

@final
class Backing:
    """Guest pages behind a resource: entries resolved and merged, with a running offset.

    `entries` is an array of virtio_gpu_mem_entry as it came from the ring (16 bytes each:
    le64 addr, le32 length, le32 padding, which is ignored). An entry may span regions.
    Adjacent pieces are merged. It holds the memory it points into.

    Raises ValueError where an entry is empty, wraps, or is not all in memory that is readable or
    was given without a descriptor; the message names the first such entry.
    """

    def __init__(self, memory: GuestMemory, entries: Buffer) -> None: ...
    @property
    def size(self) -> int:
        """Sum of the entries' lengths."""
    @property
    def segments(self) -> int:
        """Pieces left after merging, contiguous in this process."""
    @property
    def mapped(self) -> bool:
        """Whether all of it is mapped. Where it is not, read(), transfer() and copy_out() raise
        GuestFault and touch nothing; what it is of runs() tells."""
    def rebind(self, memory: GuestMemory) -> Backing:
        """The same guest-physical ranges in another memory table; raises as the constructor."""
    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`; fewer at the end of the backing."""
    def runs(self, size: int) -> bytes:
        """Its first `size` bytes, up to the end of a page, as runs of its regions' files.

        An array of struct udmabuf_create_item (24 bytes: u32, 4 bytes of zero, u64, u64) in the
        backing's order: the region's number in `GuestMemory.regions` in the place of the memfd,
        the offset in the region's file, the length; all in host byte order. Neighbours that meet
        in a file are one. Fewer bytes where the backing ends before. Nothing is aligned here.
        """

@final
class Element:
    """One descriptor chain, popped: its readable part copied once, its writable part as
    guest-physical ranges that are translated when the answer is pushed."""

    @property
    def head(self) -> int: ...
    @property
    def request(self) -> bytes:
        """The readable part, cut at `MAX_REQUEST` bytes."""
    @property
    def writable(self) -> int:
        """Bytes of the writable part."""

MAX_REQUEST: int
"""Bytes of a request that are copied: RESOURCE_CREATE_BLOB with QEMU's 16384 entries."""

@final
class Virtqueue:
    """The device's side of a split virtqueue (virtio 1.3, 2.7).

    `desc`, `avail`, `used` are in the address space of `userspace_addr`
    (VHOST_USER_SET_VRING_ADDR); `base` is the next available index to serve. Indirect
    tables are always understood; `event_idx` says whether VIRTIO_F_EVENT_IDX was acked.

    Raises ValueError for a size that is 0, above 1024 or no power of two, and for areas that
    are misaligned, not inside one writable region, or (base) no 16-bit number.
    """

    def __init__(
        self,
        memory: GuestMemory,
        size: int,
        desc: int,
        avail: int,
        used: int,
        base: int,
        event_idx: bool,
    ) -> None: ...
    @property
    def next_avail(self) -> int:
        """The next available index that pop() would take, 0..65535 (GET_VRING_BASE)."""
    @property
    def in_flight(self) -> int:
        """Elements popped and not pushed."""
    def pop(self, arm: bool = True, /) -> Element | None:
        """The next chain, or None: then, with `arm`, notifications are armed and the ring was
        looked at once more after arming, so that no kick is lost. Without, the driver may have
        been told that nobody needs its kicks: ask again with `arm` before waiting for one.

        Raises RingError (index jump, loop, address not in memory, empty descriptor, readable
        after writable, bad indirect table, more chains in flight than descriptors) and
        GuestFault. After either the ring is broken and every later call raises RingError.
        """
    def spin(self, nanoseconds: int, /) -> bool:
        """Look at the ring for so long at most, without the GIL and giving the CPU away in
        between; True once there is a chain to pop. Arms nothing. Raises as pop() does."""
    def push(self, element: Element, response: Buffer) -> int:
        """Put an element into the used ring with `response`, cut at the writable part.

        Returns the bytes written, which is also the used length. An element is pushed once
        (ValueError otherwise). Raises RingError where the writable part left the memory.
        Not visible to the driver before publish().
        """
    def publish(self) -> bool:
        """Make all pushed elements visible; True if the driver wants a notification.

        With `event_idx` the first time is always True: a predecessor may have died between
        publishing and notifying, and the driver would wait for ever.
        """
    def rebind(self, memory: GuestMemory) -> None:
        """Resolve the ring's addresses in another memory table. Raises ValueError where they are
        not there: the ring is then lost, holds no memory and is of no use, until a later call
        finds them. Raises RingError for a broken one."""

def transfer(
    surface: Buffer,
    stride: int,
    x: int,
    y: int,
    width: int,
    height: int,
    swizzle: int,
    backing: Backing,
    offset: int,
    src_stride: int,
) -> int:
    """Copy a rectangle from guest pages into a surface of B8G8R8A8 pixels (row-major).

    Row r of the rectangle comes from backing offset `offset + r * src_stride` and goes to byte
    `(y + r) * stride + 4 * x` of `surface`; for TRANSFER_TO_HOST_2D (virtio 1.3, 5.7.6.8)
    `src_stride` is 4 * the resource's width. `swizzle` is the number of the pixel order in the
    guest: 0 B8G8R8A8, 1 A8R8G8B8, 2 R8G8B8A8, 3 A8B8G8R8. Rows beyond the backing are left alone,
    a row is cut where it ends (whole pixels). The GIL is released above 64 KiB.

    Returns the bytes written. Raises ValueError where the rectangle is not inside the surface,
    GuestFault where the guest's memory vanished half way.
    """

def copy_out(
    backing: Backing,
    offset: int,
    stride: int,
    x: int,
    y: int,
    width: int,
    height: int,
    swizzle: int,
    out: Buffer,
    stop: Buffer = ...,
) -> bool:
    """Copy a rectangle of a frame buffer in guest pages as tightly packed B8G8R8A8 pixels.

    Row r comes from backing offset `offset + (y + r) * stride + 4 * x` and goes to byte
    `r * 4 * width` of `out`, whose rest is left alone. `swizzle` and the GIL as in transfer().

    Another thread ends the copy by a first byte of `stop` that is not 0, which is looked at after
    each 256 KiB; of device memory, for any byte of which the GIL is released too, at the start and
    after each 4 KiB. False where it ended before the last row.

    Raises ValueError where the rectangle is not all inside the backing or `out` is too small:
    then nothing was written; GuestFault where the guest's memory vanished half way.
    """

def gather(surface: Buffer, stride: int, x: int, y: int, width: int, height: int) -> bytes:
    """The pixels of a rectangle of a surface (4 bytes each, rows `stride` bytes apart), row after
    row. The surface is memory that cannot fault. The GIL is released above 64 KiB. Raises
    ValueError where the rectangle is not inside."""

def landlock_restrict(readable: Buffer, removable: Buffer) -> int:
    """Take the file system, TCP, and abstract sockets and signals of other programs away from the
    calling thread and those that it starts, for good, as far as the kernel's Landlock knows them
    (landlock(7)); returns its ABI. Descriptors that are open keep working. Two arrays
    of ints, open folders: below `readable` files may still be opened to be read, below
    `removable` they may be removed. Sets no_new_privs. Raises OSError:
    ENOSYS or EOPNOTSUPP where the kernel has no Landlock."""

def udmabuf_create(device: int, runs: Buffer, fds: Buffer) -> int:
    """UDMABUF_CREATE_LIST on /dev/udmabuf: the descriptor of a new dma-buf, close-on-exec.

    `runs` is as `Backing.runs` returns it, `fds` an array of C ints: the memfd of each region
    by its number, -1 where it has none. The dma-buf is the runs in their order. The GIL is
    released: pages that the guest never touched are allocated and cleared in here.

    Raises ValueError where a run's region has no memfd, OSError where the kernel refuses; it
    does not say which run it is (reference/kernel-dmabuf.md 1.2).
    """

def vfio_device_info(device: int) -> tuple[int, int]:
    """VFIO_DEVICE_GET_INFO: flags and the number of regions. Raises OSError."""

def vfio_region_info(device: int, index: int) -> bytes:
    """VFIO_DEVICE_GET_REGION_INFO: struct vfio_region_info and the capabilities behind it, in
    host byte order. Without them where they do not fit in 64 KiB. Raises OSError."""

def vfio_probe_dma_buf(device: int) -> None:
    """VFIO_DEVICE_FEATURE, PROBE of GET DMA_BUF: returns where the device exports dma-bufs, and
    changes nothing. Raises OSError: ENOTTY and EOPNOTSUPP mean no."""

def vfio_get_dma_buf(device: int, region_index: int, ranges: Buffer) -> int:
    """VFIO_DEVICE_FEATURE, GET DMA_BUF: the descriptor of a new dma-buf, read-only and
    close-on-exec.

    `ranges` is an array of struct vfio_region_dma_range (u64 offset in the region, u64 length, in
    host byte order), whose order is the dma-buf's. Raises ValueError for half a range, OSError
    where the kernel refuses (reference/kernel-dmabuf.md 2.1).
    """

def file_system(fd: int) -> tuple[int, int]:
    """f_type and f_bsize of the file system that `fd` is on (fstatfs(2)). On hugetlbfs the
    second is the size of a huge page. Raises OSError."""

def pidfd_getfd(pidfd: int, fd: int) -> int:
    """A duplicate of descriptor `fd` of the process that `pidfd` refers to (pidfd_getfd(2)),
    close-on-exec. Raises OSError: EPERM where the kernel does not let us trace that process, EBADF
    where it has no such descriptor, ESRCH where it has ended."""
