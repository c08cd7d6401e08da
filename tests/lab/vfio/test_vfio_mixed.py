"""Pictures that are in several windows, BARs, devices or memories: the right picture or a clear
refusal."""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack

import pytest

from tests.lab.inner.raw import memfd
from tests.lab.vfio.conftest import Export
from tests.lab.vfio.device import BAR, SHIFT, Device
from tests.lab.vfio.guest import (
    create_refused,
    exported,
    plug_bar,
    refused,
    seen,
    show,
    went_dark,
)
from tests.support.blobs import PAGE, Frame, blob_machine, pattern
from tests.support.fake_frontend import Region
from tests.support.machine import hdr
from tests.support.mock_driver import mem_entries
from vgpud.errors import GuestError
from vgpud.host.dmabuf import Quota
from vgpud.host.fd import OwnedFd
from vgpud.host.guest_memory import DeviceRegion
from vgpud.host.vfio import VfioDevice, Window
from vgpuwire import (
    Ctrl,
    CursorPos,
    Format,
    Rect,
    ResourceAttachBacking,
    ResourceCreate2D,
    TransferToHost2D,
    UpdateCursor,
)

MIB = 1 << 20
FRAME = Frame(128, 96)
SIZE = FRAME.size
MODES = ["dmabuf", "shm"]


async def test_two_windows_of_one_bar(device: Device, asked: list[Export]) -> None:
    """QEMU cuts a BAR where it may not be mapped; the picture may use both parts."""
    async with blob_machine() as guest:
        first = await plug_bar(guest, device, MIB)
        second = await plug_bar(guest, device, MIB, 2 * MIB)
        pairs = zip(first.pages()[:6], second.pages()[:6], strict=True)
        entries = [entry for pair in pairs for entry in pair]
        data = await show(guest, 1, FRAME, entries)
        await exported(guest)
        ((number, ranges),) = asked
        offsets = [offset for n in range(6) for offset in (n * PAGE, 2 * MIB + n * PAGE)]
        assert number == BAR
        assert list(struct.iter_unpack("=QQ", ranges)) == [(offset, PAGE) for offset in offsets]
        assert await seen(guest) == data


@pytest.mark.parametrize("mode", MODES)
async def test_windows_that_meet_in_the_bar_are_one_range(
    mode: str, device: Device, asked: list[Export]
) -> None:
    async with blob_machine(scanout=mode) as guest:
        first = await plug_bar(guest, device, MIB)
        second = await plug_bar(guest, device, MIB, MIB)
        entries = [*first.pages()[-6:], *second.pages()[:6]]
        data = await show(guest, 1, FRAME, entries)
        if mode == "dmabuf":
            await exported(guest)
        else:
            await guest.vm.shown(data)
        assert asked[0] == (BAR, struct.pack("=QQ", MIB - 6 * PAGE, SIZE))
        assert await seen(guest) == data


async def test_across_a_hole_in_the_bar(device: Device) -> None:
    """What QEMU does not have in its table is no memory for the guest either."""
    async with blob_machine() as guest:
        first = await plug_bar(guest, device, MIB)
        await plug_bar(guest, device, MIB, MIB + PAGE)
        entries = [(first.gpa + MIB - 6 * PAGE, SIZE)]
        assert await create_refused(guest, 1, entries, SIZE) == Ctrl.RESP_ERR_UNSPEC


async def test_what_cannot_be_mapped_is_blank_and_says_why(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    """A BAR that its driver lets nobody map in the middle (no device of the lab has such a one:
    the windows are cut here). The dma-buf knows no holes."""
    handed = VfioDevice(OwnedFd(os.dup(device.fd)), "handed")
    bar = handed.bar(BAR)
    assert bar is not None
    hole = bar._replace(windows=(Window(0, MIB), Window(MIB + PAGE, device.size() - MIB - PAGE)))
    handed.bars = tuple(hole if one is bar else one for one in handed.bars)
    gpa = 0x20_0000_0000
    entries = [(gpa + MIB - 6 * PAGE, SIZE)]
    for mode in MODES:
        async with blob_machine(scanout=mode) as guest:
            await guest.vm.session.set_devices([DeviceRegion(gpa, device.size(), handed, BAR, 0)])
            await guest.create(1, entries, SIZE)
            await guest.show(1, FRAME)
            await guest.vm.flush(1, FRAME.rect)
            if mode == "dmabuf":
                await exported(guest)
                continue
            with pytest.raises(GuestError, match="BAR 2 of handed cannot be mapped at 0x100000"):
                await seen(guest)
            assert guest.vm.display.screens[0].shown_nothing()
            await guest.create(2, [(gpa, SIZE)], SIZE)
            device.bar()[:SIZE] = data = pattern(SIZE, 7)
            await guest.show(2, FRAME)
            await guest.vm.flush(2, FRAME.rect)
            await guest.vm.shown(data)
    lines = [line for line in caplog.text.splitlines() if "no-dmabuf" in line]
    assert len(lines) == 1
    assert "the head stays blank" in lines[0]
    handed.close()


@pytest.mark.parametrize("mode", MODES)
async def test_ram_and_bar(
    mode: str,
    device: Device,
    asked: list[Export],
    caplog: pytest.LogCaptureFixture,
    stack: ExitStack,
) -> None:
    file = memfd(SIZE)
    stack.callback(os.close, file)
    async with blob_machine(scanout=mode) as guest:
        bar, ram = await plug_bar(guest, device), await guest.plug(file)
        pairs = zip(bar.pages()[:6], ram.pages()[:6], strict=True)
        by_turns = [entry for pair in pairs for entry in pair]
        for number, entries in ((1, by_turns), (2, [*ram.pages()[6:], *bar.pages()[:6]])):
            data = await show(guest, number, FRAME, entries)
            await guest.vm.shown(data)
            assert await seen(guest) == data
    assert asked == []
    lines = [line for line in caplog.text.splitlines() if "no-dmabuf" in line]
    assert len(lines) == (mode == "dmabuf")
    for line in lines:
        assert "partly in RAM, partly in a device" in line
        assert "one BAR only" in line
        assert "the CPU reads" in line


@pytest.mark.parametrize("mode", MODES)
async def test_two_devices(
    mode: str, device: Device, second: Device, caplog: pytest.LogCaptureFixture
) -> None:
    async with blob_machine(scanout=mode) as guest:
        one, other = await plug_bar(guest, device), await plug_bar(guest, second)
        entries = [*other.pages()[:6], *one.pages()[:6]]
        await guest.vm.shown(await show(guest, 1, FRAME, entries))
    assert ("memory of two devices" in caplog.text) == (mode == "dmabuf")


async def test_two_bars(nvme: Device, caplog: pytest.LogCaptureFixture) -> None:
    """Registers, and the controller's memory buffer."""
    frame = Frame(32, 64)
    async with blob_machine() as guest:
        registers = await plug_bar(guest, nvme, PAGE, bar=0)
        buffer = await plug_bar(guest, nvme)
        drawn = pattern(PAGE, 1)
        guest.write([(buffer.gpa, PAGE)], drawn)
        await guest.create(1, [(buffer.gpa, PAGE), (registers.gpa, PAGE)], frame.size)
        await guest.show(1, frame)
        await guest.vm.flush(1, frame.rect)
        await guest.vm.shown(drawn + registers.map[:])
    assert "in two BARs of 0000:00:12.0" in caplog.text


@pytest.mark.parametrize("mode", MODES)
async def test_pieces_that_are_no_whole_pages(
    mode: str, device: Device, asked: list[Export], caplog: pytest.LogCaptureFixture
) -> None:
    async with blob_machine(scanout=mode) as guest:
        bar = await plug_bar(guest, device)
        entries = [(bar.gpa + 100, SIZE - 300), (bar.gpa + MIB + 13, 300)]
        await guest.vm.shown(await show(guest, 1, FRAME, entries))
    assert asked == []
    assert ("not whole pages" in caplog.text) == (mode == "dmabuf")


async def test_nothing_but_a_head_reads_a_bar(device: Device) -> None:
    """Neither a 2D resource nor a pointer: both are served in the event loop."""
    async with blob_machine() as guest:
        vm, bar = guest.vm, await plug_bar(guest, device)
        create = hdr(Ctrl.CMD_RESOURCE_CREATE_2D)
        await vm.ok(ResourceCreate2D(create, 1, Format.B8G8R8X8_UNORM, 32, 32))
        attach = hdr(Ctrl.CMD_RESOURCE_ATTACH_BACKING)
        await vm.ok(ResourceAttachBacking(attach, 1, 1), mem_entries([(bar.gpa, PAGE)]))
        transfer = TransferToHost2D(hdr(Ctrl.CMD_TRANSFER_TO_HOST_2D), Rect(0, 0, 32, 32), 0, 1)
        assert await refused(guest, transfer) == Ctrl.RESP_ERR_UNSPEC
        await guest.create(2, [(bar.gpa, 64 * 64 * 4)], 64 * 64 * 4)
        guest.write([(bar.gpa, 64 * 64 * 4)], pattern(64 * 64 * 4, 1))
        update = UpdateCursor(hdr(Ctrl.CMD_UPDATE_CURSOR), CursorPos(0, 5, 6), 2, 0, 0)
        vm.submit(update, room=0, ring=1)
        await vm.reap(1, ring=1)
        await vm.until(lambda: 0 in vm.display.cursor, "the pointer is told")
        assert vm.display.cursor[0][2] == bytes(64 * 64 * 4), "there was none before"


async def test_a_dmabuf_of_a_whole_bar(device: Device, caplog: pytest.LogCaptureFixture) -> None:
    """As QEMU 11.1 would send it with one line changed: good for its start, and nothing else."""
    handed = VfioDevice(OwnedFd(os.dup(device.fd)))
    bar = handed.bar(BAR)
    assert bar is not None
    dmabuf = handed.export(bar, [(0, bar.size)], bar.size, Quota())
    handed.close()
    gpa = 0x20_0000_0000
    async with blob_machine() as guest:
        vm = guest.vm
        vm.frontend.regions = [
            *vm.frontend.regions,
            Region(gpa, bar.size, 0x7D00_0000_0000, 0, dmabuf.fileno()),
        ]
        assert await vm.frontend.share_memory() == 0
        await guest.create(1, [(gpa, SIZE)], SIZE)
        await guest.show(1, FRAME)
        await vm.flush(1, FRAME.rect)
        await exported(guest)
        buffer = vm.display.screens[0].buffer
        assert buffer is not None
        assert (buffer.exporter(), buffer.size()) == ("vfio_pci_core", bar.size)
        with pytest.raises(GuestError, match="lets nobody map"):
            await seen(guest)
        await guest.create(2, [(gpa + PAGE, SIZE)], SIZE)
        await guest.show(2, FRAME)
        await vm.flush(2, FRAME.rect)
        await went_dark(guest)
    line = next(line for line in caplog.text.splitlines() if "a dma-buf of a BAR, in" in line)
    assert "--qmp" in line
    assert "the head stays blank" in line
    dmabuf.close()


def test_offsets_are_those_of_the_device(device: Device) -> None:
    """Linux's, which the table above counts with."""
    handed = VfioDevice(OwnedFd(os.dup(device.fd)))
    assert [(bar.number, bar.offset) for bar in handed.bars] == [(0, 0), (BAR, BAR << SHIFT)]
    assert handed.syspath == device.syspath
    assert handed.decoding()
    device.decode(False)
    assert not handed.decoding()
    handed.close()
