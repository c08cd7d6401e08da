"""Guest memory and 2D pixels in plain Python: the device's port without a kernel.

A third opinion beside vgpud's C and QEMU's. It is written from the specification's words (virtio
1.3, 5.7.6.8) and shares nothing with the real store: guest memory is a handful of byte arrays
that are asked anew at each row, a pixel is converted by the names of its format's channels, and a
dma-buf is whatever those bytes are at the moment it is looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from vgpud.errors import GuestError
from vgpuwire import Rect

ERR_UNSPEC, ERR_OUT_OF_MEMORY = 0x1200, 0x1201

CHANNELS = {
    1: "BGRA",
    2: "BGRX",
    3: "ARGB",
    4: "XRGB",
    67: "RGBA",
    68: "XBGR",
    121: "ABGR",
    134: "RGBX",
}
"""What the four bytes of a guest's pixel are, in the order of their addresses. X is carried like
A: the specification gives it no meaning."""

WORDS = {"BGRX": b"XR24", "XRGB": b"BX24", "RGBX": b"XB24", "XBGR": b"RX24"}
"""DRM names a pixel as a little-endian word, from its high bits on: the addresses backwards. Only
the names with X are here: what is behind a head is nothing (row F15)."""

FOURCC = {
    number: int.from_bytes(WORDS[order.replace("A", "X")], "little")
    for number, order in CHANNELS.items()
}
"""The DRM format of a picture of each virtio-gpu format."""

PAGE = 4096


def bgrx(pixels: bytes, order: str) -> bytes:
    """Whole pixels whose channels are in `order`, as B, G, R, A (or X: whatever is there)."""
    order = order.replace("X", "A")
    found = bytearray(len(pixels))
    for number, channel in enumerate("BGRA"):
        found[number::4] = pixels[order.index(channel) :: 4]
    return bytes(found)


def entry(address: int, length: int, padding: int = 0) -> bytes:
    """One virtio_gpu_mem_entry."""
    return struct.pack("<QII", address, length, padding)


def entries(*pieces: tuple[int, int]) -> bytes:
    return b"".join(entry(address, length) for address, length in pieces)


class FakeGuest:
    """Guest-physical memory: byte arrays at addresses. A range may be taken away (unplugged)
    or lose its bytes while it stays in the table (its file was truncated)."""

    def __init__(self, *ranges: tuple[int, int]) -> None:
        self._ram = {address: bytearray(size) for address, size in ranges}
        self._vanished: set[int] = set()

    def plug(self, address: int, size: int) -> None:
        self._ram[address] = bytearray(size)

    def unplug(self, address: int) -> None:
        del self._ram[address]

    def vanish(self, address: int) -> None:
        """The range at `address` is still in the table, but an access is a SIGBUS."""
        self._vanished.add(address)

    def write(self, address: int, data: bytes) -> None:
        for start, at, length in self._spans(address, len(data)):
            self._ram[start][at : at + length], data = data[:length], data[length:]

    def read(self, address: int, length: int) -> bytes | None:
        """The bytes of a range that is memory; None where a part of it has vanished."""
        spans = list(self._spans(address, length))
        if any(start in self._vanished for start, _, _ in spans):
            return None
        return b"".join(self._ram[start][at : at + size] for start, at, size in spans)

    def covers(self, address: int, length: int) -> bool:
        """Whether the whole range is memory; it may cross from one array into the next."""
        try:
            return sum(size for _, _, size in self._spans(address, length)) == length
        except KeyError:
            return False

    def _spans(self, address: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(array, first byte in it, bytes) of each array that a range touches. KeyError where
        there is no memory."""
        while length > 0:
            start = next((s for s, ram in self._ram.items() if 0 <= address - s < len(ram)), None)
            if start is None:
                raise KeyError(hex(address))
            at = address - start
            size = min(length, len(self._ram[start]) - at)
            yield start, at, size
            address, length = address + size, length - size


class FakeDmabuf:
    """Some bytes as QEMU sees them: `look` reads them anew. Where a test really sends it, `fd` is
    the descriptor, and -1 once it was closed because the guest's memory changed."""

    def __init__(self, size: int, look: Callable[[], bytes], fd: int = -1) -> None:
        self.size = -(-size // PAGE) * PAGE
        self.look = look
        self.fd = fd

    def fileno(self) -> int:
        return self.fd


class Layout(NamedTuple):
    width: int
    height: int
    stride: int
    offset: int
    format: int


class FakePicture:
    """A frame buffer in guest memory: row by row, each pixel of it turned around by itself."""

    def __init__(self, backing: FakeBacking, layout: Layout, size: int) -> None:
        assert layout.offset < size
        assert layout.stride >= layout.width * 4
        self._backing = backing
        self.layout = layout
        self.size = size
        self.width, self.height, self.stride = layout.width, layout.height, layout.stride
        self.fourcc = FOURCC[layout.format]

    @property
    def lost(self) -> bool:
        return self._backing.lost

    def rows(self, rect: Rect) -> list[memoryview]:
        self._backing.require()
        order, rows = CHANNELS[self.layout.format], []
        for y in range(rect.y, rect.y + rect.height):
            at = self.layout.offset + y * self.stride + rect.x * 4
            assert at + rect.width * 4 <= self.size, "the device lets nothing outside through"
            pixels = self._backing.read(at, rect.width * 4)
            rows.append(memoryview(bgrx(pixels, order)))
        return rows

    @property
    def memory(self) -> int:
        return self.stride * self.height

    settled = True
    slow = False

    def fetch(self, rect: Rect, stop: bytearray) -> list[memoryview] | None:
        """Where it is `slow`, a thread calls this in the place of rows()."""
        return None if stop[0] else self.rows(rect)

    def dmabuf(self) -> FakeDmabuf | None:
        return None if self.layout.offset else self._backing.dmabuf(self.size)


class FakeBacking:
    """The guest's entries; an offset is looked up anew at each row."""

    def __init__(self, store: FakePixelStore, pieces: list[tuple[int, int]]) -> None:
        self._store = store
        self._made: tuple[int, FakeDmabuf] | None = None
        self.pieces = pieces

    @property
    def size(self) -> int:
        return sum(length for _, length in self.pieces)

    @property
    def lost(self) -> bool:
        return not all(self._store.guest.covers(*piece) for piece in self.pieces)

    def require(self) -> None:
        if self.lost:
            raise GuestError(ERR_UNSPEC, "the backing is no longer in guest memory")

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`: fewer at the end. GuestError where one vanished."""
        self.require()
        found = b""
        for address, size in self.pieces:
            if offset < size and len(found) < length:
                step = min(size - offset, length - len(found))
                data = self._store.guest.read(address + offset, step)
                if data is None:
                    raise GuestError(ERR_UNSPEC, "guest memory vanished")
                found += data
            offset = max(0, offset - size)
        return found

    segments = 0

    def picture(self, layout: Layout, size: int) -> FakePicture:
        return FakePicture(self, Layout(*layout), size)

    def dmabuf(self, size: int) -> FakeDmabuf | None:
        """One for all pictures, until the guest's memory is another."""
        if not self._store.exports or self.lost:
            return None
        if self._made is None or self._made[0] != self._store.tables:
            self._made = (self._store.tables, FakeDmabuf(size, lambda: self.read(0, size)))
            self._store.exported += 1
        return self._made[1]


class FakeSurface:
    """Pixels in the order B, G, R, A; rows `stride` bytes apart, which is width * 4 unless told."""

    lost = False
    fourcc = FOURCC[2]

    def __init__(
        self,
        width: int,
        height: int,
        pixel_format: int,
        exports: bool = False,
        stride: int | None = None,
    ) -> None:
        self.width, self.height, self.pixel_format = width, height, pixel_format
        self.stride = width * 4 if stride is None else stride
        self.exports = exports
        self._made: FakeDmabuf | None = None
        self._bytes = bytearray(self.stride * height)
        self.pixels = memoryview(self._bytes)
        self.fills: list[tuple[Rect, int]] = []

    def pixel(self, x: int, y: int) -> bytes:
        at = y * self.stride + x * 4
        return bytes(self._bytes[at : at + 4])

    def rows(self, rect: Rect) -> list[memoryview]:
        """Where they are; one piece where they follow each other."""
        start, length = rect.y * self.stride + rect.x * 4, rect.width * 4
        if length == self.stride:
            return [self.pixels[start : start + length * rect.height]]
        starts = range(start, start + rect.height * self.stride, self.stride)
        return [self.pixels[at : at + length] for at in starts]

    @property
    def memory(self) -> int:
        return self.stride * self.height

    settled = True
    slow = False

    def fetch(self, rect: Rect, stop: bytearray) -> list[memoryview] | None:
        """Where it is `slow`, a thread calls this in the place of rows()."""
        return None if stop[0] else self.rows(rect)

    def dmabuf(self) -> FakeDmabuf | None:
        if self._made is None and self.exports:
            content = self._bytes
            self._made = FakeDmabuf(len(content), lambda: bytes(content))
        return self._made if self.exports else None

    def paint(self, rect: Rect, pieces: Sequence[memoryview]) -> None:
        assert rect.x + rect.width <= self.width, "painted beside the canvas"
        assert rect.y + rect.height <= self.height, "painted beside the canvas"
        data = b"".join(pieces)
        assert len(data) == rect.width * rect.height * 4, "the pieces are not the rectangle"
        for row in range(rect.height):
            at = (rect.y + row) * self.stride + rect.x * 4
            self.pixels[at : at + rect.width * 4] = data[row * rect.width * 4 :][: rect.width * 4]

    def fill(self, backing: object, rect: Rect, offset: int) -> None:
        assert isinstance(backing, FakeBacking)
        assert rect.x + rect.width <= self.width, "the device lets nothing outside through"
        assert rect.y + rect.height <= self.height, "the device lets nothing outside through"
        self.fills.append((rect, offset))
        backing.require()
        order = CHANNELS[self.pixel_format]
        for row in range(rect.height):
            guest = backing.read(offset + row * self.width * 4, rect.width * 4)
            guest = guest[: len(guest) // 4 * 4]
            if not guest:
                return  # the rows below are further behind still
            start = (rect.y + row) * self.stride + rect.x * 4
            self.pixels[start : start + len(guest)] = bgrx(guest, order)


class FakePixelStore:
    """Surfaces and backings of one FakeGuest. `refuse` makes surfaces fail, as a
    host without memory does; without `exports` nothing has a dma-buf, as without /dev/udmabuf.
    `made` and `exported` count surfaces and the dma-bufs of guest memory, `tables` the memory
    tables that there were."""

    def __init__(self, guest: FakeGuest | None = None, exports: bool = False) -> None:
        self.guest = guest or FakeGuest((0, 16 * PAGE))
        self.refuse = False
        self.exports = exports
        self.made = self.exported = self.tables = 0

    def set_memory(self, guest: FakeGuest) -> None:
        self.guest = guest
        self.tables += 1

    def create_surface(self, width: int, height: int, pixel_format: int) -> FakeSurface:
        if self.refuse:
            raise GuestError(ERR_OUT_OF_MEMORY, "the host has no memory left")
        self.made += 1
        return FakeSurface(width, height, pixel_format, self.exports)

    def resolve(self, entries: bytes) -> FakeBacking:
        pieces = []
        for number, (address, length, _) in enumerate(struct.iter_unpack("<QII", entries)):
            if length == 0:
                raise GuestError(ERR_UNSPEC, f"entry {number} is empty")
            if address + length > 1 << 64 or not self.guest.covers(address, length):
                raise GuestError(ERR_UNSPEC, f"entry {number} is not all in guest memory")
            pieces.append((address, length))
        return FakeBacking(self, pieces)


class HollowSurface(FakeSurface):
    """A surface of any size without its pixels, for rules that count bytes and never look."""

    def __init__(self, width: int, height: int, pixel_format: int) -> None:
        super().__init__(0, 0, pixel_format)
        self.width, self.height, self.stride = width, height, width * 4


class HollowStore(FakePixelStore):
    """Makes hollow surfaces: quotas and 32-bit sums are tested without gigabytes."""

    def create_surface(self, width: int, height: int, pixel_format: int) -> FakeSurface:
        if self.refuse:
            raise GuestError(ERR_OUT_OF_MEMORY, "the host has no memory left")
        self.made += 1
        return HollowSurface(width, height, pixel_format)
