"""vgpuwire.framing: whole messages however the bytes come, and no descriptor lost."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgpuwire import (
    BadFlags,
    Framer,
    Header,
    MemRegion,
    MemTable,
    Message,
    Request,
    TooLong,
    Truncated,
    VringState,
    WireError,
    WrongFdCount,
    vhost_user,
    vhost_user_gpu,
)
from vgpuwire.framing import HEADER
from vgpuwire.vhost_user import build_request

TABLE = MemTable((MemRegion(0, 0x1000, 0x7F0000000000, 0), MemRegion(0x2000, 0x1000, 1, 2)))

STREAM: list[tuple[bytes, tuple[str, ...], object]] = [
    (build_request(Request.GET_FEATURES), (), None),
    (build_request(Request.SET_MEM_TABLE, TABLE, need_reply=True), ("a", "b"), TABLE),
    (build_request(Request.GPU_SET_SOCKET), ("c",), None),
    (build_request(Request.SET_VRING_NUM, VringState(0, 64)), (), VringState(0, 64)),
    (build_request(77, b"unknown"), ("d",), b"unknown"),
]


def new() -> Framer[str]:
    return Framer(vhost_user.REQUESTS)


def test_header_is_twelve_bytes() -> None:
    assert Header.SIZE == 12
    assert HEADER.build(Header(1, 2, 3), "it") == struct.pack("<III", 1, 2, 3)


def test_wanted_ends_with_the_header_and_with_the_message() -> None:
    framer = new()
    data = STREAM[1][0]
    assert framer.wanted == 12
    assert framer.feed(data[:5], ["a", "b"]) is None
    assert framer.wanted == 7
    assert framer.feed(data[5:12]) is None
    assert framer.wanted == len(data) - 12
    assert not framer.between_messages
    message = framer.feed(data[12:])
    assert message == Message(Request.SET_MEM_TABLE, 9, True, TABLE, ("a", "b"))
    assert (framer.wanted, framer.undelivered, framer.between_messages) == (12, [], True)


def test_a_message_without_payload_is_whole_with_its_header() -> None:
    assert new().feed(STREAM[0][0]) == Message(Request.GET_FEATURES, 1, False, None)


@pytest.mark.parametrize(("data", "fds", "payload"), STREAM, ids=lambda one: "")
@pytest.mark.parametrize("late", [False, True])
def test_every_split(data: bytes, fds: tuple[str, ...], payload: object, late: bool) -> None:
    """One cut at every byte, the fds with the first byte before it or behind it."""
    for cut in range(1, len(data)):
        framer = new()
        assert feed_all(framer, data[:cut], () if late else fds) is None
        message = feed_all(framer, data[cut:], fds if late else ())
        assert message is not None
        assert (message.payload, message.fds) == (payload, fds)
        assert framer.between_messages


def feed_all(framer: Framer[str], data: bytes, fds: Sequence[str]) -> Message[str] | None:
    """Feed as the shell does: never more than wanted; the fds with the first byte."""
    message = None
    while data:
        assert message is None
        size = framer.wanted
        message = framer.feed(data[:size], fds)
        data, fds = data[size:], ()
    return message


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_streams_in_pieces(data: st.DataObject) -> None:
    framer = new()
    for bytes_, fds, payload in data.draw(st.lists(st.sampled_from(STREAM), max_size=6)):
        rest, left, message = bytes_, list(fds), None
        while rest:
            assert message is None
            size = data.draw(st.integers(1, framer.wanted))
            message = framer.feed(rest[:size], left)
            rest, left = rest[size:], []
        assert message is not None
        assert (message.payload, message.fds) == (payload, fds)
        assert framer.between_messages


def test_byte_by_byte() -> None:
    framer = new()
    got = []
    for data, fds, _ in STREAM:
        for at in range(len(data)):
            message = framer.feed(data[at : at + 1], fds if at == 0 else ())
            if message is not None:
                got.append(message)
    assert [one.payload for one in got] == [row[2] for row in STREAM]
    assert [one.fds for one in got] == [row[1] for row in STREAM]


# -- what goes wrong


def test_more_than_wanted_is_the_callers_error() -> None:
    framer = new()
    with pytest.raises(ValueError, match="fed 13 bytes of 12 wanted") as caught:
        framer.feed(bytes(13), ["a"])
    assert not isinstance(caught.value, WireError)
    assert framer.undelivered == ["a"]
    assert framer.wanted == 12


def test_size_is_refused_with_the_header() -> None:
    framer = new()
    with pytest.raises(TooLong, match="4097 bytes, at most 4096"):
        framer.feed(struct.pack("<III", 99, 1, 4097), ["a"])
    assert framer.undelivered == ["a"]


def test_largest_size_is_accepted() -> None:
    framer = new()
    assert framer.feed(struct.pack("<III", 99, 1, 4096)) is None
    message = framer.feed(bytes(4096))
    assert message is not None
    assert message.payload == bytes(4096)


@pytest.mark.parametrize("flags", [0, 2, 3, 5, 0xD, 0x11])
def test_flags_are_refused_with_the_header(flags: int) -> None:
    with pytest.raises(BadFlags):
        new().feed(struct.pack("<III", 99, flags, 8))


def test_too_many_fds_are_kept_for_closing() -> None:
    framer = new()
    with pytest.raises(WrongFdCount, match="message: 9 file descriptors, not 0 to 8"):
        framer.feed(b"\1", list("abcdefghi"))
    assert framer.undelivered == list("abcdefghi")


def test_fds_trickling_in_are_counted_together() -> None:
    framer = new()
    data = STREAM[1][0]
    for at in range(8):
        framer.feed(data[at : at + 1], ["x"])
    with pytest.raises(WrongFdCount):
        framer.feed(data[8:9], ["x"])
    assert framer.undelivered == ["x"] * 9


@pytest.mark.parametrize("fds", [(), ("a",), ("a", "b", "c")])
def test_wrong_fd_count_keeps_them(fds: tuple[str, ...]) -> None:
    framer = new()
    data = STREAM[1][0]
    framer.feed(data[:12], fds)
    with pytest.raises(WrongFdCount, match="SET_MEM_TABLE"):
        framer.feed(data[12:])
    assert framer.undelivered == list(fds)


def test_after_an_error_it_stays_dead_and_still_keeps_fds() -> None:
    framer = new()
    with pytest.raises(Truncated) as first:
        framer.feed(struct.pack("<III", Request.SET_FEATURES, 1, 0), ["a"])
    with pytest.raises(Truncated) as second:
        framer.feed(STREAM[0][0], ["b"])
    assert first.value is second.value
    assert framer.undelivered == ["a", "b"]


def test_eof_in_a_message_leaves_its_fds() -> None:
    framer = new()
    framer.feed(STREAM[2][0][:3], ["c"])
    assert framer.feed(b"") is None
    assert framer.undelivered == ["c"]
    assert not framer.between_messages


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 10))
def test_any_bytes_lose_no_fd(data: bytes, count: int) -> None:
    framer: Framer[int] = Framer(vhost_user.REQUESTS)
    delivered: list[int] = []
    fds: list[int] = list(range(count))
    while data:
        piece, data = data[: framer.wanted], data[framer.wanted :]
        try:
            message = framer.feed(piece, fds)
        except WireError:
            fds = []
            break
        fds = []
        if message is not None:
            delivered += message.fds
    assert sorted(delivered + framer.undelivered + fds) == list(range(count))


# -- the other three directions


def test_display_replies() -> None:
    framer: Framer[str] = Framer(vhost_user_gpu.REPLIES)
    assert framer.feed(struct.pack("<III", 10, 4, 0)) == Message(10, 4, False, None)
    framer.feed(struct.pack("<III", 11, 4, 1056))
    assert framer.feed(bytes(1056)) == Message(11, 4, False, bytes(1056))
    with pytest.raises(TooLong, match="1057 bytes, at most 1056"):
        framer.feed(struct.pack("<III", 11, 4, 1057))


def test_display_replies_have_no_fds() -> None:
    framer: Framer[str] = Framer(vhost_user_gpu.REPLIES)
    with pytest.raises(WrongFdCount):
        framer.feed(b"\n", ["a"])
    assert framer.undelivered == ["a"]


def test_backend_replies() -> None:
    framer: Framer[str] = Framer(vhost_user.REPLIES)
    data = vhost_user.build_reply(Request.GET_FEATURES, 7)
    framer.feed(data[:12])
    assert framer.feed(data[12:]) == Message(Request.GET_FEATURES, 5, False, 7)


def test_display_requests_with_pixels() -> None:
    framer: Framer[str] = Framer(vhost_user_gpu.REQUESTS)
    data = vhost_user_gpu.update(0, 1, 2, 3, 2) + bytes(range(24))
    framer.feed(data[:12])
    message = framer.feed(data[12:])
    assert message is not None
    head = vhost_user_gpu.Update(0, 1, 2, 3, 2)
    assert message.payload == vhost_user_gpu.Pixels(head, bytes(range(24)))
