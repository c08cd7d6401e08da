"""Blobs in a device's memory, on a fake device: whole sessions in shm mode. With real devices and
dma-bufs: tests/lab/vfio."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.support.blobs import PAGE, BlobGuest, Frame, blob_machine, pattern
from tests.support.fake_vfio import FakeVfio
from tests.support.machine import hdr
from tests.support.mock_driver import mem_entries
from vgpud.errors import GuestError, HostError
from vgpud.host.guest_memory import DeviceRegion
from vgpud.host.vfio import VfioDevice
from vgpuwire import (
    Ctrl,
    CtrlHdr,
    Format,
    Rect,
    ResourceAttachBacking,
    ResourceCreate2D,
    TransferToHost2D,
)

BAR, BAR_GPA, SIZE = 2, 0x20_0000_0000, 8 << 20
FRAME = Frame(128, 96)


class Bar:
    """The guest's BAR, and the device that vgpud was given."""

    def __init__(self, folder: Path) -> None:
        (folder / "vfio-dev").mkdir()  # what tells that it is bound to VFIO
        self.fake = FakeVfio({BAR: SIZE})
        self.device: VfioDevice = self.fake.device(str(folder))
        self.device.maps_dmabufs = False  # the fake's are copies

    def region(self, gpa: int = BAR_GPA) -> DeviceRegion:
        return DeviceRegion(gpa, SIZE, self.device, BAR)

    def close(self) -> None:
        self.device.close()
        self.fake.close()


@pytest.fixture
def bar(tmp_path: Path) -> Iterator[Bar]:
    made = Bar(tmp_path)
    yield made
    made.close()


async def show(guest: BlobGuest, bar: Bar, number: int, page: int, frame: Frame = FRAME) -> bytes:
    data = pattern(frame.size, number)
    bar.fake.write(BAR, page * PAGE, data)
    await guest.create(number, [(BAR_GPA + page * PAGE, frame.size)], frame.size)
    await guest.show(number, frame)
    await guest.vm.flush(number, frame.rect)
    return data


async def test_it_is_shown_and_shot(bar: Bar) -> None:
    async with blob_machine(scanout="shm", device_fps=1000) as guest:
        await guest.vm.session.set_devices([bar.region()])
        for number in range(1, 4):
            data = await show(guest, bar, number, number * 16)
            await guest.vm.shown(data)
            shot = await guest.vm.session.view.screenshot(0)
            assert shot is not None
            with shot[2] as file:
                assert os.pread(file.fileno(), FRAME.size + 1, 0) == data
        bar.fake.write(BAR, 48 * PAGE, drawn := pattern(FRAME.size, 9))
        await guest.vm.flush(3, Rect(0, 0, 128, 1))
        await guest.vm.shown(FRAME.cut(drawn, Rect(0, 0, 128, 1)) + FRAME.cut(data)[512:])


async def test_it_goes_and_comes_back(bar: Bar) -> None:
    async with blob_machine(scanout="shm", device_fps=1000) as guest:
        session, screen = guest.vm.session, guest.vm.display.screens[0]
        await session.set_devices([bar.region()])
        data = await show(guest, bar, 1, 3)
        await guest.vm.shown(data)
        for leave in (
            lambda: session.set_devices([]),
            lambda: session.set_devices([bar.region(BAR_GPA + SIZE)]),
            lambda: session.drop_device(bar.device.syspath),
        ):
            await leave()
            await guest.vm.until(screen.shown_nothing, "the head is off")
            with pytest.raises(GuestError, match="unplugged"):
                await session.view.screenshot(0)
            await session.set_devices([bar.region()])
            await guest.vm.shown(data)


async def test_what_cannot_be_changes_nothing(bar: Bar) -> None:
    async with blob_machine(scanout="shm", device_fps=1000) as guest:
        session = guest.vm.session
        await session.set_devices([bar.region()])
        data = await show(guest, bar, 1, 3)
        with pytest.raises(HostError, match="overlap"):
            await session.set_devices([bar.region(), bar.region(BAR_GPA + PAGE)])
        await guest.vm.flush(1, FRAME.rect)
        await guest.vm.shown(data)


async def test_decoding_off_and_on(bar: Bar) -> None:
    async with blob_machine(scanout="shm", device_fps=1000) as guest:
        await guest.vm.session.set_devices([bar.region()])
        data = await show(guest, bar, 1, 3)
        await guest.vm.shown(data)
        bar.fake.decode(False)
        await guest.vm.flush(1, FRAME.rect)
        await guest.vm.until(guest.vm.display.screens[0].shown_nothing, "the head is off")
        bar.fake.decode(True)
        await guest.vm.flush(1, FRAME.rect)
        await guest.vm.shown(data)


async def test_memory_that_changes_all_the_time(bar: Bar) -> None:
    """Every read is stopped or done, none is of the table before."""
    frame = Frame(1280, 800)
    async with blob_machine(scanout="shm", device_fps=1000) as guest:
        session = guest.vm.session
        await session.set_devices([bar.region()])
        data = await show(guest, bar, 1, 3, frame)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(changes, guest, bar)
            for _ in range(20):
                await guest.vm.flush(1, frame.rect)
        await guest.vm.flush(1, frame.rect)
        await guest.vm.shown(data)


async def changes(guest: BlobGuest, bar: Bar) -> None:
    for turn in range(30):
        await guest.vm.session.set_devices([] if turn % 3 == 1 else [bar.region()])
        for _ in range(turn % 4):
            await trio.lowlevel.checkpoint()


async def test_T_no_2d_resource_is_filled_from_it(bar: Bar) -> None:
    """A read of it belongs to a thread, and TRANSFER is answered at once."""
    async with blob_machine(scanout="shm") as guest:
        vm = guest.vm
        await vm.session.set_devices([bar.region()])
        create = hdr(Ctrl.CMD_RESOURCE_CREATE_2D)
        await vm.ok(ResourceCreate2D(create, 1, Format.B8G8R8X8_UNORM, 32, 32))
        attach = hdr(Ctrl.CMD_RESOURCE_ATTACH_BACKING)
        await vm.ok(ResourceAttachBacking(attach, 1, 1), mem_entries([(BAR_GPA, PAGE)]))
        transfer = TransferToHost2D(hdr(Ctrl.CMD_TRANSFER_TO_HOST_2D), Rect(0, 0, 32, 32), 0, 1)
        answer = CtrlHdr.decode(await vm.control(transfer))
        assert answer.type == Ctrl.RESP_ERR_UNSPEC
