"""What a ring's message asks to be done, and when a front-end without RESET_DEVICE resets."""

from __future__ import annotations

import pytest

from tests.unit.backend.frontend import DESC, Fd
from vgpud.backend import actions as act
from vgpud.backend.rings import NO_MEMORY, Rings
from vgpud.errors import PeerError
from vgpuwire import RingFeature, VringAddr

PROTOCOL = 1 << 30
FEATURES = int(RingFeature.VERSION_1) | PROTOCOL


def described(*indexes: int) -> Rings:
    rings = Rings(2)
    for index in indexes:
        rings[index].set_size(16)
        rings[index].set_addr(VringAddr(index, 0, DESC, DESC + 0x2000, DESC + 0x1000, 0))
    return rings


def kick(rings: Rings, index: int = 0, features: int | None = FEATURES):
    return rings.kick(index, (Fd(),), features, None)


def kinds(actions) -> list[type]:
    return [type(action) for action in actions]


@pytest.mark.parametrize("index", [2, 3, 255, 1 << 32])
def test_there_are_two(index: int) -> None:
    with pytest.raises(PeerError, match=f"ring {index} of a device that has 2.*num_vqs=2"):
        Rings(2)[index]


@pytest.mark.parametrize("event_idx", [False, True])
def test_kick_starts(event_idx: bool) -> None:
    features = FEATURES | (RingFeature.EVENT_IDX if event_idx else 0)
    (start,) = kick(described(0), features=features)
    assert start.setup.event_idx is event_idx


def test_without_protocol_features_a_ring_starts_enabled() -> None:
    rings = described(0)
    assert kinds(kick(rings, features=int(RingFeature.VERSION_1))) == [
        act.EnableRing,
        act.StartRing,
    ]
    assert rings[0].enabled


@pytest.mark.parametrize(
    ("rings", "features", "obstacle", "fds", "reason"),
    [
        (Rings(2), FEATURES, None, 1, "no SET_VRING_NUM"),
        (described(0), None, None, 1, "before SET_FEATURES"),
        (described(0), FEATURES, NO_MEMORY, 1, NO_MEMORY),
        (described(0), FEATURES, None, 0, "polling"),
    ],
)
def test_a_start_that_cannot_be(rings, features, obstacle, fds: int, reason: str) -> None:
    given = tuple(Fd() for _ in range(fds))
    actions = rings.kick(0, given, features, obstacle)
    assert isinstance(actions[-1], act.BreakRing)
    assert reason in actions[-1].reason
    assert actions[:-1] == ([act.CloseFds(given)] if given else [])
    assert rings[0].state.name == "BROKEN"


def test_a_live_ring_described_anew_is_stopped_first() -> None:
    rings = described(0)
    kick(rings)
    rings[0].set_size(32)
    rings.set_base(0, 4)
    stop, start = kick(rings)
    assert stop == act.StopRing(0)
    assert (start.setup.size, start.setup.base) == (32, 4)
    rings[0].set_size(3)
    rings.set_base(0, 4)
    assert kinds(kick(rings)) == [act.StopRing, act.CloseFds, act.BreakRing]


@pytest.mark.parametrize(
    ("returned", "told", "resets"),
    [
        ((None, None), (0, 0), []),  # the first start ever
        ((None, None), (5, 5), []),  # another back-end served it before
        ((5, 3), (5, 3), []),  # cont
        ((5, 3), (0, 0), [0]),  # reset; once for both
        ((0, 3), (0, 0), [1]),  # the first ring cannot tell, the second does
        ((5, 0), (0, 0), [0]),
        ((0, 0), (0, 0), []),  # nothing was ever served
        ((5, 3), (4, 3), [0]),
        ((5, None), (0, 0), [0]),  # firmware that uses only queue 0
    ],
)
def test_a_base_that_moved_is_a_reset(
    returned: tuple[int | None, ...], told: tuple[int, ...], resets: list[int]
) -> None:
    rings = described(0, 1)
    for index, base in enumerate(returned):
        if base is not None:
            rings[index].stop(base)
    found = []
    for index, base in enumerate(told):
        found += [index for _ in rings.set_base(index, base)]
        assert kinds(kick(rings, index)) == [act.StartRing]
    assert found == resets


def test_a_start_that_did_not_come_to_the_kick_does_not_hide_the_reset() -> None:
    rings = described(0)
    rings[0].stop(5)
    assert rings.set_base(0, 5) == []  # cont, but its memory table was refused
    assert kinds(rings.set_base(0, 0)) == [act.Reset]
    assert rings.set_base(0, 0) == []


def test_the_base_of_a_live_ring_is_no_reset() -> None:
    rings = described(0)
    rings[0].stop(5)
    rings.set_base(0, 5)
    kick(rings)
    assert rings.set_base(0, 0) == []


def test_whoever_sends_reset_device_is_not_second_guessed() -> None:
    rings = described(0, 1)
    assert rings.reset_device() == [act.Reset("RESET_DEVICE")]
    rings = described(0, 1)
    rings.reset_device()
    rings[0].stop(5)
    assert rings.set_base(0, 0) == []


def test_reset_device_stops_what_still_runs() -> None:
    rings = described(0, 1)
    kick(rings, 1)
    rings.enable(0, True)
    assert rings.reset_device() == [
        act.EnableRing(0, False),
        act.StopRing(1),
        act.Reset("RESET_DEVICE"),
    ]
    assert [rings[n].state.name for n in (0, 1)] == ["NEW", "NEW"]
