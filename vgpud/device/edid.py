"""Our own EDID, for a front-end that has none (QEMU 7.2) or does not answer.

VESA E-EDID 1.4, one block of 128 bytes: a monitor whose preferred mode is the head's size at
60 Hz with reduced blanking.
"""

from __future__ import annotations

import struct
from typing import Final

from vgpuwire import RespEdid

EDID_BYTES: Final = 128
DPI: Final = 96
H_BLANK, V_BLANK = 160, 45
"""Pixels and lines of blanking: near CVT-RB, which keeps 4K at 60 Hz within the format."""
MAX_ACTIVE: Final = 4095
"""Pixels: a detailed timing has 12 bits for each side."""
MAX_CLOCK: Final = 65535
"""Units of 10 kHz: 16 bits. A mode beyond it is given a lower refresh rate."""


def _detailed_timing(width: int, height: int) -> bytes:
    """The 18-byte descriptor of a mode (E-EDID 1.4, 3.10.2)."""
    clock = min(MAX_CLOCK, (width + H_BLANK) * (height + V_BLANK) * 60 // 10_000)
    h_mm, v_mm = (min(MAX_ACTIVE, side * 254 // (DPI * 10)) for side in (width, height))
    h_front, h_sync, v_front, v_sync = 48, 32, 3, 6
    return struct.pack(
        "<H16B",
        clock,
        width & 0xFF,
        H_BLANK & 0xFF,
        (width >> 8) << 4 | H_BLANK >> 8,
        height & 0xFF,
        V_BLANK & 0xFF,
        (height >> 8) << 4 | V_BLANK >> 8,
        h_front,
        h_sync,
        v_front << 4 | v_sync,
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


def make_edid(width: int, height: int, scanout_id: int) -> bytes:
    """128 bytes that offer a mode of width x height pixels, at most 4095 each; the serial
    number tells heads apart."""
    width, height = (max(64, min(side, MAX_ACTIVE)) for side in (width, height))
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
    features = b"\x06"  # sRGB, the first detailed timing is the preferred one
    srgb = bytes.fromhex("ee91a3544c99260f5054")
    no_established, no_standard = bytes(3), b"\x01\x01" * 8
    limits = struct.pack("<HBBB13s", 0, 0, 0xFD, 0, b"\x32\x7d\x1e\xa0\xff\x01\x0a" + b" " * 6)
    body = (
        head
        + features
        + srgb
        + no_established
        + no_standard
        + _detailed_timing(width, height)
        + _text(0xFC, "vgpud")
        + limits
        + _text(0xFF, f"head {scanout_id}")
        + b"\x00"
    )
    return body + bytes([-sum(body) & 0xFF])


def padded(edid: bytes) -> bytes:
    """The EDID as the response's field carries it: 1024 bytes, zeros behind."""
    return edid.ljust(RESP_EDID_BYTES, b"\0")


RESP_EDID_BYTES: Final = RespEdid.SIZE - 32
"""1024: the response is a 24-byte header, le32 size, le32 padding and the EDID."""
