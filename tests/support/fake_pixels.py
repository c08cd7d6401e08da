"""Guest memory and 2D pixels in plain Python: the device's port without a kernel.

A third opinion beside vgpud's C and QEMU's. It is written from the specification's words (virtio
1.3, 5.7.6.8) and shares nothing with the real store: guest memory is a handful of byte arrays
that are asked anew at each row, a pixel is converted by the names of its format's channels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

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

PAGE = 4096


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


class FakeBacking:
    """The guest's entries; an offset is looked up anew at each row."""

    def __init__(self, store: FakePixelStore, pieces: list[tuple[int, int]]) -> None:
        self._store = store
        self.pieces = pieces

    @property
    def size(self) -> int:
        return sum(length for _, length in self.pieces)

    @property
    def lost(self) -> bool:
        return not all(self._store.guest.covers(*piece) for piece in self.pieces)

    def read(self, offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset`: fewer at the end. GuestError where one vanished."""
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


class FakeSurface:
    """Pixels in the order B, G, R, A."""

    def __init__(self, width: int, height: int, pixel_format: int) -> None:
        self.width, self.height, self.pixel_format = width, height, pixel_format
        self._bytes = bytearray(width * height * 4)
        self.pixels = memoryview(self._bytes)
        self.fills: list[tuple[Rect, int]] = []

    def pixel(self, x: int, y: int) -> bytes:
        at = (y * self.width + x) * 4
        return bytes(self._bytes[at : at + 4])

    def fill(self, backing: object, rect: Rect, offset: int) -> None:
        assert isinstance(backing, FakeBacking)
        assert rect.x + rect.width <= self.width, "the device lets nothing outside through"
        assert rect.y + rect.height <= self.height, "the device lets nothing outside through"
        self.fills.append((rect, offset))
        if backing.lost:
            raise GuestError(ERR_UNSPEC, "the backing is no longer in guest memory")
        order = CHANNELS[self.pixel_format].replace("X", "A")
        for row in range(rect.height):
            guest = backing.read(offset + row * self.width * 4, rect.width * 4)
            guest = guest[: len(guest) // 4 * 4]
            if not guest:
                return  # the rows below are further behind still
            start = ((rect.y + row) * self.width + rect.x) * 4
            end = start + len(guest)
            for number, channel in enumerate("BGRA"):
                self.pixels[start + number : end : 4] = guest[order.index(channel) :: 4]


class FakePixelStore:
    """Surfaces and backings of one FakeGuest. `refuse` makes surfaces fail, as a
    host without memory does."""

    def __init__(self, guest: FakeGuest | None = None) -> None:
        self.guest = guest or FakeGuest((0, 16 * PAGE))
        self.refuse = False
        self.made = 0

    def set_memory(self, guest: FakeGuest) -> None:
        self.guest = guest

    def create_surface(self, width: int, height: int, pixel_format: int) -> FakeSurface:
        if self.refuse:
            raise GuestError(ERR_OUT_OF_MEMORY, "the host has no memory left")
        self.made += 1
        return FakeSurface(width, height, pixel_format)

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
        self.width, self.height = width, height


class HollowStore(FakePixelStore):
    """Makes hollow surfaces: quotas and 32-bit sums are tested without gigabytes."""

    def create_surface(self, width: int, height: int, pixel_format: int) -> FakeSurface:
        if self.refuse:
            raise GuestError(ERR_OUT_OF_MEMORY, "the host has no memory left")
        self.made += 1
        return HollowSurface(width, height, pixel_format)
