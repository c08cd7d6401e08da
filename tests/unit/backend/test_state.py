"""One message in, actions and a reply out: the tables of the vhost-user requests."""

from __future__ import annotations

import pytest

from tests.unit.backend.frontend import (
    AVAIL,
    DESC,
    EDID,
    GUEST_RAM,
    USED,
    Script,
    greeted,
    message,
    shared,
    start,
)
from vgpud.backend import actions as act
from vgpud.backend.rings import NO_MEMORY
from vgpud.backend.state import VhostUserBackend
from vgpud.errors import PeerError
from vgpuwire import (
    ConfigSpace,
    MemRegion,
    MemTable,
    Request,
    VringAddr,
    VringFd,
    VringState,
)

OTHER = MemRegion(1 << 32, 0x200000, 0x7E0000000000, 0)


# -- replies


@pytest.mark.parametrize(
    ("request_", "value"),
    [
        (Request.GET_FEATURES, 0x1_7000_0002),
        (Request.GET_PROTOCOL_FEATURES, 0xA209),
        (Request.GET_QUEUE_NUM, 2),
        (Request.GET_MAX_MEM_SLOTS, 509),
        (Request.GET_STATUS, 0),
    ],
)
@pytest.mark.parametrize("need_reply", [False, True])
@pytest.mark.parametrize("protocol", [0, 0xA209])
def test_questions(request_: int, value: int, need_reply: bool, protocol: int) -> None:
    reply = greeted(protocol).feed(message(request_, need_reply=need_reply))
    assert reply == value.to_bytes(8, "little")


CONFIG = bytes(8) + b"\x03\0\0\0" + b"\x02\0\0\0" + bytes(4)


@pytest.mark.parametrize("size", [0, 1, 4, 16, 20, 24, 256])
@pytest.mark.parametrize("offset", [0, 8, 12, 16, 19, 20, 255, 1 << 31])
def test_config_of_any_part(offset: int, size: int) -> None:
    backend = VhostUserBackend(EDID, num_scanouts=3, num_capsets=2)
    asked = ConfigSpace(offset, size, 0, bytes(size))
    reply = Script(backend).feed(message(Request.GET_CONFIG, asked))
    assert reply is not None
    assert reply[12:] == (CONFIG + bytes(300))[offset:][:size].ljust(size, b"\0")
    assert reply[:4] == offset.to_bytes(4, "little")


@pytest.mark.parametrize(
    ("offset", "written", "told"),
    [
        (0, bytes(4) + b"\1\0\0\0" + b"\4\0\0\0" + bytes(4), [4]),  # QEMU 10.0
        (0, bytes(4) + b"\1\0\0\0" + b"\1\0\0\0" + bytes(8), [1]),  # QEMU 11.1
        (0, bytes(8) + b"\x10\0\0\0" + bytes(244), [16]),
        (0, bytes(20), []),  # no scanout: GET_CONFIG had failed
        (0, bytes(8) + b"\xff\xff\0\0" + bytes(8), []),  # patched by the guest
        (4, b"\1\0\0\0", []),
        (0, b"", []),
    ],
)
def test_config_writes_tell_max_outputs(offset: int, written: bytes, told: list[int]) -> None:
    config = ConfigSpace(offset, len(written), 0, written)
    script = greeted()
    found = script.say(Request.SET_CONFIG, config, need_reply=True)
    assert found == [act.ConfigWritten(n) for n in told]
    assert script.acked(Request.SET_CONFIG, config) == 0


def test_status_is_kept_though_not_offered() -> None:
    script = greeted()
    script.say(Request.SET_STATUS, 8)
    assert script.feed(message(Request.GET_STATUS)) == b"\x08" + bytes(7)
    script.say(Request.RESET_DEVICE)
    assert script.feed(message(Request.GET_STATUS)) == bytes(8)


@pytest.mark.parametrize("protocol", [0x208, 0x200])
@pytest.mark.parametrize(
    ("request_", "payload", "fds", "value"),
    [
        (Request.SET_MEM_TABLE, MemTable((GUEST_RAM,)), 1, 0),
        (Request.SET_VRING_ENABLE, VringState(1, 1), 0, 0),
        (Request.SET_VRING_CALL, VringFd(0, True), 0, 0),
        (Request.SET_VRING_ERR, VringFd(1, False), 1, 0),
        (Request.RESET_DEVICE, None, 0, 0),
        (Request.RESET_OWNER, None, 0, 0),
        (Request.REM_MEM_REG, GUEST_RAM, 1, 1),  # not negotiated
        (Request.ADD_MEM_REG, GUEST_RAM, 1, 1),
        (Request.SET_BACKEND_REQ_FD, None, 1, 1),  # not offered
        (Request.SET_LOG_BASE, bytes(16), 1, 1),
        (Request.IOTLB_MSG, bytes(32), 0, 1),
        (4711, b"whatever", 3, 1),  # not invented
    ],
)
def test_acknowledged_where_negotiated(
    request_: int, payload: object, fds: int, value: int, protocol: int
) -> None:
    asked = message(request_, payload, fds, need_reply=True)
    reply = greeted(protocol).feed(asked)  # which checks that there is none without REPLY_ACK
    assert reply in (None, value.to_bytes(8, "little"))
    assert greeted().feed(message(request_, payload, fds)) is None


def test_what_is_refused_is_closed_and_told_once() -> None:
    closed, warned = greeted().say(Request.SET_BACKEND_REQ_FD, None, 1)
    assert isinstance(closed, act.CloseFds)
    assert warned == act.Warn("SET_BACKEND_REQ_FD: not implemented, and was not offered")
    assert greeted().say(4711, b"") == [
        act.Warn("request 4711: not implemented, and was not offered")
    ]


def test_the_request_is_named_where_the_session_ends() -> None:
    assert greeted().refused(Request.SET_PROTOCOL_FEATURES, 1 << 14).startswith("SET_PROTO")
    assert greeted().refused(Request.SET_VRING_NUM, VringState(2, 1)).startswith("SET_VRING_NUM: ")
    assert "VHOST" not in greeted().refused(Request.CREATE_CRYPTO_SESSION, bytes(8))


def test_only_what_is_implemented_can_be_offered() -> None:
    with pytest.raises(ValueError, match="0x400"):
        VhostUserBackend(EDID, 0x400)


# -- memory


def test_regions_one_by_one() -> None:
    script = greeted()
    (added,) = script.say(Request.ADD_MEM_REG, GUEST_RAM, 1)
    assert added.region == GUEST_RAM
    assert script.acked(Request.ADD_MEM_REG, OTHER, 1) == 0
    assert script.acked(Request.ADD_MEM_REG, OTHER, 1) == 0  # told again: its own place
    assert script.acked(Request.ADD_MEM_REG, MemRegion(OTHER.guest_phys_addr, 4096, 0, 0), 1) == 1
    assert script.backend.memory.regions == (GUEST_RAM, OTHER)
    script.say(Request.RESET_DEVICE)  # regions stay: QEMU sends only what changed
    gone = MemRegion(OTHER.guest_phys_addr, OTHER.memory_size, OTHER.userspace_addr, 0)
    assert script.say(Request.REM_MEM_REG, gone) == [act.RemoveRegion(OTHER)]
    assert script.acked(Request.REM_MEM_REG, gone) == 1
    assert script.backend.memory.regions == (GUEST_RAM,)


@pytest.mark.parametrize("failing", [act.ReplaceMemory, act.AddRegion, act.RemoveRegion])
def test_a_table_that_could_not_be_mapped_is_not_the_table(failing: type) -> None:
    script = shared()
    script.fails = (failing,)
    told = {
        act.ReplaceMemory: (Request.SET_MEM_TABLE, MemTable((OTHER,)), 1),
        act.AddRegion: (Request.ADD_MEM_REG, OTHER, 1),
        act.RemoveRegion: (Request.REM_MEM_REG, GUEST_RAM, 0),
    }[failing]
    assert script.acked(*told) == 1
    assert script.backend.memory.regions == (GUEST_RAM,)


def test_a_refusal_that_cannot_be_told_ends_the_session() -> None:
    both = MemTable((GUEST_RAM, GUEST_RAM))
    assert greeted().acked(Request.SET_MEM_TABLE, both, 2) == 1
    assert "overlap" in greeted().refused(Request.SET_MEM_TABLE, both, 2)
    moved = MemRegion(GUEST_RAM.guest_phys_addr, GUEST_RAM.memory_size, 0, 0)
    assert "overlap" in shared().refused(Request.ADD_MEM_REG, moved, 1)
    assert shared().say(Request.REM_MEM_REG, OTHER)  # is only told to the operator


# -- rings


def test_start_and_stop_and_cont() -> None:
    script = shared(base=5)
    (started,) = start(script)
    assert started.setup == act.RingSetup(16, DESC, AVAIL, USED, 0, event_idx=True)
    assert script.say(Request.SET_VRING_ENABLE, VringState(0, 1)) == [act.EnableRing(0, True)]
    script.say(Request.SET_VRING_ENABLE, VringState(0, 0))
    stopped = script.feed(message(Request.GET_VRING_BASE, VringState(0, 0)))
    assert stopped == bytes(4) + b"\5\0\0\0"
    assert [type(a) for a in start(script, base=5)] == [act.StartRing]


@pytest.mark.parametrize("told", [0, 5, 0x1234])
def test_base_of_a_ring_that_never_started(told: int) -> None:
    script = shared(base=9)
    script.say(Request.SET_VRING_BASE, VringState(1, told))
    reply = script.feed(message(Request.GET_VRING_BASE, VringState(1, 0)))
    assert reply == b"\1\0\0\0" + told.to_bytes(4, "little")


@pytest.mark.parametrize("protocol", [0xA209, 0x200])
def test_a_ring_that_cannot_start_is_no_reason_to_hang_up(protocol: int) -> None:
    script = greeted(protocol)
    closed, broken = start(script)
    assert isinstance(closed, act.CloseFds)
    assert broken == act.BreakRing(0, NO_MEMORY)
    if protocol & 8:
        assert script.acked(Request.SET_VRING_KICK, VringFd(1, False), 1) == 0
    assert script.feed(message(Request.GET_VRING_BASE, VringState(0, 0))) == bytes(8)


def test_a_ring_that_the_session_cannot_serve_gives_its_own_base_back() -> None:
    script = shared(base=9)
    script.fails = (act.StartRing,)
    script.say(Request.SET_VRING_BASE, VringState(0, 3))
    start(script, base=3)
    script.fails = ()
    assert script.acked(Request.SET_VRING_ENABLE, VringState(0, 1)) == 0
    reply = script.feed(message(Request.GET_VRING_BASE, VringState(0, 0)))
    assert reply == bytes(4) + b"\3\0\0\0"


@pytest.mark.parametrize("request_", [Request.SET_VRING_CALL, Request.SET_VRING_ERR])
def test_eventfds_at_any_time(request_: int) -> None:
    action = act.SetCall if request_ == Request.SET_VRING_CALL else act.SetErr
    script = Script(VhostUserBackend(EDID))
    script.say(Request.GET_FEATURES)
    for _ in range(2):  # before the features, and after the stop
        (found,) = script.say(request_, VringFd(1, False), 1)
        assert (type(found), found.index) == (action, 1)
        assert script.say(request_, VringFd(1, True)) == [action(1, None)]
        script.say(Request.GET_VRING_BASE, VringState(1, 0))


@pytest.mark.parametrize(
    ("request_", "payload", "fds"),
    [
        (Request.SET_VRING_NUM, VringState(2, 16), 0),
        (Request.SET_VRING_BASE, VringState(2, 0), 0),
        (Request.SET_VRING_ADDR, VringAddr(2, 0, DESC, USED, AVAIL, 0), 0),
        (Request.GET_VRING_BASE, VringState(1 << 31, 0), 0),
        (Request.SET_VRING_ENABLE, VringState(2, 1), 0),
        (Request.SET_VRING_KICK, VringFd(255, False), 1),
        (Request.SET_VRING_CALL, VringFd(2, True), 0),
        (Request.SET_VRING_ERR, VringFd(2, False), 1),
    ],
)
def test_a_ring_that_there_is_not(request_: int, payload: object, fds: int) -> None:
    assert "num_vqs=2" in shared().refused(request_, payload, fds)


# -- device and display


def test_display_before_everything_else_and_again() -> None:
    script = greeted()
    (first,) = script.say(Request.GPU_SET_SOCKET, None, 1)
    assert not first.live
    script.say(Request.SET_MEM_TABLE, MemTable((GUEST_RAM,)), 1)
    start(script)
    (second,) = script.say(Request.GPU_SET_SOCKET, None, 1)
    assert second.live


def test_reset_device_many_times_without_a_reply() -> None:
    script = greeted()
    for _ in range(3):
        assert script.say(Request.RESET_DEVICE) == [act.Reset("RESET_DEVICE")]


def test_an_error_leaves_the_fds_to_the_caller() -> None:
    asked = message(Request.SET_VRING_KICK, VringFd(9, False), 1)
    with pytest.raises(PeerError, match=r"^SET_VRING_KICK: ring 9"):
        VhostUserBackend(EDID).receive(asked)
