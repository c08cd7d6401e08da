"""QEMU 11.1 as Debian has it, its generic device, a passed-through device: QMP tells where its
memory is, its descriptor is handed over or taken, and the picture in it is right."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.lab.inner.dbus import (
    BLOB,
    PAGE,
    ROOT,
    be_patient,
    create_blob,
    lab_qemu,
    set_scanout_blob,
)
from tests.qtest import gpu
from tests.qtest.gpu import Driver
from tests.qtest.machine import Served, vm
from tests.support.bar import GuestBar, bind, opaque, screenshot
from tests.support.qemu import VGPUD, backend
from tests.support.qtest import wait_until
from vgpud import ctl
from vgpud.host.handover import devices_of, take

ADDRESS = "0000:00:10.0"
CONTROL = "/tmp/handover.control"
QMP = "/tmp/vgpud.qmp"
MODEL = "vhost-user-test-device-pci"
GENERIC = "virtio-id=16,num_vqs=2,vq_size=256,config_size=20"
WIDTH, HEIGHT = 320, 200
WHOLE = (0, 0, WIDTH, HEIGHT)
SIZE = -(-WIDTH * HEIGHT * 4 // PAGE) * PAGE
UNSPEC = 0x1200
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all")


class Machine:
    """It, its device's BAR, and vgpud."""

    def __init__(self, pair: Served) -> None:
        self.pair = pair
        self.bar = GuestBar(pair.vm.qtest)
        with pair.vm.explained():
            pair.vm.gpu.start(BLOB)
        self.driver = Driver(pair.vm)

    def create(self, resource: int = 1) -> int:
        entries = [(self.bar.address + PAGE, SIZE)]
        return gpu.kind_of(self.driver.run(create_blob(resource, entries, SIZE)))

    def check_shown(self, resource: int = 1) -> None:
        """Noise through the BAR is what vgpud's screenshot has."""
        data = gpu.noise(SIZE, resource)
        self.bar.write(PAGE, data)
        assert self.create(resource) == gpu.OK, self.pair.vm.logs()
        size = (WIDTH, HEIGHT)
        self.driver.ok(set_scanout_blob(0, resource, WHOLE, size, 4 * WIDTH))
        self.driver.ok(gpu.flush(resource, WHOLE))
        assert screenshot(CONTROL) == opaque(data[: WIDTH * HEIGHT * 4])

    def held(self) -> int:
        """vgpud's descriptors of the device."""
        folder = Path(f"/proc/{self.pair.vgpud.pid}/fd")
        count = 0
        for one in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                count += str(one.readlink()) == "anon_inode:[vfio-device]"
        return count


@contextlib.contextmanager
def machine(options: Sequence[str] = (), before: Sequence[str] = ()) -> Iterator[Machine]:
    be_patient()
    bind(ADDRESS)
    qmp = f"{ROOT}{QMP}"
    argv = [*before, *VGPUD, f"--control={CONTROL}", f"--qmp={qmp}", "--outputs=320x200", *options]
    arguments = [
        *("-device", f"vfio-pci,host={ADDRESS},id=hostdev0"),
        *("-qmp", f"unix:{QMP},server=on,wait=off"),
    ]
    qemu = lab_qemu("trixie-backports", "11.1")
    with backend(argv) as (child, sock):
        with vm(
            qemu, sock, device=MODEL, options=GENERIC, arguments=arguments, children=[child]
        ) as running:
            os.chmod(qmp, 0o666)
            pair = Served(running, child)
            yield Machine(pair)
            pair.alive()
            with running.explained():
                running.qmp.execute("quit")
                assert running.qemu.wait() == 0, running.logs()
                assert child.wait() == 0, running.logs()
            assert "Traceback" not in child.log(), child.log()


def vfio(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """vgpuctl vfio ...: its exit status, what it printed, what it complained of."""
    status = ctl.main([f"--control={CONTROL}", "vfio", *arguments])
    out, err = capsys.readouterr()
    return status, out, err


def test_handed_over(capsys: pytest.CaptureFixture[str]) -> None:
    with machine() as made:
        assert made.create() == UNSPEC
        log = made.pair.vgpud.wait_log("event=vfio-device")
        assert f"no descriptor of hostdev0 ({ADDRESS})" in log
        assert "vgpuctl vfio add ID, or --vfio-from-qemu" in log
        _, out, _ = vfio(capsys, "list")
        listed = json.loads(out)
        assert listed["pid"] == made.pair.vm.qemu.pid
        (device,) = listed["devices"]
        assert (device["id"], device["host"], device["held"]) == ("hostdev0", ADDRESS, False)
        assert {"bar": 2, "address": made.bar.address, "size": 16 << 20} in device["bars"]
        assert vfio(capsys, "add", "hostdev0") == (0, "", "")
        made.check_shown(1)
        assert made.held() == 1
        assert vfio(capsys, "remove", "hostdev0") == (0, "", "")
        assert made.held() == 0
        assert made.create(2) == UNSPEC


def test_handed_over_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    """The descriptor that vgpuctl inherited; what is none, or another device, is refused."""
    with machine() as made:
        pid = made.pair.vm.qemu.pid
        (found,) = devices_of(pid)
        status, _, err = vfio(capsys, "add", "hostdev0", "--fd", "0")
        assert (status, "no VFIO device" in err) == (1, True)
        with take(pid, found.number) as fd:
            number = str(fd.fileno())
            status, _, err = vfio(capsys, "add", "gpu0", "--fd", number)
            assert (status, "no vfio-pci device gpu0; it has hostdev0" in err) == (1, True)
            assert vfio(capsys, "add", "hostdev0", "--fd", number)[0] == 0
        made.check_shown()


def test_taken_from_qemu() -> None:
    """Nobody does anything: the first command that needs it brings it."""
    with machine(["--vfio-from-qemu"]) as made:
        assert made.held() == 0
        made.check_shown(1)
        assert made.held() == 1
        made.bar.move(0xF000_0000)
        made.check_shown(2)


def test_taken_from_qemu_with_dmabufs() -> None:
    """The same where pictures go as dma-bufs: the screenshot is read through the BAR."""
    with machine(["--vfio-from-qemu", "--scanout=dmabuf"]) as made:
        made.check_shown(1)


def test_a_reset_of_the_guest() -> None:
    """BARs are off, and on again elsewhere."""
    with machine(["--vfio-from-qemu"]) as made:
        made.check_shown(1)
        made.pair.vm.qmp.execute("system_reset")
        made.pair.vm.qmp.wait_event("RESET")
        made.bar = GuestBar(made.pair.vm.qtest)
        with made.pair.vm.explained():
            made.pair.vm.attach(made.pair.vm.ram)
            made.pair.vm.gpu.start(BLOB)
        made.driver = Driver(made.pair.vm)
        made.bar.move(0xF000_0000)
        made.check_shown(2)


def test_another_user_is_refused() -> None:
    """The kernel says no; the log says why, and what to change; the guest gets an error."""
    with machine(["--vfio-from-qemu"], AS_NOBODY) as made:
        assert made.create() == UNSPEC
        log = made.pair.vgpud.wait_log("event=vfio-take")
        assert "QEMU runs as user 0, group 0, vgpud as 65534, 65534: run both as the same" in log
        assert "vgpuctl vfio add ID" in log
        wait_until(lambda: made.held() == 0, "none is held")


def test_another_user_is_handed_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Root may take it from QEMU, and gives it to a daemon that could not."""
    with machine([], AS_NOBODY) as made:
        assert vfio(capsys, "add", "hostdev0") == (0, "", "")
        made.check_shown()
