"""Split virtqueues as they lie in guest memory (virtio 1.3, 2.7).

The rings themselves are only touched by `native/virtqueue.c`; these records are the source of its
constants and what the tests' driver writes with. All fields are little-endian (VERSION_1).
"""

from __future__ import annotations

from enum import IntFlag
from typing import Final

from construct import Int16ul, Int32ul, Int64ul

from vgpuwire.record import Record, field

DESC_F_NEXT: Final = 1
DESC_F_WRITE: Final = 2
DESC_F_INDIRECT: Final = 4

AVAIL_F_NO_INTERRUPT: Final = 1
USED_F_NO_NOTIFY: Final = 1

MAX_QUEUE_SIZE: Final = 1024
"""Entries: QEMU's VIRTQUEUE_MAX_SIZE. The guest chooses any size up to it."""


class RingFeature(IntFlag):
    """Feature bits of the transport and its rings, as masks (virtio 1.3, 6)."""

    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32
    ACCESS_PLATFORM = 1 << 33
    RING_PACKED = 1 << 34
    IN_ORDER = 1 << 35
    RING_RESET = 1 << 40


class Desc(Record):
    """struct vring_desc: `addr` is guest-physical, `len` in bytes (2.7.5)."""

    addr: int = field(Int64ul)
    len: int = field(Int32ul)
    flags: int = field(Int16ul)
    next: int = field(Int16ul)


class AvailHeader(Record):
    """struct vring_avail before its ring of le16 heads and the le16 used_event (2.7.6)."""

    flags: int = field(Int16ul)
    idx: int = field(Int16ul)


class UsedHeader(Record):
    """struct vring_used before its ring of UsedElem and the le16 avail_event (2.7.8)."""

    flags: int = field(Int16ul)
    idx: int = field(Int16ul)


class UsedElem(Record):
    """struct vring_used_elem: the chain's head and the bytes written into it (2.7.8)."""

    id: int = field(Int32ul)
    len: int = field(Int32ul)
