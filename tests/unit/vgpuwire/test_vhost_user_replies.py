"""vgpuwire.vhost_user: replies, whose header QEMU compares with 0x5 to the bit."""

from __future__ import annotations

import struct

import pytest

from vgpuwire import (
    BadFlags,
    ConfigSpace,
    Header,
    Request,
    Truncated,
    VringState,
    WireError,
    WrongFdCount,
)
from vgpuwire.vhost_user import build_reply, parse_reply


def header(request: int, payload: bytes, flags: int = 0x5) -> Header:
    return Header(request, flags, len(payload))


@pytest.mark.parametrize(
    ("request_", "value", "payload"),
    [
        (Request.GET_FEATURES, 0x140000007, struct.pack("<Q", 0x140000007)),
        (Request.GET_PROTOCOL_FEATURES, 0xA209, struct.pack("<Q", 0xA209)),
        (Request.GET_QUEUE_NUM, 2, struct.pack("<Q", 2)),
        (Request.GET_MAX_MEM_SLOTS, 509, struct.pack("<Q", 509)),
        (Request.SET_MEM_TABLE, 0, bytes(8)),
        (Request.ADD_MEM_REG, 1, struct.pack("<Q", 1)),
        (Request.SET_CONFIG, 0, bytes(8)),
        (99, 1, struct.pack("<Q", 1)),
        (Request.GET_VRING_BASE, VringState(1, 7), struct.pack("<II", 1, 7)),
        (
            Request.GET_CONFIG,
            ConfigSpace(0, 20, 0, bytes(20)),
            struct.pack("<III", 0, 20, 0) + bytes(20),
        ),
    ],
)
def test_replies(request_: int, value: object, payload: bytes) -> None:
    reply = struct.pack("<III", request_, 0x5, len(payload)) + payload
    assert build_reply(request_, value) == reply
    assert build_reply(request_, payload) == reply
    message = parse_reply(header(request_, payload), payload)
    assert (message.request, message.payload, message.flags) == (request_, value, 0x5)
    with pytest.raises(Truncated):
        parse_reply(header(request_, payload[:-1]), payload[:-1])


def test_empty_reply_says_that_config_failed() -> None:
    assert build_reply(Request.GET_CONFIG) == struct.pack("<III", 24, 5, 0)
    assert parse_reply(header(Request.GET_CONFIG, b""), b"").payload is None


@pytest.mark.parametrize("flags", [0, 1, 4, 9, 0xD])
def test_replies_have_flags_of_their_own(flags: int) -> None:
    with pytest.raises(BadFlags):
        parse_reply(header(Request.GET_FEATURES, bytes(8), flags), bytes(8))


@pytest.mark.parametrize(
    ("request_", "value"),
    [
        (Request.GET_FEATURES, -1),
        (Request.GET_FEATURES, 1 << 64),
        (Request.GET_FEATURES, None),
        (Request.GET_VRING_BASE, VringState(0, 1 << 32)),
        (Request.GET_VRING_BASE, 7),
        (Request.GET_CONFIG, 7),
    ],
)
def test_reply_that_does_not_fit(request_: Request, value: object) -> None:
    with pytest.raises(WireError, match="does not fit"):
        build_reply(request_, value)


def test_a_reply_brings_one_fd_at_most() -> None:
    """GET_INFLIGHT_FD's does; we never offer it, but a front-end must not choke on it."""
    assert parse_reply(header(Request.GET_FEATURES, bytes(8)), bytes(8), ["a"]).fds == ("a",)
    with pytest.raises(WrongFdCount):
        parse_reply(header(Request.GET_FEATURES, bytes(8)), bytes(8), ["a", "b"])
