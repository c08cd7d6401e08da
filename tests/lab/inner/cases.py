"""What udmabuf takes and what it refuses: one table for the kernel and for vgpud's wrapper, which
names the reason that the kernel's errno does not tell."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EBADFD, EINVAL

from tests.lab.inner.raw import (
    F_SEAL_FUTURE_WRITE,
    HUGE_PAGE,
    MIB,
    PAGE,
    QEMU_SEALS,
    create,
    memfd,
)

NOT_OPEN = 9999
SHRINK = fcntl.F_SEAL_SHRINK


def ordinary(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    os.ftruncate(fd, PAGE)
    return fd


def read_only() -> int:
    fd = memfd(PAGE)
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)


def dmabuf() -> int:
    device, fd = os.open("/dev/udmabuf", os.O_RDWR | os.O_CLOEXEC), memfd(PAGE)
    try:
        return create(device, (fd, 0, PAGE))
    finally:
        os.close(fd)
        os.close(device)


FILES: dict[str, Callable[[], int]] = {
    "ram": lambda: memfd(64 * PAGE),
    "ram2": lambda: memfd(64 * PAGE),
    "big": lambda: memfd(256 * MIB),
    "huge": lambda: memfd(2 * HUGE_PAGE, flags=os.MFD_ALLOW_SEALING | os.MFD_HUGETLB),
    "only SHRINK": lambda: memfd(PAGE, SHRINK),
    "unsealed": lambda: memfd(PAGE, 0),
    "seal=off": lambda: memfd(PAGE, 0, 0),
    "WRITE": lambda: memfd(PAGE, SHRINK | fcntl.F_SEAL_WRITE),
    "FUTURE_WRITE": lambda: memfd(PAGE, QEMU_SEALS | F_SEAL_FUTURE_WRITE),
    "read-only": read_only,
    "tmpfs": lambda: ordinary("/dev/shm/ram"),
    "file": lambda: ordinary("/var/tmp/ram"),
    "dma-buf": dmabuf,
    "/dev/udmabuf": lambda: os.open("/dev/udmabuf", os.O_RDWR | os.O_CLOEXEC),
    "eventfd": lambda: os.eventfd(0, os.EFD_CLOEXEC),
    "not open": lambda: NOT_OPEN,
}
"""Files by name, each made when a case first names it."""


@dataclass(frozen=True)
class Case:
    """Items of named files; `errno` is the kernel's answer, `reason` the wrapper's (None: the
    wrapper cannot be asked this). Limits of the module are set if given."""

    name: str
    items: list[tuple[str, int, int]]
    errno: int = 0
    reason: str | None = ""
    limits: dict[str, int] = field(default_factory=dict)


def scattered(count: int) -> list[tuple[str, int, int]]:
    """Every other page: nothing that could be merged."""
    return [("big", 2 * i * PAGE, PAGE) for i in range(count)]


CASES = [
    Case("one page", [("ram", 0, PAGE)]),
    Case("all of it", [("ram", 0, 64 * PAGE)]),
    Case("the last page", [("ram", 63 * PAGE, PAGE)]),
    Case("any order, two files", [("ram", 5 * PAGE, PAGE), ("ram2", 0, PAGE), ("ram", 0, PAGE)]),
    Case("the same page twice", [("ram", 0, PAGE), ("ram", 0, PAGE)]),
    # arithmetic
    Case("size 0", [("ram", 0, 0)], EINVAL, "short"),
    Case("offset unaligned", [("ram", 100, PAGE)], EINVAL, "alignment"),
    Case("size unaligned", [("ram", 0, 100)], EINVAL, "alignment"),
    Case("one bad item", [("ram", 0, PAGE), ("ram", 1, PAGE)], EINVAL, "alignment"),
    Case("past the end", [("ram", 63 * PAGE, 2 * PAGE)], EINVAL, "end-of-file"),
    Case("behind the end", [("ram", 64 * PAGE, PAGE)], EINVAL, "end-of-file"),
    Case("end wraps to 0", [("ram", 2**64 - PAGE, PAGE)], EINVAL, "end-of-file"),
    Case("end wraps", [("ram", 2**64 - PAGE, 2 * PAGE)], EINVAL, "end-of-file"),
    Case("no item", [], EINVAL, "short"),
    # Backing.runs() makes no empty run.
    Case("empty among others", [("ram", 0, PAGE), ("ram", 0, 0)], EINVAL, None),
    # seals
    Case("only SHRINK", [("only SHRINK", 0, PAGE)]),
    Case("read-only", [("read-only", 0, PAGE)]),
    Case("unsealed", [("unsealed", 0, PAGE)], EINVAL, "seal-off"),
    Case("seal=off", [("seal=off", 0, PAGE)], EINVAL, "seal-off"),
    Case("F_SEAL_WRITE", [("WRITE", 0, PAGE)], EINVAL, "write-sealed"),
    Case("F_SEAL_FUTURE_WRITE", [("FUTURE_WRITE", 0, PAGE)], EINVAL, "write-sealed"),
    # what is no memfd
    Case("tmpfs", [("tmpfs", 0, PAGE)], EINVAL, "file"),
    Case("file", [("file", 0, PAGE)], EBADFD, "file"),
    Case("dma-buf", [("dma-buf", 0, PAGE)], EBADFD, "dma-buf"),
    Case("/dev/udmabuf", [("/dev/udmabuf", 0, PAGE)], EBADFD, "other"),
    Case("eventfd", [("eventfd", 0, PAGE)], EBADFD, "other"),
    Case("not open", [("not open", 0, PAGE)], EBADFD, None),
    # size: 7.3 has no limit unless one is set, older kernels have 64 MiB
    Case("128 MiB", [("big", 0, 128 * MIB)], limits={"size_limit_mb": 128}),
    Case("64 MiB, limit", [("big", 0, 64 * MIB)], limits={"size_limit_mb": 64}),
    Case(
        "64 MiB and a page, limit",
        [("big", 0, 64 * MIB + PAGE)],
        EINVAL,
        "size-limit",
        {"size_limit_mb": 64},
    ),
    Case(
        "64 MiB and a page in two, limit",
        [("big", 0, 64 * MIB), ("big", 64 * MIB, PAGE)],
        EINVAL,
        "size-limit",
        {"size_limit_mb": 64},
    ),
    # number of items
    Case("1024 items", scattered(1024)),
    Case("1025 items", scattered(1025), EINVAL, "list-limit"),
    Case("16384 items, limit raised", scattered(16384), limits={"list_limit": 16384}),
    # huge pages: a part of one will do
    Case("huge page", [("huge", 0, HUGE_PAGE)]),
    Case("a page of a huge page", [("huge", PAGE, PAGE)]),
    Case("pieces of huge pages", [("huge", PAGE, PAGE), ("huge", HUGE_PAGE - PAGE, 2 * PAGE)]),
    Case("past the end of huge pages", [("huge", HUGE_PAGE, 2 * HUGE_PAGE)], EINVAL, "end-of-file"),
]
