"""vgpuctl doctor: what of this host would keep pictures from their way, and what to change.

Each check looks at one thing and says how it is: good, worth a look, bad. Nothing is changed.
"""

from __future__ import annotations

import grp
import json
import os
import platform
import pwd
import re
import stat
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

MOST_ITEMS: Final = 16384
"""Pieces of a dma-buf that a guest can ask for (QEMU's limit)."""
VFIO_EXPORT: Final = (6, 19)
"""The first Linux that makes dma-bufs of VFIO memory."""
DESCRIPTORS: Final = 4096
"""509 memory regions, 256 dma-bufs, surfaces: with room."""

GOOD, LOOK, BAD = "good", "look", "bad"
SIGNS: Final = {GOOD: ("32", "ok"), LOOK: ("33", "!!"), BAD: ("31", "NO")}


class Finding(NamedTuple):
    """`state` is good, look or bad; `change` what to do about it."""

    state: str
    topic: str
    what: str
    change: str = ""


class System:
    """The host, as the checks see it; a test puts another root and other programs in its place."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        return self.root / name.lstrip("/")

    def text(self, name: str) -> str | None:
        """A file's contents; None where there is none to be read."""
        try:
            return self.path(name).read_text().strip("\0\n ")
        except OSError:
            return None

    def says(self, *command: str) -> str | None:
        """What a program says; None where it is not there or fails."""
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout + done.stderr

    def kernel(self) -> tuple[int, int]:
        found = re.match(r"(\d+)\.(\d+)", platform.release())
        return (int(found[1]), int(found[2])) if found else (0, 0)


Check = Callable[[System, str], Iterator[Finding]]


def examine(system: System, user: str | None) -> list[Finding]:
    """All that was found, for a vgpud of this user (default: whoever asks)."""
    name = user if user is not None else _own_name()
    return [finding for check in CHECKS for finding in check(system, name)]


def _own_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's user
        return str(os.geteuid())


def _udmabuf(system: System, user: str) -> Iterator[Finding]:
    topic, device = "udmabuf", system.path("/dev/udmabuf")
    try:
        found = device.stat()
    except OSError:
        yield Finding(
            *(BAD, topic, "there is no /dev/udmabuf: pictures are copied"),
            "modprobe udmabuf (CONFIG_UDMABUF, Linux 4.20)",
        )
        return
    if _may_read(found, user):
        yield Finding(GOOD, topic, f"/dev/udmabuf may be opened by {user}")
    else:
        group = _group(found.st_gid)
        yield Finding(
            *(LOOK, topic, f"/dev/udmabuf (group {group}) may not be opened by {user}"),
            f"adduser {user} kvm with the udev rule 70-vgpud.rules, or let the unit open it "
            "(OpenFile=), or --udmabuf=fd=N",
        )
    folder = "/sys/module/udmabuf/parameters"
    limit = system.text(f"{folder}/list_limit")
    if limit is not None and limit.isdecimal():
        if int(limit) >= MOST_ITEMS:
            yield Finding(GOOD, topic, f"list_limit is {limit}")
        else:
            yield Finding(
                *(LOOK, topic, f"list_limit is {limit}: fragmented guest memory is copied"),
                f"echo {MOST_ITEMS} > {folder}/list_limit; for good: udmabuf.list_limit="
                f"{MOST_ITEMS} on the kernel's command line",
            )


def _may_read(found: os.stat_result, user: str) -> bool:
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return bool(found.st_mode & stat.S_IROTH)
    if entry.pw_uid == 0:
        return True
    if found.st_uid == entry.pw_uid:
        return bool(found.st_mode & stat.S_IRUSR)
    if found.st_gid in os.getgrouplist(user, entry.pw_gid):
        return bool(found.st_mode & stat.S_IRGRP)
    return bool(found.st_mode & stat.S_IROTH)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _limits(system: System, user: str) -> Iterator[Finding]:
    limits = system.text("/proc/self/limits") or ""
    found = re.search(r"Max open files\s+\d+\s+(\d+)", limits)
    if found is not None:
        enough = int(found[1]) >= DESCRIPTORS
        change = "" if enough else "LimitNOFILE= of the service, or ulimit -Hn"
        yield Finding(GOOD if enough else LOOK, "limits", f"{found[1]} descriptors", change)


def _sandbox(system: System, user: str) -> Iterator[Finding]:
    actions = system.text("/proc/sys/kernel/seccomp/actions_avail") or ""
    lsm = system.text("/sys/kernel/security/lsm")
    if "errno" in actions:
        yield Finding(GOOD, "sandbox", "the kernel filters system calls (seccomp)")
    else:
        yield Finding(BAD, "sandbox", "no seccomp", "a kernel with CONFIG_SECCOMP_FILTER")
    if lsm is not None and "landlock" not in lsm:
        change = "add landlock to lsm= on the kernel's command line"
        yield Finding(LOOK, "sandbox", "no Landlock: paths are only filtered", change)
    elif lsm is not None:
        yield Finding(GOOD, "sandbox", "Landlock is there")


def _vfio(system: System, user: str) -> Iterator[Finding]:
    topic = "vfio"
    bound = system.path("/sys/bus/pci/drivers/vfio-pci")
    devices = sorted(one.name for one in bound.glob("*:*:*.*")) if bound.is_dir() else []
    if not devices:
        yield Finding(GOOD, topic, "no device is passed through")
        return
    yield Finding(GOOD, topic, f"vfio-pci has {', '.join(devices)}")
    if system.kernel() < VFIO_EXPORT:
        release = ".".join(map(str, system.kernel()))
        yield Finding(
            *(LOOK, topic, f"Linux {release}: pictures in device memory are read by the CPU"),
            "Linux 6.19 or later with CONFIG_VFIO_PCI_DMABUF",
        )


def _render(system: System, user: str) -> Iterator[Finding]:
    nodes = sorted(str(one) for one in system.path("/dev/dri").glob("renderD*"))
    if nodes:
        yield Finding(GOOD, "display", f"render nodes: {', '.join(nodes)} (--render-node=)")
    else:
        yield Finding(
            *(LOOK, "display", "no render node: QEMU's displays have no GL, use --scanout=shm"),
            "a GPU's driver; without one, -display none and screendump",
        )


def _qemu(system: System, user: str) -> Iterator[Finding]:
    topic, program = "qemu", "qemu-system-x86_64"
    version = re.search(r"version (\d+)\.(\d+)\S*", system.says(program, "--version") or "")
    if version is None:
        yield Finding(LOOK, topic, f"there is no {program}", "apt install qemu-system-x86")
        return
    number = (int(version[1]), int(version[2]))
    text = version[0].removeprefix("version ")
    if number < (8, 2):
        yield Finding(
            *(LOOK, topic, f"{text}: needs KVM, and does not tell of resets"), "QEMU 10 or later"
        )
    else:
        yield Finding(GOOD, topic, text)
    devices = system.says(program, "-device", "help") or ""
    if '"vhost-user-gpu-pci"' not in devices:
        change = "apt install qemu-system-modules-opengl, qemu-system-gui"
        yield Finding(BAD, topic, "it has no vhost-user-gpu-pci", change)
    generic = '"vhost-user-test-device-pci"' in devices
    blobs = "the generic device passes blobs" if generic else "no blobs for guests: see qemu.md"
    yield Finding(GOOD, topic, blobs)
    displays = (system.says(program, "-display", "help") or "").split("\n\n")[0].split("\n")[1:]
    yield Finding(GOOD, topic, f"displays: {', '.join(filter(None, displays)) or 'none'}")


def _machines(system: System, user: str) -> Iterator[Finding]:
    """QEMUs that run with a vhost-user GPU: is their memory shared?"""
    for process in sorted(system.path("/proc").glob("[0-9]*")):
        command = system.text(f"/proc/{process.name}/cmdline") or ""
        if "qemu-system" in command and "vhost-user-" in command:
            words = command.split("\0")
            name = next((b for a, b in pairwise(words) if a == "-name"), "?")
            yield memory_of(f"QEMU {process.name} ({name})", words)


def memory_of(who: str, words: list[str]) -> Finding:
    """Whether the memory of a QEMU with these arguments can be shared, and sealed."""
    backends = [word for word in words if "memory-backend-" in word]
    shared = [word for word in backends if re.search(r"share\W*(=|:)\W*(on|yes|true)", word)]
    if not shared:
        change = "-object memory-backend-memfd,id=mem,size=SIZE,share=on, memory-backend=mem"
        return Finding(BAD, "memory", f"{who}: its memory is private", change)
    if not any("memory-backend-memfd" in word for word in shared):
        change = "memory-backend-memfd (libvirt: <source type='memfd'/>)"
        return Finding(LOOK, "memory", f"{who}: a file, blobs are copied", change)
    return Finding(GOOD, "memory", f"{who}: a shared memfd")


def _manifest(system: System, user: str) -> Iterator[Finding]:
    """Who libvirt would start: the first of type gpu, by name."""
    found = {}
    for folder in ("/usr/share/qemu/vhost-user", "/etc/qemu/vhost-user"):
        found.update({one.name: one for one in system.path(folder).glob("*.json")})
    for _, path in sorted(found.items()):
        with suppress(OSError, ValueError):
            text = path.read_text()
            manifest = json.loads(text) if text else {}
            if manifest.get("type") == "gpu":
                ours = Path(manifest.get("binary", "")).name == "vgpud"
                change = "" if ours else "install 40-vgpud.json, which sorts before it"
                yield Finding(
                    GOOD if ours else LOOK, "libvirt", f"starts {manifest['binary']}", change
                )
                return
    yield Finding(LOOK, "libvirt", "finds no back-end", "install 40-vgpud.json (make install)")


CHECKS: Final[tuple[Check, ...]] = (
    *(_udmabuf, _limits, _sandbox, _vfio, _render, _qemu, _machines, _manifest),
)


def text(findings: Iterable[Finding], colours: bool = False) -> list[str]:
    """A line each, and what to change below it."""
    lines = []
    for one in findings:
        colour, sign = SIGNS[one.state]
        sign = f"\x1b[{colour}m{sign}\x1b[0m" if colours else sign
        lines.append(f"{sign}  {one.topic:8} {one.what}")
        if one.change:
            lines.append(f"             -> {one.change}")
    return lines
