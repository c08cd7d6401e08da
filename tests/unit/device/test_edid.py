"""Our own EDID, read back by a parser written from the VESA E-EDID 1.4 and DisplayID 1.3 tables."""

from __future__ import annotations

import struct
from typing import NamedTuple

import pytest

from vgpud.device.edid import EDID_BYTES, RESP_EDID_BYTES, make_edid, padded

SIZES = [(640, 480), (1280, 800), (1920, 1080), (2560, 1440), (3840, 2160), (4095, 2304)]
LARGE = [(4096, 2160), (64, 4096), (4095, 4095), (5120, 2880), (7680, 4320), (16384, 16384)]
"""Sizes that a detailed timing cannot say: 12 bits a side, 16 of clock."""


class Timing(NamedTuple):
    clock: int
    h_active: int
    h_blank: int
    v_active: int
    v_blank: int
    h_front: int
    h_sync: int
    v_front: int
    v_sync: int
    h_mm: int
    v_mm: int

    @property
    def refresh(self) -> float:
        return self.clock / ((self.h_active + self.h_blank) * (self.v_active + self.v_blank))


def detailed_timing(edid: bytes) -> Timing:
    """The first detailed timing (E-EDID 1.4, table 3.21)."""
    d = edid[54:72]
    return Timing(
        clock=struct.unpack_from("<H", d)[0] * 10_000,
        h_active=d[2] | (d[4] & 0xF0) << 4,
        h_blank=d[3] | (d[4] & 0x0F) << 8,
        v_active=d[5] | (d[7] & 0xF0) << 4,
        v_blank=d[6] | (d[7] & 0x0F) << 8,
        h_front=d[8] | (d[11] & 0xC0) << 2,
        h_sync=d[9] | (d[11] & 0x30) << 4,
        v_front=d[10] >> 4 | (d[11] & 0x0C) << 2,
        v_sync=d[10] & 15 | (d[11] & 0x03) << 4,
        h_mm=d[12] | (d[14] & 0xF0) << 4,
        v_mm=d[13] | (d[14] & 0x0F) << 8,
    )


def descriptors(edid: bytes) -> dict[int, bytes]:
    """The display descriptors by tag: 0xFC name, 0xFD range limits, 0xFF serial number."""
    blocks = [edid[at : at + 18] for at in (72, 90, 108)]
    assert all(block[:3] == bytes(3) for block in blocks)
    return {block[3]: block[5:] for block in blocks}


@pytest.mark.parametrize(("width", "height"), SIZES + LARGE)
def test_D04_the_block_is_well_formed(width: int, height: int) -> None:
    edid = make_edid(width, height, 0)
    blocks = 2 if (width, height) in LARGE else 1
    assert len(edid) == blocks * EDID_BYTES == blocks * 128
    assert all(sum(edid[at : at + 128]) & 0xFF == 0 for at in range(0, len(edid), 128))
    assert edid[:8] == b"\0\xff\xff\xff\xff\xff\xff\0"
    assert edid[18:20] == b"\x01\x04"
    assert edid[126] == blocks - 1, "extension blocks"


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_preferred_mode_is_the_head_s_size(width: int, height: int) -> None:
    edid = make_edid(width, height, 0)
    timing = detailed_timing(edid)
    assert edid[24] & 2, "the first detailed timing is the preferred one"
    assert (timing.h_active, timing.v_active) == (width, height)
    assert timing.h_front + timing.h_sync < timing.h_blank
    assert timing.v_front + timing.v_sync < timing.v_blank
    assert timing.refresh == pytest.approx(60, rel=5e-4)
    assert (timing.h_mm / 25.4 * 96, timing.v_mm / 25.4 * 96) == pytest.approx(
        (width, height), abs=4
    )


@pytest.mark.parametrize(("width", "height"), LARGE)
def test_the_only_mode_of_a_large_head_is_in_a_displayid_block(width: int, height: int) -> None:
    edid = make_edid(width, height, 0)
    assert edid[54:72] == bytes([0, 0, 0, 0x10, *bytes(14)]), "no smaller mode is preferred"
    block = edid[128:]
    assert block[0] == 0x70
    section = block[1:127]
    assert sum(section) & 0xFF == 0
    version, size, _, more = section[:4]
    assert (version >> 4, size, more) == (1, 121, 0)
    tag, _, length = section[4:7]
    assert (tag, length) == (0x03, 20)
    timing = section[7:27]
    clock = (int.from_bytes(timing[:3], "little") + 1) * 10_000
    assert timing[3] & 0x80, "preferred"
    h_active, h_blank, h_front, h_sync, v_active, v_blank, v_front, v_sync = (
        (word & 0x7FFF) + 1 for word in struct.unpack("<8H", timing[4:])
    )
    assert (h_active, v_active) == (width, height)
    assert h_front + h_sync < h_blank
    assert v_front + v_sync < v_blank
    assert clock / ((h_active + h_blank) * (v_active + v_blank)) == pytest.approx(60, rel=5e-4)
    assert not any(section[27:-1]), "filled with zeros"


def test_a_size_that_no_head_has_is_cut() -> None:
    assert make_edid(1 << 32, 1 << 32, 0) == make_edid(1 << 15, 1 << 15, 0)


@pytest.mark.parametrize(("width", "height"), [(0, 0), (1, 1), (10, 2000)])
def test_a_tiny_head_gets_a_mode_that_a_guest_can_use(width: int, height: int) -> None:
    timing = detailed_timing(make_edid(width, height, 0))
    assert timing.h_active >= 64
    assert timing.v_active >= 64


def test_4k_at_60_hz_is_within_the_limits_that_the_monitor_names() -> None:
    edid = make_edid(3840, 2160, 0)
    low_v, high_v, low_h, high_h, tens_of_mhz = descriptors(edid)[0xFD][:5]
    timing = detailed_timing(edid)
    lines = timing.clock / (timing.h_active + timing.h_blank)
    assert low_v <= timing.refresh <= high_v
    assert low_h * 1000 <= lines <= high_h * 1000
    assert timing.clock <= tens_of_mhz * 10_000_000


def test_text_ends_with_a_newline_and_is_filled_with_spaces() -> None:
    texts = descriptors(make_edid(1280, 800, 15))
    assert texts[0xFC] == b"vgpud\n       "
    assert texts[0xFF] == b"head 15\n     "


def test_the_sixteen_heads_are_sixteen_monitors() -> None:
    blocks = {make_edid(1280, 800, head) for head in range(16)}
    serials = {struct.unpack_from("<I", block, 12)[0] for block in blocks}
    assert len(blocks) == len(serials) == 16


def test_the_response_s_field_is_1024_bytes_with_zeros_behind() -> None:
    edid = make_edid(1280, 800, 0)
    assert RESP_EDID_BYTES == 1024
    assert padded(edid) == edid + bytes(896)
