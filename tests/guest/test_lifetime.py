"""How vgpud ends, and what it does when QEMU ends badly."""

import os
import signal
import socket
import time
from pathlib import Path

from tests.guest.pattern import pattern
from tests.qemu.binaries import Qemu
from tests.qemu.process import Child
from tests.support.guest_image import GuestImage
from tests.support.qemu import PATIENCE, VGPUD, Machine, backend, machine, statistics


def warnings_of(log: str) -> list[str]:
    """The lines of a log that tell of something bad."""
    return [line for line in log.splitlines() if "level=warning" in line or "level=error" in line]


def connect(path: Path, vgpud: Child) -> socket.socket:
    """A connection to a listening vgpud, as soon as it listens."""
    deadline = time.monotonic() + 20
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
            return sock
        except OSError:
            sock.close()
            if time.monotonic() > deadline or vgpud.process.poll() is not None:
                raise TimeoutError(f"vgpud does not listen on {path}\n{vgpud.tail()}") from None
            time.sleep(0.02)


def keep_drawing(vm: Machine, vgpud: Child) -> None:
    """Start a guest program that flips pages without end; returns when it is in full swing."""
    vm.run("drmdraw --flips 100000 >/dev/null 2>&1 &")
    before = int(statistics(vgpud)["frames"])
    deadline = time.monotonic() + PATIENCE
    while int(statistics(vgpud)["frames"]) < before + 20:
        assert time.monotonic() < deadline, vm.logs()


def test_qemu_killed_while_drawing(the_qemu: Qemu, image: GuestImage) -> None:
    with backend() as (vgpud, gpu):
        with machine(the_qemu, image, gpu, children=[vgpud]) as vm:
            vm.wait_ready()
            keep_drawing(vm, vgpud)
            os.kill(vm.qemu.pid, signal.SIGKILL)
            vm.qemu.wait()
            assert vgpud.wait() == 0, vgpud.tail()
        log = vgpud.log()
        assert "Traceback" not in log, log
        assert log.count("event=session-end") == 1, log
        assert len(warnings_of(log)) <= 1, log


def test_sigterm(the_qemu: Qemu, image: GuestImage) -> None:
    """vgpud ends quickly and cleanly while its guest draws; QEMU lives on."""
    with backend() as (vgpud, gpu):
        with machine(the_qemu, image, gpu, children=[vgpud]) as vm:
            vm.wait_ready()
            keep_drawing(vm, vgpud)
            vgpud.process.terminate()
            assert vgpud.wait(5) == 0, vgpud.tail()
            assert "Traceback" not in vgpud.log(), vgpud.log()
            assert vm.qmp.execute("query-status")["running"]


def test_next_connection(the_qemu: Qemu, image: GuestImage, tmp_path: Path) -> None:
    """With --socket-path vgpud serves the next QEMU after one that was killed."""
    path = tmp_path / "gpu"
    with Child("back-end", [*VGPUD, f"--socket-path={path}"]) as vgpud:
        with machine(the_qemu, image, connect(path, vgpud), children=[vgpud]) as vm:
            vgpud.wait_log("event=session-start")
            os.kill(vm.qemu.pid, signal.SIGKILL)
        vgpud.wait_log("event=session-end")
        with machine(the_qemu, image, connect(path, vgpud), children=[vgpud]) as vm:
            vm.wait_ready()
            vm.draw("--seed 8")
            vm.wait_picture(pattern(1280, 800, 8))
            vm.quit()
        vgpud.wait_log("event=session-end", count=2)
        assert vgpud.stop() == 0, vgpud.tail()
        assert "Traceback" not in vgpud.log(), vgpud.log()
