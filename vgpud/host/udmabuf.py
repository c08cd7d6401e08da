"""/dev/udmabuf: pages of memfds as dma-bufs, without copying a byte.

The kernel's errno names neither the run nor the reason, so everything that can be known before is
looked at first (reference/kernel-dmabuf.md 1.2 has its checks in their order).
"""

from __future__ import annotations

import errno
import os
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import Final

from vgpud import _native
from vgpud.host.dmabuf import CannotExport, Dmabuf, Quota
from vgpud.host.fd import Folder, OwnedFd
from vgpud.host.region_file import RegionFile
from vgpuwire.ioctls import UdmabufCreateItem

DEVICE: Final = "/dev/udmabuf"
PARAMETERS: Final = Folder("/sys/module/udmabuf/parameters")

PAGE: Final = os.sysconf("SC_PAGESIZE")

MOST_ITEMS: Final = 16384
"""Entries that QEMU lets a guest have: a list_limit that is always enough."""

_ITEM: Final = struct.Struct("=IIQQ")
assert _ITEM.size == UdmabufCreateItem.SIZE

_ACCESS: Final = (
    'a udev rule KERNEL=="udmabuf", GROUP="kvm", MODE="0660" and that group for vgpud, or a '
    "launcher that opens it (--udmabuf=fd=N)"
)


_REMEDIES: Final = {
    errno.ENOENT: "load the module udmabuf (Linux 4.20 and later)",
    errno.EACCES: _ACCESS,
    errno.EPERM: _ACCESS,
    errno.ENOTTY: "it is another device",
    errno.EMFILE: "raise LimitNOFILE of the service",
    errno.ENFILE: "raise fs.file-max",
    errno.ENOMEM: "the host has too little memory that can be pinned, or too few huge pages "
    "(vm.nr_hugepages)",
    errno.ENOSPC: "the pool of huge pages is empty (vm.nr_hugepages)",
}


Device = OwnedFd | str | OSError


def opened(path: str) -> OwnedFd | OSError:
    """The device, before the sandbox closes; or why not."""
    try:
        # Any mode will do; not being allowed to write is no obstacle.
        return OwnedFd(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error


class Udmabuf:
    """The device, opened when it is first needed, and what one guest may have of it.

    `device` is a path, or an open descriptor, which is borrowed, or why there is none. Any method
    may be called in any thread.
    """

    def __init__(
        self,
        device: Device = DEVICE,
        quota: Quota | None = None,
        parameters: Folder | str = PARAMETERS,
        create: Callable[[int, bytes, array[int]], int] = _native.udmabuf_create,
    ) -> None:
        self._device = device
        self._opened: OwnedFd | None = None
        self.quota = quota or Quota()
        self._parameters = Folder(parameters) if isinstance(parameters, str) else parameters
        self._create = create

    @property
    def name(self) -> str:
        match self._device:
            case str():
                return self._device
            case OSError():
                return str(self._device.filename)
        return "the inherited udmabuf"

    @property
    def absent(self) -> bool:
        """Whether it is not there yet; a module may be loaded later."""
        return isinstance(self._device, str) and not os.path.exists(self._device)

    def limits(self) -> tuple[int | None, int | None]:
        """(list_limit, size_limit_mb) as they are now: the operator may change them at any time.
        None where the kernel does not tell."""
        return self._limit("list_limit"), self._limit("size_limit_mb")

    def export(self, runs: bytes, files: Sequence[RegionFile], size: int) -> Dmabuf:
        """The first `size` bytes of guest memory, up to a page, as a dma-buf of the runs in their
        order. `runs` is what `_native.Backing.runs(size)` returned, `files` the regions' files.

        It may take long (64 MiB that the guest never touched: tens of milliseconds), without the
        interpreter's lock. Raises CannotExport.
        """
        device = self._open()  # held here: close() meanwhile must not free the number
        size = -(-size // PAGE) * PAGE
        count = len(runs) // _ITEM.size
        self._check_limits(count, size)
        _check_runs(runs, files, size)
        token = self.quota.take(size, count)
        try:
            fds = array("i", [file.fileno() for file in files])
            fd = OwnedFd(self._create(device.fileno(), runs, fds))
        except OSError as error:
            self.quota.give(token)
            raise _refused(error, f"UDMABUF_CREATE_LIST on {self.name}") from error
        return Dmabuf(fd, size, self.quota, token)

    def close(self) -> None:
        """Let go of the device; dma-bufs live on. A later export opens it again."""
        self._opened = None

    # -- inside

    def _open(self) -> OwnedFd:
        if isinstance(self._device, OwnedFd):
            return self._device
        if isinstance(self._device, OSError):
            raise _refused(self._device, self.name) from self._device
        device = self._opened
        if device is None:
            found = opened(self._device)
            if isinstance(found, OSError):
                raise _refused(found, self.name) from found
            self._opened = found
            return found
        return device

    def _limit(self, name: str) -> int | None:
        try:
            return int(self._parameters.read(name))
        except (OSError, ValueError):
            return None

    def _check_limits(self, count: int, size: int) -> None:
        most, mib = self.limits()
        if most is not None and count > most:
            what = f"guest memory in {count} pieces, udmabuf takes {most}"
            raise CannotExport("list-limit", what, remedy=_raise("list_limit", MOST_ITEMS))
        if mib is not None and size > mib << 20:
            what = f"{size >> 20} MiB of guest memory, udmabuf takes {mib}"
            remedy = _raise("size_limit_mb", max(512, -(-size >> 20)))
            raise CannotExport("size-limit", what, remedy=remedy)


def _refused(error: OSError, what: str) -> CannotExport:
    number = error.errno or 0
    reason = errno.errorcode.get(number, str(number))
    return CannotExport(reason, what, number, _REMEDIES.get(number, ""))


def _raise(parameter: str, value: int) -> str:
    return (
        f"echo {value} > {PARAMETERS.path}/{parameter}, and for good 'options udmabuf "
        f"{parameter}={value}' in /etc/modprobe.d (built in: udmabuf.{parameter}={value} at boot)"
    )


def _check_runs(runs: bytes, files: Sequence[RegionFile], size: int) -> None:
    total = 0
    ends: dict[int, int] = {}
    for region, _, offset, length in _ITEM.iter_unpack(runs):
        if offset % PAGE or length % PAGE:
            what = f"{length} bytes at {offset:#x} of region {region} are not whole pages"
            raise CannotExport("alignment", what)
        if not length:
            raise CannotExport("short", f"an empty piece of region {region}")
        total += length
        ends[region] = max(offset + length, ends.get(region, 0))
    for region, end in ends.items():
        _check_file(files[region], end)
    if not total or total != size:
        raise CannotExport("short", f"{total} bytes of guest memory, {size} are to be shown")


def _check_file(file: RegionFile, end: int) -> None:
    if file.obstacle is not None:
        raise CannotExport(file.obstacle.reason, file.obstacle.what, remedy=file.obstacle.remedy)
    try:
        there = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CannotExport("file-gone", "the file of a region", error.errno or 0) from error
    if end > there:
        raise CannotExport("end-of-file", f"guest memory ends at {there:#x}, needed is {end:#x}")
