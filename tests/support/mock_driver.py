"""The driver's side of a split virtqueue (virtio 1.3, 2.7), in a memfd that plays guest RAM.

    ram = GuestRam(1 << 20)
    queue = DriverQueue(ram, 64, event_idx=True)
    head = queue.add([header, body], [24])
    if queue.needs_kick():
        queue.kick()
    ...
    for head, length in queue.used():
        answer = queue.response(head)

Guest-physical, userspace and file addresses all differ, so that mixing them up fails. The
low-level methods (`write_descriptor`, `offer`, `set_avail_idx`) are for hostile drivers.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

NEXT, WRITE, INDIRECT = 1, 2, 4
"""Descriptor flags."""

GPA, UVA = 0x4000_0000, 0x7F00_0000_0000
"""Where a region of a GuestRam starts that was told nothing else."""

# Native ("@") formats: one store of the whole field. A standard one writes byte by byte, and
# a device on another core would see half an index.
_U16 = struct.Struct("@H")
_DESCRIPTOR = struct.Struct("@QIHH")
_USED_ELEM = struct.Struct("@II")
_MEM_ENTRY = struct.Struct("<QII")


class RamRegion(NamedTuple):
    """One row of the memory table, as VHOST_USER_ADD_MEM_REG has it."""

    guest_phys_addr: int
    memory_size: int
    userspace_addr: int
    mmap_offset: int


class GuestRam:
    """Guest memory in one memfd, seen through one or more regions.

    Without `regions`, one region covers the memfd. The region is nothing but numbers: whoever
    plays QEMU sends them with `memfd`.
    """

    def __init__(self, size: int, *, regions: Sequence[RamRegion] | None = None) -> None:
        self.size = size
        self.regions = [RamRegion(GPA, size, UVA, 0)] if regions is None else list(regions)
        self.memfd = os.memfd_create("mock-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.memfd, size)
        self._map = mmap.mmap(self.memfd, size)
        self._next = [region.guest_phys_addr for region in self.regions]
        self._free: dict[int, list[int]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self.memfd >= 0:
            self._map.close()
            os.close(self.memfd)
            self.memfd = -1

    def region_of(self, gpa: int) -> RamRegion:
        for region in self.regions:
            if region.guest_phys_addr <= gpa < region.guest_phys_addr + region.memory_size:
                return region
        raise ValueError(f"{gpa:#x} is in no region")

    def offset(self, gpa: int) -> int:
        """In the memfd."""
        region = self.region_of(gpa)
        return gpa - region.guest_phys_addr + region.mmap_offset

    def uva(self, gpa: int) -> int:
        region = self.region_of(gpa)
        return gpa - region.guest_phys_addr + region.userspace_addr

    def alloc(self, size: int, align: int = 16) -> int:
        """The guest-physical address of zeroed bytes that are whole in one region."""
        size = _rounded(size)
        for gpa in self._free.get(size, []):
            if gpa % align == 0:
                self._free[size].remove(gpa)
                self.write(gpa, bytes(size))
                return gpa
        for i, region in enumerate(self.regions):
            gpa = -(-self._next[i] // align) * align
            if gpa + size <= region.guest_phys_addr + region.memory_size:
                self._next[i] = gpa + size
                return gpa
        raise MemoryError(f"no {size} bytes of guest memory left")

    def free(self, gpa: int, size: int) -> None:
        self._free.setdefault(_rounded(size), []).append(gpa)

    def store(self, data: bytes, align: int = 16) -> int:
        """alloc() and write()."""
        gpa = self.alloc(len(data), align)
        self.write(gpa, data)
        return gpa

    def write(self, gpa: int, data: bytes) -> None:
        """May cross from one region into the next."""
        while data:
            run, offset = self._run(gpa, len(data))
            self._map[offset : offset + run] = data[:run]
            gpa, data = gpa + run, data[run:]

    def read(self, gpa: int, length: int) -> bytes:
        parts = []
        while length:
            run, offset = self._run(gpa, length)
            parts.append(self._map[offset : offset + run])
            gpa, length = gpa + run, length - run
        return b"".join(parts)

    def pack_into(self, layout: struct.Struct, gpa: int, *values: int) -> None:
        layout.pack_into(self._map, self.offset(gpa), *values)

    def unpack_from(self, layout: struct.Struct, gpa: int) -> tuple[int, ...]:
        return layout.unpack_from(self._map, self.offset(gpa))

    def _run(self, gpa: int, length: int) -> tuple[int, int]:
        region = self.region_of(gpa)
        left = region.guest_phys_addr + region.memory_size - gpa
        return min(left, length), self.offset(gpa)


def mem_entries(ranges: Iterable[tuple[int, int]]) -> bytes:
    """An array of virtio_gpu_mem_entry; its padding is rubbish, which a device ignores."""
    return b"".join(_MEM_ENTRY.pack(addr, length, 0xDEADBEEF) for addr, length in ranges)


class _Chain(NamedTuple):
    heads: list[int]
    buffers: list[tuple[int, int]]
    writable: list[tuple[int, int]]


class DriverQueue:
    """A split virtqueue that a well-behaved driver set up, starting at index `base`.

    `desc`, `avail`, `used` are userspace addresses (VHOST_USER_SET_VRING_ADDR). `kick_fd` and
    `call_fd` are eventfds, non-blocking as QEMU's are. With `indirect`, each chain is one
    indirect table.
    """

    def __init__(
        self,
        ram: GuestRam,
        size: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        base: int = 0,
    ) -> None:
        self.ram = ram
        self.size = size
        self.event_idx = event_idx
        self.indirect = indirect
        self.base = base
        self.desc_gpa = ram.alloc(16 * size, 16)
        self.avail_gpa = ram.alloc(6 + 2 * size, 2)
        self.used_gpa = ram.alloc(6 + 8 * size, 4)
        self.avail_idx = base
        self._kicked_idx = base
        self._last_used = base
        self._free = list(range(size))
        self._chains: dict[int, _Chain] = {}
        self._responses: dict[int, bytes] = {}
        self.set_avail_idx(base)
        self._store16(self.used_gpa + 2, base)
        self.set_used_event(base)
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self.kick_fd >= 0:
            os.close(self.kick_fd)
            os.close(self.call_fd)
            self.kick_fd = self.call_fd = -1

    @property
    def desc(self) -> int:
        return self.ram.uva(self.desc_gpa)

    @property
    def avail(self) -> int:
        return self.ram.uva(self.avail_gpa)

    @property
    def used_addr(self) -> int:
        return self.ram.uva(self.used_gpa)

    def add(self, readable: Sequence[bytes], writable: Sequence[int] = ()) -> int:
        """Offer one chain: a readable descriptor a part, then a writable one a length.

        Returns its head. Does not kick.
        """
        buffers = [(self.ram.store(part), len(part)) for part in readable]
        answers = [(self.ram.alloc(length), length) for length in writable]
        return self.add_ranges(buffers, answers, owned=buffers + answers)

    def add_ranges(
        self,
        readable: Sequence[tuple[int, int]],
        writable: Sequence[tuple[int, int]] = (),
        *,
        owned: Sequence[tuple[int, int]] = (),
    ) -> int:
        """As add(), of guest-physical ranges; those in `owned` are freed when it is used."""
        rows = [(*r, 0) for r in readable] + [(*r, WRITE) for r in writable]
        if not rows:
            raise ValueError("a chain has at least one descriptor")
        buffers = list(owned)
        if self.indirect:
            table = self.ram.alloc(16 * len(rows))
            buffers.append((table, 16 * len(rows)))
            self._link(table, range(len(rows)), rows)
            heads = self._take(1)
            self.write_descriptor(heads[0], table, 16 * len(rows), INDIRECT, 0)
        else:
            heads = self._take(len(rows))
            self._link(self.desc_gpa, heads, rows)
        self._chains[heads[0]] = _Chain(heads, buffers, list(writable))
        self.offer(heads[0])
        return heads[0]

    def used(self) -> list[tuple[int, int]]:
        """(head, length) of what the device gave back since the last call, in its order."""
        answers = []
        (idx,) = self.ram.unpack_from(_U16, self.used_gpa + 2)
        while self._last_used != idx:
            slot = self.used_gpa + 4 + 8 * (self._last_used % self.size)
            head, length = self.ram.unpack_from(_USED_ELEM, slot)
            chain = self._chains.pop(head)
            data = b"".join(self.ram.read(gpa, size) for gpa, size in chain.writable)
            self._responses[head] = data[:length]
            for gpa, size in chain.buffers:
                self.ram.free(gpa, size)
            self._free.extend(chain.heads)
            answers.append((head, length))
            self._last_used = (self._last_used + 1) & 0xFFFF
        self.set_used_event(self._last_used)
        return answers

    def response(self, head: int) -> bytes:
        """What the device wrote into the last chain of this head that used() returned."""
        return self._responses[head]

    @property
    def in_flight(self) -> int:
        """Chains offered and not used."""
        return len(self._chains)

    def needs_kick(self) -> bool:
        """Whether the device wants to hear of what was added since the last call."""
        old, new = self._kicked_idx, self.avail_idx
        self._kicked_idx = new
        if old == new:
            return False
        if self.event_idx:
            (event,) = self.ram.unpack_from(_U16, self.used_gpa + 4 + 8 * self.size)
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        (flags,) = self.ram.unpack_from(_U16, self.used_gpa)
        return not flags & 1

    def kick(self) -> None:
        os.eventfd_write(self.kick_fd, 1)

    def called(self) -> int:
        """Interrupts since the last call."""
        try:
            return os.eventfd_read(self.call_fd)
        except BlockingIOError:
            return 0

    # What a hostile driver uses -----------------------------------------------------------

    def write_descriptor(
        self, index: int, addr: int, length: int, flags: int, next_: int, table: int | None = None
    ) -> None:
        """In the ring's table, or in the indirect one at guest-physical `table`."""
        gpa = (self.desc_gpa if table is None else table) + 16 * index
        self.ram.write(gpa, _DESCRIPTOR.pack(addr, length, flags, next_))

    def offer(self, head: int) -> None:
        """Put a head into the available ring and make it visible."""
        self._store16(self.avail_gpa + 4 + 2 * (self.avail_idx % self.size), head)
        self.set_avail_idx(self.avail_idx + 1)

    def set_avail_idx(self, idx: int) -> None:
        self.avail_idx = idx & 0xFFFF
        self._store16(self.avail_gpa + 2, self.avail_idx)

    def set_avail_flags(self, flags: int) -> None:
        self._store16(self.avail_gpa, flags)

    def set_used_event(self, idx: int) -> None:
        self._store16(self.avail_gpa + 4 + 2 * self.size, idx & 0xFFFF)

    def _store16(self, gpa: int, value: int) -> None:
        self.ram.pack_into(_U16, gpa, value)

    def _take(self, count: int) -> list[int]:
        if count > len(self._free):
            raise BlockingIOError(f"{count} descriptors wanted, {len(self._free)} are free")
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def _link(
        self, table: int, indices: Sequence[int], rows: Sequence[tuple[int, int, int]]
    ) -> None:
        for i, (addr, length, flags) in enumerate(rows):
            last = i == len(rows) - 1
            self.write_descriptor(
                indices[i],
                addr,
                length,
                flags | (0 if last else NEXT),
                0 if last else indices[i + 1],
                table,
            )


def _rounded(size: int) -> int:
    return -(-size // 16) * 16
