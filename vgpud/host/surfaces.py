"""Surfaces, and the store that makes them and the backings: the device's port
(`device/pixels.py`) on real memory."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Final
from weakref import WeakSet

from vgpud import _native, log
from vgpud.errors import GuestError
from vgpud.host.backing import FOURCC, SWIZZLE, Exporter, HostBacking
from vgpud.host.dmabuf import CannotExport, Dmabuf, LazyDmabuf
from vgpud.host.fd import OwnedFd
from vgpud.host.guest_memory import Snapshot
from vgpud.host.region_file import RegionFile
from vgpud.host.udmabuf import PAGE, Udmabuf
from vgpud.usage import Usage
from vgpuwire import Ctrl, Format, Rect
from vgpuwire.ioctls import UdmabufCreateItem

SMALL: Final = 64 << 10
"""Bytes: below it a surface comes from the heap. A mapping each would cost two system calls
and let 65,530 pointers' images exhaust vm.max_map_count."""

HUGE: Final = 2 << 20
"""Bytes: from here on huge pages, where the system allows them, save most page faults."""

STRIDE: Final = 256
"""Bytes: rows of an exported surface start at multiples of it, which every GPU can scan out."""

MAX_EXPORTABLE: Final = 128
"""Surfaces in memfds: each has two descriptors (Python's mmap keeps one of its own), a quarter of
the 1,024 that a process usually has. Those beyond are shown by copying them."""

MAX_PRIVATE: Final = 128 << 20
"""Bytes of the display's own surfaces: four 4K heads, or nearly one of 8K."""

NARROW: Final = 4 << 10
"""Bytes of a row below which a rectangle is gathered: a piece for each row costs more than the
copy of it."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class HostSurface:
    """A 2D resource's pixels, B8G8R8A8, zero when new, freed with the last reference.

    With an `exporter` they are in a sealed memfd, rows `STRIDE` bytes aligned, for a dma-buf;
    without one in anonymous memory, rows 4 * width bytes apart.
    """

    __slots__ = (
        *("__weakref__", "_dmabuf", "_exporter", "_file", "_memory", "_swizzle"),
        *("fourcc", "height", "pixels", "stride", "width"),
    )

    def __init__(
        self, width: int, height: int, pixel_format: int, exporter: Exporter | None = None
    ) -> None:
        self.width, self.height = width, height
        self.fourcc = FOURCC[0]
        self._swizzle = SWIZZLE[Format(pixel_format)]
        self._exporter = exporter
        self._file: RegionFile | None = None
        self._memory: bytearray | mmap.mmap
        if exporter is not None:
            self.stride = -(-4 * width // STRIDE) * STRIDE
            self._dmabuf = LazyDmabuf(exporter.explain)
            self._file, self._memory = _sealed(-(-height * self.stride // PAGE) * PAGE)
        else:
            self.stride = 4 * width
            self._memory = _anonymous(height * self.stride)
        self.pixels = memoryview(self._memory)[: height * self.stride]

    @property
    def lost(self) -> bool:
        return False

    def fill(self, backing: object, rect: Rect, offset: int) -> None:
        """See `Surface.fill`; the backing is one that the same store made."""
        assert isinstance(backing, HostBacking)
        try:
            _native.transfer(
                self._memory,
                self.stride,
                rect.x,
                rect.y,
                rect.width,
                rect.height,
                self._swizzle,
                backing.require(),
                offset,
                self.width * 4,
            )
        except _native.GuestFault as error:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, str(error)) from error

    def rows(self, rect: Rect) -> list[memoryview]:
        """See `Picture.rows`: where they are, or a copy of many narrow ones. One piece where the
        rectangle's rows touch."""
        row = rect.width * 4
        start = rect.y * self.stride + rect.x * 4
        if row == self.stride or rect.height == 1:
            return [self.pixels[start : start + row * rect.height]]
        if row < NARROW:
            x, y, width, height = rect
            return [memoryview(_native.gather(self.pixels, self.stride, x, y, width, height))]
        end = start + rect.height * self.stride
        return [self.pixels[at : at + row] for at in range(start, end, self.stride)]

    def paint(self, rect: Rect, pieces: Sequence[memoryview]) -> None:
        """Put the pixels of a picture's rows() into `rect`, which is inside."""
        data = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        row = rect.width * 4
        start = rect.y * self.stride + rect.x * 4
        for number in range(rect.height):
            at = start + number * self.stride
            self.pixels[at : at + row] = data[number * row : (number + 1) * row]

    def export(self) -> tuple[int, int] | None:
        """The memfd, borrowed, and its size in bytes; None where the memory is anonymous."""
        return None if self._file is None else (self._file.fileno(), len(self._memory))

    @property
    def slow(self) -> bool:
        return False

    def fetch(self, rect: Rect, stop: bytearray) -> list[memoryview] | None:
        """See `Picture.fetch`."""
        return self.rows(rect)

    @property
    def memory(self) -> int:
        return len(self._memory)

    @property
    def settled(self) -> bool:
        exporter = self._exporter
        return exporter is None or exporter.udmabuf is None or self._dmabuf.settled

    def retry(self) -> None:
        """A dma-buf that was refused may be had now."""
        if self._exporter is not None:
            self._dmabuf.retry()

    def dmabuf(self) -> Dmabuf | None:
        """See `Picture.dmabuf`: all of the memfd."""
        if self._exporter is None or self._exporter.udmabuf is None or self._file is None:
            return None
        udmabuf, file, size = self._exporter.udmabuf, self._file, len(self._memory)
        runs = UdmabufCreateItem(0, 0, size).encode()
        return self._dmabuf.get(lambda: udmabuf.export(runs, (file,), size))


class HostPixelStore:
    """Makes surfaces, and backings that follow the memory table.

    With `exportable` (dmabuf mode) surfaces are made for dma-bufs, which come from `udmabuf`;
    without a `udmabuf` nothing has a dma-buf.
    """

    def __init__(
        self,
        memory: Snapshot,
        udmabuf: Udmabuf | None = None,
        exportable: bool = False,
        max_exportable: int = MAX_EXPORTABLE,
    ) -> None:
        self._memory = memory
        self._exporter = Exporter(udmabuf, self._explain)
        self._exportable = max_exportable if exportable else 0
        self._backings: WeakSet[HostBacking] = WeakSet()
        self._exported: WeakSet[HostSurface] = WeakSet()
        self._private: WeakSet[HostSurface] = WeakSet()
        self._explained: set[str] = set()
        self._refused = 0

    def create_surface(self, width: int, height: int, pixel_format: int) -> HostSurface:
        """See `PixelStore.create_surface`. Pointers' images and what is beyond the number of
        exportable surfaces are not exportable."""
        # Aligned rows must not cost more than they hold: one of 4 bytes would take 64 times what
        # the guest's quota was charged.
        wanted = (
            width * height * 4 >= SMALL
            and width * 4 >= STRIDE
            and len(self._exported) < self._exportable
        )
        if wanted:
            try:
                return self._create(width, height, pixel_format, self._exporter)
            except OSError as error:
                number = error.errno or 0
                self._explain(CannotExport("memfd", "a memfd for a 2D resource", number))
        try:
            return self._create(width, height, pixel_format, None)
        except (MemoryError, OSError) as error:
            raise GuestError(Ctrl.RESP_ERR_OUT_OF_MEMORY, str(error)) from error

    def create_private(self, width: int, height: int) -> HostSurface | None:
        """A B8G8R8X8 surface of the display's own, for what cannot be scanned out where it is
        (decision 5). None where there is no memory for it, or it would be too much: the guest's
        quota does not count it, and all of it is copied in one go."""
        size = width * height * 4
        if size + self._private_bytes() > MAX_PRIVATE:
            self._refused += 1
            self._explain(CannotExport("private", f"{size >> 20} MiB more for copies of scanouts"))
            return None
        try:
            made = self._create(width, height, Format.B8G8R8X8_UNORM, self._exporter)
            self._private.add(made)
            return made
        except OSError as error:
            number = error.errno or 0
            self._explain(CannotExport("memfd", "a memfd for a scanout", number))
            return None

    def usage(self) -> dict[str, Usage]:
        """Bytes of the display's own copies, beyond which pictures go as pixels."""
        return {"canvas_bytes": Usage(self._private_bytes(), MAX_PRIVATE, self._refused)}

    def _private_bytes(self) -> int:
        return sum(len(one.pixels) for one in self._private)

    def _create(
        self, width: int, height: int, pixel_format: int, exporter: Exporter | None
    ) -> HostSurface:
        surface = HostSurface(width, height, pixel_format, exporter)
        if exporter is not None:
            self._exported.add(surface)
        return surface

    def resolve(self, entries: bytes) -> HostBacking:
        """See `PixelStore.resolve`."""
        try:
            backing = HostBacking(self._memory, entries, self._exporter)
        except ValueError as error:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, str(error)) from error
        except MemoryError as error:
            raise GuestError(Ctrl.RESP_ERR_OUT_OF_MEMORY, "no memory for a backing") from error
        self._backings.add(backing)
        return backing

    def knows(self, entries: bytes) -> bool:
        """Whether all of these addresses are in the memory table."""
        try:
            _native.Backing(self._memory.native, entries)
        except ValueError:
            return False
        except MemoryError:
            pass  # resolve() will say so
        return True

    def retry(self) -> None:
        """/dev/udmabuf has appeared: refusals are forgotten."""
        for backing in self._backings:
            backing.retry()
        for surface in self._exported:
            surface.retry()

    def set_memory(self, memory: Snapshot) -> None:
        """Move every live backing to another memory table (decision 11). When this returns, no
        mapping of the old one is held and no dma-buf of it is open here."""
        self._memory = memory
        for backing in self._backings:
            backing.rebind(memory)

    def _explain(self, error: CannotExport) -> None:
        """Each reason once a session: a guest must not fill the operator's log."""
        if error.reason not in self._explained:
            self._explained.add(error.reason)
            log.warning("no-dmabuf", reason=error, instead=error.instead)


def _anonymous(size: int) -> bytearray | mmap.mmap:
    if size < SMALL:
        return bytearray(size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE:
        with suppress(OSError):  # a kernel without them (PREEMPT_RT)
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _sealed(size: int) -> tuple[RegionFile, mmap.mmap]:
    """A memfd that udmabuf takes and that nobody can shrink under us; `size` in whole pages."""
    fd = OwnedFd(os.memfd_create("vgpud-surface", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    os.ftruncate(fd.fileno(), size)
    fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, _SEALS)
    return RegionFile("memfd", fd, PAGE), mmap.mmap(fd.fileno(), size)
