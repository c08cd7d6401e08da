"""/dev/udmabuf and dma-bufs as the kernel has them, with nothing of vgpud but its layouts."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence

from vgpuwire.ioctls import (
    DMA_BUF_IOCTL_SYNC,
    UDMABUF_CREATE,
    UDMABUF_CREATE_LIST,
    UDMABUF_FLAGS_CLOEXEC,
    DmaBufSync,
    UdmabufCreate,
    UdmabufCreateItem,
    UdmabufCreateList,
)

DEVICE = "/dev/udmabuf"
PAGE = 4096
MIB = 1 << 20
HUGE_PAGE = 2 * MIB

F_SEAL_FUTURE_WRITE = 0x10
"""fcntl has it from Python 3.13 on."""
QEMU_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
"""Those of memory-backend-memfd with seal=on, its default."""

Item = tuple[int, int, int]
"""fd, offset, size"""


def memfd(size: int, seals: int = QEMU_SEALS, flags: int = os.MFD_ALLOW_SEALING) -> int:
    fd = os.memfd_create("ram", flags | os.MFD_CLOEXEC)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def ioctl(fd: int, number: int, argument: bytes) -> int:
    """ioctl(2) with a pointer to this argument; the result is the call's own, not the argument."""
    result: int = fcntl.ioctl(fd, number, bytearray(argument))
    return result


def create(device: int, item: Item, flags: int = UDMABUF_FLAGS_CLOEXEC) -> int:
    """UDMABUF_CREATE: the fd of a new dma-buf."""
    fd, offset, size = item
    return ioctl(device, UDMABUF_CREATE, UdmabufCreate(fd, flags, offset, size).encode())


def create_list(
    device: int,
    items: Sequence[Item],
    flags: int = UDMABUF_FLAGS_CLOEXEC,
    count: int | None = None,
) -> int:
    """UDMABUF_CREATE_LIST, on request with a count that is not that of the items."""
    head = UdmabufCreateList(flags, len(items) if count is None else count)
    tail = b"".join(UdmabufCreateItem(*item).encode() for item in items)
    return ioctl(device, UDMABUF_CREATE_LIST, head.encode() + tail)


def sync(dmabuf: int, flags: int) -> None:
    ioctl(dmabuf, DMA_BUF_IOCTL_SYNC, DmaBufSync(flags).encode())


def fdinfo(fd: int) -> dict[str, str]:
    """What /proc says of a descriptor; of a dma-buf: size, count, exp_name."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        return dict(line.split(":\t") for line in file.read().splitlines())
