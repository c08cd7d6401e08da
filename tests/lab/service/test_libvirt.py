"""libvirt starts vgpud by its manifest: a Linux guest in a domain, from definition to the end.

AppArmor is off here: docs/libvirt.md says what its profiles need.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.pattern import pattern
from tests.lab.service.conftest import run, wait_for
from tests.support.guest_image import APPEND

IMAGES = Path("/var/lib/libvirt/images")
KERNEL, INITRD = Path("/guest-kernel/vmlinux"), Path("/guest/initrd")
PORT = "/run/libvirt/qemu/port.sock"
BOOT = 600.0
"""Seconds for an emulated machine in an emulated machine."""
WIDTH, HEIGHT = 1280, 800
DOMAIN = f"""
<domain type='qemu'>
  <name>machine</name>
  <memory unit='MiB'>256</memory>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{IMAGES}/vmlinux</kernel>
    <initrd>{IMAGES}/initrd</initrd>
    <cmdline>{APPEND} tsc=reliable no_timer_check</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum'/>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <serial type='file'><source path='/var/log/libvirt/console.log'/></serial>
    <serial type='unix'><source mode='bind' path='{PORT}'/></serial>
    <video><driver name='vhostuser'/><model type='virtio' heads='1' primary='yes'/></video>
    <memballoon model='none'/>
  </devices>
</domain>
"""


class Guest:
    """The shell behind the guest's second serial port (tests/guest/init)."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(BOOT)
        self._sock.connect(PORT)
        self._lines = self._sock.makefile("r", errors="replace")

    def wait_ready(self) -> None:
        while "ready " not in self._line():
            pass

    def run(self, command: str) -> None:
        self._sock.sendall(command.encode() + b"\n")
        while not (line := self._line()).startswith("= "):
            pass
        assert line.strip() == "= 0", f"{command}: {line}"

    def _line(self) -> str:
        line = self._lines.readline()
        assert line, "the guest's port was closed"
        return line


def daemons() -> list[str]:
    """The command lines of running vgpuds."""
    found = subprocess.run(["pgrep", "-a", "-f", "bin/vgpud"], stdout=subprocess.PIPE, text=True)
    return [line for line in found.stdout.splitlines() if "--fd=" in line]


def screenshot() -> tuple[int, int, bytes]:
    """What QEMU shows, by libvirt: width, height, R, G, B."""
    import zlib

    said = run("virsh", "screenshot", "machine", "/tmp/shot")
    data = Path("/tmp/shot").read_bytes()
    if data[:2] == b"P6":
        header = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
        assert header is not None
        return int(header[1]), int(header[2]), data[header.end() :]
    assert data[:8] == b"\x89PNG\r\n\x1a\n", said
    at, packed, width, height = 8, b"", 0, 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height = int.from_bytes(body[:4]), int.from_bytes(body[4:8])
            assert body[8:10] == b"\x08\x02", "8 bits of R, G, B"
        if kind == b"IDAT":
            packed += body
        at += 12 + size
    rows, stride = zlib.decompress(packed), 3 * width + 1
    assert {rows[y * stride] for y in range(height)} == {0}, "rows without a filter"
    return width, height, b"".join(rows[y * stride + 1 : (y + 1) * stride] for y in range(height))


def wait_picture(seed: int) -> None:
    wanted = pattern(WIDTH, HEIGHT, seed)
    deadline = time.monotonic() + 120
    while screenshot() != (WIDTH, HEIGHT, wanted):
        assert time.monotonic() < deadline, "the screen does not show what the guest drew"
        time.sleep(1)


@pytest.fixture
def domain(installed: str) -> Iterator[None]:
    for file in (KERNEL, INITRD):
        shutil.copy(file, IMAGES)
    Path("/tmp/domain.xml").write_text(DOMAIN)
    run("virsh", "define", "/tmp/domain.xml")
    yield
    run("virsh", "destroy", "machine", check=False)
    run("virsh", "undefine", "machine")


@pytest.mark.timeout(1500)
def test_life_of_a_domain(domain: None) -> None:
    assert daemons() == []
    run("virsh", "start", "machine")
    (line,) = daemons()
    assert re.search(r"/usr/bin/vgpud --fd=\d+$", line), line
    guest = Guest()
    guest.wait_ready()
    guest.run("drmdraw --stay --seed 3")
    wait_picture(3)
    run("virsh", "reset", "machine")
    guest.wait_ready()
    assert daemons() == [line], "a reboot is no new daemon"
    guest.run("drmdraw --stay --seed 4")
    wait_picture(4)
    run("virsh", "destroy", "machine")
    wait_for(lambda: daemons() == [])
