"""The package's units under a real systemd."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.lab.service.conftest import PATIENCE, journal, run, show, wait_for
from tests.support.blobs import FEATURES, BlobGuest, Frame, pattern
from tests.support.fake_frontend import QEMU_11_1, FakeFrontend
from tests.support.machine import machine

GET_FEATURES = b"\1\0\0\0\1\0\0\0\0\0\0\0"
EXPOSURE = 1.0
FRAME = Frame(640, 480)


def socket_of(name: str) -> str:
    return f"/run/vgpud/{name}.sock"


def ask(name: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(socket_of(name))
        sock.sendall(GET_FEATURES)
        return sock.recv(64)


class Elsewhere:
    """In the place of a Machine's session, which is another process here."""

    def __init__(self, sock: socket.socket) -> None:
        sock.close()

    async def run(self) -> None:
        await trio.sleep_forever()


@asynccontextmanager
async def guest_of(name: str) -> AsyncIterator[BlobGuest]:
    """A guest whose front-end has connected to the unit's socket, and has booted."""
    async with machine(features=FEATURES, make_session=Elsewhere) as vm:
        vm.frontend.close()
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(socket_of(name))
        vm.frontend = FakeFrontend(sock, QEMU_11_1)
        with trio.fail_after(PATIENCE):
            await vm.boot()
            yield BlobGuest(vm)
        vm.frontend.close()
        vm.ended.set()


def test_the_package_is_whole(installed: str) -> None:
    assert run("vgpud", "--version").strip() == f"vgpud {installed}"
    assert run("vgpuctl", "--version").strip() == f"vgpuctl {installed}"
    manifest = json.loads(Path("/usr/share/qemu/vhost-user/40-vgpud.json").read_text())
    assert manifest["type"] == "gpu"
    said = json.loads(run(manifest["binary"], "--print-capabilities"))
    assert said == {"type": "gpu", "features": []}  # no render node here
    run("systemd-analyze", "verify", "--man=no", "vgpud@x.service", "vgpud@x.socket")
    assert run("dpkg", "--verify", "vgpud") == ""


def test_the_units_leave_little_to_attack(installed: str) -> None:
    text = run("systemd-analyze", "security", "--no-pager", "vgpud@x.service")
    found = re.search(r"Overall exposure level for vgpud@x.service: ([\d.]+)", text)
    assert found is not None, text
    assert float(found[1]) <= EXPOSURE, text
    assert "AF_NETLINK" in text


def test_a_connection_starts_the_daemon(instance: str) -> None:
    unit = f"vgpud@{instance}.service"
    assert show(unit, "ActiveState") == "inactive"
    assert ask(instance)[:4] == b"\1\0\0\0"
    assert show(unit, "ActiveState") == "active"
    pid = show(unit, "MainPID")
    status = Path(f"/proc/{pid}/status").read_text()
    (uid,) = set(re.findall(r"Uid:\t(\d+)\t(\d+)\t(\d+)\t(\d+)", status)[0])
    assert int(uid) >= 61184  # one of systemd's, made for this instance alone
    assert f"\0USER=vgpud-{instance}\0" in Path(f"/proc/{pid}/environ").read_text()
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    assert "/dev/udmabuf" in links  # which this user could not have opened
    assert json.loads(run("vgpuctl", f"--control=/run/vgpud/{instance}/control", "status"))


@pytest.fixture
def dmabuf_instance(instance: str) -> str:
    options = Path(f"/etc/vgpud/{instance}.conf")
    options.parent.mkdir(exist_ok=True)
    options.write_text("VGPUD_OPTIONS=--scanout=dmabuf\n")
    return instance


def ctl(*arguments: str) -> str:
    return run("vgpuctl", *arguments)


async def test_vgpuctl_sees_it(dmabuf_instance: str) -> None:
    name = dmabuf_instance
    async with guest_of(name) as guest:
        trace = await trio.lowlevel.open_process(
            ["vgpuctl", f"--control={name}", "trace", "--json"], stdout=subprocess.PIPE
        )
        assert trace.stdout is not None
        await trio.to_thread.run_sync(wait_for, lambda: "pipe:" in descriptors(name))
        await guest.vm.picture(640, 480, pattern(640 * 480 * 4, 1), 3)
        assert name in await trio.to_thread.run_sync(ctl, "list")
        top = await trio.to_thread.run_sync(ctl, "top", "--once")
        assert re.search(rf"^{name} +0:640x480\*", top, re.M), top
        metrics = await trio.to_thread.run_sync(ctl, "metrics")
        assert f'vgpud_dmabufs_used{{vm="{name}"}} 1' in metrics
        told = b""
        while b"RESOURCE_FLUSH" not in told:
            told += os.read(trace.stdout.fileno(), 65536)
        first = json.loads(told.splitlines()[0])
        assert first["command"] == "RESOURCE_CREATE_2D"
        assert (first["width"], first["answer"]) == (640, "OK_NODATA")
        trace.terminate()
        await trace.wait()


def test_the_journal_has_the_fields(instance: str) -> None:
    assert ask(instance)
    unit = f"vgpud@{instance}.service"
    wait_for(lambda: "session-end" in journal(unit))
    text = run("journalctl", "--output=json", "VGPUD_EVENT=ready", f"_SYSTEMD_UNIT={unit}")
    (line,) = map(json.loads, text.splitlines())
    assert (line["PRIORITY"], line["VGPUD_SCANOUT"]) == ("6", "shm")


def descriptors(name: str) -> str:
    pid = show(f"vgpud@{name}.service", "MainPID")
    return run("ls", "-l", f"/proc/{pid}/fd")


async def test_a_guest_is_served_with_dma_bufs(dmabuf_instance: str) -> None:
    instance = dmabuf_instance
    unit = f"vgpud@{instance}.service"
    async with guest_of(instance) as guest:
        await guest.vm.picture(136, 128, pattern(136 * 128 * 4, 1), 3)
        buffer = guest.vm.display.screens[0].buffer
        assert buffer is not None
        assert buffer.exporter() == "udmabuf"
        await trio.to_thread.run_sync(
            wait_for, lambda: "head 0 136x128 by DMABUF_SCANOUT" in show(unit, "StatusText")
        )
    wait_for(lambda: show(unit, "StatusText") == "waiting for QEMU")


def test_a_daemon_that_hangs_is_replaced(instance: str) -> None:
    unit = f"vgpud@{instance}.service"
    drop_in = Path(f"/run/systemd/system/{unit}.d/watchdog.conf")
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text("[Service]\nWatchdogSec=2\nRestartSec=0\n")
    run("systemctl", "daemon-reload")
    assert ask(instance)
    pid = int(show(unit, "MainPID"))
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: show(unit, "NRestarts") == "1" and show(unit, "ActiveState") == "active")
    assert int(show(unit, "MainPID")) != pid
    assert "Watchdog timeout" in journal(unit)
    assert ask(instance)[:4] == b"\1\0\0\0"


def test_stop_leaves_nothing(instance: str) -> None:
    assert ask(instance)
    assert Path(f"/run/vgpud/{instance}/control").exists()
    run("systemctl", "stop", f"vgpud@{instance}.socket", f"vgpud@{instance}.service")
    assert show(f"vgpud@{instance}.service", "Result") == "success"
    assert not Path(socket_of(instance)).exists()
    assert not Path(f"/run/vgpud/{instance}").exists()
