"""Rules of blob frame buffers: what SET_SCANOUT_BLOB may describe (virtio 1.3, 5.7.6.8)."""

from __future__ import annotations

from typing import Final

from vgpud.device.pixels import BYTES_PER_PIXEL, FORMATS, Layout
from vgpud.device.scanout import check_rect
from vgpud.errors import GuestError
from vgpuwire import Ctrl, SetScanoutBlob

MAX_STRIDE: Final = (1 << 31) - 1
"""Bytes: QEMU's pixman takes an int (row B06)."""
MAX_START: Final = (1 << 32) - 1
"""Bytes from the blob's start to the rectangle's first pixel (row B07)."""


def layout_of(cmd: SetScanoutBlob, size: int) -> Layout:
    """The frame buffer that the command describes, inside a blob of which `size` bytes are backed.

    Its last pixel must be in the blob, not its last stride: the right-hand head of a frame buffer
    without slack would be refused otherwise, and the specification allows it (rows B08, B09).
    Planes but the first, and padding, are ignored (B11).

    Raises GuestError(ERR_INVALID_PARAMETER).
    """
    stride, offset, r = cmd.strides[0], cmd.offsets[0], cmd.r
    if cmd.format not in FORMATS:
        raise _bad(f"format {cmd.format} is not known")
    if not cmd.width * BYTES_PER_PIXEL <= stride <= MAX_STRIDE:
        raise _bad(f"stride {stride} of {cmd.width} pixels")
    if offset + r.y * stride + r.x * BYTES_PER_PIXEL > MAX_START:
        raise _bad(f"the rectangle starts beyond {MAX_START}")
    last = offset + (r.y + r.height - 1) * stride + (r.x + r.width) * BYTES_PER_PIXEL
    if r.height and last > size:
        raise _bad(f"the rectangle ends at {last}, the blob at {size}")
    check_rect(r, cmd.width, cmd.height)
    return Layout(cmd.width, cmd.height, stride, offset, cmd.format)


def _bad(reason: str) -> GuestError:
    return GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, reason)
