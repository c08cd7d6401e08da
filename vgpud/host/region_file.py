"""What is behind a region of guest memory: told apart once, when its descriptor arrives.

Probing with the export itself would not do: one errno of it has many reasons, and a refusal says
neither which region nor what to change (peers.md 7.6).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from vgpud import _native
from vgpud.errors import HostError
from vgpud.host.fd import OwnedFd
from vgpud.host.vfio import VfioDevice, syspath_of

Kind = Literal["memfd", "file", "vfio", "dma-buf", "other"]

PAGE: Final = os.sysconf("SC_PAGESIZE")

TMPFS_MAGIC: Final = 0x01021994
HUGETLBFS_MAGIC: Final = 0x958458F6
ANON_INODE_FS_MAGIC: Final = 0x09041934
DMA_BUF_MAGIC: Final = 0x444D4142
"""File systems, as fstatfs(2) numbers them (<linux/magic.h>)."""

FILE_SYSTEMS: Final = {TMPFS_MAGIC: "tmpfs", HUGETLBFS_MAGIC: "hugetlbfs"}

DENIED: Final = fcntl.F_SEAL_WRITE | 0x10  # F_SEAL_FUTURE_WRITE, which fcntl lacks before 3.13
"""Seals that udmabuf refuses, since its dma-bufs are writable (kernel-dmabuf.md 1.3)."""

F_DUPFD_QUERY: Final = 1027
"""<linux/fcntl.h>"""

USE_MEMFD: Final = "use -object memory-backend-memfd,share=on"


class Obstacle(NamedTuple):
    """Why udmabuf cannot take pages of a region: a word, one of few, and what an operator reads."""

    reason: str
    what: str
    remedy: str


Identity = tuple[int, int]
"""Device and inode."""


class RegionFile:
    """The file of one or more regions. It keeps a descriptor where a dma-buf may be made of it
    (a sealed memfd, a VFIO device, a dma-buf), and lets go of it with its last reference, so
    that an export in another thread never meets a number that is somebody else's by then."""

    __slots__ = ("_fd", "device", "identity", "kind", "obstacle", "page_size")

    def __init__(
        self,
        kind: Kind,
        fd: OwnedFd | None,
        page_size: int,
        obstacle: Obstacle | None = None,
        identity: Identity | None = None,
        device: VfioDevice | None = None,
    ) -> None:
        self.kind = kind
        self._fd = fd
        self.device = device
        """Whose memory it is, where the kind is "vfio" and the device could be asked."""
        self.page_size = page_size
        """Bytes: the huge page's on hugetlbfs."""
        self.obstacle = obstacle
        self.identity = identity
        """Equal for all descriptors of one file; None where an inode says nothing."""

    def fileno(self) -> int:
        """Borrowed; -1 where no descriptor is kept."""
        if self.device is not None:
            return self.device.fileno()
        return -1 if self._fd is None else self._fd.fileno()

    def is_empty(self) -> bool:
        """Whether a memfd has no page at all; False where the file cannot be asked."""
        if self.kind != "memfd" or self._fd is None:
            return False
        return os.fstat(self._fd.fileno()).st_blocks == 0

    def __repr__(self) -> str:
        return f"<RegionFile {self.kind} {self.fileno()}>"

    @property
    def mappable(self) -> bool:
        """Whether its region is mapped when it arrives. Device memory never is: an access may
        fault or take milliseconds, and nothing but a picture is ever looked for in it."""
        return self.kind not in ("vfio", "dma-buf")


def classify(fd: OwnedFd, known: Iterable[RegionFile] = ()) -> RegionFile:
    """Tell what `fd`, which is borrowed, refers to: one of the `known` if it is the same file,
    for QEMU cuts its RAM into several regions and one descriptor of it is enough.

    Raises HostError for a descriptor that is not open, or where none is left to keep.
    """
    known = tuple(known)
    try:
        file_system, block = _native.file_system(fd.fileno())
        found = os.fstat(fd.fileno())
        # All of VFIO and its like share one inode.
        anonymous = file_system == ANON_INODE_FS_MAGIC
        identity = None if anonymous else (found.st_dev, found.st_ino)
        for file in known:
            if identity is not None and file.identity == identity:
                return file
        if _is_vfio(fd.fileno(), anonymous):
            return _vfio(fd.fileno(), known, identity)
        made = _classify(fd.fileno(), file_system, block)
    except OSError as error:
        raise HostError.of(error, "looking at the file of a region") from error
    made.identity = identity
    return made


def _classify(fd: int, file_system: int, block: int) -> RegionFile:
    page_size = block if file_system == HUGETLBFS_MAGIC else PAGE
    if file_system == DMA_BUF_MAGIC:
        obstacle = Obstacle("dma-buf", "the region is a dma-buf already", "")
        return RegionFile("dma-buf", _keep(fd), page_size, obstacle)
    seals = _seals(fd)
    if file_system not in FILE_SYSTEMS or seals is None:
        return _no_memory(fd, file_system, page_size)
    # A file on a mounted tmpfs can have no seal but F_SEAL_SEAL, and always has that.
    if seals == fcntl.F_SEAL_SEAL and not _link(fd).startswith("/memfd:"):
        what = f"guest memory is a file on {FILE_SYSTEMS[file_system]}, which cannot be sealed"
        return RegionFile("file", None, page_size, Obstacle("file", what, USE_MEMFD))
    if not seals & fcntl.F_SEAL_SHRINK:
        sealed = Obstacle("seal-off", "memory-backend-memfd has seal=off", "leave it at seal=on")
        return RegionFile("memfd", None, page_size, sealed)
    if seals & DENIED:
        denied = Obstacle("write-sealed", "the memfd is sealed against writing", USE_MEMFD)
        return RegionFile("memfd", None, page_size, denied)
    return RegionFile("memfd", _keep(fd), page_size)


def _is_vfio(fd: int, anonymous: bool) -> bool:
    """Whether it is a VFIO device: opened through its group, or by its own node (iommufd)."""
    if anonymous:
        return _link(fd) == "anon_inode:[vfio-device]"
    return _link(fd).startswith("/dev/vfio/devices/")


def _vfio(fd: int, known: Iterable[RegionFile], identity: Identity | None) -> RegionFile:
    """A device that several regions share is one. What is wrong with it is told when its memory
    is to be shown: QEMU would not understand a refusal now."""
    syspath = syspath_of(fd)
    for file in known:
        if file.device is None:
            continue
        if file.device.syspath == syspath if syspath else _same(fd, file.fileno()):
            return file
    try:
        device = VfioDevice(_keep(fd))
    except (HostError, OSError) as error:
        obstacle = Obstacle("vfio-device", f"device memory cannot be used: {error}", "")
        return RegionFile("vfio", None, PAGE, obstacle, identity)
    return RegionFile("vfio", None, PAGE, identity=identity, device=device)


def _same(fd: int, other: int) -> bool:
    """Whether both are one opening of a file, as all that QEMU sends of a device are. False where
    the kernel cannot tell (before Linux 6.10)."""
    try:
        return fcntl.fcntl(fd, F_DUPFD_QUERY, other) == 1
    except OSError:
        return False


def _no_memory(fd: int, file_system: int, page_size: int) -> RegionFile:
    link = _link(fd)
    if link.startswith("/") and not link.startswith("/dev/"):
        what = "guest memory is an ordinary file"
        return RegionFile("file", None, page_size, Obstacle("file", what, USE_MEMFD))
    what = f"guest memory is {link or 'a file'} (file system {file_system:#x})"
    return RegionFile("other", None, page_size, Obstacle("other", what, USE_MEMFD))


def _seals(fd: int) -> int | None:
    """None for what is no file on tmpfs or hugetlbfs, such as a device node: /dev is a tmpfs."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        return None


def _keep(fd: int) -> OwnedFd:
    return OwnedFd(os.dup(fd))


def _link(fd: int) -> str:
    """What /proc calls the file; empty where there is no /proc to see."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""
