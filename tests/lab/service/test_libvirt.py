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
from tests.support.guest_shell import GuestShell
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


def draws(guest: GuestShell, seed: int) -> None:
    """The guest boots and draws, and QEMU shows it."""
    guest.wait_ready(2 * PATIENCE)
    code, said = guest.run(f"drmdraw --stay --seed {seed}", 2 * PATIENCE)
    assert code == 0, said
    wait_for(lambda: shows(seed))


def test_life_of_a_domain(domain: None) -> None:
    assert daemons() == []
    run("virsh", "start", "machine")
    (line,) = daemons()
    assert re.search(r"/usr/bin/vgpud --fd=\d+$", line), line
    with socket.socket(socket.AF_UNIX) as port:
        port.connect(PORT)
        guest = GuestShell(port)
        draws(guest, 3)
        run("virsh", "reset", "machine")
        draws(guest, 4)
    assert daemons() == [line], "a reboot is no new daemon"
    run("virsh", "destroy", "machine")
    wait_for(lambda: daemons() == [])
