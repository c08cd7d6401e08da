"""A blob's dma-buf at QEMU's end of the GPU socket: what it is, and whose memory it is."""

from __future__ import annotations

import gc
import mmap
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import pytest

from tests.lab.inner.raw import HUGE_PAGE, fdinfo, memfd
from tests.support.blobs import (
    PAGE,
    BlobGuest,
    CountingDisplay,
    Entries,
    Frame,
    blob_machine,
    dmabufs,
    pattern,
)
from tests.support.fake_display import FakeDisplay
from vgpuwire import Format, Rect

FRAME = Frame(128, 96)
"""12 pages."""
SIZE = FRAME.size

Backing = Callable[[BlobGuest, ExitStack], Awaitable[Entries]]


def ram(stack: ExitStack, size: int = SIZE, flags: int = 0) -> int:
    fd = memfd(size, flags=os.MFD_ALLOW_SEALING | flags)
    stack.callback(os.close, fd)
    return fd


def shuffled(entries: Entries) -> Entries:
    return random.Random(4).sample(entries, len(entries))


async def one_piece(guest: BlobGuest, stack: ExitStack) -> Entries:
    return [((await guest.plug(ram(stack))).gpa, SIZE)]


async def a_page_an_entry(guest: BlobGuest, stack: ExitStack) -> Entries:
    return (await guest.plug(ram(stack))).pages()


async def any_order(guest: BlobGuest, stack: ExitStack) -> Entries:
    return shuffled((await guest.plug(ram(stack))).pages())


async def two_memfds(guest: BlobGuest, stack: ExitStack) -> Entries:
    """Their pages by turns."""
    first, second = [(await guest.plug(ram(stack))).pages() for _ in range(2)]
    return [entry for pair in zip(first, second, strict=True) for entry in pair][: SIZE // PAGE]


async def two_regions_of_two_memfds(guest: BlobGuest, stack: ExitStack) -> Entries:
    half = SIZE // 2
    parts: Entries = []
    for fd in [ram(stack), ram(stack)]:
        for offset in (half, 0):
            parts += (await guest.plug(fd, half, offset)).pages()
    return shuffled(parts)[: SIZE // PAGE]


async def huge_pages(guest: BlobGuest, stack: ExitStack) -> Entries:
    return [((await guest.plug(ram(stack, HUGE_PAGE, os.MFD_HUGETLB))).gpa, SIZE)]


async def pieces_of_huge_pages(guest: BlobGuest, stack: ExitStack) -> Entries:
    dimm = await guest.plug(ram(stack, 2 * HUGE_PAGE, os.MFD_HUGETLB))
    return shuffled(dimm.pages())[: SIZE // PAGE]


async def more_than_the_blob(guest: BlobGuest, stack: ExitStack) -> Entries:
    return [((await guest.plug(ram(stack, 4 * SIZE))).gpa, 4 * SIZE)]


BACKINGS = [
    one_piece,
    a_page_an_entry,
    any_order,
    two_memfds,
    two_regions_of_two_memfds,
    huge_pages,
    pieces_of_huge_pages,
    more_than_the_blob,
]


@pytest.mark.parametrize("backing", BACKINGS, ids=lambda backing: backing.__name__)
async def test_guest_and_display_have_the_same_memory(backing: Backing, stack: ExitStack) -> None:
    """What one writes, the other reads, page by page, without a word on any socket."""
    display = CountingDisplay()
    async with blob_machine(display) as guest:
        entries = await backing(guest, stack)
        await guest.picture(1, FRAME, entries)
        buffer = display.screens[0].buffer
        assert buffer is not None
        assert (buffer.exporter(), buffer.size()) == ("udmabuf", SIZE)
        told = display.received
        drawn = pattern(SIZE, 2)
        guest.write(entries, drawn)
        assert buffer.read() == drawn
        with mmap.mmap(buffer.fd, SIZE) as view:
            view[:] = painted = pattern(SIZE, 3)
        assert guest.read(entries)[:SIZE] == painted
        assert display.received == told
        assert guest.vm.session.stats.pixel_bytes == 0


def fourcc(name: bytes) -> int:
    return int.from_bytes(name, "little")


LAYOUTS = [
    (Frame(128, 96), b"XR24"),
    (Frame(100, 96, stride=512), b"XR24"),
    (Frame(128, 96, stride=4096), b"XR24"),
    (Frame(128, 96, format=Format.B8G8R8A8_UNORM), b"XR24"),
    (Frame(128, 96, format=Format.A8R8G8B8_UNORM), b"BX24"),
    (Frame(128, 96, format=Format.X8R8G8B8_UNORM), b"BX24"),
    (Frame(128, 96, format=Format.R8G8B8A8_UNORM), b"XB24"),
    (Frame(128, 96, format=Format.X8B8G8R8_UNORM), b"RX24"),
]


@pytest.mark.parametrize(("features", "modifier"), [(3, 0), (1, None)], ids=["DMABUF2", "without"])
async def test_its_layout_is_told_as_the_guest_has_it(
    features: int, modifier: int | None, stack: ExitStack
) -> None:
    """Formats are said, not converted; the modifier is LINEAR where QEMU takes one."""
    display = FakeDisplay(features=features)
    async with blob_machine(display) as guest:
        dimm = await guest.plug(ram(stack, 1 << 20))
        for number, (frame, name) in enumerate(LAYOUTS, start=1):
            await guest.picture(number, frame, [(dimm.gpa, frame.size)])
            buffer = display.screens[0].buffer
            assert buffer is not None
            told = (buffer.width, buffer.height, buffer.stride, buffer.fourcc, buffer.modifier)
            assert told == (frame.width, frame.height, frame.pitch, fourcc(name), modifier)
            assert buffer.size() == -(-frame.size // PAGE) * PAGE


CUTS = [
    ("a rectangle of it", Frame(128, 96), Rect(16, 8, 64, 48)),
    ("its left half", Frame(128, 96), Rect(0, 0, 64, 96)),
    ("its lower half", Frame(128, 96), Rect(0, 48, 128, 48)),
    ("not from its first byte", Frame(128, 96, offset=PAGE), Rect(0, 0, 128, 96)),
    ("not from a page", Frame(128, 96, offset=20), Rect(0, 0, 128, 96)),
    ("a rectangle behind an offset", Frame(100, 96, 512, 64), Rect(3, 5, 70, 80)),
]


@pytest.mark.parametrize(("name", "frame", "rect"), CUTS, ids=[row[0] for row in CUTS])
async def test_a_part_is_a_dmabuf_of_its_own(
    name: str, frame: Frame, rect: Rect, stack: ExitStack
) -> None:
    """QEMU ignores x, y and offsets: a canvas follows what is flushed, and nothing else."""
    display = CountingDisplay()
    async with blob_machine(display) as guest:
        entries = [((await guest.plug(ram(stack, 1 << 20))).gpa, frame.size)]
        before = await guest.picture(1, frame, entries, rect)
        buffer = display.screens[0].buffer
        assert buffer is not None
        assert buffer.exporter() == "udmabuf"
        assert (buffer.width, buffer.height) == (rect.width, rect.height)
        assert buffer.stride % 256 == 0
        assert buffer.stride >= rect.width * 4
        after = pattern(frame.size, 2)
        guest.write(entries, after)
        upper = Rect(0, 0, frame.width, rect.y + rect.height // 2)
        await guest.vm.flush(1, upper)
        half = rect.height // 2 * rect.width * 4
        assert buffer.read() == frame.cut(after, rect)[:half] + frame.cut(before, rect)[half:]
        assert display.screens[0].updates[-1] == (0, 0, rect.width, rect.height // 2)
        assert guest.vm.session.stats.pixel_bytes == 0


@pytest.mark.parametrize("fmt", [Format.B8G8R8X8_UNORM, Format.R8G8B8A8_UNORM])
async def test_a_2d_resource_is_one_as_well(fmt: int) -> None:
    """TRANSFER is its only copy; its bytes are in QEMU's order whatever the guest's is."""
    width, height = 136, 128
    display = FakeDisplay()
    async with blob_machine(display) as guest:
        pixels = pattern(width * height * 4, 1)
        gpa = await guest.vm.resource(1, width, height, fmt)
        guest.vm.ram.write(gpa, pixels)
        whole = Rect(0, 0, width, height)
        await guest.vm.scanout(1, whole)
        await guest.vm.transfer(1, whole)
        await guest.vm.flush(1, whole)
        buffer = display.screens[0].buffer
        assert buffer is not None
        assert buffer.exporter() == "udmabuf"
        assert (buffer.stride, buffer.fourcc) == (768, fourcc(b"XR24"))
        shown = bytearray(pixels)
        if fmt == Format.R8G8B8A8_UNORM:
            shown[0::4], shown[2::4] = pixels[2::4], pixels[0::4]
        assert buffer.read() == shown
        assert guest.vm.session.stats.pixel_bytes == 0


async def test_it_is_one_dmabuf_however_often_it_is_shown(stack: ExitStack) -> None:
    """Made when first shown, told when another was shown before, kept in between."""
    display = FakeDisplay()
    gc.collect()  # of the tests before
    async with blob_machine(display) as guest:
        dimm = await guest.plug(ram(stack, 2 * SIZE))
        entries = [[(dimm.gpa, SIZE)], [(dimm.gpa + SIZE, SIZE)]]
        assert dmabufs() == 0
        for number in (1, 2):
            await guest.create(number, entries[number - 1], SIZE)
        assert dmabufs() == 0  # a blob that was never shown pins nothing
        inodes = set()
        for number in (1, 1, 2, 2, 1, 2, 1):
            await guest.show(number, FRAME)
            await guest.vm.flush(number, FRAME.rect)
            buffer = display.screens[0].buffer
            assert buffer is not None
            inodes.add(os.fstat(buffer.fd).st_ino)
            assert fdinfo(buffer.fd)["exp_name"] == "udmabuf"
        assert len(inodes) == 2
        assert dmabufs() == 2 + 1
        assert display.count("DMABUF_SCANOUT2") == 5


async def test_the_end_of_the_connection_closes_them_all(stack: ExitStack) -> None:
    """At once, not when the garbage collector comes by: pinned memory is the host's."""
    display = FakeDisplay()
    gc.collect()  # of the tests before
    gc.disable()
    try:
        async with blob_machine(display) as guest:
            dimm = await guest.plug(ram(stack, 2 * SIZE))
            await guest.picture(1, FRAME, [(dimm.gpa, SIZE)])
            await guest.picture(2, FRAME, [(dimm.gpa + SIZE, SIZE)], Rect(0, 0, 64, 64))
            await guest.vm.picture(136, 128, bytes(136 * 128 * 4), 3)
            await guest.show(2, FRAME, Rect(0, 0, 64, 64))
            await guest.vm.flush(2, FRAME.rect)
            assert dmabufs() == 3 + 1  # a blob of which a part is shown has none
            guest.vm.frontend.close()
            await guest.vm.ended.wait()
            assert dmabufs() == 1  # the display's
    finally:
        gc.enable()
