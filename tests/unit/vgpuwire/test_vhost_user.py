"""vgpuwire.vhost_user: messages against struct, and everything a front-end can get wrong."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vgpuwire.values import values_of
from vgpuwire import (
    BadFlags,
    ConfigSpace,
    Header,
    MemRegion,
    MemTable,
    Request,
    TooLong,
    Truncated,
    VringAddr,
    VringFd,
    VringState,
    WireError,
    WrongFdCount,
    vhost_user,
)
from vgpuwire.payload import OPAQUE
from vgpuwire.vhost_user import build_reply, build_request, parse

REGION = MemRegion(0x100000, 0x3F00000, 0x7F8FE80FF000, 0x100000)
REGION_BYTES = struct.pack("<4Q", *[0x100000, 0x3F00000, 0x7F8FE80FF000, 0x100000])
STATE = struct.pack("<II", 1, 256)

# Request, payload on the wire, its value, fds: as QEMU 11.1 sends them.
EXAMPLES = [
    (Request.GET_FEATURES, b"", None, 0),
    (Request.SET_FEATURES, struct.pack("<Q", 0x140000007), 0x140000007, 0),
    (Request.SET_OWNER, b"", None, 0),
    (Request.RESET_OWNER, b"", None, 0),
    (Request.SET_MEM_TABLE, struct.pack("<II", 0, 0), MemTable(()), 0),
    (Request.SET_MEM_TABLE, struct.pack("<II", 1, 0) + REGION_BYTES, MemTable((REGION,)), 1),
    (
        Request.SET_MEM_TABLE,
        struct.pack("<II", 8, 0) + REGION_BYTES * 8,
        MemTable((REGION,) * 8),
        8,
    ),
    (Request.SET_VRING_NUM, STATE, VringState(1, 256), 0),
    (
        Request.SET_VRING_ADDR,
        struct.pack("<IIQQQQ", 1, 0, 0x10, 0x20, 0x30, 0x40),
        VringAddr(
            1, 0, desc_user_addr=16, used_user_addr=32, avail_user_addr=48, log_guest_addr=64
        ),
        0,
    ),
    (Request.SET_VRING_BASE, STATE, VringState(1, 256), 0),
    (Request.GET_VRING_BASE, STATE, VringState(1, 256), 0),
    (Request.SET_VRING_KICK, struct.pack("<Q", 1), VringFd(1, False), 1),
    (Request.SET_VRING_CALL, struct.pack("<Q", 0), VringFd(0, False), 1),
    (Request.SET_VRING_CALL, struct.pack("<Q", 0x101), VringFd(1, True), 0),
    (Request.SET_VRING_ERR, struct.pack("<Q", 255), VringFd(255, False), 1),
    (Request.GET_PROTOCOL_FEATURES, b"", None, 0),
    (Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", 0xA209), 0xA209, 0),
    (Request.GET_QUEUE_NUM, b"", None, 0),
    (Request.SET_VRING_ENABLE, STATE, VringState(1, 256), 0),
    (Request.SET_BACKEND_REQ_FD, b"", None, 1),
    (
        Request.GET_CONFIG,
        struct.pack("<III", 0, 16, 0) + bytes(16),
        ConfigSpace(0, 16, 0, bytes(16)),
        0,
    ),
    (
        Request.SET_CONFIG,
        struct.pack("<III", 0, 20, 0) + bytes(range(20)),
        ConfigSpace(0, 20, 0, bytes(range(20))),
        0,
    ),
    (Request.GPU_SET_SOCKET, b"", None, 1),
    (Request.RESET_DEVICE, b"", None, 0),
    (Request.VRING_KICK, STATE, VringState(1, 256), 0),
    (Request.GET_MAX_MEM_SLOTS, b"", None, 0),
    (Request.ADD_MEM_REG, bytes(8) + REGION_BYTES, REGION, 1),
    (Request.REM_MEM_REG, bytes(8) + REGION_BYTES, REGION, 0),
    (Request.SET_STATUS, struct.pack("<Q", 8), 8, 0),
    (Request.GET_STATUS, b"", None, 0),
]
examples = pytest.mark.parametrize(
    ("request_", "payload", "value", "fds"),
    EXAMPLES,
    ids=[f"{row[0].name}-{row[3]}" for row in EXAMPLES],
)


def header(request: int, payload: bytes, flags: int = 1) -> Header:
    return Header(request, flags, len(payload))


@examples
def test_parse_and_build(request_: Request, payload: bytes, value: object, fds: int) -> None:
    descriptors = tuple("abcdefgh"[:fds])
    message = parse(header(request_, payload), payload, descriptors)
    assert message.request is request_
    assert message.payload == value
    assert type(message.payload) is type(value)
    assert message.fds == descriptors
    assert (message.flags, message.need_reply) == (1, False)
    head = struct.pack("<III", request_, 1, len(payload))
    assert build_request(request_, value) == head + payload


@examples
def test_shorter_or_longer(request_: Request, payload: bytes, value: object, fds: int) -> None:
    descriptors = tuple("abcdefgh"[:fds])
    for size in range(len(payload)):
        with pytest.raises(Truncated, match=request_.name):
            parse(header(request_, payload[:size]), payload[:size], descriptors)
    with pytest.raises(TooLong, match=request_.name):
        parse(header(request_, payload + b"\0"), payload + b"\0", descriptors)


@examples
def test_wrong_fd_count(request_: Request, payload: bytes, value: object, fds: int) -> None:
    allowed = {0, 1} if request_ is Request.REM_MEM_REG else {fds}
    for count in set(range(10)) - allowed:
        with pytest.raises(WrongFdCount, match=f"{request_.name}: {count} file descriptors"):
            parse(header(request_, payload), payload, [object()] * count)


def test_rem_mem_reg_may_bring_an_fd() -> None:
    """Older front-ends send it; the specification has it closed unused."""
    payload = bytes(8) + REGION_BYTES
    assert parse(header(Request.REM_MEM_REG, payload), payload, ["fd"]).fds == ("fd",)


def test_need_reply() -> None:
    message = parse(header(Request.SET_OWNER, b"", 0x9), b"")
    assert (message.flags, message.need_reply) == (0x9, True)
    assert build_request(Request.SET_OWNER, need_reply=True) == struct.pack("<III", 3, 9, 0)


@pytest.mark.parametrize("flags", sorted({*range(64), 0x80000001} - {0x1, 0x9}))
def test_bad_flags(flags: int) -> None:
    with pytest.raises(BadFlags, match=f"request 3: flags {flags:#x}, not 0x1 or 0x9"):
        parse(header(Request.SET_OWNER, b"", flags), b"")
    with pytest.raises(BadFlags):
        parse(header(99, b"", flags), b"")


@pytest.mark.parametrize("number", [0, 45, 99, 0xFFFFFFFF])
@pytest.mark.parametrize("flags", [0x1, 0x9])
@pytest.mark.parametrize("fds", [(), ("a", "b")])
def test_unknown_request_is_delivered(number: int, flags: int, fds: tuple[str, ...]) -> None:
    message = parse(header(number, b"what?", flags), b"what?", fds)
    assert message.request == number
    assert not isinstance(message.request, Request)
    assert (message.payload, message.fds) == (b"what?", fds)
    assert message.need_reply is (flags == 0x9)
    assert build_request(number, b"what?") == struct.pack("<III", number, 1, 5) + b"what?"


@pytest.mark.parametrize(
    "request_", [one for one in Request if vhost_user.SYNTAX[one].payload is OPAQUE]
)
def test_requests_of_features_never_offered_are_not_looked_into(request_: Request) -> None:
    message = parse(header(request_, b"anything"), b"anything", ["fd"])
    assert (message.request, message.payload, message.fds) == (request_, b"anything", ("fd",))
    assert build_request(request_, b"anything").endswith(b"anything")


def test_syntax_knows_every_request() -> None:
    assert set(vhost_user.SYNTAX) == set(Request)
    tested = {row[0] for row in EXAMPLES}
    opaque = {one for one in Request if vhost_user.SYNTAX[one].payload is OPAQUE}
    assert tested | opaque == set(Request)
    assert not tested & opaque


def test_payload_is_the_headers() -> None:
    with pytest.raises(Truncated, match="7 bytes, header says 8"):
        parse(Header(Request.SET_FEATURES, 1, 8), bytes(7))
    with pytest.raises(TooLong, match="9 bytes, header says 8"):
        parse(Header(Request.SET_FEATURES, 1, 8), bytes(9))
    with pytest.raises(TooLong, match="4097 bytes, at most 4096"):
        parse(Header(99, 1, 4097), bytes(4097))


# -- limits


@pytest.mark.parametrize("count", [9, 255, 0xFFFFFFFF])
def test_more_than_eight_regions(count: int) -> None:
    payload = struct.pack("<II", count, 0) + REGION_BYTES * 9
    with pytest.raises(TooLong, match="SET_MEM_TABLE: a count is beyond its limit"):
        parse(header(Request.SET_MEM_TABLE, payload), payload, ["fd"] * 8)
    with pytest.raises(WireError, match="SET_MEM_TABLE"):
        build_request(Request.SET_MEM_TABLE, MemTable((REGION,) * 9))


@pytest.mark.parametrize("size", [0, 1, 16, 20, 256])
def test_config_sizes(size: int) -> None:
    payload = struct.pack("<III", 4, size, 1) + b"c" * size
    value = parse(header(Request.GET_CONFIG, payload), payload).payload
    assert value == ConfigSpace(4, size, 1, b"c" * size)
    reply = build_reply(Request.GET_CONFIG, value)
    assert reply == struct.pack("<III", 24, 5, 12 + size) + payload


@pytest.mark.parametrize("size", [257, 4096, 0xFFFFFFFF])
def test_config_beyond_its_limit(size: int) -> None:
    payload = struct.pack("<III", 0, size, 0) + bytes(min(size, 4000))
    with pytest.raises(TooLong, match="GET_CONFIG"):
        parse(header(Request.GET_CONFIG, payload), payload)


@pytest.mark.parametrize(("size", "body"), [(16, bytes(20)), (20, bytes(16)), (257, bytes(257))])
def test_config_size_must_be_the_payloads(size: int, body: bytes) -> None:
    with pytest.raises(WireError, match="does not fit"):
        build_reply(Request.GET_CONFIG, ConfigSpace(0, size, 0, body))


@settings(deadline=None)
@given(st.integers(0, (1 << 64) - 1))
def test_vring_fd_reads_nine_bits(raw: int) -> None:
    payload = struct.pack("<Q", raw)
    nofd = bool(raw & 0x100)
    message = parse(header(Request.SET_VRING_CALL, payload), payload, () if nofd else ("fd",))
    assert message.payload == VringFd(raw & 0xFF, nofd)


@pytest.mark.parametrize(
    ("request_", "value"),
    [
        (Request.SET_OWNER, 1),
        (Request.SET_VRING_CALL, VringFd(256, False)),
        (Request.SET_MEM_TABLE, None),
        (Request.ADD_MEM_REG, MemTable((REGION,))),
        (Request.SET_CONFIG, None),
    ],
)
def test_request_that_does_not_fit(request_: Request, value: object) -> None:
    with pytest.raises(WireError, match=request_.name):
        build_request(request_, value)


@settings(deadline=None, max_examples=40)
@given(st.lists(values_of(MemRegion.layout), max_size=8))
def test_memory_tables_round_trip(regions: list[MemRegion]) -> None:
    data = build_request(Request.SET_MEM_TABLE, MemTable(tuple(regions)))
    message = parse(Header.decode(data), data[12:], list(range(len(regions))))
    assert message.payload == MemTable(tuple(regions))
    assert len(data) == 12 + 8 + 32 * len(regions)
