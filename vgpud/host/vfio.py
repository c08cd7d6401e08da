"""A VFIO device's memory: BARs, dma-bufs of their ranges, whether the guest has them switched on.

Whoever holds the descriptor of a VFIO device can reset it, read and write its registers and raise
its interrupts. So there is one holder, `VfioDevice`, and these are all its requests:
VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_REGION_INFO, VFIO_DEVICE_FEATURE (PROBE and GET of DMA_BUF),
two bytes read of the config space, and read-only mappings (host/guest_memory.py).
"""

from __future__ import annotations

import errno
import os
import struct
import threading
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from vgpud import _native
from vgpud.errors import HostError
from vgpud.host.dmabuf import CannotExport, Dmabuf, Quota
from vgpud.host.fd import FDINFO, OwnedFd
from vgpuwire.ioctls import (
    VFIO_DEVICE_FLAGS_PCI,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP,
    VFIO_REGION_INFO_FLAG_CAPS,
    VFIO_REGION_INFO_FLAG_MMAP,
    VfioInfoCapHeader,
    VfioRegionDmaRange,
    VfioRegionInfo,
    VfioRegionInfoCapSparseMmap,
    VfioRegionSparseMmapArea,
)

PAGE: Final = os.sysconf("SC_PAGESIZE")

BARS: Final = 6
CONFIG: Final = 7
"""Indices of a PCI device's regions (<linux/vfio.h>)."""

COMMAND: Final = 4
COMMAND_MEMORY: Final = 2
"""PCI_COMMAND in the config space, and its bit for memory decoding."""

_RANGE: Final = struct.Struct("=QQ")
assert _RANGE.size == VfioRegionDmaRange.SIZE

_REMEDIES: Final = {
    errno.ENOTTY: "dma-bufs of device memory need Linux 6.19 or later with "
    "CONFIG_VFIO_PCI_DMABUF=y, and a PCI device (no mdev)",
    errno.EINVAL: "a BAR smaller than a page or of I/O ports cannot be exported, nor any where the "
    "kernel lacks CONFIG_PCI_P2PDMA",
    errno.ENODEV: "the device has no such BAR, another driver holds it (/proc/iomem), or the "
    "device is being unbound: see that vfio-pci has all of it and restart the virtual machine",
    errno.EOVERFLOW: "the host's firmware placed the BAR at the end of the address space: change "
    "'above 4G decoding' or the BAR's size in its setup",
    errno.EOPNOTSUPP: "its VFIO driver exports nothing: bind the device to vfio-pci itself "
    "(echo vfio-pci > /sys/bus/pci/devices/ADDRESS/driver_override)",
    errno.ENOMEM: "the host is short of memory, or the picture is in too many pieces",
    errno.EMFILE: "raise LimitNOFILE of the service",
    errno.ENFILE: "raise fs.file-max",
    errno.EIO: "the device did not wake up: see dmesg, and keep it awake "
    "(echo on > /sys/bus/pci/devices/ADDRESS/power/control)",
}


class Requests(Protocol):
    """The ioctls; `vgpud._native` makes them."""

    def vfio_device_info(self, device: int) -> tuple[int, int]: ...
    def vfio_region_info(self, device: int, index: int) -> bytes: ...
    def vfio_probe_dma_buf(self, device: int) -> None: ...
    def vfio_get_dma_buf(self, device: int, region_index: int, ranges: bytes) -> int: ...


class Window(NamedTuple):
    """A part of a BAR that can be mapped: bytes from the BAR's start."""

    offset: int
    size: int


class Bar(NamedTuple):
    """A BAR: `size` bytes, at `offset` in the device's descriptor. `flags` are VFIO's."""

    number: int
    size: int
    offset: int
    flags: int
    windows: tuple[Window, ...]


class VfioDevice:
    """The one holder of a device's descriptor, which it owns. `name` is for messages.

    export() and probe() may be called in any thread. close() in another one does not wait for the
    kernel's answer to them, until which the device stays open.
    Raises HostError for what is no VFIO device of PCI.
    """

    def __init__(self, fd: OwnedFd, name: str = "", requests: Requests = _native) -> None:
        self._fd = fd
        self._requests = requests
        self._lock = threading.Lock()
        self._probed: int | None = None  # the errno, not what is raised: that holds frames
        self.syspath = syspath_of(fd.fileno())
        """Its folder under /sys, "" where the kernel does not tell (before Linux 7)."""
        self.name = name or os.path.basename(self.syspath) or "a VFIO device"
        self.maps_dmabufs: bool | None = None
        """Whether its dma-bufs can be mapped; None before that was tried."""
        try:
            flags, _ = requests.vfio_device_info(fd.fileno())
            if not flags & VFIO_DEVICE_FLAGS_PCI:
                raise HostError(f"{self.name} is no PCI device")
            found = (self._bar(index) for index in range(BARS))
            self.bars: tuple[Bar, ...] = tuple(bar for bar in found if bar.size)
            self._config = self._info(CONFIG)[0].offset
        except OSError as error:
            raise HostError.of(error, f"asking {self.name} for its BARs") from error

    def fileno(self) -> int:
        """Borrowed; -1 once closed."""
        return self._fd.fileno()

    def bar_at(self, offset: int) -> Bar | None:
        """The BAR that has this offset in the device's descriptor."""
        for bar in self.bars:
            if bar.offset <= offset < bar.offset + bar.size:
                return bar
        return None

    def bar(self, number: int) -> Bar | None:
        return next((bar for bar in self.bars if bar.number == number), None)

    def decoding(self) -> bool:
        """Whether the guest has memory decoding switched on: else a read of a BAR ends in SIGBUS,
        and importers have lost its dma-bufs. False also where the device cannot be asked."""
        try:
            command = os.pread(self._fd.fileno(), 2, self._config + COMMAND)
        except OSError:
            return False
        return bool(int.from_bytes(command, "little") & COMMAND_MEMORY)

    def probe(self) -> None:
        """Ask once whether it exports dma-bufs. Raises CannotExport."""
        try:
            with self._borrow() as fd:
                self._probe(fd.fileno())
        except OSError as error:
            raise _refused(error.errno, f"dma-bufs of {self.name}") from error

    def export(
        self, bar: Bar, ranges: Iterable[tuple[int, int]], size: int, quota: Quota
    ) -> Dmabuf:
        """A dma-buf of (offset in the BAR, length) in this order, `size` bytes up to a page in
        all; neighbours are merged. Raises CannotExport.

        Not while decoding is off: the kernel would make one that is revoked, importers would fail
        without a word to us, and not try again when it is on.
        """
        if not self.decoding() and self.fileno() >= 0:
            what = f"the guest has switched the memory of {self.name} off"
            raise CannotExport("vfio-off", what)
        size = -(-size // PAGE) * PAGE
        merged = _checked(_merged(ranges), bar, size)
        token = quota.take(size, len(merged))
        try:
            with self._borrow() as fd:
                self._probe(fd.fileno())
                data = b"".join(_RANGE.pack(*one) for one in merged)
                made = self._requests.vfio_get_dma_buf(fd.fileno(), bar.number, data)
        except OSError as error:
            quota.give(token)
            what = f"a dma-buf of BAR {bar.number} of {self.name}"
            raise _refused(error.errno, what) from error
        except CannotExport:
            quota.give(token)
            raise
        return Dmabuf(OwnedFd(made), size, quota, token)

    def close(self) -> None:
        """Let go of the device. Mappings and dma-bufs are their owners' to drop: first take it
        out of every table (Session.drop_device)."""
        with self._lock:
            self._fd.close()

    def __repr__(self) -> str:
        return f"<VfioDevice {self.name} {self.fileno()}>"

    # -- inside

    def _borrow(self) -> OwnedFd:
        """A descriptor for one request: its number is nobody else's when the kernel is asked, and
        close(), which the event loop calls, need not wait. Raises CannotExport, OSError."""
        with self._lock:
            if self._fd.fileno() < 0:
                raise CannotExport("vfio-closed", f"{self.name} has been given up")
            return OwnedFd(os.dup(self._fd.fileno()))

    def _probe(self, fd: int) -> None:
        what = f"dma-bufs of {self.name}"
        if self._probed is None:
            try:
                self._requests.vfio_probe_dma_buf(fd)
                self._probed = 0
            except OSError as error:
                if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
                    raise _refused(error.errno, what) from error  # it may work the next time
                self._probed = error.errno
        if self._probed:
            raise _refused(self._probed, what)

    def _info(self, index: int) -> tuple[VfioRegionInfo, bytes]:
        data = self._requests.vfio_region_info(self._fd.fileno(), index)
        info = VfioRegionInfo.decode(data)
        if info.argsz > len(data):  # without what is missing all of a BAR would seem mappable
            what = f"region {index} of {self.name} is described by {info.argsz} bytes, too many"
            raise HostError(what, remedy="the kernel's VFIO driver is broken: update it")
        return info, data

    def _bar(self, index: int) -> Bar:
        info, data = self._info(index)
        areas: tuple[Window, ...] | None = None
        if info.flags & VFIO_REGION_INFO_FLAG_CAPS:
            areas = _sparse_areas(info, data)
        if not info.flags & VFIO_REGION_INFO_FLAG_MMAP:
            areas = ()
        elif areas is None:
            areas = (Window(0, info.size),)
        return Bar(index, info.size, info.offset, info.flags, areas)


def syspath_of(fd: int) -> str:
    """The folder under /sys of the device behind a VFIO descriptor: equal for all descriptors of
    it, which nothing else of an anonymous inode is. "" where the kernel does not tell."""
    try:
        info = FDINFO.read(str(fd))
    except OSError:
        return ""
    for line in info.splitlines():
        if line.startswith("vfio-device-syspath:"):
            return line.split(":", 1)[1].strip()
    return ""


def _sparse_areas(info: VfioRegionInfo, data: bytes) -> tuple[Window, ...] | None:
    """The areas that can be mapped; None where the kernel does not restrict them."""
    at = info.cap_offset
    while VfioRegionInfo.SIZE <= at <= len(data) - VfioInfoCapHeader.SIZE:
        header = VfioInfoCapHeader.decode(data[at:])
        if header.id == VFIO_REGION_INFO_CAP_SPARSE_MMAP:
            sparse = VfioRegionInfoCapSparseMmap.decode(data[at:])
            start, step = at + sparse.SIZE, VfioRegionSparseMmapArea.SIZE
            found = (
                VfioRegionSparseMmapArea.decode(data[one:])
                for one in range(start, start + sparse.nr_areas * step, step)
            )
            return tuple(Window(area.offset, area.size) for area in found)
        if header.next <= at:
            break
        at = header.next
    return None


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for offset, length in ranges:
        if merged and sum(merged[-1]) == offset:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((offset, length))
    return merged


def _checked(ranges: Sequence[tuple[int, int]], bar: Bar, size: int) -> Sequence[tuple[int, int]]:
    """What the kernel would call EINVAL, with its reason."""
    for offset, length in ranges:
        if offset % PAGE or length % PAGE or not length:
            what = f"{length} bytes at {offset:#x} of BAR {bar.number} are not whole pages"
            raise CannotExport("vfio-alignment", what)
        if offset + length > bar.size:
            what = f"BAR {bar.number} ends at {bar.size:#x}, needed is {offset + length:#x}"
            raise CannotExport("vfio-end", what)
    total = sum(length for _, length in ranges)
    if not total or total != size:
        raise CannotExport("vfio-short", f"{total} bytes of BAR {bar.number} for {size}")
    return ranges


def _refused(number: int | None, what: str) -> CannotExport:
    number = number or 0
    reason = f"vfio-{errno.errorcode.get(number, str(number))}"
    return CannotExport(reason, what, number, _REMEDIES.get(number, ""))
