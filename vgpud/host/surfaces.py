"""Surfaces and backings: the device's port (`device/pixels.py`) on real memory."""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Final
from weakref import WeakSet

from vgpud import _native
from vgpud.errors import GuestError
from vgpud.host.guest_memory import Snapshot
from vgpuwire import Ctrl, Format, Rect

SWIZZLE: Final = {
    Format.B8G8R8A8_UNORM: 0,
    Format.B8G8R8X8_UNORM: 0,
    Format.A8R8G8B8_UNORM: 1,
    Format.X8R8G8B8_UNORM: 1,
    Format.R8G8B8A8_UNORM: 2,
    Format.R8G8B8X8_UNORM: 2,
    Format.A8B8G8R8_UNORM: 3,
    Format.X8B8G8R8_UNORM: 3,
}
"""How the guest orders a pixel's bytes, as `_native.transfer` numbers it."""

SMALL: Final = 64 << 10
"""Bytes: below it a surface comes from the heap. A mapping each would cost two system calls
and let 65,530 pointers' images exhaust vm.max_map_count."""

HUGE: Final = 2 << 20
"""Bytes: from here on huge pages, where the system allows them, save most page faults."""


class HostBacking:
    """Guest pages behind a resource. They may be lost and come back with the memory table."""

    __slots__ = ("__weakref__", "_entries", "native", "size")

    def __init__(self, memory: Snapshot, entries: bytes) -> None:
        self._entries = entries
        self.native: _native.Backing | None = _native.Backing(memory, entries)
        self.size = self.native.size

    def rebind(self, memory: Snapshot) -> None:
        self.native = None  # first: nothing may hold the old mapping, whatever comes
        with suppress(ValueError):  # lost until the table has the addresses again (row R09)
            self.native = _native.Backing(memory, self._entries)


class HostSurface:
    """A 2D resource's pixels, B8G8R8A8, zero when new, freed with the last reference."""

    __slots__ = ("_memory", "_swizzle", "height", "pixels", "width")

    def __init__(self, width: int, height: int, pixel_format: int) -> None:
        self.width, self.height = width, height
        self._swizzle = SWIZZLE[Format(pixel_format)]
        size = width * height * 4
        self._memory: bytearray | mmap.mmap
        if size < SMALL:
            self._memory = bytearray(size)
        else:
            self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if size >= HUGE:
                self._memory.madvise(mmap.MADV_HUGEPAGE)
        self.pixels = memoryview(self._memory)

    def fill(self, backing: object, rect: Rect, offset: int) -> None:
        """See `Surface.fill`; the backing is one that the same store made."""
        assert isinstance(backing, HostBacking)
        if backing.native is None:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, "the backing's memory was unplugged")
        try:
            _native.transfer(
                self._memory,
                self.width * 4,
                rect.x,
                rect.y,
                rect.width,
                rect.height,
                self._swizzle,
                backing.native,
                offset,
                self.width * 4,
            )
        except _native.GuestFault as error:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, str(error)) from error


class HostPixelStore:
    """Makes surfaces, and backings that follow the memory table."""

    def __init__(self, memory: Snapshot) -> None:
        self._memory = memory
        self._backings: WeakSet[HostBacking] = WeakSet()

    def create_surface(self, width: int, height: int, pixel_format: int) -> HostSurface:
        """See `PixelStore.create_surface`."""
        try:
            return HostSurface(width, height, pixel_format)
        except (MemoryError, OSError) as error:
            raise GuestError(Ctrl.RESP_ERR_OUT_OF_MEMORY, str(error)) from error

    def resolve(self, entries: bytes) -> HostBacking:
        """See `PixelStore.resolve`."""
        try:
            backing = HostBacking(self._memory, entries)
        except ValueError as error:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, str(error)) from error
        self._backings.add(backing)
        return backing

    def set_memory(self, memory: Snapshot) -> None:
        """Move every live backing to another memory table (decision 11)."""
        self._memory = memory
        for backing in self._backings:
            backing.rebind(memory)
