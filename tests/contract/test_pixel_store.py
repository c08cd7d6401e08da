"""The port to pixels: the same cases on the fake and on the real store, and one against the other.

A `World` is a guest's memory with a store on it. Its memory tables change as QEMU's do: the whole
table is replaced, and every backing that still lives follows (decision 11).
"""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import resource
import struct
import weakref
from array import array
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.support.fake_pixels import (
    CHANNELS,
    FOURCC,
    PAGE,
    FakeDmabuf,
    FakeGuest,
    FakePixelStore,
    entries,
    entry,
)
from vgpud.device.pixels import Backing, Dmabuf, Layout, Picture, PixelStore, Surface
from vgpud.errors import GuestError
from vgpud.host.fd import OwnedFd
from vgpud.host.guest_memory import GuestMemory
from vgpud.host.surfaces import HUGE, SMALL, HostPixelStore
from vgpud.host.udmabuf import Udmabuf
from vgpuwire import MemRegion, Rect

UNSPEC, OUT_OF_MEMORY = 0x1200, 0x1201
TOP = 1 << 64
OLD = b"\xaa\xbb\xcc\xdd"


class World(Protocol):
    """Ranges are (guest-physical address, bytes), whole pages, zero when new."""

    store: PixelStore

    def plug(self, *ranges: tuple[int, int]) -> None:
        """The memory table is this from now on; ranges that were there before keep their bytes."""

    def write(self, address: int, data: bytes) -> None: ...
    def truncate(self, address: int) -> None:
        """The file behind the range at `address` loses all its bytes."""

    def look(self, dmabuf: Dmabuf) -> bytes:
        """What is in it: all that was there when it was made, at least."""


class FakeWorld:
    def __init__(self, stack: ExitStack, exports: bool = False) -> None:
        self._ram: dict[tuple[int, int], bytearray] = {}
        self._guest = FakeGuest()
        self._fake = FakePixelStore(self._guest, exports)
        self.store: PixelStore = self._fake

    def plug(self, *ranges: tuple[int, int]) -> None:
        old, self._guest = self._guest, FakeGuest(*ranges)
        for address, size in ranges:
            if old.covers(address, size) and (data := old.read(address, size)) is not None:
                self._guest.write(address, data)
        self._fake.set_memory(self._guest)

    def write(self, address: int, data: bytes) -> None:
        self._guest.write(address, data)

    def truncate(self, address: int) -> None:
        self._guest.vanish(address)

    def look(self, dmabuf: Dmabuf) -> bytes:
        assert isinstance(dmabuf, FakeDmabuf)
        return dmabuf.look()


def copied(device: int, items: bytes, fds: array[int]) -> int:
    """Instead of UDMABUF_CREATE_LIST, whose device a test machine may lack: a copy."""
    made = os.memfd_create("udmabuf")
    for number, _, offset, size in struct.iter_unpack("=IIQQ", items):
        os.write(made, os.pread(fds[number], size, offset))
    return made


class HostWorld:
    """One memfd a range, mapped by the native module."""

    def __init__(self, stack: ExitStack, exports: bool = False) -> None:
        self._exports = exports
        self._stack = stack
        self._files: dict[tuple[int, int], OwnedFd] = {}
        self._ranges: list[tuple[int, int]] = []
        self._memory = GuestMemory()
        udmabuf = Udmabuf("/dev/null", parameters="/nowhere", create=copied) if exports else None
        self._host = HostPixelStore(self._memory.snapshot, udmabuf, exports)
        self.store: PixelStore = self._host

    def plug(self, *ranges: tuple[int, int]) -> None:
        self._ranges = list(ranges)
        for address, size in ranges:
            if (address, size) not in self._files:
                fd = OwnedFd(os.memfd_create(f"ram-{address:x}", os.MFD_ALLOW_SEALING))
                os.ftruncate(fd.fileno(), PAGE + size)
                if self._exports:
                    fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
                self._files[address, size] = self._stack.enter_context(fd)
        self._memory.replace(
            (MemRegion(address, size, 0x7F00_0000_0000 + address, PAGE), self._files[address, size])
            for address, size in ranges
        )
        self._host.set_memory(self._memory.snapshot)

    def write(self, address: int, data: bytes) -> None:
        while data:
            start, size = next(key for key in self._ranges if 0 <= address - key[0] < key[1])
            step = min(len(data), start + size - address)
            os.pwrite(self._files[start, size].fileno(), data[:step], PAGE + address - start)
            address, data = address + step, data[step:]

    def truncate(self, address: int) -> None:
        (key,) = (key for key in self._ranges if key[0] == address)
        os.ftruncate(self._files[key].fileno(), 0)

    def look(self, dmabuf: Dmabuf) -> bytes:
        return os.pread(dmabuf.fileno(), dmabuf.size, 0)


WORLDS: dict[str, Callable[[ExitStack], World]] = {"fake": FakeWorld, "host": HostWorld}


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Sixteen pages from address 0, every byte of them different from its neighbours."""
    with ExitStack() as stack:
        made = WORLDS[request.param](stack)
        made.plug((0, 16 * PAGE))
        made.write(0, guest_bytes(16 * PAGE))
        yield made


@pytest.fixture(params=WORLDS)
def exporting(request: pytest.FixtureRequest) -> Iterator[World]:
    """The same, with dma-bufs."""
    with ExitStack() as stack:
        made: World = {"fake": FakeWorld, "host": HostWorld}[request.param](stack, exports=True)
        made.plug((0, 16 * PAGE))
        made.write(0, guest_bytes(16 * PAGE))
        yield made


def guest_bytes(count: int) -> bytes:
    return bytes((7 * n + n // 251) & 0xFF or 1 for n in range(count))


GUEST = guest_bytes(16 * PAGE)


def pixels_of(surface: Surface) -> list[bytes]:
    data = bytes(surface.pixels)
    return [data[at : at + 4] for at in range(0, len(data), 4)]


def canvas(world: World, width: int, height: int, pixel_format: int = 1) -> Surface:
    surface = world.store.create_surface(width, height, pixel_format)
    surface.pixels[:] = OLD * (width * height)
    return surface


def expected(
    width: int, height: int, rect: Rect, offset: int, backing: bytes, pixel_format: int = 1
) -> list[bytes]:
    """Pixel by pixel, from the specification's words."""
    order = CHANNELS[pixel_format].replace("X", "A")
    pixels = [OLD] * (width * height)
    for row in range(rect.height):
        for column in range(rect.width):
            source = offset + row * width * 4 + column * 4
            if source + 4 <= len(backing):
                guest = dict(zip(order, backing[source : source + 4], strict=True))
                pixels[(rect.y + row) * width + rect.x + column] = bytes(guest[c] for c in "BGRA")
    return pixels


def refuses(code: int, call: Callable[..., Any], *args: Any) -> None:
    with pytest.raises(GuestError) as error:
        call(*args)
    assert hex(error.value.code) == hex(code)


# -- surfaces


@pytest.mark.parametrize("pixel_format", CHANNELS)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 5), (64, 64), (500, 3), (3, 500)])
def test_C13_a_new_surface_is_zeros(
    world: World, width: int, height: int, pixel_format: int
) -> None:
    surface = world.store.create_surface(width, height, pixel_format)
    assert (surface.width, surface.height) == (width, height)
    assert surface.pixels.nbytes == width * height * 4
    assert bytes(surface.pixels) == bytes(width * height * 4)


@pytest.mark.parametrize("size", [SMALL - 4, SMALL, SMALL + 4, HUGE - 4, HUGE, HUGE + 4])
def test_C13_a_surface_is_zeros_wherever_its_memory_comes_from(world: World, size: int) -> None:
    for _ in range(3):
        surface = world.store.create_surface(size // 4, 1, 1)
        assert not any(surface.pixels)
        surface.pixels[:] = b"\xff" * size
        del surface


def test_surfaces_are_independent(world: World) -> None:
    one, two = canvas(world, 4, 4), canvas(world, 4, 4)
    one.fill(world.store.resolve(entries((0, 64))), Rect(0, 0, 4, 4), 0)
    assert bytes(two.pixels) == OLD * 16


def test_U07_a_surface_goes_with_its_last_reference(world: World) -> None:
    surface = canvas(world, 300, 300)
    view = surface.pixels
    gone = weakref.ref(surface) if type(surface).__weakrefoffset__ else None
    del surface
    gc.collect()
    assert gone is None or gone() is None
    assert bytes(view[:4]) == OLD, "what is on its way to the display lives on"


# -- transfers

RECTS = {
    "whole": Rect(0, 0, 8, 6),
    "top": Rect(0, 0, 8, 2),
    "full rows": Rect(0, 2, 8, 3),
    "left": Rect(0, 0, 3, 6),
    "right": Rect(5, 0, 3, 6),
    "inside": Rect(2, 1, 3, 4),
    "one pixel": Rect(7, 5, 1, 1),
    "no rows": Rect(2, 2, 3, 0),
    "no columns": Rect(2, 2, 0, 3),
    "corner": Rect(8, 6, 0, 0),
}


@pytest.mark.parametrize("pixel_format", CHANNELS)
@pytest.mark.parametrize("name", RECTS)
def test_F14_every_rectangle_of_every_format_becomes_blue_green_red_alpha(
    world: World, pixel_format: int, name: str
) -> None:
    backing, rect = world.store.resolve(entries((0, 192))), RECTS[name]
    for offset in (0, 4, 36, 128, 191, 192):
        surface = canvas(world, 8, 6, pixel_format)
        surface.fill(backing, rect, offset)
        assert pixels_of(surface) == expected(8, 6, rect, offset, GUEST[:192], pixel_format)


@pytest.mark.parametrize("name", ["whole", "inside", "right"])
def test_T13_a_short_backing_fills_whole_pixels_up_to_its_end(world: World, name: str) -> None:
    for backed in (1, 3, 4, 5, 31, 32, 33, 100, 101, 190, 191, 192):
        surface = canvas(world, 8, 6)
        surface.fill(world.store.resolve(entries((0, backed))), RECTS[name], 0)
        assert pixels_of(surface) == expected(8, 6, RECTS[name], 0, GUEST[:backed])


@pytest.mark.parametrize(
    "offset",
    [192, 193, 1 << 31, (1 << 32) - 4, 1 << 32, (1 << 32) + 4, 1 << 63, TOP - 64, TOP - 1],
)
@pytest.mark.parametrize("name", ["whole", "inside"])
def test_T12_T14_T15_beyond_the_end_nothing_is_filled_and_nothing_wraps(
    world: World, offset: int, name: str
) -> None:
    surface = canvas(world, 8, 6)
    surface.fill(world.store.resolve(entries((0, 192))), RECTS[name], offset)
    assert pixels_of(surface) == [OLD] * 48


SCATTERED = {
    "three pages in another order": [(2 * PAGE, PAGE), (0, PAGE), (5 * PAGE, PAGE)],
    "a pixel cut in two": [(0, 6), (PAGE + 1, 2), (9, 200)],
    "a pixel cut in four": [(n * 5, 1) for n in range(192)],
    "the same page again": [(0, 64), (0, 64), (0, 64)],
    "overlapping": [(0, 100), (50, 100), (25, 10)],
    "adjacent": [(0, 50), (50, 50), (100, 92)],
    "odd addresses": [(1, 63), (77, 65), (1001, 64)],
    "one byte short": [(0, 100), (200, 91)],
}


@pytest.mark.parametrize("name", SCATTERED)
@pytest.mark.parametrize("pixel_format", [1, 3, 67, 121])
def test_A14_scattered_entries_are_one_backing(world: World, name: str, pixel_format: int) -> None:
    pieces = SCATTERED[name]
    backing = world.store.resolve(entries(*pieces))
    content = b"".join(GUEST[address : address + length] for address, length in pieces)
    assert backing.size == len(content)
    for offset in (0, 3, 20):
        for rect in (RECTS["whole"], RECTS["inside"]):
            surface = canvas(world, 8, 6, pixel_format)
            surface.fill(backing, rect, offset)
            assert pixels_of(surface) == expected(8, 6, rect, offset, content, pixel_format)


def test_A03_a_backing_of_16384_pieces(world: World) -> None:
    pieces = [((n * 37) % (15 * PAGE), 4) for n in range(16384)]
    surface = canvas(world, 128, 128)
    surface.fill(world.store.resolve(entries(*pieces)), Rect(0, 0, 128, 128), 0)
    content = b"".join(GUEST[address : address + 4] for address, _ in pieces)
    assert bytes(surface.pixels) == content


def test_a_large_surface_is_filled_exactly(world: World) -> None:
    """Above 64 KiB the native copy leaves the interpreter's lock."""
    surface = canvas(world, 100, 400)
    rect = Rect(10, 20, 80, 360)
    backing = world.store.resolve(entries((0, 16 * PAGE), (0, 16 * PAGE), (0, 16 * PAGE)))
    surface.fill(backing, rect, 400)
    assert pixels_of(surface) == expected(100, 400, rect, 400, GUEST * 3)


def test_T16_every_fill_reads_the_guest_s_memory_anew(world: World) -> None:
    surface, backing = canvas(world, 2, 1), world.store.resolve(entries((0, 8)))
    for value in (b"\1" * 8, b"\2" * 8):
        world.write(0, value)
        surface.fill(backing, Rect(0, 0, 2, 1), 0)
        assert bytes(surface.pixels) == value


# -- entries


@pytest.mark.parametrize(
    ("address", "length"),
    [
        pytest.param(0, 0, id="A08 empty"),
        pytest.param(16 * PAGE, 0, id="A08 empty at the end"),
        pytest.param(16 * PAGE, 1, id="A09 behind the end"),
        pytest.param(16 * PAGE - 1, 2, id="A09 across the end"),
        pytest.param(0, 16 * PAGE + 1, id="A09 too long"),
        pytest.param(0, (1 << 32) - 1, id="A09 4 GiB"),
        pytest.param(1 << 40, PAGE, id="A09 nowhere"),
        pytest.param(TOP - 1, 1, id="A10 the last byte"),
        pytest.param(TOP - 1, 2, id="A10 wraps by one"),
        pytest.param(TOP - PAGE, 2 * PAGE, id="A10 wraps to the first page"),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 100])
def test_A08_A09_A10_an_entry_that_is_not_all_memory_is_refused(
    world: World, address: int, length: int, before: int
) -> None:
    array = entries((0, PAGE)) * before + entries((address, length)) + entries((0, PAGE))
    refuses(UNSPEC, world.store.resolve, array)


def test_the_very_last_byte_of_memory_is_memory(world: World) -> None:
    surface = canvas(world, 1, 1)
    surface.fill(world.store.resolve(entries((16 * PAGE - 4, 4))), Rect(0, 0, 1, 1), 0)
    assert bytes(surface.pixels) == GUEST[-4:]


def test_the_padding_of_an_entry_is_ignored(world: World) -> None:
    assert world.store.resolve(entry(0, 40, padding=0xFFFF_FFFF)).size == 40


def test_A11_an_entry_may_cross_into_the_next_region(world: World) -> None:
    world.plug((0, PAGE), (PAGE, PAGE), (2 * PAGE, PAGE), (8 * PAGE, PAGE))
    data = guest_bytes(3 * PAGE)
    world.write(0, data)
    backing = world.store.resolve(entries((8, 3 * PAGE - 16)))
    surface = canvas(world, 16, 190)
    surface.fill(backing, Rect(0, 0, 16, 190), 0)
    assert bytes(surface.pixels) == data[8 : 8 + 16 * 190 * 4]
    refuses(UNSPEC, world.store.resolve, entries((2 * PAGE, PAGE + 1)))


def test_A17_two_backings_share_their_pages(world: World) -> None:
    one, two = (world.store.resolve(entries((0, 64))) for _ in range(2))
    surface = canvas(world, 4, 4)
    del one
    surface.fill(two, Rect(0, 0, 4, 4), 0)
    assert bytes(surface.pixels) == GUEST[:64]


# -- memory that changes under live backings


def test_A22_R09_a_backing_follows_the_memory_table(world: World) -> None:
    backing = world.store.resolve(entries((PAGE, 64), (3 * PAGE, 64)))
    surface = canvas(world, 8, 4)
    world.plug((PAGE, PAGE), (3 * PAGE, PAGE))
    world.write(PAGE, b"\x11" * 64)
    world.write(3 * PAGE, b"\x22" * 64)
    surface.fill(backing, Rect(0, 0, 8, 4), 0)
    assert bytes(surface.pixels) == b"\x11" * 64 + b"\x22" * 64
    assert backing.size == 128


def test_A22_R09_a_backing_of_one_entry_may_be_split_by_the_new_table(world: World) -> None:
    backing = world.store.resolve(entries((PAGE, 2 * PAGE)))
    world.plug((PAGE, PAGE), (2 * PAGE, PAGE))
    world.write(PAGE, GUEST[: 2 * PAGE])
    surface = canvas(world, 32, 64)
    surface.fill(backing, Rect(0, 0, 32, 64), 0)
    assert bytes(surface.pixels) == GUEST[: 2 * PAGE]


def test_A22_R09_a_backing_is_lost_with_any_of_its_pages_and_comes_back(world: World) -> None:
    backing = world.store.resolve(entries((0, 64), (8 * PAGE, 64)))
    surface = canvas(world, 8, 4)
    for lost in ([(0, PAGE)], [(8 * PAGE, PAGE)], [(1 << 32, PAGE)], []):
        world.plug(*lost)
        refuses(UNSPEC, surface.fill, backing, Rect(0, 0, 8, 4), 0)
        refuses(UNSPEC, surface.fill, backing, Rect(0, 0, 8, 1), 0)
        assert backing.size == 128
    assert bytes(surface.pixels) == OLD * 32, "nothing was written"
    world.plug((0, PAGE), (8 * PAGE, PAGE))
    world.write(0, GUEST[:64])
    world.write(8 * PAGE, GUEST[64:128])
    surface.fill(backing, Rect(0, 0, 8, 4), 0)
    assert bytes(surface.pixels) == GUEST[:128]


def test_a_backing_that_nobody_has_does_not_hinder_a_change(world: World) -> None:
    backing: Backing | None = world.store.resolve(entries((0, 64)))
    del backing
    gc.collect()
    world.plug((1 << 32, PAGE))
    refuses(UNSPEC, world.store.resolve, entries((0, 64)))


def test_memory_that_vanishes_is_the_guest_s_error(world: World) -> None:
    """Its file was truncated: a plain read of the mapping is a SIGBUS."""
    world.plug((0, 16 * PAGE), (1 << 20, PAGE))
    surface = canvas(world, 8, 4)
    here, gone = entries((0, 128)), entries((1 << 20, 128))
    both, fine = world.store.resolve(here + gone), world.store.resolve(here)
    world.truncate(1 << 20)
    refuses(UNSPEC, surface.fill, both, Rect(0, 0, 8, 4), 128)
    refuses(UNSPEC, surface.fill, both, Rect(0, 0, 8, 4), 64)
    surface.fill(both, Rect(0, 0, 8, 4), 256)
    surface.fill(both, Rect(0, 0, 8, 4), 0)
    surface.fill(fine, Rect(0, 0, 8, 4), 0)
    assert bytes(surface.pixels) == GUEST[:128]


# -- pictures


def joined(picture: Picture, rect: Rect) -> bytes:
    return b"".join(picture.rows(rect))


def looked(layout: Layout, rect: Rect, blob: bytes = GUEST) -> bytes:
    """Pixel by pixel, from the specification's words."""
    found = b""
    order = CHANNELS[layout.format].replace("X", "A")
    for y in range(rect.y, rect.y + rect.height):
        for x in range(rect.x, rect.x + rect.width):
            at = layout.offset + y * layout.stride + x * 4
            guest = dict(zip(order, blob[at : at + 4], strict=True))
            found += bytes(guest[channel] for channel in "BGRA")
    return found


@pytest.mark.parametrize("pixel_format", CHANNELS)
@pytest.mark.parametrize(("stride", "offset"), [(80, 0), (81, 3), (4096, 5000), (128, 4)])
def test_B15_F14_F15_a_picture_of_guest_pages(
    world: World, pixel_format: int, stride: int, offset: int
) -> None:
    layout = Layout(20, 10, stride, offset, pixel_format)
    backing = world.store.resolve(entries((0, 16 * PAGE)))
    picture = backing.picture(layout, 16 * PAGE)
    assert (picture.width, picture.height, picture.stride) == (20, 10, stride)
    assert picture.fourcc == FOURCC[pixel_format]
    for rect in (Rect(0, 0, 20, 10), Rect(3, 2, 16, 7), Rect(19, 9, 1, 1), Rect(0, 5, 20, 1)):
        assert joined(picture, rect) == looked(layout, rect)
    assert picture.dmabuf() is None
    assert not picture.lost


def test_L15_L17_a_picture_of_scattered_bytes(world: World) -> None:
    pieces = [(n * 37, 13) for n in range(500)]
    content = b"".join(GUEST[at : at + length] for at, length in pieces)
    layout = Layout(16, 16, 101, 7, 67)
    picture = world.store.resolve(entries(*pieces)).picture(layout, len(content))
    assert joined(picture, Rect(0, 0, 16, 16)) == looked(layout, Rect(0, 0, 16, 16), content)


def test_B09_the_last_row_of_a_picture_ends_with_its_pixels(world: World) -> None:
    layout = Layout(16, 16, 200, 0, 2)
    size = 15 * 200 + 64
    picture = world.store.resolve(entries((16 * PAGE - size, size))).picture(layout, size)
    found = joined(picture, Rect(0, 15, 16, 1))
    assert found == GUEST[-64:]


def test_T16_every_look_reads_the_guest_s_memory_anew(world: World) -> None:
    picture = world.store.resolve(entries((0, PAGE))).picture(Layout(16, 16, 64, 0, 1), PAGE)
    first = picture.rows(Rect(0, 0, 16, 1))
    world.write(0, b"\5" * 64)
    assert b"".join(first) == GUEST[:64], "what is on its way does not change"
    assert joined(picture, Rect(0, 0, 16, 1)) == b"\5" * 64


def test_K07_a_backing_is_read_from_any_byte_to_its_end(world: World) -> None:
    pieces = [(100, 50), (PAGE - 3, 10), (7, 0x33)]
    content = b"".join(GUEST[at : at + length] for at, length in pieces)
    backing = world.store.resolve(entries(*pieces))
    for offset in (0, 1, 49, 50, 59, 60, len(content) - 1, len(content), len(content) + 1, 1 << 40):
        for length in (0, 1, 10, 60, len(content), 16384):
            assert backing.read(offset, length) == content[offset : offset + length]


def test_R09_a_picture_is_lost_and_comes_back_with_its_pages(world: World) -> None:
    backing = world.store.resolve(entries((0, 64), (8 * PAGE, PAGE)))
    picture = backing.picture(Layout(16, 16, 64, 0, 2), 1024)
    for lost in ([(0, PAGE)], [(8 * PAGE, PAGE)], []):
        world.plug(*lost)
        assert picture.lost
        refuses(UNSPEC, picture.rows, Rect(0, 0, 16, 1))
        refuses(UNSPEC, backing.read, 0, 1)
        assert picture.dmabuf() is None
    world.plug((0, PAGE), (8 * PAGE, PAGE))
    world.write(0, b"\7" * 64)
    assert not picture.lost
    assert joined(picture, Rect(0, 0, 16, 1)) == b"\7" * 64


def test_A22_a_picture_whose_pages_vanish_is_the_guest_s_error(world: World) -> None:
    world.plug((0, 16 * PAGE), (1 << 20, PAGE))
    backing = world.store.resolve(entries((0, 64), (1 << 20, PAGE)))
    picture = backing.picture(Layout(16, 16, 64, 0, 2), 1024)
    world.truncate(1 << 20)
    refuses(UNSPEC, picture.rows, Rect(0, 0, 16, 16))
    refuses(UNSPEC, backing.read, 64, 1)
    assert joined(picture, Rect(0, 0, 16, 1)) == GUEST[:64]


@pytest.mark.parametrize("rect", [Rect(0, 0, 20, 9), Rect(2, 3, 17, 4), Rect(5, 8, 15, 1)])
def test_a_surface_is_a_picture_of_its_pixels(world: World, rect: Rect) -> None:
    surface = canvas(world, 20, 9, 121)
    surface.fill(world.store.resolve(entries((0, 720))), Rect(0, 0, 20, 9), 0)
    assert (surface.fourcc, surface.lost, surface.stride) == (FOURCC[2], False, 80)
    assert joined(surface, rect) == looked(Layout(20, 9, 80, 0, 121), rect)
    assert surface.dmabuf() is None


# -- dma-bufs


def test_B13_all_pictures_of_a_backing_share_one_dmabuf(exporting: World) -> None:
    backing = exporting.store.resolve(entries((2 * PAGE, PAGE), (0, PAGE)))
    one = backing.picture(Layout(16, 16, 64, 0, 2), 2 * PAGE)
    two = backing.picture(Layout(32, 20, 128, 0, 67), 2 * PAGE)
    dmabuf = one.dmabuf()
    assert dmabuf is not None
    assert dmabuf is one.dmabuf() is two.dmabuf()
    assert dmabuf.size == 2 * PAGE
    assert exporting.look(dmabuf) == GUEST[2 * PAGE : 3 * PAGE] + GUEST[:PAGE]


def test_L13_a_dmabuf_is_whole_pages(exporting: World) -> None:
    backing = exporting.store.resolve(entries((0, 4 * PAGE)))
    dmabuf = backing.picture(Layout(16, 16, 64, 0, 2), PAGE + 1).dmabuf()
    assert dmabuf is not None
    assert dmabuf.size == 2 * PAGE


def test_V06_a_picture_that_starts_elsewhere_has_no_dmabuf(exporting: World) -> None:
    backing = exporting.store.resolve(entries((0, 4 * PAGE)))
    for offset in (4, 64, PAGE):
        assert backing.picture(Layout(16, 16, 64, offset, 2), 4 * PAGE).dmabuf() is None
    assert backing.picture(Layout(16, 16, 64, 0, 2), 4 * PAGE).dmabuf() is not None


def test_R09_another_memory_table_means_another_dmabuf(exporting: World) -> None:
    backing = exporting.store.resolve(entries((0, PAGE)))
    picture = backing.picture(Layout(16, 16, 64, 0, 2), PAGE)
    first = picture.dmabuf()
    exporting.plug()
    assert picture.dmabuf() is None
    exporting.plug((0, 16 * PAGE))
    second = picture.dmabuf()
    assert second is not first
    assert second is not None
    assert second is picture.dmabuf()


def test_a_surface_has_one_dmabuf_of_all_its_rows(exporting: World) -> None:
    surface = exporting.store.create_surface(130, 200, 1)
    surface.fill(
        exporting.store.resolve(entries((0, 16 * PAGE), (0, 16 * PAGE))), Rect(0, 0, 130, 200), 0
    )
    dmabuf = surface.dmabuf()
    assert dmabuf is not None
    assert dmabuf is surface.dmabuf()
    assert dmabuf.size >= surface.stride * 200
    assert dmabuf.size % PAGE == 0
    content = exporting.look(dmabuf)
    for y in (0, 1, 199):
        row = content[y * surface.stride :][:520]
        assert row == joined(surface, Rect(0, y, 130, 1)) == (GUEST * 2)[y * 520 :][:520]
    exporting.plug()
    assert surface.dmabuf() is dmabuf, "it is no page of the guest's"


@settings(max_examples=100, deadline=None)
@given(
    pixel_format=st.sampled_from(sorted(CHANNELS)),
    pieces=st.lists(
        st.tuples(st.integers(0, 3 * PAGE), st.integers(1, 90) | st.integers(1, PAGE)),
        min_size=1,
        max_size=8,
    ),
    size=st.tuples(st.integers(1, 12), st.integers(1, 8)),
    slack=st.integers(0, 40),
    offset=st.integers(0, 100),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_the_fake_and_the_real_store_see_the_same_picture(
    pixel_format: int,
    pieces: list[tuple[int, int]],
    size: tuple[int, int],
    slack: int,
    offset: int,
    corners: tuple[float, float, float, float],
) -> None:
    (width, height), total = size, sum(length for _, length in pieces)
    stride = width * 4 + slack
    assume(offset + stride * (height - 1) + width * 4 <= total)
    x, y = round(corners[0] * (width - 1)), round(corners[1] * (height - 1))
    rect = Rect(
        x, y, 1 + round(corners[2] * (width - x - 1)), 1 + round(corners[3] * (height - y - 1))
    )
    made: list[bytes] = []
    with ExitStack() as stack:
        for make in WORLDS.values():
            world = make(stack)
            world.plug((0, PAGE), (PAGE, 2 * PAGE), (3 * PAGE, 2 * PAGE))
            world.write(0, GUEST[: 5 * PAGE])
            backing = world.store.resolve(entries(*pieces))
            picture = backing.picture(Layout(width, height, stride, offset, pixel_format), total)
            made.append(joined(picture, rect))
    assert made[0] == made[1]


# -- one against the other


@settings(max_examples=150, deadline=None)
@given(
    width=st.integers(1, 12),
    height=st.integers(1, 8),
    pixel_format=st.sampled_from(sorted(CHANNELS)),
    pieces=st.lists(
        st.tuples(st.integers(0, 3 * PAGE), st.integers(1, 60) | st.integers(1, PAGE)),
        min_size=1,
        max_size=8,
    ),
    offset=st.integers(0, 400),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
def test_the_fake_and_the_real_store_make_the_same_pixels(
    width: int,
    height: int,
    pixel_format: int,
    pieces: list[tuple[int, int]],
    offset: int,
    corners: tuple[float, float, float, float],
) -> None:
    x, y = round(corners[0] * width), round(corners[1] * height)
    rect = Rect(x, y, round(corners[2] * (width - x)), round(corners[3] * (height - y)))
    made: list[bytes] = []
    with ExitStack() as stack:
        for make in WORLDS.values():
            world = make(stack)
            world.plug((0, PAGE), (PAGE, 2 * PAGE), (3 * PAGE, 2 * PAGE))
            world.write(0, GUEST[: 5 * PAGE])
            surface = canvas(world, width, height, pixel_format)
            backing = world.store.resolve(entries(*pieces))
            assert backing.size == sum(length for _, length in pieces)
            surface.fill(backing, rect, offset)
            made.append(bytes(surface.pixels))
    assert made[0] == made[1]


def test_a_surface_beyond_the_heap_is_a_mapping_of_its_own() -> None:
    """Whoever drops a large surface gives its memory back at once."""
    with ExitStack() as stack:
        store = HostWorld(stack).store
        surface = store.create_surface(SMALL // 4, 1, 1)
        assert isinstance(surface.pixels.obj, mmap.mmap)
        assert isinstance(store.create_surface(16, 16, 1).pixels.obj, bytearray)


def test_C12_a_host_that_has_no_memory_left_is_out_of_memory() -> None:
    with ExitStack() as stack:
        store = HostWorld(stack).store
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        stack.callback(resource.setrlimit, resource.RLIMIT_AS, (soft, hard))
        resource.setrlimit(resource.RLIMIT_AS, (1 << 20, hard))
        refuses(OUT_OF_MEMORY, store.create_surface, 8192, 8191, 1)
