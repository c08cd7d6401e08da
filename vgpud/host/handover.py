"""Descriptors of VFIO devices that come from elsewhere: told apart, found in QEMU, taken from it.

Nothing of this opens a device: its group is open in QEMU and cannot be opened twice, so a duplicate
of QEMU's own descriptor is the only one there is (kernel-dmabuf.md 2.8).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from vgpud import _native
from vgpud.errors import HostError
from vgpud.host.fd import OwnedFd
from vgpud.host.vfio import syspath_of

VFIO_LINK: Final = "anon_inode:[vfio-device]"
CDEV_LINK: Final = "/dev/vfio/devices/"
"""What /proc calls a VFIO device: got from its group, or opened as a device of its own."""

BY_HAND: Final = "or hand it over as root: vgpuctl vfio add ID"
PROC: Final = Path("/proc")


class Found(NamedTuple):
    """A VFIO device that a process has open."""

    number: int
    """Its descriptor, in that process."""
    syspath: str
    """/sys/devices/...; empty where the kernel does not tell (6.12)."""


def device_syspath(fd: OwnedFd) -> str:
    """Where sysfs has the VFIO device behind `fd`, which is borrowed; empty where the kernel does
    not tell. Raises HostError for anything else than a VFIO device."""
    link = os.readlink(f"/proc/self/fd/{fd.fileno()}")
    if not _is_device(link):
        raise HostError(f"the descriptor is {link}, no VFIO device")
    return syspath_of(fd.fileno())


def address_of(path: str) -> str:
    """The PCI address at the end of a device's path: "0000:01:00.0"."""
    return path.rstrip("/").rpartition("/")[2]


class Socket(Protocol):
    """The standard library's, or trio's."""

    def getsockopt(self, level: int, optname: int, buflen: int, /) -> bytes: ...


def peer_pid(sock: Socket) -> int:
    """The process at the other end of a UNIX socket: who connected, or called listen(), or
    made the pair. 0 where it lives in another PID namespace."""
    pid: int
    pid, _, _ = struct.unpack(
        "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return pid


def devices_of(pid: int, proc: Path = PROC) -> list[Found]:
    """The VFIO devices that a process has open. Raises HostError where it may not be looked at."""
    if pid <= 0:
        raise HostError(
            "QEMU runs in another PID namespace", remedy=f"run vgpud beside it, {BY_HAND}"
        )
    process = proc / str(pid)
    found = []
    try:
        for entry in sorted(os.listdir(process / "fd"), key=int):
            link, syspath = _look(process, int(entry))
            if _is_device(link):
                found.append(Found(int(entry), syspath))
    except OSError as error:
        raise _refused(error, pid, f"looking at the descriptors of process {pid}", proc) from error
    return found


def take(pid: int, number: int, proc: Path = PROC) -> OwnedFd:
    """A duplicate of a descriptor of another process (pidfd_getfd). Raises HostError, which says
    what of the kernel's conditions is not met."""
    try:
        with OwnedFd(os.pidfd_open(pid)) as process:
            return OwnedFd(_native.pidfd_getfd(process.fileno(), number))
    except OSError as error:
        what = f"pidfd_getfd: descriptor {number} of process {pid}"
        raise _refused(error, pid, what, proc) from error


def pick(found: Iterable[Found], host: str, *, alone: bool) -> Found | None:
    """Which of them is the device at the PCI address `host`. Where the kernel does not tell, one
    is: that of the only device that QEMU has (`alone`)."""
    found = list(found)
    for one in found:
        if one.syspath and address_of(one.syspath) == host:
            return one
    nameless = [one for one in found if not one.syspath]
    return nameless[0] if alone and len(nameless) == 1 else None


def take_device(pid: int, number: int, host: str) -> OwnedFd:
    """take(), of the device at `host`. Raises HostError also where the number has become another
    file's since it was looked at."""
    fd = take(pid, number)
    try:
        syspath = device_syspath(fd)
        if syspath and address_of(syspath) != host:
            raise HostError(f"the descriptor is {address_of(syspath)} by now, not {host}")
    except BaseException:
        fd.close()
        raise
    return fd


def _look(process: Path, number: int) -> tuple[str, str]:
    """What a descriptor is called, and its device's path; empty where it cannot be known."""
    try:
        link = os.readlink(process / "fd" / str(number))
    except FileNotFoundError:  # closed meanwhile
        return "", ""
    if not _is_device(link):
        return link, ""
    try:
        info = (process / "fdinfo" / str(number)).read_text()
    except OSError:
        return link, ""
    for line in info.splitlines():
        key, _, value = line.partition(":")
        if key == "vfio-device-syspath":
            return link, value.strip()
    return link, ""


def _is_device(link: str) -> bool:
    return link == VFIO_LINK or link.startswith(CDEV_LINK)


def _refused(error: OSError, pid: int, what: str, proc: Path) -> HostError:
    number = error.errno or 0
    if number in (errno.EPERM, errno.EACCES):
        return HostError.of(error, what, f"{_obstacle(pid, proc)}, {BY_HAND}")
    if number in (errno.ESRCH, errno.ENOENT):
        return HostError.of(error, what, "QEMU has ended")
    if number == errno.ENOSYS:
        return HostError.of(error, what, "it needs Linux 5.6, " + BY_HAND)
    return HostError.of(error, what, BY_HAND[3:])


def _obstacle(pid: int, proc: Path) -> str:
    """Which of the conditions of ptrace(2), "access mode checking", is the one, and its remedy."""
    theirs = _ids(proc / str(pid))
    ours = ((os.getuid(),) * 3, (os.getgid(),) * 3)
    if theirs is not None and theirs != ours:
        (uid, *_), (gid, *_) = theirs
        return (
            f"QEMU runs as user {uid}, group {gid}, vgpud as {ours[0][0]}, {ours[1][0]}: run both "
            "as the same, or give vgpud CAP_SYS_PTRACE"
        )
    if theirs is not None and _owner(proc / str(pid)) != ours[0][0]:
        return (
            "QEMU is not dumpable, because it changed its user or has capabilities: start it as "
            "its user, or give vgpud CAP_SYS_PTRACE"
        )
    scope = _text(proc / "sys/kernel/yama/ptrace_scope")
    if scope not in ("", "0"):
        return f"Yama's ptrace_scope is {scope}: sysctl kernel.yama.ptrace_scope=0"
    profile = _text(proc / str(pid) / "attr/apparmor/current") or _text(
        proc / str(pid) / "attr/current"
    )
    if profile not in ("", "unconfined"):
        return f'a security module confines QEMU ("{profile}"): let its profile be traced by vgpud'
    return "the kernel lets nobody trace QEMU: look for a security module or a seccomp filter"


def _ids(process: Path) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(real, effective, saved) user and group of a process."""
    fields = dict(
        line.split(":", 1) for line in _text(process / "status").splitlines() if ":" in line
    )
    try:
        uids, gids = (
            tuple(int(one) for one in fields[name].split()[:3]) for name in ("Uid", "Gid")
        )
    except (KeyError, ValueError):
        return None
    return uids, gids


def _owner(process: Path) -> int:
    """Of its files in /proc: root where the process is not dumpable."""
    try:
        return os.stat(process / "fdinfo").st_uid
    except OSError:
        return -1


def _text(path: Path) -> str:
    try:
        return path.read_text().strip("\0\n ")
    except OSError:
        return ""
