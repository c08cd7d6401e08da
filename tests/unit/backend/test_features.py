"""What is offered, and what the operator is told about what is not."""

from __future__ import annotations

import re

import pytest

from vgpud.backend.features import (
    PROTOCOL_FEATURES,
    TRANSPORT_FEATURES,
    bits,
    check_protocol_features,
    unserved,
)
from vgpud.errors import PeerError

VERSION_1, PROTOCOL = 1 << 32, 1 << 30
EDID = 1 << 1
OFFERED = int(TRANSPORT_FEATURES) | EDID


def test_offers() -> None:
    assert TRANSPORT_FEATURES == 0x1_7000_0000
    assert PROTOCOL_FEATURES == 0xA209


@pytest.mark.parametrize(
    "features",
    [
        VERSION_1,
        VERSION_1 | PROTOCOL | EDID,
        VERSION_1 | 1 << 28,
        VERSION_1 | 1 << 29,
        VERSION_1 | PROTOCOL | 1 << 40,  # RING_RESET, which QEMU offers on its own
        VERSION_1 | 1 << 24 | 1 << 27,  # legacy bits that a guest can take
    ],
)
@pytest.mark.parametrize("offered", [OFFERED, VERSION_1 | EDID])
def test_taken(features: int, offered: int) -> None:
    assert unserved(features, offered) is None


@pytest.mark.parametrize(
    ("features", "told"),
    [
        (VERSION_1 | 1 << 34, r"VIRTIO_F_RING_PACKED \(bit 34\).*packed=off"),
        (VERSION_1 | 1 << 35, r"VIRTIO_F_IN_ORDER \(bit 35\).*in_order=off"),
        (VERSION_1 | 1 << 33, r"VIRTIO_F_ACCESS_PLATFORM \(bit 33\).*iommu_platform=off"),
        (VERSION_1 | 1 << 0, r"VIRTIO_GPU_F_VIRGL \(bit 0\)"),
        (VERSION_1 | 1 << 26, "cannot be migrated"),
        (VERSION_1 | 1 << 2 | 1 << 3, "bits 2, 3 never offered"),
        (VERSION_1 | 1 << 63, "bit 63 never offered"),
        (PROTOCOL | EDID, r"VIRTIO_F_VERSION_1 \(bit 32\).*disable-legacy=on"),
        (0, "VIRTIO_F_VERSION_1"),
    ],
)
def test_refused_with_what_to_change(features: int, told: str) -> None:
    assert re.search(told, unserved(features, OFFERED) or "")


def test_what_was_offered_is_taken() -> None:
    assert unserved(VERSION_1 | 0x1F, OFFERED | 0x1F) is None


def test_protocol_features() -> None:
    check_protocol_features(0, PROTOCOL_FEATURES)
    check_protocol_features(0x208, PROTOCOL_FEATURES)
    with pytest.raises(PeerError, match="bits 14, 17 never offered"):
        check_protocol_features(0xA209 | 1 << 14 | 1 << 17, PROTOCOL_FEATURES)


def test_bits() -> None:
    assert bits(1 << 40) == "bit 40"
    assert bits(0b101) == "bits 0, 2"
