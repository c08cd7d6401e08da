"""What the kernel is asked: each ioctl's number beside the layout of its argument.

Sources: <linux/udmabuf.h>, <linux/vfio.h>, <linux/dma-buf.h>. Integers are in host byte order,
sizes and offsets in bytes. Numbers are computed by ioctl_opt; a test compares them with the
compiler's. Nothing is called here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import ioctl_opt
from construct import Int16ul, Int32ul, Int64ul, Padding

from vgpuwire.record import Record, field


def _number(direction: int, kind: str, nr: int, argument: type[Record] | None = None) -> int:
    size = argument.SIZE if argument else 0
    number: int = ioctl_opt.IOC(direction, ord(kind), nr, size)
    return number


# -- udmabuf: guest pages of memfds as a dma-buf (/dev/udmabuf)

UDMABUF_FLAGS_CLOEXEC: Final = 1


class UdmabufCreate(Record):
    """One range of a memfd, page-aligned. The ioctl's result is the dma-buf's fd."""

    memfd: int = field(Int32ul)
    flags: int = field(Int32ul)
    offset: int = field(Int64ul)
    size: int = field(Int64ul)


class UdmabufCreateItem(Record):
    memfd: int = field(Int32ul)
    _padding = Padding(4)
    offset: int = field(Int64ul)
    size: int = field(Int64ul)


class UdmabufCreateList(Record):
    """Followed by `count` UdmabufCreateItem, which the number's size does not count."""

    flags: int = field(Int32ul)
    count: int = field(Int32ul)


UDMABUF_CREATE: Final = _number(ioctl_opt.IOC_WRITE, "u", 0x42, UdmabufCreate)
UDMABUF_CREATE_LIST: Final = _number(ioctl_opt.IOC_WRITE, "u", 0x43, UdmabufCreateList)


def udmabuf_create_list(items: Sequence[UdmabufCreateItem]) -> bytes:
    """The argument of UDMABUF_CREATE_LIST; the dma-buf is the items in this order, its fd
    close-on-exec. Raises WireError for a negative fd, offset or size."""
    head = UdmabufCreateList(UDMABUF_FLAGS_CLOEXEC, len(items))
    return head.encode() + b"".join([item.encode() for item in items])


# -- VFIO: a device's BARs. All numbers are _IO(';', ...): the size is in argsz instead.

VFIO_DEVICE_GET_INFO: Final = _number(ioctl_opt.IOC_NONE, ";", 107)
VFIO_DEVICE_GET_REGION_INFO: Final = _number(ioctl_opt.IOC_NONE, ";", 108)
VFIO_DEVICE_RESET: Final = _number(ioctl_opt.IOC_NONE, ";", 111)
VFIO_DEVICE_FEATURE: Final = _number(ioctl_opt.IOC_NONE, ";", 117)

VFIO_DEVICE_FLAGS_RESET: Final = 1 << 0
VFIO_DEVICE_FLAGS_PCI: Final = 1 << 1

VFIO_REGION_INFO_FLAG_READ: Final = 1 << 0
VFIO_REGION_INFO_FLAG_WRITE: Final = 1 << 1
VFIO_REGION_INFO_FLAG_MMAP: Final = 1 << 2
VFIO_REGION_INFO_FLAG_CAPS: Final = 1 << 3

VFIO_DEVICE_FEATURE_GET: Final = 1 << 16
VFIO_DEVICE_FEATURE_SET: Final = 1 << 17
VFIO_DEVICE_FEATURE_PROBE: Final = 1 << 18
VFIO_DEVICE_FEATURE_DMA_BUF: Final = 11
"""The feature index, in bits 0 to 15 of VfioDeviceFeature.flags (kernels from 6.19 on)."""


class VfioDeviceInfo(Record):
    argsz: int = field(Int32ul)
    flags: int = field(Int32ul)
    num_regions: int = field(Int32ul)
    num_irqs: int = field(Int32ul)
    cap_offset: int = field(Int32ul)
    _padding = Padding(4)


class VfioRegionInfo(Record):
    """`offset` is where the region lies in the device's fd. With FLAG_CAPS and a large enough
    argsz, capabilities follow at cap_offset."""

    argsz: int = field(Int32ul)
    flags: int = field(Int32ul)
    index: int = field(Int32ul)
    cap_offset: int = field(Int32ul)
    size: int = field(Int64ul)
    offset: int = field(Int64ul)


class VfioInfoCapHeader(Record):
    """`next` is the offset of the next capability from the start of the info; 0 ends."""

    id: int = field(Int16ul)
    version: int = field(Int16ul)
    next: int = field(Int32ul)


VFIO_REGION_INFO_CAP_SPARSE_MMAP: Final = 1


class VfioRegionInfoCapSparseMmap(Record):
    """Only these areas of the region can be mapped. Followed by `nr_areas` of them."""

    id: int = field(Int16ul)
    version: int = field(Int16ul)
    next: int = field(Int32ul)
    nr_areas: int = field(Int32ul)
    _padding = Padding(4)


class VfioRegionSparseMmapArea(Record):
    """Page-aligned, an offset into the region."""

    offset: int = field(Int64ul)
    size: int = field(Int64ul)


class VfioDeviceFeature(Record):
    """Followed by the feature's own argument; argsz counts both."""

    argsz: int = field(Int32ul)
    flags: int = field(Int32ul)


class VfioRegionDmaRange(Record):
    """A page-aligned range of a region, as an offset into that region."""

    offset: int = field(Int64ul)
    length: int = field(Int64ul)


class VfioDeviceFeatureDmaBuf(Record):
    """Followed by `nr_ranges` VfioRegionDmaRange; `flags` must be 0."""

    region_index: int = field(Int32ul)
    open_flags: int = field(Int32ul)
    flags: int = field(Int32ul)
    nr_ranges: int = field(Int32ul)


def vfio_probe_dma_buf() -> bytes:
    """The argument of VFIO_DEVICE_FEATURE that asks whether the device can export: 0 is yes,
    ENOTTY and EOPNOTSUPP are no. It changes nothing."""
    flags = VFIO_DEVICE_FEATURE_DMA_BUF | VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_PROBE
    return VfioDeviceFeature(VfioDeviceFeature.SIZE, flags).encode()


def vfio_get_dma_buf(
    region_index: int, open_flags: int, ranges: Sequence[VfioRegionDmaRange]
) -> bytes:
    """The argument of VFIO_DEVICE_FEATURE that exports ranges of one region, in this order, as a
    dma-buf: its fd is the ioctl's result. `open_flags` are O_RDONLY | O_CLOEXEC."""
    data = VfioDeviceFeatureDmaBuf(region_index, open_flags, 0, len(ranges)).encode()
    data += b"".join([one.encode() for one in ranges])
    flags = VFIO_DEVICE_FEATURE_DMA_BUF | VFIO_DEVICE_FEATURE_GET
    return VfioDeviceFeature(VfioDeviceFeature.SIZE + len(data), flags).encode() + data


# -- dma-buf: the brackets around CPU access to a mapping of one

DMA_BUF_SYNC_READ: Final = 1 << 0
DMA_BUF_SYNC_WRITE: Final = 2 << 0
DMA_BUF_SYNC_START: Final = 0 << 2
DMA_BUF_SYNC_END: Final = 1 << 2


class DmaBufSync(Record):
    flags: int = field(Int64ul)


DMA_BUF_IOCTL_SYNC: Final = _number(ioctl_opt.IOC_WRITE, "b", 0, DmaBufSync)
