"""Blobs on an unmodified QEMU 11: its generic vhost-user device passes every feature bit through.

There is no display socket, so the heads are vgpud's own and the picture is taken from vgpud.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.guest.pattern import pattern
from tests.qemu.binaries import qemu
from tests.qemu.process import Child
from tests.support.guest_image import GuestImage
from tests.support.png import parse_png
from tests.support.qemu import VGPUD, Machine, backend, machine
from tests.support.qtest import wait_until
from vgpud import ctl

MODEL = "vhost-user-test-device-pci"
GENERIC = "virtio-id=16,num_vqs=2,vq_size=256,config_size=20"
WIDTH, HEIGHT = 1024, 768


def rgb(pixels: bytes) -> bytes:
    """B, G, R, x to R, G, B."""
    out = bytearray(len(pixels) // 4 * 3)
    out[0::3], out[1::3], out[2::3] = pixels[2::4], pixels[1::4], pixels[0::4]
    return bytes(out)


def vgpuctl(control: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    argv = [sys.executable, "-m", "vgpud.ctl", f"--control={control}", *arguments]
    return subprocess.run(argv, capture_output=True, check=False)


def test_a_linux_guest_shows_blobs(image: GuestImage, tmp_path: Path) -> None:
    control, png = str(tmp_path / "control"), tmp_path / "out.png"
    options = [f"--control={control}", f"--outputs={WIDTH}x{HEIGHT},640x480"]
    with backend([*VGPUD, *options]) as (vgpud, gpu):
        with machine(
            qemu("trixie-backports"),
            image,
            gpu,
            model=MODEL,
            device=GENERIC,
            children=[vgpud],
        ) as vm:
            for seed in (1, 2):  # the second after a reboot
                vm.wait_ready()
                assert "+resource_blob" in vm.run("dmesg | grep drm")
                said = vm.draw(f"--seed {seed} --flips 4")
                assert f"mode={WIDTH}x{HEIGHT}" in said
                assert not vgpuctl(control, "screenshot", str(png)).stderr
                picture = parse_png(png.read_bytes())
                assert (picture.width, picture.height) == (WIDTH, HEIGHT)
                assert not picture.difference(pattern(WIDTH, HEIGHT, seed))
                assert (
                    "\u2580" in vgpuctl(control, "screenshot", "--head=1", "--ansi").stdout.decode()
                )
                refused = vgpuctl(control, "screenshot", "--head=2", "--ansi")
                assert refused.returncode == 1
                assert refused.stderr == b"vgpuctl: head 2 shows nothing\n"
                session = json.loads(vgpuctl(control, "status").stdout)["session"]
                assert session["blobs"] > 0
                assert session["frames"] > 4
                assert session["pixel_bytes"] == 0  # nobody to send them to
                vm.qmp.execute("system_reset")
            vm.quit()
        assert vgpud.wait() == 0, vgpud.tail()
        assert "Traceback" not in vgpud.log(), vgpud.log()


def test_heads_beyond_4095_pixels(image: GuestImage) -> None:
    """Linux takes its modes from the EDID, whose first block cannot say these."""
    sizes = ["5120x2880", "4096x2160"]
    with backend([*VGPUD, f"--outputs={','.join(sizes)}"]) as (vgpud, gpu):
        generic = qemu("trixie-backports")
        with machine(generic, image, gpu, model=MODEL, device=GENERIC, children=[vgpud]) as vm:
            vm.wait_ready()
            modes = "/sys/class/drm/card0-Virtual-*/modes"
            assert vm.run(f"cat {modes}").splitlines() == sizes
            assert "mode=5120x2880" in vm.draw("--seed 5")
            assert "*ERROR*" not in vm.run("dmesg")
            vm.quit()


def is_connected(vm: Machine) -> bool:
    chardevs = {one["label"]: one["filename"] for one in vm.qmp.execute("query-chardev")}
    return not chardevs["gpu"].startswith("disconnected:")


def test_a_chardev_that_reconnects(image: GuestImage) -> None:
    """vgpud comes after QEMU, goes and comes again: each connection is a session of its own. The
    device is added last, because QEMU talks to the back-end at once when it is made, and 11.1
    forgets to after a loss."""
    generic = qemu("trixie-backports")
    assert generic.root is not None
    arguments = ["-device", "pcie-root-port,id=slot1,chassis=1,slot=1"]
    with tempfile.TemporaryDirectory(dir=generic.root / "tmp") as folder:
        path, control = f"{folder}/gpu", f"{folder}/control"
        seen = "/" + str(Path(path).relative_to(generic.root))
        arguments += ["-chardev", f"socket,id=gpu,path={seen},reconnect-ms=50"]
        argv = [*VGPUD, f"--socket-path={path}", f"--control={control}"]
        argv += [f"--outputs={WIDTH}x{HEIGHT}"]
        with machine(generic, image, None, arguments=arguments) as vm:
            vm.wait_ready()
            with Child("first", argv) as vgpud:
                vgpud.wait_log("event=session-start")
            with Child("second", argv) as vgpud:
                vgpud.wait_log("event=session-start")
                wait_until(lambda: is_connected(vm), "the chardev is connected")
                device = f"{MODEL},id=gpu0,bus=slot1,chardev=gpu,{GENERIC}"
                said = vm.qmp.execute("human-monitor-command", command_line=f"device_add {device}")
                assert not said, said
                vm.run("until [ -e /dev/dri/card0 ]; do sleep 0.1; done")
                vm.draw("--seed 3")
                width, height, pixels = ctl.screenshot(control, 0)
                assert (width, height) == (WIDTH, HEIGHT)
                assert rgb(pixels) == pattern(WIDTH, HEIGHT, 3)
                vm.quit()
                log = vgpud.wait_log("event=session-end")
                assert "Traceback" not in log, log


def test_a_head_that_is_off_has_no_screenshot(tmp_path: Path) -> None:
    control = str(tmp_path / "control")
    with backend([*VGPUD, f"--control={control}"]) as (vgpud, gpu):
        vgpud.wait_log("event=ready")
        with pytest.raises(ctl.Failed, match="head 0 shows nothing"):
            ctl.screenshot(control, 0)
        gpu.close()
        assert vgpud.wait() == 0, vgpud.tail()
