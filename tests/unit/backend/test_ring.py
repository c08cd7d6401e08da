"""The transition table of a ring, pair by pair, and what makes a description unfit."""

from __future__ import annotations

import pytest

from vgpud.backend.ring import TRANSITIONS, Event, RingConfig, State
from vgpud.errors import PeerError
from vgpuwire import VringAddr

ADDR = VringAddr(0, 0, 0x10000, 0x12000, 0x11000, 0)

TABLE = {
    # state:        DESCRIBE COMPLETE START RESTART REFUSE STOP RESET
    State.NEW: "NEW READY - - BROKEN STOPPED NEW",
    State.READY: "- READY STARTED - BROKEN STOPPED NEW",
    State.STARTED: "- STARTED - STARTED BROKEN STOPPED NEW",
    State.STOPPED: "NEW READY STARTED - BROKEN STOPPED NEW",
    State.BROKEN: "NEW READY STARTED - BROKEN STOPPED NEW",
}


def ring_in(state: State) -> RingConfig:
    ring = RingConfig(1)
    if state is State.NEW:
        return ring
    ring.set_size(256)
    ring.set_addr(ADDR)
    ring.set_base(5)
    if state in (State.STARTED, State.STOPPED):
        ring.start(event_idx=True)
    if state is State.STOPPED:
        ring.stop(9)
    if state is State.BROKEN:
        ring.refuse()
    assert ring.state is state
    return ring


@pytest.mark.parametrize(
    ("state", "event", "target"),
    [
        (state, event, target)
        for state, row in TABLE.items()
        for event, target in zip(Event, row.split(), strict=True)
    ],
)
def test_transition(state: State, event: Event, target: str) -> None:
    found = TRANSITIONS[state].get(event)
    assert (found.name if found else "-") == target


@pytest.mark.parametrize("state", State)
def test_descriptions_and_stops_and_resets_are_taken_in_every_state(state: State) -> None:
    ring = ring_in(state)
    ring.set_base(3)
    ring.set_size(16)
    ring.set_addr(ADDR)
    assert ring.state is (State.STARTED if state is State.STARTED else State.READY)
    ring.stop(3)
    assert (ring.state, ring.base, ring.returned) == (State.STOPPED, 3, 3)
    ring.reset()
    assert (ring.state, ring.size, ring.addr, ring.base, ring.returned) == (
        State.NEW, None, None, 0, None,
    )  # fmt: skip


def test_a_live_ring_is_not_started_again_without_a_base() -> None:
    ring = ring_in(State.STARTED)
    with pytest.raises(PeerError, match="ring 1 is STARTED and cannot START; GET_VRING_BASE"):
        ring.problem()
    ring.set_base(7)
    assert ring.problem() is None
    assert ring.start(event_idx=False).base == 7
    assert ring.state is State.STARTED


def test_a_start_takes_what_was_told_last() -> None:
    ring = ring_in(State.READY)
    ring.set_size(64)
    setup = ring.start(event_idx=True)
    assert (setup.size, setup.desc, setup.avail, setup.used) == (64, 0x10000, 0x11000, 0x12000)
    assert (setup.base, setup.event_idx) == (5, True)


def test_cont_goes_on_where_the_stop_was() -> None:
    ring = ring_in(State.STOPPED)
    assert ring.problem() is None
    assert ring.start(event_idx=True).base == 9


def test_a_ring_that_failed_to_start_keeps_its_base() -> None:
    ring = ring_in(State.STARTED)
    ring.refuse()
    assert (ring.state, ring.base) == (State.BROKEN, 5)
    assert ring.problem() is None  # its memory may be there the next time


@pytest.mark.parametrize("size", [0, 3, 1023, 1025, 2048, 32769, 1 << 31])
def test_sizes_that_no_split_virtqueue_has(size: int) -> None:
    ring = ring_in(State.READY)
    ring.set_size(size)
    assert str(size) in str(ring.problem())


@pytest.mark.parametrize("size", [1, 2, 16, 256, 1024])
def test_sizes_that_a_driver_may_choose(size: int) -> None:
    ring = ring_in(State.READY)
    ring.set_size(size)
    assert ring.problem() is None


@pytest.mark.parametrize(
    ("addr", "named"),
    [
        (VringAddr(0, 0, 0x10008, 0x12000, 0x11000, 0), "desc_user_addr 0x10008"),
        (VringAddr(0, 0, 0x10000, 0x12002, 0x11000, 0), "used_user_addr 0x12002"),
        (VringAddr(0, 0, 0x10000, 0x12000, 0x11001, 0), "avail_user_addr 0x11001"),
    ],
)
def test_alignment(addr: VringAddr, named: str) -> None:
    ring = ring_in(State.READY)
    ring.set_addr(addr)
    assert named in str(ring.problem())


def test_what_is_missing_is_named() -> None:
    ring = RingConfig(0)
    assert "SET_VRING_NUM" in str(ring.problem())
    ring.set_size(16)
    assert "SET_VRING_ADDR" in str(ring.problem())
    ring.set_addr(ADDR)
    assert ring.problem() is None  # no base was told: from 0
    ring.set_base(0x10000)
    assert "0x10000" in str(ring.problem())
