"""Guest memory for the tests of vgpud.host: sealed memfds, as QEMU's memory-backend-memfd."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable

from vgpud.host.fd import OwnedFd
from vgpuwire import MemRegion

PAGE = 4096
GPA = 0x4000_0000
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
"""What QEMU adds with seal=on."""


def memfd(size: int, seals: int = SEALS, flags: int = os.MFD_ALLOW_SEALING) -> OwnedFd:
    fd = OwnedFd(os.memfd_create("ram", os.MFD_CLOEXEC | flags))
    os.ftruncate(fd.fileno(), size)
    if seals:
        fcntl.fcntl(fd.fileno(), fcntl.F_ADD_SEALS, seals)
    return fd


def region(gpa: int, size: int, offset: int = 0) -> MemRegion:
    return MemRegion(gpa, size, 0x7F00_0000_0000 + gpa, offset)


def entries(pieces: Iterable[tuple[int, int]]) -> bytes:
    """Of virtio_gpu_mem_entry."""
    return b"".join(struct.pack("<QII", gpa, length, 0) for gpa, length in pieces)


def pages(*numbers: int, gpa: int = GPA) -> bytes:
    return entries((gpa + n * PAGE, PAGE) for n in numbers)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def rss() -> int:
    """Bytes of this process that are in memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE
