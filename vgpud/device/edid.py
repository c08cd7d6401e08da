"""Our own EDID, for a front-end that has none (QEMU 7.2) or does not answer.

VESA E-EDID 1.4: a monitor whose preferred mode is the head's size at 60 Hz with reduced blanking.
One block of 128 bytes, and where that cannot say the size, a second with a DisplayID 1.3 timing.
"""

from __future__ import annotations

import struct
from typing import Final

from vgpuwire import RespEdid

EDID_BYTES: Final = 128
DPI: Final = 96
H_BLANK, V_BLANK = 160, 45
"""Pixels and lines of blanking: near CVT-RB, which keeps 4K at 60 Hz within the format."""
H_FRONT, H_SYNC, V_FRONT, V_SYNC = 48, 32, 3, 6
MAX_ACTIVE: Final = 4095
"""Pixels: a detailed timing has 12 bits for each side."""
MAX_CLOCK: Final = 65535
"""Units of 10 kHz: a detailed timing has 16 bits."""
MAX_SIDE: Final = 1 << 15
"""Pixels: well within the 16 bits and the clock of a DisplayID timing."""

UNUSED: Final = struct.pack("<HBBB13s", 0, 0, 0x10, 0, b"")
"""A display descriptor that says nothing (3.10.3)."""


def _clock(width: int, height: int) -> int:
    """Units of 10 kHz."""
    return (width + H_BLANK) * (height + V_BLANK) * 60 // 10_000


def _detailed_timing(width: int, height: int) -> bytes:
    """The 18-byte descriptor of a mode (E-EDID 1.4, 3.10.2)."""
    h_mm, v_mm = (min(MAX_ACTIVE, side * 254 // (DPI * 10)) for side in (width, height))
    return struct.pack(
        "<H16B",
        _clock(width, height),
        width & 0xFF,
        H_BLANK & 0xFF,
        (width >> 8) << 4 | H_BLANK >> 8,
        height & 0xFF,
        V_BLANK & 0xFF,
        (height >> 8) << 4 | V_BLANK >> 8,
        H_FRONT,
        H_SYNC,
        V_FRONT << 4 | V_SYNC,
        0,
        h_mm & 0xFF,
        v_mm & 0xFF,
        (h_mm >> 8) << 4 | v_mm >> 8,
        0,
        0,
        0x1A,  # digital separate sync, positive horizontally
    )


def _text(tag: int, text: str) -> bytes:
    """A display descriptor that carries text (3.10.3)."""
    return struct.pack("<HBBB13s", 0, 0, tag, 0, f"{text}\n".encode().ljust(13))


def _displayid(width: int, height: int) -> bytes:
    """An extension block of one DisplayID 1.3 section with one type I timing (its 4.4.2), which
    has 16 bits for each side and 24 for the clock. All numbers in it are one less than they say."""
    timing = (_clock(width, height) - 1).to_bytes(3, "little") + struct.pack(
        "<B8H",
        0x88,  # preferred; the aspect ratio is none of the usual
        width - 1,
        H_BLANK - 1,
        H_FRONT - 1 | 0x8000,  # synchronised positively
        H_SYNC - 1,
        height - 1,
        V_BLANK - 1,
        V_FRONT - 1,
        V_SYNC - 1,
    )
    block = struct.pack("<BBB", 0x03, 0, len(timing)) + timing
    section = struct.pack("<BBBB", 0x13, EDID_BYTES - 7, 0, 0) + block.ljust(EDID_BYTES - 7, b"\0")
    extension = b"\x70" + _with_checksum(section)
    return _with_checksum(extension)


def _with_checksum(data: bytes) -> bytes:
    return data + bytes([-sum(data) & 0xFF])


def make_edid(width: int, height: int, scanout_id: int) -> bytes:
    """128 bytes that offer a mode of width x height pixels, 256 where a side is above 4095 or the
    mode too fast for the first block; the serial number tells heads apart."""
    width, height = (max(64, min(side, MAX_SIDE)) for side in (width, height))
    large = max(width, height) > MAX_ACTIVE or _clock(width, height) > MAX_CLOCK
    head = struct.pack(
        "<8s2sHIBBBBBBBB",
        bytes.fromhex("00ffffffffffff00"),
        struct.pack(">H", (22 << 10) | (7 << 5) | 16),  # "VGP": five bits a letter
        1,
        scanout_id + 1,
        1,
        30,  # made in the first week of 1990 + 30
        1,
        4,
        0xA0,  # digital, 8 bits a colour
        min(255, width * 254 // (DPI * 100)),
        min(255, height * 254 // (DPI * 100)),
        120,  # gamma 2.2
    )
    # sRGB; the first detailed timing, if there is one, is the preferred mode. A smaller one beside
    # the mode of the second block would be a second preferred mode, and Linux drops any that is
    # not the head's size (virtio_gpu_conn_mode_valid).
    features = b"\x04" if large else b"\x06"
    srgb = bytes.fromhex("ee91a3544c99260f5054")
    no_established, no_standard = bytes(3), b"\x01\x01" * 8
    limits = struct.pack("<HBBB13s", 0, 0, 0xFD, 0, b"\x32\x7d\x1e\xa0\xff\x01\x0a" + b" " * 6)
    body = (
        head
        + features
        + srgb
        + no_established
        + no_standard
        + (UNUSED if large else _detailed_timing(width, height))
        + _text(0xFC, "vgpud")
        + limits
        + _text(0xFF, f"head {scanout_id}")
        + bytes([large])  # blocks that follow
    )
    return _with_checksum(body) + (_displayid(width, height) if large else b"")


def padded(edid: bytes) -> bytes:
    """The EDID as the response's field carries it: 1024 bytes, zeros behind."""
    return edid.ljust(RESP_EDID_BYTES, b"\0")


RESP_EDID_BYTES: Final = RespEdid.SIZE - 32
"""1024: the response is a 24-byte header, le32 size, le32 padding and the EDID."""
