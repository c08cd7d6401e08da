"""The vhost-user protocol: what a front-end says to its back-end, and the answers.

Source: QEMU's docs/interop/vhost-user.rst; names are its names without VHOST_USER_. Integers are
in host byte order (little-endian here), sizes and offsets in bytes. `SYNTAX` is the one place
that says which payload and how many file descriptors a request has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple, TypeVar

from construct import Array, Bytes, Check, Int8ul, Int32ul, Int64ul, Padding, Struct, this

from vgpuwire.framing import HEADER, Dialect, Header, Message, check_fds, check_frame
from vgpuwire.payload import (
    NOTHING,
    OPAQUE,
    U64,
    Payload,
    from_container,
    of_record,
    to_container,
)
from vgpuwire.record import Record, field
from vgpuwire.vhost_user_numbers import Request

T = TypeVar("T")

VERSION: Final = 0x1
VERSION_MASK: Final = 0x3
REPLY: Final = 0x4
NEED_REPLY: Final = 0x8
"""Bits of the header's flags."""

MAX_REGIONS: Final = 8
"""Of one SET_MEM_TABLE; with CONFIGURE_MEM_SLOTS regions come one by one instead."""
MAX_CONFIG: Final = 256
"""Bytes of configuration space (VHOST_USER_MAX_CONFIG_SIZE)."""
MAX_PAYLOAD: Final = 4096
"""Bytes. The largest payload is GET_SHMEM_CONFIG's, 8 + 256 * 8 = 2056."""


class VringState(Record):
    """A ring's index and a number: its size, its next avail index, or enabled (1) or not."""

    index: int = field(Int32ul)
    num: int = field(Int32ul)


class VringAddr(Record):
    """Where a ring's parts are, as front-end addresses (log_guest_addr: guest-physical). The
    used ring precedes the avail ring, unlike in memory."""

    index: int = field(Int32ul)
    flags: int = field(Int32ul)
    desc_user_addr: int = field(Int64ul)
    used_user_addr: int = field(Int64ul)
    avail_user_addr: int = field(Int64ul)
    log_guest_addr: int = field(Int64ul)


class MemRegion(Record):
    """Guest memory: where the guest and where the front-end sees it, and its fd's offset."""

    guest_phys_addr: int = field(Int64ul)
    memory_size: int = field(Int64ul)
    userspace_addr: int = field(Int64ul)
    mmap_offset: int = field(Int64ul)


@dataclass(frozen=True, slots=True)
class MemTable:
    """All of guest memory; one fd a region, in the same order."""

    regions: tuple[MemRegion, ...]


@dataclass(frozen=True, slots=True)
class ConfigSpace:
    """A part of configuration space; `size` is len(payload)."""

    offset: int
    size: int
    flags: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class VringFd:
    """Whose eventfd comes along; `nofd`: none does, the ring is to be polled (bit 8)."""

    index: int
    nofd: bool


VRING_STATE: Final = of_record(VringState)
VRING_ADDR: Final = of_record(VringAddr)

MEM_TABLE: Final = Payload(
    MemTable,
    Struct(
        "count" / Int32ul,
        Check(this.count <= MAX_REGIONS),
        Padding(4),
        "regions" / Array(this.count, MemRegion.layout),
    ),
    lambda got: MemTable(tuple(from_container(MemRegion.layout, r) for r in got.regions)),
    lambda table: {"count": len(table.regions), "regions": to_container(table.regions)},
)

SINGLE_MEM_REGION: Final = Payload(
    MemRegion,
    Struct(Padding(8), "region" / MemRegion.layout),
    lambda got: from_container(MemRegion.layout, got.region),
    lambda region: {"region": to_container(region)},
)

CONFIG_SPACE: Final = Payload(
    ConfigSpace,
    Struct(
        "offset" / Int32ul,
        "size" / Int32ul,
        "flags" / Int32ul,
        Check(this.size <= MAX_CONFIG),
        "payload" / Bytes(this.size),
    ),
    lambda got: ConfigSpace(got.offset, got.size, got.flags, got.payload),
    asdict,
)

VRING_FD: Final = Payload(
    VringFd,
    # One u64 in the specification: bits 0 to 7 the index, bit 8 NOFD, the others mean nothing.
    Struct("index" / Int8ul, "flags" / Int8ul, Padding(6)),
    lambda got: VringFd(got.index, bool(got.flags & 1)),
    lambda vring: {"index": vring.index, "flags": int(vring.nofd)},
)


class Syntax(NamedTuple):
    """A request's payload and how many fds come with it, at least and at most."""

    payload: Payload[Any]
    min_fds: int = 0
    max_fds: int = 0


SYNTAX: Final[dict[Request, Syntax]] = {
    **{request: Syntax(OPAQUE, 0, 1) for request in Request},
    Request.GET_FEATURES: Syntax(NOTHING),
    Request.SET_FEATURES: Syntax(U64),
    Request.SET_OWNER: Syntax(NOTHING),
    Request.RESET_OWNER: Syntax(NOTHING),
    Request.SET_MEM_TABLE: Syntax(MEM_TABLE, 0, MAX_REGIONS),  # as many as regions
    Request.SET_VRING_NUM: Syntax(VRING_STATE),
    Request.SET_VRING_ADDR: Syntax(VRING_ADDR),
    Request.SET_VRING_BASE: Syntax(VRING_STATE),
    Request.GET_VRING_BASE: Syntax(VRING_STATE),
    Request.SET_VRING_KICK: Syntax(VRING_FD, 0, 1),  # one unless NOFD
    Request.SET_VRING_CALL: Syntax(VRING_FD, 0, 1),
    Request.SET_VRING_ERR: Syntax(VRING_FD, 0, 1),
    Request.GET_PROTOCOL_FEATURES: Syntax(NOTHING),
    Request.SET_PROTOCOL_FEATURES: Syntax(U64),
    Request.GET_QUEUE_NUM: Syntax(NOTHING),
    Request.SET_VRING_ENABLE: Syntax(VRING_STATE),
    Request.SET_BACKEND_REQ_FD: Syntax(NOTHING, 1, 1),
    Request.GET_CONFIG: Syntax(CONFIG_SPACE),
    Request.SET_CONFIG: Syntax(CONFIG_SPACE),
    Request.GPU_SET_SOCKET: Syntax(NOTHING, 1, 1),
    Request.RESET_DEVICE: Syntax(NOTHING),
    Request.VRING_KICK: Syntax(VRING_STATE),
    Request.GET_MAX_MEM_SLOTS: Syntax(NOTHING),
    Request.ADD_MEM_REG: Syntax(SINGLE_MEM_REGION, 1, 1),
    # Older front-ends send the region's fd, which is to be closed unused.
    Request.REM_MEM_REG: Syntax(SINGLE_MEM_REGION, 0, 1),
    Request.SET_STATUS: Syntax(U64),
    Request.GET_STATUS: Syntax(NOTHING),
}
"""Requests of features that a GPU back-end never offers are not looked into (OPAQUE)."""

REPLIES_OTHER_THAN_U64: Final[dict[int, Payload[Any]]] = {
    Request.GET_VRING_BASE: VRING_STATE,
    Request.GET_CONFIG: CONFIG_SPACE,
}


def parse(header: Header, payload: bytes, fds: Sequence[T] = ()) -> Message[T]:
    """A front-end's request. Its payload is None, an int, VringState, VringAddr, VringFd,
    MemTable, MemRegion (ADD_MEM_REG, REM_MEM_REG), ConfigSpace, or bytes.

    Raises BadFlags, Truncated, TooLong, WrongFdCount. An unknown number is no error: the message
    then has a plain int, the raw payload and whatever fds came.
    """
    check_frame(header, payload, REQUESTS)
    need_reply = bool(header.flags & NEED_REPLY)
    if header.request not in SYNTAX:
        return Message(header.request, header.flags, need_reply, payload, tuple(fds))
    request = Request(header.request)
    syntax = SYNTAX[request]
    value = syntax.payload.parse(payload, request.name)
    low, high = syntax.min_fds, syntax.max_fds
    if isinstance(value, VringFd):
        low = high = 0 if value.nofd else 1
    elif isinstance(value, MemTable):
        low = high = len(value.regions)
    check_fds(request.name, fds, low, high)
    return Message(request, header.flags, need_reply, value, tuple(fds))


def parse_reply(header: Header, payload: bytes, fds: Sequence[T] = ()) -> Message[T]:
    """A back-end's reply, for front-ends made by tests. An empty payload, which says that
    GET_CONFIG failed, is None. Raises BadFlags, Truncated, TooLong, WrongFdCount."""
    check_frame(header, payload, REPLIES)
    known = header.request in SYNTAX
    request = Request(header.request) if known else header.request
    syntax = REPLIES_OTHER_THAN_U64.get(request, U64) if payload else NOTHING
    value = syntax.parse(payload, f"reply to {request!r}")
    check_fds(f"reply to {request!r}", fds, 0, REPLIES.max_fds)
    return Message(request, header.flags, False, value, tuple(fds))


def build_request(request: int, value: object = None, *, need_reply: bool = False) -> bytes:
    """A request as a front-end sends it; its fds go beside the bytes. `value` is what parse()
    gives, or raw bytes. Raises WireError where the value does not fit."""
    payload = SYNTAX[Request(request)].payload if request in SYNTAX else OPAQUE
    return _build(request, VERSION | NEED_REPLY * need_reply, payload, value)


def build_reply(request: int, value: object = b"") -> bytes:
    """The reply to a request: an int (a u64; 0 acknowledges), VringState, ConfigSpace, or raw
    bytes. Flags are exactly 0x5, as QEMU's reader demands. Raises WireError."""
    payload = REPLIES_OTHER_THAN_U64.get(request, U64)
    return _build(request, VERSION | REPLY, payload, value)


def _build(request: int, flags: int, payload: Payload[Any], value: object) -> bytes:
    what = f"request {request!r}"
    body = value if isinstance(value, bytes) else payload.build(value, what)
    return HEADER.build(Header(request, flags, len(body)), what) + body


REQUESTS: Final = Dialect(
    parse, frozenset({VERSION, VERSION | NEED_REPLY}), MAX_PAYLOAD, MAX_REGIONS
)
"""What a back-end reads."""
REPLIES: Final = Dialect(parse_reply, frozenset({VERSION | REPLY}), MAX_PAYLOAD, 1)
"""What a front-end reads."""
