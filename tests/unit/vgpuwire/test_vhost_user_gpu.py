"""vgpuwire.vhost_user_gpu: messages against struct, QEMU's answers and its fakes' requests."""

from __future__ import annotations

import struct

import pytest

from vgpuwire import (
    BadFlags,
    GpuProtocolFeature,
    GpuRequest,
    Header,
    TooLong,
    Truncated,
    UnknownRequest,
    WireError,
    WrongFdCount,
)
from vgpuwire import vhost_user_gpu as gpu

DMABUF = gpu.DmabufScanout(0, 1, 2, 3, 4, 5, 6, 7, 1, 0x34325258)
DMABUF_BYTES = struct.pack("<9Ii", 0, 1, 2, 3, 4, 5, 6, 7, 1, 0x34325258)

# Request, what builds it, payload on the wire, pixels behind it, parsed value.
EXAMPLES = [
    (GpuRequest.GET_PROTOCOL_FEATURES, gpu.get_protocol_features(), b"", 0, None),
    (
        GpuRequest.SET_PROTOCOL_FEATURES,
        gpu.set_protocol_features(GpuProtocolFeature.EDID | GpuProtocolFeature.DMABUF2),
        struct.pack("<Q", 3),
        0,
        3,
    ),
    (GpuRequest.GET_DISPLAY_INFO, gpu.get_display_info(), b"", 0, None),
    (
        GpuRequest.CURSOR_POS,
        gpu.cursor_pos(GpuRequest.CURSOR_POS, 1, 2, 3),
        struct.pack("<III", 1, 2, 3),
        0,
        gpu.CursorPos(1, 2, 3),
    ),
    (
        GpuRequest.CURSOR_POS_HIDE,
        gpu.cursor_pos(GpuRequest.CURSOR_POS_HIDE, 1, 2, 3),
        struct.pack("<III", 1, 2, 3),
        0,
        gpu.CursorPos(1, 2, 3),
    ),
    (
        GpuRequest.CURSOR_UPDATE,
        gpu.cursor_update(1, 2, 3, 4, 5),
        struct.pack("<IIIII", 1, 2, 3, 4, 5),
        16384,
        gpu.CursorUpdate(gpu.CursorPos(1, 2, 3), 4, 5),
    ),
    (
        GpuRequest.SCANOUT,
        gpu.scanout(1, 1280, 800),
        struct.pack("<III", 1, 1280, 800),
        0,
        gpu.Scanout(1, 1280, 800),
    ),
    (
        GpuRequest.UPDATE,
        gpu.update(1, 2, 3, 4, 5),
        struct.pack("<IIIII", 1, 2, 3, 4, 5),
        4 * 5 * 4,
        gpu.Update(1, 2, 3, 4, 5),
    ),
    (GpuRequest.DMABUF_SCANOUT, gpu.dmabuf_scanout(DMABUF), DMABUF_BYTES, 0, DMABUF),
    (
        GpuRequest.DMABUF_UPDATE,
        gpu.dmabuf_update(1, 2, 3, 4, 5),
        struct.pack("<IIIII", 1, 2, 3, 4, 5),
        0,
        gpu.Update(1, 2, 3, 4, 5),
    ),
    (
        GpuRequest.GET_EDID,
        gpu.get_edid(3),
        struct.pack("<I", 3),
        0,
        gpu.EdidRequest(3),
    ),
    (
        GpuRequest.DMABUF_SCANOUT2,
        gpu.dmabuf_scanout(gpu.DmabufScanout2(DMABUF, 1 << 56)),
        DMABUF_BYTES + struct.pack("<Q", 1 << 56),
        0,
        gpu.DmabufScanout2(DMABUF, 1 << 56),
    ),
]
examples = pytest.mark.parametrize(
    ("request_", "built", "payload", "pixels", "value"), EXAMPLES, ids=[r[0].name for r in EXAMPLES]
)

ANSWERS = [
    (GpuRequest.GET_PROTOCOL_FEATURES, struct.pack("<Q", 3), 3),
    (GpuRequest.GET_DISPLAY_INFO, bytes(range(204)) * 2, bytes(range(204)) * 2),
    (GpuRequest.GET_EDID, bytes(range(132)) * 8, bytes(range(132)) * 8),
    (GpuRequest.DMABUF_UPDATE, b"", None),
]


def test_numbers() -> None:
    names = """GET_PROTOCOL_FEATURES SET_PROTOCOL_FEATURES GET_DISPLAY_INFO CURSOR_POS
        CURSOR_POS_HIDE CURSOR_UPDATE SCANOUT UPDATE DMABUF_SCANOUT DMABUF_UPDATE GET_EDID
        DMABUF_SCANOUT2"""
    table = {name: number for number, name in enumerate(names.split(), 1)}
    assert {one.name: one.value for one in GpuRequest} == table
    assert {one.name: one.value for one in GpuProtocolFeature} == {"EDID": 1, "DMABUF2": 2}
    assert (gpu.CURSOR_BYTES, gpu.MAX_REPLY) == (16384, 1056)


def test_every_request_has_an_example() -> None:
    assert [row[0] for row in EXAMPLES] == list(GpuRequest)
    assert {row[0] for row in ANSWERS} == set(gpu.ANSWERS)


@examples
def test_build(
    request_: GpuRequest, built: bytes, payload: bytes, pixels: int, value: object
) -> None:
    assert built == struct.pack("<III", request_, 0, len(payload) + pixels) + payload
    assert gpu.build(request_, value, pixels) == built


@examples
def test_parse_request(
    request_: GpuRequest, built: bytes, payload: bytes, pixels: int, value: object
) -> None:
    body = payload + bytes(pixels)
    message = gpu.parse_request(Header(request_, 0, len(body)), body)
    expected = gpu.Pixels(value, bytes(pixels)) if pixels else value
    assert message.request is request_
    assert message.payload == expected
    assert message.need_reply is (request_ in gpu.ANSWERS)
    if body:
        with pytest.raises(Truncated, match=request_.name):
            gpu.parse_request(Header(request_, 0, len(body) - 1), body[:-1])
    with pytest.raises(TooLong, match=request_.name):
        gpu.parse_request(Header(request_, 0, len(body) + 1), body + b"\0")


@examples
def test_only_dmabufs_bring_an_fd(
    request_: GpuRequest, built: bytes, payload: bytes, pixels: int, value: object
) -> None:
    body = payload + bytes(pixels)
    header = Header(request_, 0, len(body))
    dmabuf = request_.name.startswith("DMABUF_SCANOUT")
    for count in range(3):
        if count <= dmabuf:
            assert gpu.parse_request(header, body, ["fd"] * count).fds == ("fd",) * count
        else:
            with pytest.raises(WrongFdCount, match=request_.name):
                gpu.parse_request(header, body, ["fd"] * count)


@pytest.mark.parametrize(("request_", "payload", "value"), ANSWERS)
def test_parse_reply(request_: GpuRequest, payload: bytes, value: object) -> None:
    message = gpu.parse_reply(Header(request_, 4, len(payload)), payload)
    assert message.request is request_
    assert (message.payload, message.flags, message.fds) == (value, 4, ())
    assert gpu.build_reply(request_, value) == (
        struct.pack("<III", request_, 4, len(payload)) + payload
    )


@pytest.mark.parametrize(("request_", "payload", "value"), ANSWERS)
def test_reply_sizes_are_exact(request_: GpuRequest, payload: bytes, value: object) -> None:
    for size in range(len(payload)):
        with pytest.raises(Truncated):
            gpu.parse_reply(Header(request_, 4, size), payload[:size])
    with pytest.raises(TooLong):
        gpu.parse_reply(Header(request_, 4, len(payload) + 1), payload + b"\0")


@pytest.mark.parametrize("flags", [0, 1, 5, 8, 12, 0x80000004])
def test_reply_flags_are_exactly_four(flags: int) -> None:
    with pytest.raises(BadFlags, match="not 0x4"):
        gpu.parse_reply(Header(GpuRequest.DMABUF_UPDATE, flags, 0), b"")


@pytest.mark.parametrize("flags", [1, 4, 8])
def test_request_flags_are_zero(flags: int) -> None:
    with pytest.raises(BadFlags, match="not 0x0"):
        gpu.parse_request(Header(GpuRequest.GET_DISPLAY_INFO, flags, 0), b"")


@pytest.mark.parametrize("request_", [0, 13, *(set(GpuRequest) - set(gpu.ANSWERS))])
def test_replies_to_nothing(request_: int) -> None:
    with pytest.raises(UnknownRequest):
        gpu.parse_reply(Header(request_, 4, 0), b"")
    with pytest.raises(UnknownRequest):
        gpu.build_reply(request_)


@pytest.mark.parametrize("request_", [0, 13, 0xFFFFFFFF])
def test_unknown_requests(request_: int) -> None:
    with pytest.raises(UnknownRequest):
        gpu.parse_request(Header(request_, 0, 0), b"")


def test_replies_bring_no_fds() -> None:
    with pytest.raises(WrongFdCount):
        gpu.parse_reply(Header(GpuRequest.DMABUF_UPDATE, 4, 0), b"", ["fd"])


@pytest.mark.parametrize(
    ("width", "height"), [(0xFFFFFFFF, 0xFFFFFFFF), (32768, 32768), (-1, 1), (1 << 32, 0)]
)
def test_an_update_beyond_its_sizes(width: int, height: int) -> None:
    with pytest.raises(WireError, match=r"UpdateMessage: .* does not fit"):
        gpu.update(0, 0, 0, width, height)


def test_claimed_pixels_are_not_allocated() -> None:
    payload = struct.pack("<IIIII", 0, 0, 0, 0xFFFFFFFF, 0xFFFFFFFF)
    with pytest.raises(Truncated):
        gpu.parse_request(Header(GpuRequest.UPDATE, 0, 20), payload)
