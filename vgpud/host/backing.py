"""Guest pages behind a resource: read, seen as pictures, exported."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from vgpud import _native
from vgpud.errors import GuestError
from vgpud.host.cpu_view import CpuView
from vgpud.host.dmabuf import CannotExport, Dmabuf, LazyDmabuf, Quota
from vgpud.host.fd import OwnedFd
from vgpud.host.guest_memory import Snapshot
from vgpud.host.placement import InBar, IsDmabuf, place, unreadable
from vgpud.host.region_file import RegionFile
from vgpud.host.udmabuf import Udmabuf
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

FOURCC: Final = tuple(
    int.from_bytes(name, "little") for name in (b"XR24", b"BX24", b"XB24", b"RX24")
)
"""By the same number, the DRM format (<drm/drm_fourcc.h>), which names a little-endian word from
its high bits on. Without alpha: a head has nothing behind it (row F15)."""


BLANK: Final = "the head stays blank"


class Layout(Protocol):
    """`vgpud.device.pixels.Layout`."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def format(self) -> int: ...


class Exporter:
    """Where a store's dma-bufs come from, if from anywhere, and who hears why there is none."""

    def __init__(self, udmabuf: Udmabuf | None, explain: Callable[[CannotExport], None]) -> None:
        self.udmabuf = udmabuf
        self.quota = Quota() if udmabuf is None else udmabuf.quota
        self.explain = explain


class HostBacking:
    """Guest pages behind a resource. They may be lost and come back with the memory table."""

    __slots__ = (
        *("__weakref__", "_bound", "_dmabuf", "_entries", "_exporter", "_reported", "_view"),
        *("segments", "size"),
    )

    def __init__(self, memory: Snapshot, entries: bytes, exporter: Exporter) -> None:
        self._entries = entries
        self._exporter = exporter
        native = _native.Backing(memory.native, entries)
        # One attribute, so that an export in another thread never pairs two tables.
        self._bound: tuple[Snapshot, _native.Backing] | None = (memory, native)
        self.size = native.size
        self.segments = native.segments
        self._dmabuf = LazyDmabuf(exporter.explain)
        self._view: CpuView | None = None
        self._reported = False

    @property
    def native(self) -> _native.Backing | None:
        """None where it is lost."""
        bound = self._bound
        return None if bound is None else bound[1]

    @property
    def lost(self) -> bool:
        return self._bound is None

    @property
    def slow(self) -> bool:
        """Whether some of it is device memory."""
        native = self.native
        return native is not None and not native.mapped

    def rebind(self, memory: Snapshot) -> None:
        """Another memory table: the old mappings and the dma-buf are gone when this returns. An
        export that runs in a thread holds descriptors only, and its result is closed at once."""
        self._bound = self._view = None  # first: nothing may hold the old mapping, whatever comes
        self._reported = False
        with suppress(ValueError):  # lost until the table has the addresses again (row R09)
            self._bound = (memory, _native.Backing(memory.native, self._entries))
        self._dmabuf.drop()

    def require(self) -> _native.Backing:
        """Raises GuestError(ERR_UNSPEC) where it is lost."""
        return self._require()[1]

    def _require(self) -> tuple[Snapshot, _native.Backing]:
        bound = self._bound
        if bound is None:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, "the backing's memory was unplugged")
        return bound

    def read(self, offset: int, length: int) -> bytes:
        """See `Backing.read`."""
        try:
            return self.require().read(offset, length)
        except _native.GuestFault as error:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, str(error)) from error

    def picture(self, layout: Layout, size: int) -> HostPicture:
        """See `Backing.picture`."""
        return HostPicture(self, layout, size)

    @property
    def settled(self) -> bool:
        """Whether dmabuf() answers at once."""
        return (self._exporter.udmabuf is None and not self.slow) or self._dmabuf.settled

    def retry(self) -> None:
        """A dma-buf that was refused may be had now."""
        self._dmabuf.retry()

    def dmabuf(self, size: int) -> Dmabuf | None:
        """The first `size` bytes, whose number is the same at each call: a blob has one size."""
        if self._exporter.udmabuf is None and not self.slow:
            return None
        return self._dmabuf.get(lambda: self._export(size))

    def view(self, size: int) -> CpuView:
        """The first `size` bytes for the CPU to read, device memory included; in a thread. It is
        kept until the memory table changes. Raises GuestError(ERR_UNSPEC)."""
        if self._view is None:
            memory, native = self._require()
            try:
                self._view = CpuView(memory, native, size, self._exporter.quota)
            except CannotExport as error:
                error.instead = BLANK
                if not self._reported:
                    self._exporter.explain(error)
                raise GuestError(Ctrl.RESP_ERR_UNSPEC, str(error)) from error
        return self._view

    def _export(self, size: int) -> Dmabuf:
        bound = self._bound
        if bound is None:
            raise CannotExport("lost", "the backing's memory was unplugged")
        runs, files, slow = bound[1].runs(size), bound[0].files, not bound[1].mapped
        del bound  # the kernel takes its time; no mapping is held meanwhile
        if not slow:
            assert self._exporter.udmabuf is not None
            return self._exporter.udmabuf.export(runs, files, size)
        try:
            return self._export_device(runs, files, size)
        except CannotExport as error:
            # Never from itself: the ring would hold its frames until a collection.
            raise self._with_view(error, unreadable(runs, files)) from None

    def _export_device(self, runs: bytes, files: Sequence[RegionFile], size: int) -> Dmabuf:
        placement = place(runs, files)
        if isinstance(placement, InBar):
            return placement.device.export(
                placement.bar, placement.ranges, size, self._exporter.quota
            )
        assert isinstance(placement, IsDmabuf)
        token = self._exporter.quota.take(size, 1)
        try:
            fd = OwnedFd(os.dup(placement.file.fileno()))
        except OSError as error:
            self._exporter.quota.give(token)
            raise CannotExport("bar-dmabuf", "its descriptor", error.errno or 0) from error
        return Dmabuf(fd, size, self._exporter.quota, token)

    def _with_view(self, error: CannotExport, why: CannotExport | None) -> CannotExport:
        """One report of all that was tried, each with its remedy."""
        if why is None:
            error.instead = "the CPU reads the device's memory, which is slow"
            return error
        self._reported = True
        if why.reason == error.reason:
            error.instead = BLANK
            return error
        both = CannotExport(
            f"{error.reason}, {why.reason}", f"{error}; nor can the CPU read it: {why}"
        )
        both.instead = BLANK
        return both


class HostPicture:
    """A frame buffer in guest pages; see `Picture`."""

    __slots__ = ("_backing", "_offset", "_size", "_swizzle", "fourcc", "height", "stride", "width")

    def __init__(self, backing: HostBacking, layout: Layout, size: int) -> None:
        self._backing = backing
        self._size = size
        self._offset = layout.offset
        self._swizzle = SWIZZLE[Format(layout.format)]
        self.width, self.height, self.stride = layout.width, layout.height, layout.stride
        self.fourcc = FOURCC[self._swizzle]

    @property
    def lost(self) -> bool:
        return self._backing.lost

    @property
    def slow(self) -> bool:
        """See `Picture.slow`."""
        return self._backing.slow

    def rows(self, rect: Rect) -> list[memoryview]:
        """See `Picture.rows`: one piece, a copy made by the guarded copy, because a send that
        meets memory that vanished stops half way and QEMU waits for the rest for ever."""
        rows = self._copy(self._backing.require(), rect, b"")
        assert rows is not None
        return rows

    def fetch(self, rect: Rect, stop: bytearray) -> list[memoryview] | None:
        """See `Picture.fetch`. Where the guest has switched its device off, nobody asks for its
        memory: a read that the device does not answer may take a machine down with it."""
        view = self._backing.view(self._size)
        view.require_decoding()
        return self._copy(view.native, rect, stop)

    def _copy(
        self, backing: _native.Backing, rect: Rect, stop: bytes | bytearray
    ) -> list[memoryview] | None:
        out = bytearray(4 * rect.width * rect.height)
        try:
            whole = _native.copy_out(
                backing,
                self._offset,
                self.stride,
                rect.x,
                rect.y,
                rect.width,
                rect.height,
                self._swizzle,
                out,
                stop,
            )
        except (_native.GuestFault, ValueError) as error:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, str(error)) from error
        return [memoryview(out)] if whole else None

    @property
    def memory(self) -> int:
        return self._size

    @property
    def settled(self) -> bool:
        return bool(self._offset) or self._backing.settled

    def dmabuf(self) -> Dmabuf | None:
        """See `Picture.dmabuf`: the whole blob, which all its pictures share. None where the
        first pixel is not its first byte, since QEMU ignores an offset (decision 5)."""
        return None if self._offset else self._backing.dmabuf(self._size)
