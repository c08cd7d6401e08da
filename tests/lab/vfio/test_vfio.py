"""A blob in a BAR: QEMU gets a dma-buf of exactly its pages, the CPU sees what the guest wrote."""

from __future__ import annotations

import random
import struct

import pytest

from tests.lab.vfio.conftest import Export
from tests.lab.vfio.device import BAR, SHIFT, Device
from tests.lab.vfio.guest import exported, seen, show
from tests.support.blobs import PAGE, Dimm, Entries, Frame, blob_machine, pattern
from vgpuwire import Rect

FRAME = Frame(128, 96)
"""12 pages."""
SIZE = FRAME.size


def contiguous(dimm: Dimm) -> Entries:
    return [(dimm.gpa + 3 * PAGE, SIZE)]


def page_by_page(dimm: Dimm) -> Entries:
    return dimm.pages()[3:15]


def scattered(dimm: Dimm) -> Entries:
    return random.Random(6).sample(dimm.pages(), SIZE // PAGE)


def reversed_(dimm: Dimm) -> Entries:
    return dimm.pages()[:12][::-1]


def in_large_pieces(dimm: Dimm) -> Entries:
    gpa = dimm.gpa
    return [(gpa + 64 * PAGE, 5 * PAGE), (gpa, PAGE), (gpa + 8 * PAGE, 6 * PAGE)]


def the_same_page(dimm: Dimm) -> Entries:
    return [(dimm.gpa, PAGE)] * (SIZE // PAGE)


ENTRIES = [contiguous, page_by_page, scattered, reversed_, in_large_pieces]


def merged(entries: Entries, dimm: Dimm) -> list[tuple[int, int]]:
    """Offsets in the BAR, neighbours as one."""
    found: list[tuple[int, int]] = []
    for gpa, length in entries:
        offset = gpa - dimm.gpa + dimm.region.offset - (BAR << SHIFT)
        if found and sum(found[-1]) == offset:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((offset, length))
    return found


@pytest.mark.parametrize("entries", ENTRIES, ids=lambda entries: entries.__name__)
async def test_qemu_has_the_pages_and_the_cpu_sees_them(
    entries: object, device: Device, asked: list[Export]
) -> None:
    async with blob_machine() as guest:
        bar = await guest.plug(device.fd, device.size(), BAR << SHIFT)
        wanted = entries(bar)
        data = await show(guest, 1, FRAME, wanted)
        await exported(guest)
        buffer = guest.vm.display.screens[0].buffer
        assert buffer is not None
        assert (buffer.exporter(), buffer.size()) == ("vfio_pci_core", SIZE)
        ((number, ranges),) = asked
        assert number == BAR
        assert list(struct.iter_unpack("=QQ", ranges)) == merged(wanted, bar)
        assert await seen(guest) == data
        assert guest.vm.session.stats.pixel_bytes == 0


@pytest.mark.parametrize("entries", ENTRIES, ids=lambda entries: entries.__name__)
async def test_in_shm_mode_the_cpu_reads_them(entries: object, device: Device) -> None:
    async with blob_machine(scanout="shm") as guest:
        bar = await guest.plug(device.fd, device.size(), BAR << SHIFT)
        data = await show(guest, 1, FRAME, entries(bar))
        await guest.vm.shown(data)


@pytest.mark.parametrize("mode", ["dmabuf", "shm"])
async def test_a_large_picture_in_many_pieces(
    mode: str, device: Device, asked: list[Export]
) -> None:
    """1080p: 2,025 pages, none of which has its neighbour beside it. A thread exports it."""
    frame = Frame(1920, 1080)
    async with blob_machine(scanout=mode) as guest:
        bar = await guest.plug(device.fd, device.size(), BAR << SHIFT)
        entries = bar.pages()[: 2 * 2025 : 2][::-1]
        data = await show(guest, 1, frame, entries)
        if mode == "dmabuf":
            await exported(guest)
            buffer = guest.vm.display.screens[0].buffer
            assert buffer is not None
            assert (buffer.exporter(), buffer.size()) == ("vfio_pci_core", 2025 * PAGE)
            assert list(struct.iter_unpack("=QQ", asked[0][1])) == merged(entries, bar)
        else:
            await guest.vm.shown(data)
        assert await seen(guest) == data


async def test_one_that_is_shown_while_decoding_is_off(device: Device) -> None:
    """A dma-buf made now would be revoked: QEMU could not import it, and would not try again."""
    async with blob_machine() as guest:
        bar = await guest.plug(device.fd, device.size(), BAR << SHIFT)
        data = pattern(SIZE, 1)
        guest.write(contiguous(bar), data)
        device.decode(False)
        await guest.create(1, contiguous(bar), SIZE)
        await guest.show(1, FRAME)
        await guest.vm.flush(1, FRAME.rect)
        assert guest.vm.display.screens[0].shown_nothing()
        device.decode(True)
        await guest.vm.flush(1, FRAME.rect)
        await guest.vm.shown(data)


async def test_a_part_of_it_is_a_copy(device: Device) -> None:
    """QEMU ignores a dma-buf's x, y and offset."""
    rect = Rect(16, 8, 64, 48)
    async with blob_machine() as guest:
        bar = await guest.plug(device.fd, device.size(), BAR << SHIFT)
        data = pattern(SIZE, 1)
        guest.write(contiguous(bar), data)
        await guest.create(1, contiguous(bar), SIZE)
        await guest.show(1, FRAME, rect)
        await guest.vm.flush(1, rect)
        await guest.vm.shown(FRAME.cut(data, rect))
        buffer = guest.vm.display.screens[0].buffer
        assert buffer is not None
        assert buffer.exporter() == "udmabuf"
