"""A guest whose blobs are in BARs, and what vgpud has of the devices."""

from __future__ import annotations

import os

from tests.lab.vfio.device import BAR, SHIFT, Device
from tests.support.blobs import BlobGuest, Dimm, Entries, Frame, pattern
from tests.support.mock_driver import mem_entries
from vgpuwire import Ctrl, CtrlHdr, Record


async def plug_bar(
    guest: BlobGuest, device: Device, size: int | None = None, offset: int = 0, bar: int = BAR
) -> Dimm:
    """A window of a BAR in the memory table: as our QEMU sends it, by the device's descriptor."""
    size = device.size(bar) - offset if size is None else size
    return await guest.plug(device.fd, size, (bar << SHIFT) + offset)


async def show(guest: BlobGuest, number: int, frame: Frame, entries: Entries) -> bytes:
    data = pattern(frame.size, number)
    guest.write(entries, data)
    await guest.create(number, entries, frame.size)
    await guest.show(number, frame)
    await guest.vm.flush(number, frame.rect)
    return data


async def exported(guest: BlobGuest) -> None:
    screen = guest.vm.display.screens[0]
    await guest.vm.until(lambda: screen.buffer is not None, "QEMU has a dma-buf")


async def seen(guest: BlobGuest, head: int = 0) -> bytes:
    """What `vgpuctl screenshot` is given: B8G8R8X8, tightly packed."""
    shot = await guest.vm.session.view.screenshot(head)
    assert shot is not None
    width, height, file = shot
    with file:
        return os.pread(file.fileno(), width * height * 4 + 1, 0)


async def went_dark(guest: BlobGuest, head: int = 0) -> None:
    screen = guest.vm.display.screens[head]
    await guest.vm.until(lambda: screen.shown_nothing(), "the head is off")


async def refused(guest: BlobGuest, command: Record, tail: bytes = b"") -> Ctrl:
    """The error that a command is answered with."""
    answer = CtrlHdr.decode(await guest.vm.control(command, tail))
    assert answer.type >= Ctrl.RESP_ERR_UNSPEC
    return Ctrl(answer.type)


async def create_refused(guest: BlobGuest, number: int, entries: Entries, size: int) -> Ctrl:
    command = guest.create_command(number, len(entries), size)
    return await refused(guest, command, mem_entries(entries))


def device_uses() -> tuple[int, int]:
    """(descriptors, mappings) of VFIO devices in this process, the test's own included."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue  # the listing's own
    with open("/proc/self/maps") as maps:
        mappings = sum("[vfio-device]" in line for line in maps)
    return links.count("anon_inode:[vfio-device]"), mappings


def device_dmabufs() -> int:
    """Descriptors of VFIO's dma-bufs: vgpud's, and one for each head that shows one."""
    count = 0
    for fd in os.listdir("/proc/self/fd"):
        try:
            with open(f"/proc/self/fdinfo/{fd}") as info:
                count += "exp_name:\tvfio_pci_core" in info.read()
        except OSError:
            continue
    return count
