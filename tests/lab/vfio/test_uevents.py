"""The kernel's own uevents: a device is unbound while we hold it, /dev/udmabuf comes late."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from tests.lab.inner.raw import memfd
from tests.lab.vfio.device import BAR, DEVICES, IVSHMEM, SHIFT, Device
from tests.support.blobs import BlobGuest, Frame, blob_machine, pattern
from vgpud.host import dmabuf
from vgpud.host.udmabuf import DEVICE

FRAME = Frame(128, 96)
UNBIND = Path("/sys/bus/pci/drivers/vfio-pci/unbind")
LATE = Path("/tmp/late-udmabuf")
UDMABUF_EVENT = Path("/sys/devices/virtual/misc/udmabuf/uevent")
PATIENCE = 10.0


async def held(guest: BlobGuest) -> None:
    """A blob in the BAR is shown; everybody but the session has let go of the device."""
    with Device(IVSHMEM) as device:
        bar = await guest.plug(device.fd, device.size(), BAR << SHIFT)
        entries = [(bar.gpa, FRAME.size)]
        guest.write(entries, pattern(FRAME.size, 1))
        await guest.create(1, entries, FRAME.size)
        await guest.show(1, FRAME)
        await guest.vm.flush(1, FRAME.rect)
        screen = guest.vm.display.screens[0]
        await guest.vm.until(lambda: screen.buffer is not None, "QEMU has a dma-buf")
        assert screen.buffer.exporter() == "vfio_pci_core"
        bar.map.close()


def is_bound() -> bool:
    return (DEVICES / IVSHMEM / "driver").exists()


class Unbind:
    """echo ADDRESS > unbind, in a thread."""

    def __init__(self) -> None:
        self.thread = 0
        self.done = trio.Event()

    async def run(self) -> None:
        await trio.to_thread.run_sync(self._write)
        self.done.set()

    def _write(self) -> None:
        self.thread = threading.get_native_id()
        UNBIND.write_text(IVSHMEM)

    def waits(self) -> bool:
        """Whether the kernel waits for the last descriptor of the device."""
        with suppress(OSError):
            stack = Path(f"/proc/self/task/{self.thread}/stack").read_text()
            return "vfio_unregister_group_dev" in stack
        return False


async def eventually(condition: Callable[[], bool]) -> None:
    """Nobody tells when the kernel waits."""
    with trio.fail_after(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await trio.sleep(0.01)


async def test_an_unbind_goes_through() -> None:
    """Device and dma-buf are given up at the event, so that the kernel need not wait."""
    async with blob_machine() as guest, trio.open_nursery() as nursery:
        await held(guest)
        unbind = Unbind()
        nursery.start_soon(unbind.run)
        with trio.fail_after(PATIENCE):
            await unbind.done.wait()
        assert not is_bound()
        assert guest.vm.session._memory.syspaths() == set()
        gpa = guest.vm.ram.alloc(FRAME.size, 4096)  # and the session goes on
        await guest.create(2, [(gpa, FRAME.size)], FRAME.size)
        await guest.show(2, FRAME)


async def test_without_the_event_it_would_wait() -> None:
    """The same, nobody listening: the kernel waits until the device is given up."""
    async with blob_machine() as guest, trio.open_nursery() as nursery:
        guest.vm.session._watch.need = lambda: None
        await held(guest)
        (syspath,) = guest.vm.session._memory.syspaths()
        unbind = Unbind()
        nursery.start_soon(unbind.run)
        try:
            await eventually(unbind.waits)
            assert not unbind.done.is_set()
        finally:
            await guest.vm.session._unbound(syspath)
        with trio.fail_after(PATIENCE):
            await unbind.done.wait()
        assert not is_bound()


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A udmabuf device that is not there yet, and no retry by time."""
    monkeypatch.setattr(dmabuf, "RETRY", 1e9)
    LATE.unlink(missing_ok=True)
    yield LATE
    LATE.unlink(missing_ok=True)


def appear(path: Path) -> None:
    """As udev and the kernel do it: the node, and the event."""
    path.symlink_to(DEVICE)
    UDMABUF_EVENT.write_text("add")


async def test_udmabuf_comes_late(late: Path) -> None:
    """A module is loaded while a guest runs: what it shows is a dma-buf from then on."""
    async with blob_machine(udmabuf=str(late)) as guest:
        ram = memfd(1 << 20)
        dimm = await guest.plug(ram)
        screen = guest.vm.display.screens[0]
        await guest.picture(1, FRAME, [(dimm.gpa, FRAME.size)])
        assert screen.buffer is None
        appear(late)
        await guest.vm.until(lambda: screen.buffer is not None, "QEMU has a dma-buf")
        assert screen.buffer.exporter() == "udmabuf"
        os.close(ram)
