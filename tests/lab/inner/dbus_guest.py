"""A Linux guest, emulated in the emulated lab: its driver takes blobs by itself, and its frames are
at the viewer as the guest's own memory. Two minutes, most of them its boot.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.guest.pattern import pattern
from tests.lab.inner.dbus import DISPLAY, GUEST_MOUNT, KERNEL_MOUNT, lab_qemu
from tests.qtest import gpu
from tests.support.dbus_display import Display
from tests.support.guest_image import GuestImage
from tests.support.qemu import VGPUD, backend, machine
from vgpud import ctl

PATIENCE = 900.0
WIDTH, HEIGHT = 1280, 800


@pytest.mark.timeout(1200)
def test_linux_guest(tmp_path: Path) -> None:
    control = str(tmp_path / "control")
    image = GuestImage(Path(KERNEL_MOUNT) / "vmlinux", Path(GUEST_MOUNT) / "initrd")
    arguments = ["-display", DISPLAY]
    with backend([*VGPUD, "--scanout=dmabuf", f"--control={control}"]) as (vgpud, socket):
        with machine(lab_qemu(), image, socket, arguments=arguments, children=[vgpud]) as vm:
            with Display(vm.qmp) as display:
                listener = display.listen(0)
                vm.wait_ready(PATIENCE)
                log = vm.run("dmesg", PATIENCE)
                assert "+resource_blob" in log, log
                vm.run("killall -q drmdraw; drmdraw --stay --seed 5 --flips 10", PATIENCE)
                wanted = pattern(WIDTH, HEIGHT, 5)
                deadline = time.monotonic() + PATIENCE
                # The listener may still be told of the last flips.
                while listener.frame is None or gpu.rgb(listener.frame.pixels()) != wanted:
                    assert time.monotonic() < deadline, f"{listener.frame}\n{vm.logs()}"
                    time.sleep(0.2)
                frame = listener.frame
                assert (frame.width, frame.height, frame.fourcc) == (WIDTH, HEIGHT, "XR24")
                assert frame.exp_name == "udmabuf"
                answer, _ = ctl.ask(control, {"command": "status"})
                counted = answer["session"]
                assert (counted["blobs"] > 0, counted["images"]) == (True, 0), (
                    "no copies, all blobs"
                )
                assert counted["pixel_bytes"] == 0
                assert counted["dmabuf_updates"] > 10
                vm.quit()
        assert vgpud.wait() == 0, vgpud.tail()
        assert "Traceback" not in vgpud.log(), vgpud.log()
