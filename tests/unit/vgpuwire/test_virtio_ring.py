"""vgpuwire.virtio_ring: layouts and bits of the rings."""

from __future__ import annotations

import struct

from vgpuwire import AvailHeader, Desc, RingFeature, UsedElem, UsedHeader, virtio_ring


def test_layouts() -> None:
    assert Desc(1 << 40, 2, 3, 4).encode() == struct.pack("<QIHH", 1 << 40, 2, 3, 4)
    assert AvailHeader(1, 2).encode() == UsedHeader(1, 2).encode() == struct.pack("<HH", 1, 2)
    assert UsedElem(1, 2).encode() == struct.pack("<II", 1, 2)


def test_features_are_masks() -> None:
    assert {one.name: one.value for one in RingFeature} == {
        "INDIRECT_DESC": 1 << 28,
        "EVENT_IDX": 1 << 29,
        "VERSION_1": 1 << 32,
        "ACCESS_PLATFORM": 1 << 33,
        "RING_PACKED": 1 << 34,
        "IN_ORDER": 1 << 35,
        "RING_RESET": 1 << 40,
    }


def test_constants() -> None:
    constants = {n: v for n, v in vars(virtio_ring).items() if n.isupper() and isinstance(v, int)}
    assert constants == {
        "DESC_F_NEXT": 1,
        "DESC_F_WRITE": 2,
        "DESC_F_INDIRECT": 4,
        "AVAIL_F_NO_INTERRUPT": 1,
        "USED_F_NO_NOTIFY": 1,
        "MAX_QUEUE_SIZE": 1024,
    }
