"""libvirt starts vgpud by its manifest: a Linux guest in a domain, from definition to the end.

AppArmor is off here: docs/libvirt.md says what its profiles need.
"""

from __future__ import annotations

import re
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.pattern import pattern
from tests.lab.service.conftest import PATIENCE, run, wait_for
from tests.support.guest_image import APPEND
from tests.support.png import parse_ppm

IMAGES = Path("/var/lib/libvirt/images")
KERNEL, INITRD = Path("/guest-kernel/vmlinux"), Path("/guest/initrd")
PORT = "/run/libvirt/qemu/port.sock"
SHOT, DUMP = Path("/tmp/shot.png"), Path("/tmp/shot.ppm")
WIDTH, HEIGHT = 1280, 800
DOMAIN = f"""
<domain type='kvm'>
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
  <cpu mode='host-passthrough'/>
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
        self._sock.settimeout(2 * PATIENCE)
        self._sock.connect(PORT)
        self._lines = self._sock.makefile("r", errors="replace")

    def close(self) -> None:
        self._lines.close()
        self._sock.close()

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
    """The process and command line of each vgpud that runs."""
    lines = run("pgrep", "-a", "-f", "bin/vgpud", check=False).splitlines()
    return [line for line in lines if "--fd=" in line]


def shows(seed: int) -> bool:
    """Whether QEMU shows exactly this. libvirt's own screenshot has its size: a PNG's filters would
    take an emulated Python half a minute to undo."""
    run("virsh", "screenshot", "machine", str(SHOT))
    header = struct.unpack_from(">II", SHOT.read_bytes(), 16)
    dump = f'{{"execute": "screendump", "arguments": {{"filename": "{DUMP}"}}}}'
    run("virsh", "qemu-monitor-command", "machine", dump)
    picture = parse_ppm(DUMP.read_bytes())
    return header == (WIDTH, HEIGHT) and not picture.difference(pattern(WIDTH, HEIGHT, seed))


@pytest.fixture
def domain(installed: str) -> Iterator[None]:
    for file in (KERNEL, INITRD):
        shutil.copy(file, IMAGES)
    Path("/tmp/domain.xml").write_text(DOMAIN)
    run("virsh", "define", "/tmp/domain.xml")
    yield
    run("virsh", "destroy", "machine", check=False)
    run("virsh", "undefine", "machine")


def test_life_of_a_domain(domain: None) -> None:
    assert daemons() == []
    run("virsh", "start", "machine")
    (line,) = daemons()
    assert re.search(r"/usr/bin/vgpud --fd=\d+$", line), line
    guest = Guest()
    guest.wait_ready()
    guest.run("drmdraw --stay --seed 3")
    wait_for(lambda: shows(3))
    run("virsh", "reset", "machine")
    guest.wait_ready()
    assert daemons() == [line], "a reboot is no new daemon"
    guest.run("drmdraw --stay --seed 4")
    wait_for(lambda: shows(4))
    run("virsh", "destroy", "machine")
    wait_for(lambda: daemons() == [])
    guest.close()
