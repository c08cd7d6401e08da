"""The whole way of a picture in the lab: a driver (the test), vgpud, our QEMU with a GL display and
a D-Bus listener. What the modules of tests/lab/test_chain.py share.
"""

from __future__ import annotations

import contextlib
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.qemu.binaries import PROGRAM, Qemu
from tests.qemu.build import NAME
from tests.qtest import gpu
from tests.qtest import machine as qtest_machine
from tests.qtest.gpu import PIXELS, Driver, Rect
from tests.qtest.machine import Served, served
from tests.support.dbus_display import Display, DisplayError, Frame, Listener
from tests.support.qemu import statistics
from tests.support.qtest import Qtest, wait_until
from tests.support.virtio_pci import Queue
from vgpud import ctl

PATIENCE = 60.0
"""Seconds for QEMU to answer: it is emulated here, and its display starts a renderer."""
ROOT = Path("/qemu")
KERNEL_MOUNT, GUEST_MOUNT = "/guest-kernel", "/guest-initrd"
"""Where the nested guest's kernel and its initramfs are mounted in the lab."""
NODE = "/dev/dri/renderD128"
DISPLAY = f"dbus,p2p=yes,gl=on,rendernode={NODE}"
BLOB = 1 << 3
GUEST, SHAREABLE = 1, 2
BGRX = 2
PAGE = 4096


def be_patient() -> None:
    """Give QEMU more time than where it runs on a real processor."""
    qtest_machine.PATIENCE = PATIENCE
    for function in (Qtest.__init__, Queue.wait, wait_until):
        function.__defaults__ = (PATIENCE,)


def lab_qemu(name: str = NAME, version: str = "10.0") -> Qemu:
    """The lab's own QEMU, by default of our building: its root, the last memory device, is mounted
    when it is first asked for."""
    if not (ROOT / "usr").exists():
        image = max(Path("/dev").glob("pmem*"), key=lambda path: int(path.name[4:]))
        script = f"""
            mkdir -p {ROOT} /run/qemu/image /run/qemu/new
            mount -t erofs -o ro,dax=always {image} /run/qemu/image
            mount -t tmpfs new /run/qemu/new
            mkdir /run/qemu/new/upper /run/qemu/new/work
            mount -t overlay -o lowerdir=/run/qemu/image,upperdir=/run/qemu/new/upper,\
workdir=/run/qemu/new/work root {ROOT}
            for folder in dev proc sys; do mount --rbind /$folder {ROOT}/$folder; done
        """
        subprocess.run(["sh", "-euc", script], check=True)
    return Qemu(name, ("chroot", str(ROOT), f"/usr/bin/{PROGRAM}"), version, ROOT)


# -- blobs as bytes, from the specification and not from vgpuwire (see tests/qtest/gpu.py)


def create_blob(
    resource: int, entries: Sequence[tuple[int, int]], size: int, flags: int = SHAREABLE
) -> bytes:
    array = b"".join(struct.pack("<QII", address, length, 0) for address, length in entries)
    fields = struct.pack("<IIIIQQ", resource, GUEST, flags, len(entries), 0, size)
    return gpu.hdr(gpu.CREATE_BLOB) + fields + array


def set_scanout_blob(
    scanout: int,
    resource: int,
    rect: Rect,
    size: tuple[int, int],
    stride: int,
    offset: int = 0,
    pixel_format: int = BGRX,
) -> bytes:
    head = struct.pack("<4III", *rect, scanout, resource)
    buffer = struct.pack("<IIII", *size, pixel_format, 0)
    planes = struct.pack("<4I4I", stride, 0, 0, 0, offset, 0, 0, 0)
    return gpu.hdr(gpu.SET_SCANOUT_BLOB) + head + buffer + planes


@dataclass
class Chain:
    """A machine whose display is listened to; `listeners` are its heads'."""

    pair: Served
    driver: Driver
    display: Display
    listeners: list[Listener]
    control: str = ""
    """Where vgpud's control socket is, if it has one."""

    @property
    def listener(self) -> Listener:
        return self.listeners[0]

    def start(self) -> None:
        """Reset the device and start it with blobs."""
        with self.pair.vm.explained():
            self.pair.vm.gpu.start(BLOB)
        self.driver = Driver(self.pair.vm)

    def statistics(self) -> dict[str, str]:
        return statistics(self.pair.vgpud)

    def screenshot(self, head: int) -> bytes:
        """B, G, R, x bytes of what a head shows, by vgpuctl."""
        return ctl.screenshot(self.control, head)[2]

    def blob(
        self,
        width: int,
        height: int,
        *,
        resource: int = 1,
        at: int = PIXELS,
        seed: int = 1,
        stride: int = 0,
    ) -> bytes:
        """Make a blob of noise at `at`, large enough for this frame buffer; returns its bytes."""
        size = -(-(stride or 4 * width) * height // PAGE) * PAGE
        data = gpu.noise(size, seed)
        self.driver.vm.ram.write(at, data)
        self.driver.ok(create_blob(resource, [(at, size)], size))
        return data

    def show(
        self,
        width: int,
        height: int,
        *,
        resource: int = 1,
        scanout: int = 0,
        rect: Rect | None = None,
        stride: int = 0,
        offset: int = 0,
    ) -> None:
        """SET_SCANOUT_BLOB and a flush of all of it with one kick, as Linux flips a page."""
        whole = (0, 0, width, height)
        rect, stride = rect or whole, stride or 4 * width
        shown = set_scanout_blob(scanout, resource, rect, (width, height), stride, offset)
        self.driver.send(shown, slot=0)
        self.driver.send(gpu.flush(resource, rect), slot=1)
        self.driver.device.kick()
        queue = self.driver.device.queues[0]
        with self.pair.vm.explained():
            queue.wait()
        queue.take()
        answers = [gpu.kind_of(self.driver.response(slot)) for slot in (0, 1)]
        assert answers == [gpu.OK, gpu.OK], f"{answers}\n{self.pair.vm.logs()}"

    def shown(self, head: int = 0) -> Frame:
        """The dma-buf that a head shows after all that was flushed. After a reset QEMU shows a
        picture of its own, in another format."""
        self.driver.settled()
        listener = self.listeners[head]

        def guests() -> bool:
            frame = listener.frame
            return frame is not None and frame.fourcc == "XR24" and listener.updated

        wait_until(guests, f"head {head}: a frame of the guest's", PATIENCE)
        assert listener.frame is not None
        return listener.frame


def rows(data: bytes, width: int, height: int, stride: int, start: int = 0) -> bytes:
    """The bytes of a rectangle of 4-byte pixels whose first pixel lies at `start`."""
    starts = range(start, start + stride * height, stride)
    return b"".join(data[at : at + 4 * width] for at in starts)


@contextlib.contextmanager
def chain(
    heads: int = 1,
    backend_options: Sequence[str] = ("--scanout=dmabuf",),
    arguments: Sequence[str] = (),
) -> Iterator[Chain]:
    """vgpud, our QEMU with a D-Bus display, and a listener on each head; the device not started."""
    be_patient()
    with served(
        lab_qemu(),
        backend_options=backend_options,
        options=f"max_outputs={heads}",
        display=DISPLAY,
        arguments=arguments,
    ) as pair:
        try:
            with pair.vm.explained(), Display(pair.vm.qmp) as display:
                listeners = [display.listen(head) for head in range(heads)]
                yield Chain(pair, Driver(pair.vm), display, listeners)
                pair.alive()
        except DisplayError as error:
            error.add_note(pair.vm.logs())
            raise
