"""Any sequence of well-formed messages: nothing is raised but PeerError, every descriptor has one
owner, and QEMU gets exactly the replies that it waits for (`Script` checks both)."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.backend.frontend import ANSWERED, AVAIL, DESC, GUEST_RAM, USED, Script, message
from vgpud.backend import actions as act
from vgpud.backend.state import VhostUserBackend
from vgpud.errors import PeerError
from vgpuwire import (
    VHOST_USER_F_PROTOCOL_FEATURES,
    ConfigSpace,
    MemRegion,
    MemTable,
    Message,
    Request,
    VringAddr,
    VringFd,
    VringState,
    vhost_user,
)
from vgpuwire.payload import OPAQUE

u64 = st.integers(0, (1 << 64) - 1)
index = st.sampled_from([0, 0, 1, 1, 1, 2])
base = st.sampled_from([0, 0, 5, 0xFFFF, 0x10000])
size = st.sampled_from([16, 256, 1024, 0, 3])
pages = st.integers(0, 5).map(lambda n: n << 12)
region = st.builds(MemRegion, pages, pages, pages, pages)
addr = st.builds(
    VringAddr, index, st.just(0), st.sampled_from([DESC, 1]), st.just(USED), st.just(AVAIL), u64
)
features = st.one_of(st.just(1 << 32 | 1 << 30), st.just(1 << 32), u64)
acks = st.booleans()
NOTHING = st.none()


def told(request: int, payload: Any = NOTHING, fds: int = 0) -> st.SearchStrategy[Message]:
    return st.builds(lambda value, ack: message(request, value, fds, need_reply=ack), payload, acks)


def with_fd(request: int) -> st.SearchStrategy[Message]:
    return st.builds(
        lambda ring, nofd, ack: message(request, VringFd(ring, nofd), not nofd, need_reply=ack),
        index, st.booleans(), acks,
    )  # fmt: skip


def table(regions: list[MemRegion], ack: bool) -> Message:
    return message(Request.SET_MEM_TABLE, MemTable(tuple(regions)), len(regions), need_reply=ack)


NOT_LOOKED_INTO = [
    request
    for request, syntax in vhost_user.SYNTAX.items()
    if syntax.payload is OPAQUE and request not in ANSWERED
]
config = st.builds(
    lambda offset, data: ConfigSpace(offset, len(data), 0, data),
    st.sampled_from([0, 8, 300]),
    st.binary(max_size=256),
)
messages = st.one_of(
    *(
        told(request)
        for request in (
            Request.GET_FEATURES,
            Request.SET_OWNER,
            Request.RESET_OWNER,
            Request.GET_PROTOCOL_FEATURES,
            Request.GET_QUEUE_NUM,
            Request.GET_MAX_MEM_SLOTS,
            Request.GET_STATUS,
            Request.RESET_DEVICE,
        )
    ),
    told(Request.SET_FEATURES, features),
    told(Request.SET_PROTOCOL_FEATURES, st.sampled_from([0, 8, 0xA209, 0x208, 1 << 14])),
    told(Request.SET_STATUS, u64),
    told(Request.GPU_SET_SOCKET, fds=1),
    told(Request.SET_BACKEND_REQ_FD, fds=1),
    st.builds(table, st.lists(region, max_size=8), acks),
    told(Request.ADD_MEM_REG, region, 1),
    told(Request.REM_MEM_REG, region),
    told(Request.SET_VRING_NUM, st.builds(VringState, index, size)),
    told(Request.SET_VRING_BASE, st.builds(VringState, index, base)),
    told(Request.SET_VRING_ADDR, addr),
    told(Request.GET_VRING_BASE, st.builds(VringState, index, base)),
    told(Request.SET_VRING_ENABLE, st.builds(VringState, index, base)),
    *map(with_fd, (Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR)),
    told(Request.GET_CONFIG, config),
    told(Request.SET_CONFIG, config),
    st.sampled_from(NOT_LOOKED_INTO).flatmap(lambda request: told(request, st.binary(max_size=64))),
    st.integers(1000, 1 << 31).flatmap(lambda request: told(request, st.binary(max_size=8), 2)),
)


RUNNING = [
    message(Request.GET_FEATURES),
    message(Request.SET_PROTOCOL_FEATURES, 0xA209),
    message(Request.SET_FEATURES, 1 << 32 | VHOST_USER_F_PROTOCOL_FEATURES),
    message(Request.SET_MEM_TABLE, MemTable((GUEST_RAM,)), 1),
    *(message(Request.SET_VRING_NUM, VringState(n, 16)) for n in (0, 1)),
    *(message(Request.SET_VRING_ADDR, VringAddr(n, 0, DESC, USED, AVAIL, 0)) for n in (0, 1)),
    *(message(Request.SET_VRING_KICK, VringFd(n, False), 1) for n in (0, 1)),
]
"""A device in use: what is random goes on from there, or from nothing."""


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([RUNNING[:1], RUNNING]),
    st.lists(messages, max_size=40),
    st.sampled_from([0, 5, 0xFFFF]),
    st.booleans(),
)
def test_any_messages(
    first: list[Message], then: list[Message], stopped_at: int, starts_fail: bool
) -> None:
    script = Script(VhostUserBackend(0x2), stopped_at)
    for each in first:
        script.feed(each)
    script.fails = (act.StartRing,) if starts_fail else ()
    for each in then:
        before = script.backend.memory
        try:
            script.feed(each)
        except PeerError:
            assert script.backend.memory is before
            return
        # What the session runs is what the state machine believes.
        rings = script.backend.rings
        assert {n for n in range(len(rings)) if rings[n].started} == set(script.started)
