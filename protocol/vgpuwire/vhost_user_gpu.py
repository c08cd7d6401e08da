"""The display socket: what a vhost-user-gpu back-end asks QEMU to show, and QEMU's answers.

Source: QEMU's docs/interop/vhost-user-gpu.rst; names are its names without VHOST_USER_GPU_.
Integers are in host byte order (little-endian here), coordinates in pixels of the scanout,
strides in bytes. Requests have flags 0, replies exactly 4. Only the back-end asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Any, Final, TypeVar

from construct import Bytes, Int32sl, Int32ul, Int64ul, Struct, this

from vgpuwire.errors import UnknownRequest
from vgpuwire.framing import HEADER, Dialect, Header, Message, check_fds, check_frame
from vgpuwire.payload import (
    NOTHING,
    U64,
    Payload,
    exactly,
    from_container,
    of_record,
    to_container,
)
from vgpuwire.record import Record, field
from vgpuwire.virtio_gpu import RespDisplayInfo, RespEdid

T = TypeVar("T")

CURSOR_BYTES: Final = 64 * 64 * 4
"""The cursor's image: always 64 x 64 pixels of B, G, R, A."""

MAX_REPLY: Final = RespEdid.SIZE
"""Bytes: the largest reply's payload."""

MAX_REQUEST: Final = 20 + 16384 * 16384 * 4
"""Bytes: an UPDATE of the largest scanout."""


class GpuProtocolFeature(IntFlag):
    """VHOST_USER_GPU_PROTOCOL_F_*, as masks: the specification numbers bits, QEMU shifts."""

    EDID = 1 << 0
    DMABUF2 = 1 << 1


class GpuRequest(IntEnum):
    GET_PROTOCOL_FEATURES = 1
    SET_PROTOCOL_FEATURES = 2
    GET_DISPLAY_INFO = 3
    CURSOR_POS = 4
    CURSOR_POS_HIDE = 5
    CURSOR_UPDATE = 6
    SCANOUT = 7
    UPDATE = 8
    DMABUF_SCANOUT = 9
    DMABUF_UPDATE = 10
    GET_EDID = 11
    DMABUF_SCANOUT2 = 12


class CursorPos(Record):
    scanout_id: int = field(Int32ul)
    x: int = field(Int32ul)
    y: int = field(Int32ul)


class CursorUpdate(Record):
    """Followed by CURSOR_BYTES of pixels."""

    pos: CursorPos = field(CursorPos)
    hot_x: int = field(Int32ul)
    hot_y: int = field(Int32ul)


class Scanout(Record):
    """The head's size; width 0 disables it."""

    scanout_id: int = field(Int32ul)
    width: int = field(Int32ul)
    height: int = field(Int32ul)


class Update(Record):
    """In UPDATE followed by width * height * 4 bytes of B, G, R, x; in DMABUF_UPDATE by none."""

    scanout_id: int = field(Int32ul)
    x: int = field(Int32ul)
    y: int = field(Int32ul)
    width: int = field(Int32ul)
    height: int = field(Int32ul)


class UpdateMessage(Record):
    """UPDATE or DMABUF_UPDATE with its header: the message of each damaged rectangle."""

    header: Header = field(Header)
    update: Update = field(Update)


class CursorPosMessage(Record):
    """CURSOR_POS or CURSOR_POS_HIDE with its header."""

    header: Header = field(Header)
    pos: CursorPos = field(CursorPos)


class DmabufScanout(Record):
    """With one fd; without any the head is disabled. QEMU ignores x and y."""

    scanout_id: int = field(Int32ul)
    x: int = field(Int32ul)
    y: int = field(Int32ul)
    width: int = field(Int32ul)
    height: int = field(Int32ul)
    fd_width: int = field(Int32ul)
    fd_height: int = field(Int32ul)
    fd_stride: int = field(Int32ul)
    fd_flags: int = field(Int32ul)
    fd_drm_fourcc: int = field(Int32sl)


class DmabufScanout2(Record):
    """DMABUF_SCANOUT with a DRM format modifier, where DMABUF2 was negotiated."""

    dmabuf_scanout: DmabufScanout = field(DmabufScanout)
    modifier: int = field(Int64ul)


class EdidRequest(Record):
    scanout_id: int = field(Int32ul)


@dataclass(frozen=True, slots=True)
class Pixels:
    """What a front-end reads as UPDATE or CURSOR_UPDATE."""

    head: Update | CursorUpdate
    pixels: bytes


def _with_pixels(record: type[Record], size: Any) -> Payload[Pixels]:
    layout = record.layout
    return Payload(
        Pixels,
        Struct("head" / layout, "pixels" / Bytes(size)),
        lambda got: Pixels(from_container(layout, got.head), got.pixels),
        lambda value: {"head": to_container(value.head), "pixels": value.pixels},
    )


_UPDATE: Final = of_record(Update)
_UPDATE_REQUEST: Final = int(GpuRequest.UPDATE)
_CURSOR_POS: Final = of_record(CursorPos)

HEADS: Final[dict[GpuRequest, Payload[Any]]] = {
    GpuRequest.GET_PROTOCOL_FEATURES: NOTHING,
    GpuRequest.SET_PROTOCOL_FEATURES: U64,
    GpuRequest.GET_DISPLAY_INFO: NOTHING,
    GpuRequest.CURSOR_POS: _CURSOR_POS,
    GpuRequest.CURSOR_POS_HIDE: _CURSOR_POS,
    GpuRequest.CURSOR_UPDATE: of_record(CursorUpdate),
    GpuRequest.SCANOUT: of_record(Scanout),
    GpuRequest.UPDATE: _UPDATE,
    GpuRequest.DMABUF_SCANOUT: of_record(DmabufScanout),
    GpuRequest.DMABUF_UPDATE: _UPDATE,
    GpuRequest.GET_EDID: of_record(EdidRequest),
    GpuRequest.DMABUF_SCANOUT2: of_record(DmabufScanout2),
}
"""Each request's payload, up to its pixels."""

WITH_PIXELS: Final[dict[GpuRequest, Payload[Any]]] = {
    GpuRequest.CURSOR_UPDATE: _with_pixels(CursorUpdate, CURSOR_BYTES),
    GpuRequest.UPDATE: _with_pixels(Update, this.head.width * this.head.height * 4),
}

ANSWERS: Final[dict[GpuRequest, Payload[Any]]] = {
    GpuRequest.GET_PROTOCOL_FEATURES: U64,
    GpuRequest.GET_DISPLAY_INFO: exactly(RespDisplayInfo.SIZE),
    GpuRequest.GET_EDID: exactly(RespEdid.SIZE),
    GpuRequest.DMABUF_UPDATE: NOTHING,
}
"""The requests that QEMU answers. Two answers are whole virtio-gpu responses: they are handed to
the device as bytes."""


# Messages that come with each frame or pointer move are packed by their records' codecs instead,
# which the tests hold to construct's bytes (docs/decisions/0009).
def build(request: GpuRequest, value: object = None, following: int = 0) -> bytes:
    """Header and payload of a request; `following` bytes of pixels, which the caller sends right
    behind, are counted in the header's size. Raises WireError where the value does not fit."""
    body = HEADS[request].build(value, request.name)
    return HEADER.build(Header(request, 0, len(body) + following), request.name) + body


def get_protocol_features() -> bytes:
    return build(GpuRequest.GET_PROTOCOL_FEATURES)


def set_protocol_features(features: int) -> bytes:
    return build(GpuRequest.SET_PROTOCOL_FEATURES, int(features))


def get_display_info() -> bytes:
    return build(GpuRequest.GET_DISPLAY_INFO)


def get_edid(scanout_id: int) -> bytes:
    """QEMU never answers for a scanout that it does not have, nor without the EDID feature."""
    return build(GpuRequest.GET_EDID, EdidRequest(scanout_id))


def cursor_pos(request: GpuRequest, scanout_id: int, x: int, y: int) -> bytes:
    """CURSOR_POS or CURSOR_POS_HIDE."""
    return CursorPosMessage.pack(request, 0, CursorPos.SIZE, scanout_id, x, y)


def cursor_update(scanout_id: int, x: int, y: int, hot_x: int, hot_y: int) -> bytes:
    """The caller sends CURSOR_BYTES of pixels behind it."""
    header = Header.pack(GpuRequest.CURSOR_UPDATE, 0, CursorUpdate.SIZE + CURSOR_BYTES)
    return header + CursorUpdate.pack(scanout_id, x, y, hot_x, hot_y)


def scanout(scanout_id: int, width: int, height: int) -> bytes:
    return build(GpuRequest.SCANOUT, Scanout(scanout_id, width, height))


def update(scanout_id: int, x: int, y: int, width: int, height: int) -> bytes:
    """The caller sends width * height * 4 bytes behind it. QEMU crashes on an UPDATE without a
    SCANOUT before it on the same socket."""
    size = Update.SIZE + width * height * 4
    return UpdateMessage.pack(_UPDATE_REQUEST, 0, size, scanout_id, x, y, width, height)


def dmabuf_scanout(value: DmabufScanout | DmabufScanout2) -> bytes:
    """Sent with one fd on its first byte, or with none to disable the head."""
    if isinstance(value, DmabufScanout2):
        return build(GpuRequest.DMABUF_SCANOUT2, value)
    return build(GpuRequest.DMABUF_SCANOUT, value)


def dmabuf_update(scanout_id: int, x: int, y: int, width: int, height: int) -> bytes:
    """QEMU answers when its display has taken the damage."""
    request = GpuRequest.DMABUF_UPDATE
    return UpdateMessage.pack(request, 0, Update.SIZE, scanout_id, x, y, width, height)


def parse_reply(header: Header, payload: bytes, fds: Sequence[T] = ()) -> Message[T]:
    """QEMU's answer: its payload is an int (features), bytes (a virtio-gpu response of 408 or 1056
    bytes) or None. Raises BadFlags, UnknownRequest, Truncated, TooLong, WrongFdCount."""
    check_frame(header, payload, REPLIES)
    request = _known(header, ANSWERS)
    value = ANSWERS[request].parse(payload, request.name)
    check_fds(request.name, fds, 0, 0)
    return Message(request, header.flags, False, value, tuple(fds))


def parse_request(header: Header, payload: bytes, fds: Sequence[T] = ()) -> Message[T]:
    """A back-end's request, for front-ends made by tests: None, an int, a record of this module
    or Pixels. Raises as parse_reply does."""
    check_frame(header, payload, REQUESTS)
    request = _known(header, HEADS)
    value = WITH_PIXELS.get(request, HEADS[request]).parse(payload, request.name)
    dmabuf = request in (GpuRequest.DMABUF_SCANOUT, GpuRequest.DMABUF_SCANOUT2)
    check_fds(request.name, fds, 0, 1 if dmabuf else 0)
    return Message(request, header.flags, request in ANSWERS, value, tuple(fds))


def build_reply(request: GpuRequest, value: object = None) -> bytes:
    """An answer as QEMU sends it, for front-ends made by tests. Raises UnknownRequest for what
    has no answer, WireError where the value does not fit."""
    if request not in ANSWERS:
        raise UnknownRequest(f"{request!r} has no reply")
    body = ANSWERS[request].build(value, request.name)
    return HEADER.build(Header(request, 4, len(body)), request.name) + body


def _known(header: Header, table: dict[GpuRequest, Payload[Any]]) -> GpuRequest:
    if header.request not in table:
        raise UnknownRequest(f"no such message: {header!r}")
    return GpuRequest(header.request)


REPLIES: Final = Dialect(parse_reply, frozenset({4}), MAX_REPLY, 0)
"""What a back-end reads from its display socket."""
REQUESTS: Final = Dialect(parse_request, frozenset({0}), MAX_REQUEST, 1)
"""What a front-end reads."""
