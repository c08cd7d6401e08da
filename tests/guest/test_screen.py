"""What a Linux guest draws is what QEMU shows, byte for byte."""

import hashlib
import time

import pytest

from tests.guest.conftest import Served
from tests.guest.pattern import pattern
from tests.support.png import Picture
from tests.support.qemu import statistics

WIDTH, HEIGHT = 1280, 800  # QEMU's default, from its EDID


def console_digest(picture: Picture) -> str:
    """MD5 of a picture in the guest's framebuffer format: blue, green, red, zero."""
    pixels = bytearray(picture.width * picture.height * 4)
    pixels[0::4], pixels[1::4], pixels[2::4] = (picture.rgb[i::3] for i in (2, 1, 0))
    return hashlib.md5(pixels).hexdigest()


def test_console(served: Served) -> None:
    """Text written to the console reaches the screen; the kernel flushes it when it likes."""
    served.vm.run("killall -q drmdraw; dmesg >/dev/tty0")
    deadline = time.monotonic() + 20
    while True:
        expected = served.vm.run("md5sum </dev/fb0").split()[0]
        picture = served.vm.screendump()
        if console_digest(picture) == expected:
            break
        assert time.monotonic() < deadline, "the screen is not what /dev/fb0 holds"
    assert (picture.width, picture.height) == (WIDTH, HEIGHT)
    assert len(set(picture.rgb)) > 1, "the console is blank"


@pytest.mark.parametrize("seed", [0, 7])
def test_pattern(served: Served, seed: int) -> None:
    assert f"mode={WIDTH}x{HEIGHT}" in served.vm.draw(f"--seed {seed}")
    served.vm.wait_picture(pattern(WIDTH, HEIGHT, seed))


@pytest.mark.parametrize("size", ["640x480", "801x601", "1920x1080"])
def test_other_modes(served: Served, size: str) -> None:
    """An odd width too: a row is then no multiple of anything."""
    served.vm.draw(f"--mode {size} --seed 3")
    width, height = map(int, size.split("x"))
    served.vm.wait_picture(pattern(width, height, 3))


@pytest.mark.parametrize("flips", [30, 31])
def test_page_flips(served: Served, flips: int) -> None:
    served.vm.draw(f"--seed 5 --flips {flips}")
    served.vm.wait_picture(pattern(WIDTH, HEIGHT, 5 + flips % 2))


def test_damage(served: Served) -> None:
    """Only one rectangle is flushed; the rest stays."""
    left, top, width, height = 101, 53, 333, 77
    served.vm.draw(f"--seed 9 --dirty {left},{top},{width},{height}")
    expected = bytearray(pattern(WIDTH, HEIGHT, 9))
    new = pattern(WIDTH, HEIGHT, 11)
    for y in range(top, top + height):
        row = slice((y * WIDTH + left) * 3, (y * WIDTH + left + width) * 3)
        expected[row] = new[row]
    served.vm.wait_picture(bytes(expected))


def test_two_heads(served: Served) -> None:
    served.vm.draw("--output 0 --output 1 --mode 800x600 --seed 20")
    for head in (0, 1):
        served.vm.wait_picture(pattern(800, 600, 20 + head), head)


def test_cursor_leaves_the_picture(served: Served) -> None:
    """QEMU draws no cursor into a screendump: the picture must not change."""
    served.vm.draw("--seed 12 --cursor 100,100,3,5")
    served.vm.wait_picture(pattern(WIDTH, HEIGHT, 12))


def test_system_reset(served: Served) -> None:
    """After a reboot the same vgpud serves a new driver (QEMU's own back-end dies here)."""
    served.vm.draw("--seed 1")
    served.vm.wait_picture(pattern(WIDTH, HEIGHT, 1))
    served.vm.qmp.execute("system_reset")
    served.vm.wait_ready()
    served.vm.draw("--seed 2")
    served.vm.wait_picture(pattern(WIDTH, HEIGHT, 2))


def test_stop_and_cont(served: Served) -> None:
    """A paused machine shows its picture again when it goes on."""
    served.vm.draw("--seed 4")
    served.vm.qmp.execute("stop")
    served.vm.qmp.execute("cont")
    served.vm.wait_picture(pattern(WIDTH, HEIGHT, 4))
    served.vm.draw("--seed 6")
    served.vm.wait_picture(pattern(WIDTH, HEIGHT, 6))


def test_statistics(served: Served) -> None:
    """SIGUSR1 makes vgpud log what it did; the flips are in it."""
    before = int(statistics(served.vgpud)["frames"])
    served.vm.draw("--flips 20")
    after = statistics(served.vgpud)
    assert int(after["frames"]) >= before + 20
    assert 0 < float(after["flush_p50_ms"]) <= float(after["flush_p99_ms"])
