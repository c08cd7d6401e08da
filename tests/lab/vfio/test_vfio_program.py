"""The real program, in its sandbox, as nobody: device memory as a dma-buf and by reads."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from tests.lab.inner.test_blob_daemon import ended, program
from tests.lab.vfio.device import Device
from tests.lab.vfio.guest import device_dmabufs, exported, plug_bar, show
from tests.support.blobs import PAGE, Frame
from tests.support.mock_driver import mem_entries

FRAME = Frame(128, 96)
MIB = 1 << 20


@pytest.mark.parametrize("mode", ["dmabuf", "shm"])
async def test_it_is_shown(mode: str, device: Device, stack: ExitStack) -> None:
    """A call that the sandbox does not know would end the program."""
    udmabuf = os.open("/dev/udmabuf", os.O_RDWR | os.O_CLOEXEC)
    stack.callback(os.close, udmabuf)
    async with program(f"--scanout={mode}", device=udmabuf) as (guest, vgpud):
        first = await plug_bar(guest, device, MIB)
        second = await plug_bar(guest, device, MIB, 2 * MIB)
        entries = [*first.pages()[:6], *second.pages()[:6]]
        data = await show(guest, 1, FRAME, entries)
        if mode == "dmabuf":
            await exported(guest)
            buffer = guest.vm.display.screens[0].buffer
            assert buffer is not None
            assert (buffer.exporter(), buffer.size()) == ("vfio_pci_core", 12 * PAGE)
        else:
            await guest.vm.shown(data)
        mixed = [(guest.vm.ram.alloc(PAGE, PAGE), PAGE), *second.pages()[6:17]]
        command = guest.create_command(2, len(mixed), FRAME.size)
        await guest.vm.ok(command, mem_entries(mixed))
        await guest.show(2, FRAME)
        await guest.vm.flush(2, FRAME.rect)
        wanted = guest.vm.ram.read(mixed[0][0], PAGE) + guest.read(mixed[1:])
        screen = guest.vm.display.screens[0]

        def a_copy() -> bool:
            """Nobody can look at a dma-buf of the device."""
            return screen.buffer is None or screen.buffer.exporter() == "udmabuf"

        await guest.vm.until(a_copy, "QEMU shows a copy")
        await guest.vm.shown(wanted)
        await ended(guest)
    words = " ".join(vgpud.events())
    assert words.count("event=no-dmabuf") == (mode == "dmabuf"), vgpud.lines
    assert words.count("event=device-memory-read") == 1
    guest.vm.display.forget()
    assert device_dmabufs() == 0
