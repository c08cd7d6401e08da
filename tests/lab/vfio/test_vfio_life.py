"""Memory of a device that goes, moves, is switched off or reset while it is shown."""

from __future__ import annotations

import errno
import gc
import os

import pytest
import trio

from tests.lab.inner.test_blob_endurance import SLACK, Round, forget, usage
from tests.lab.vfio.device import BAR, Device
from tests.lab.vfio.guest import (
    device_dmabufs,
    device_uses,
    exported,
    plug_bar,
    seen,
    show,
    went_dark,
)
from tests.support.blobs import PAGE, BlobGuest, Frame, blob_machine, pattern
from tests.support.machine import hdr
from tests.support.mock_driver import mem_entries
from vgpud import _native
from vgpud.errors import GuestError
from vgpud.host.fd import OwnedFd
from vgpud.host.guest_memory import DeviceRegion
from vgpud.host.vfio import VfioDevice
from vgpuwire import Ctrl, ResourceUnref

FRAME = Frame(128, 96)
SIZE = FRAME.size
MODES = ["dmabuf", "shm"]
REFUSED = "refused"
"""Dma-bufs are wanted, but the kernel has none of device memory, as before Linux 6.19."""
GPA = 0x20_0000_0000


async def visible(guest: BlobGuest, mode: str, data: bytes) -> None:
    """QEMU shows it, as far as a dma-buf that nobody maps can be looked at."""
    if mode == "dmabuf":
        await exported(guest)
    else:
        await guest.vm.shown(data)
    assert await seen(guest) == data


@pytest.fixture
def scanout(mode: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """What --scanout is in this mode."""
    if mode != REFUSED:
        return mode

    def refuse(device: int) -> None:
        raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))

    monkeypatch.setattr(_native, "vfio_probe_dma_buf", refuse)
    return "dmabuf"


@pytest.mark.parametrize("mode", [*MODES, REFUSED])
async def test_unplugged_it_is_free_when_qemu_is_told(
    mode: str, scanout: str, device: Device
) -> None:
    """So that QEMU can close the device: no descriptor, no mapping, no dma-buf."""
    gc.collect()
    before = device_uses()
    async with blob_machine(scanout=scanout) as guest:
        bar = await plug_bar(guest, device)
        ours = device_uses()
        data = await show(guest, 1, FRAME, bar.pages()[:12])
        for _ in range(3):
            await visible(guest, mode, data)
            await guest.unplug(bar)
            assert device_uses() == (ours[0] - 1, ours[1])
            buffer = guest.vm.display.screens[0].buffer
            assert device_dmabufs() == (mode == "dmabuf" and buffer is not None)
            await went_dark(guest)
            await guest.replug(bar)
        await visible(guest, mode, data)
        bar.map.close()
    assert device_uses() == before
    assert device_dmabufs() == 0


@pytest.mark.parametrize("mode", MODES)
async def test_a_bar_that_moves(mode: str, device: Device) -> None:
    """The guest's addresses of it are others then, which its driver tells by new entries."""
    async with blob_machine(scanout=mode) as guest:
        bar = await plug_bar(guest, device)
        data = await show(guest, 1, FRAME, bar.pages()[:12])
        await visible(guest, mode, data)
        await guest.unplug(bar)
        await went_dark(guest)
        moved = await plug_bar(guest, device)
        data = await show(guest, 2, FRAME, moved.pages()[12:24])
        await visible(guest, mode, data)


@pytest.mark.parametrize("mode", MODES)
async def test_memory_decoding_off_and_on(mode: str, device: Device) -> None:
    async with blob_machine(scanout=mode) as guest:
        bar = await plug_bar(guest, device)
        data = await show(guest, 1, FRAME, bar.pages()[:12])
        await visible(guest, mode, data)
        for _ in range(3):
            device.decode(False)
            await guest.vm.flush(1, FRAME.rect)
            with pytest.raises(GuestError, match=r"switched the memory of 0000:00:10\.0 off"):
                await seen(guest)
            if mode == "shm":
                await went_dark(guest)
            device.decode(True)
            await guest.vm.flush(1, FRAME.rect)
            await visible(guest, mode, data)


async def test_decoding_goes_off_behind_the_look_at_it(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The read ends in SIGBUS: it is the end of the read, not of vgpud."""
    monkeypatch.setattr(VfioDevice, "decoding", lambda self: True)
    async with blob_machine(scanout="shm") as guest:
        bar = await plug_bar(guest, device)
        data = await show(guest, 1, FRAME, bar.pages()[:12])
        await guest.vm.shown(data)
        device.decode(False)
        await guest.vm.flush(1, FRAME.rect)
        await went_dark(guest)
        with pytest.raises(GuestError, match="gone away"):
            await seen(guest)
        device.decode(True)
        await guest.vm.flush(1, FRAME.rect)
        await guest.vm.shown(data)


@pytest.mark.parametrize("mode", MODES)
async def test_off_and_reset_in_the_middle_of_flips(mode: str, nvme: Device) -> None:
    """The controller's memory buffer is switched off, or the device reset, while the guest flips
    between two pictures in it. In the end the right one is shown."""
    frame = Frame(64, 64)
    async with blob_machine(scanout=mode) as guest:
        bar = await plug_bar(guest, nvme)
        blobs = {n: [(bar.gpa + n * frame.size, frame.size)] for n in (1, 2)}
        data = {n: await show(guest, n, frame, entries) for n, entries in blobs.items()}
        for turn in range(24):
            number = 1 + turn % 2
            if turn % 6 == 2:
                nvme.decode(False)
            if turn % 6 == 4:
                nvme.decode(True)
                nvme.reset()
            await guest.show(number, frame)
            await guest.vm.flush(number, frame.rect)
        nvme.decode(True)
        for number, entries in blobs.items():
            if guest.read(entries) != data[number]:  # the reset has cleared it
                guest.write(entries, data[number])
            await guest.show(number, frame)
            await guest.vm.flush(number, frame.rect)
            await visible(guest, mode, data[number])
        assert guest.vm.session.view.status()["guest_errors"] == {}
        bar.map.close()
    assert device_uses()[0] == 1
    assert device_dmabufs() == 0


@pytest.mark.parametrize("mode", MODES)
async def test_regions_that_somebody_else_tells(mode: str, device: Device) -> None:
    """Another source than the memory table (--qmp) has the device and knows the addresses."""
    gc.collect()
    handed = VfioDevice(OwnedFd(os.dup(device.fd)), "handed")
    async with blob_machine(scanout=mode) as guest:
        session, memory = guest.vm.session, device.bar()
        mapped = device_uses()
        memory[PAGE : PAGE + SIZE] = data = pattern(SIZE, 5)
        await session.set_devices([DeviceRegion(GPA, device.size(), handed, BAR, 0)])
        await guest.create(1, [(GPA + PAGE, SIZE)], SIZE)
        await guest.show(1, FRAME)
        await guest.vm.flush(1, FRAME.rect)
        await visible(guest, mode, data)
        await session.set_devices([])
        assert device_uses() == mapped
        await went_dark(guest)
        await session.set_devices([DeviceRegion(GPA, device.size() - PAGE, handed, BAR, PAGE)])
        memory[2 * PAGE : 2 * PAGE + SIZE] = data = pattern(SIZE, 6)
        await guest.vm.flush(1, FRAME.rect)
        await visible(guest, mode, data)
        assert await session.drop_device(device.syspath)
        assert not await session.drop_device(device.syspath)
        await went_dark(guest)
        assert device_uses() == mapped
    assert device_uses() == mapped
    handed.close()
    assert device_uses()[0] == mapped[0] - 1


async def test_an_unbind_is_announced(device: Device) -> None:
    """Of a device in the memory table: the region stays QEMU's, nothing of it stays here."""
    async with blob_machine() as guest:
        bar = await plug_bar(guest, device)
        await show(guest, 1, FRAME, bar.pages()[:12])
        await exported(guest)
        ours = device_uses()
        assert await guest.vm.session.drop_device(device.syspath)
        assert device_uses() == (ours[0] - 1, ours[1])
        await went_dark(guest)
        await guest.unplug(bar)
        await guest.replug(bar)
        await guest.vm.flush(1, FRAME.rect)
        await exported(guest)


async def test_memory_goes_while_a_thread_reads_it(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU has its answer when the read has stopped, which is long before its end."""
    frame = Frame(1920, 1080)
    async with blob_machine(scanout="shm") as guest:
        bar = await plug_bar(guest, device)
        data = await show(guest, 1, frame, [(bar.gpa, frame.size)])
        await guest.vm.shown(data)
        for _ in range(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest.vm.flush, 1, frame.rect)
                await trio.lowlevel.checkpoint()
                await guest.unplug(bar)
                mappings = device_uses()[1]
                assert mappings == 1
            await guest.replug(bar)
            await guest.vm.flush(1, frame.rect)
            await guest.vm.shown(data)


@pytest.mark.parametrize("mode", [*MODES, REFUSED])
async def test_a_thousand_blobs_leave_nothing(mode: str, scanout: str, device: Device) -> None:
    """Created, shown as a dma-buf or by a read, and unreferenced."""
    frame, cycles = Frame(16, 16), 1000
    assert device_dmabufs() == 0
    async with blob_machine(scanout=scanout, device_fps=1000) as guest:
        vm, stats = guest.vm, guest.vm.session.stats
        page = (await plug_bar(guest, device)).pages()[3]
        data = await show(guest, 1, frame, [page])
        await visible(guest, mode, data)
        turn = Round(
            vm,
            [
                (ResourceUnref(hdr(Ctrl.CMD_RESOURCE_UNREF), 1).encode(), b""),
                (guest.create_command(1, 1, frame.size).encode(), mem_entries([page])),
                (guest.show_command(1, frame).encode(), b""),
            ],
        )
        left = 2 * (mode == "dmabuf")

        def settled() -> bool:
            return device_dmabufs() == left

        before = (0, 0)
        for count in range(cycles):
            shown = stats.dmabuf_updates + stats.updates
            await turn.run()
            await vm.until(
                lambda: stats.dmabuf_updates + stats.updates > shown,  # noqa: B023
                "it is shown",
            )
            forget(vm.display)
            if count == cycles // 4:
                await vm.until(settled, "QEMU has dealt with the last one")
                before = usage()
        await vm.until(settled, "QEMU has dealt with the last one")
        fds, memory = usage()
        assert vm.session.view.status()["guest_errors"] == {}
        assert vm.session._udmabuf.quota.dmabufs == (scanout == "dmabuf")
        assert fds == before[0]
        assert memory < before[1] + SLACK
        print(f"{cycles} blobs: {fds} descriptors, {(memory - before[1]) >> 10} KiB more")
