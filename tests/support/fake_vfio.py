"""A VFIO device in Python: `VfioDevice(fd, requests=FakeVfio(...))` needs no hardware.

    fake = FakeVfio({2: 1 << 20})
    device = fake.device()

The device's descriptor is a memfd in which each BAR lies where Linux has it, so that mapping works;
its "dma-bufs" are memfds with a copy of the ranges. The real thing is in the lab (tests/lab).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence

from vgpud.host.fd import OwnedFd
from vgpud.host.vfio import VfioDevice

SHIFT = 40
"""A region's offset in the descriptor is its index << 40 (VFIO_PCI_OFFSET_SHIFT)."""
READ_WRITE, MMAP, CAPS = 3, 4, 8
CONFIG = 7
RANGE = struct.Struct("=QQ")


class FakeVfio:
    """`bars` are sizes by number; `sparse` are the areas of a BAR that can be mapped, by its
    number. `errno` makes an export fail, `probe_errno` the probe."""

    def __init__(
        self,
        bars: Mapping[int, int],
        sparse: Mapping[int, Sequence[tuple[int, int]]] | None = None,
    ) -> None:
        self.bars = dict(bars)
        self.sparse = dict(sparse or {})
        self.flags = 2  # VFIO_DEVICE_FLAGS_PCI
        self.errno = self.probe_errno = self.info_errno = 0
        self.probes = 0
        self.exports: list[tuple[int, list[tuple[int, int]]]] = []
        """(BAR, ranges) of each export that was asked for."""
        self.memory = os.memfd_create("fake-vfio", os.MFD_CLOEXEC)
        os.ftruncate(self.memory, (CONFIG + 1) << SHIFT)
        self.decode(True)

    def device(self, syspath: str = "/sys/devices/fake/0000:00:10.0") -> VfioDevice:
        """Each has a descriptor of its own."""
        device = VfioDevice(OwnedFd(os.dup(self.memory)), "fake", self)
        device.syspath = syspath
        return device

    def close(self) -> None:
        os.close(self.memory)

    # -- what the guest does

    def write(self, bar: int, offset: int, data: bytes) -> None:
        os.pwrite(self.memory, data, (bar << SHIFT) + offset)

    def decode(self, on: bool) -> None:
        """PCI_COMMAND_MEMORY."""
        os.pwrite(self.memory, (6 if on else 4).to_bytes(2, "little"), (CONFIG << SHIFT) + 4)

    # -- the ioctls

    def vfio_device_info(self, device: int) -> tuple[int, int]:
        self._fail(self.info_errno)
        return self.flags, 9

    def vfio_region_info(self, device: int, index: int) -> bytes:
        size = 256 if index == CONFIG else self.bars.get(index, 0)
        areas = self.sparse.get(index)
        flags = READ_WRITE | (MMAP if index != CONFIG and size else 0)
        caps = b""
        if areas is not None:
            flags |= CAPS
            # Another capability first, as MSI-X has one.
            caps = struct.pack("=HHI", 3, 1, 40) + struct.pack("=HHIII", 1, 1, 0, len(areas), 0)
            caps += b"".join(RANGE.pack(*area) for area in areas)
        at = 32 if caps else 0
        return struct.pack("=IIIIQQ", 32 + len(caps), flags, index, at, size, index << SHIFT) + caps

    def vfio_probe_dma_buf(self, device: int) -> None:
        self.probes += 1
        os.fstat(device)
        self._fail(self.probe_errno)

    def vfio_get_dma_buf(self, device: int, region_index: int, ranges: bytes) -> int:
        os.fstat(device)
        self.exports.append((region_index, list(RANGE.iter_unpack(ranges))))
        self._fail(self.errno)
        made = os.memfd_create("fake-dmabuf", os.MFD_CLOEXEC)
        for offset, length in RANGE.iter_unpack(ranges):
            os.write(made, os.pread(self.memory, length, (region_index << SHIFT) + offset))
        return made

    @staticmethod
    def _fail(errno: int) -> None:
        if errno:
            raise OSError(errno, os.strerror(errno))
