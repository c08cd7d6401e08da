"""The whole of what real QEMUs said, message by message, each reply held to QEMU's reader."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.unit.backend.frontend import NEED_REPLY, Script, Step, trace
from vgpud.backend import actions as act
from vgpud.backend.state import VhostUserBackend
from vgpuwire import Request

RECORDER = 0x1F
"""Device features that the recorder offered; QEMU's guest took three of them."""


def without_ack(step: Step) -> Step:
    request, flags, size = struct.unpack_from("<III", step.data)
    return replace(
        step, data=struct.pack("<III", request, flags & ~NEED_REPLY, size) + step.data[12:]
    )


def qemu_7_2() -> Iterator[Step]:
    """QEMU 7.2 refuses to realize the device without KVM, so this is 10.0's trace with what is
    known to differ: SET_VRING_ENABLE is not acknowledged. It never sends RESET_DEVICE."""
    for step in trace("10.0"):
        yield without_ack(step) if step.request == Request.SET_VRING_ENABLE else step


def rebased(steps: Iterator[Step], stopped_at: int) -> Iterator[Step]:
    """The recorder returned 0 at each stop. As if it had returned `stopped_at`: `cont` then
    gives that back, while everything else (a reset) starts from 0."""
    for step in steps:
        if step.request == Request.SET_VRING_BASE and step.phase == "QMP cont":
            index = struct.unpack_from("<I", step.data, 12)[0]
            yield replace(step, data=step.data[:12] + struct.pack("<II", index, stopped_at))
        else:
            yield step


SOURCES = {"7.2": qemu_7_2, "10.0": lambda: trace("10.0"), "11.1": lambda: trace("11.1")}


@pytest.mark.parametrize("version", SOURCES)
def test_every_message_is_served_and_answered_as_qemu_wants(version: str) -> None:
    script = Script(VhostUserBackend(RECORDER))
    for step in SOURCES[version]():
        reply = script.feed(step.message)
        match step.request:
            case Request.GET_VRING_BASE:
                assert reply == step.data[12:16] + bytes(4)
            case Request.GET_CONFIG:
                assert reply is not None
                assert struct.unpack_from("<III", reply) == (0, len(reply) - 12, 0)
            case Request.GET_FEATURES | Request.GET_PROTOCOL_FEATURES:
                assert reply != bytes(8)
            case _:
                assert reply in (None, bytes(8)), step
    kinds = [type(action) for action in script.log]
    assert kinds.count(act.UseDisplay) == 5
    assert kinds.count(act.StartRing) == kinds.count(act.StopRing) == 8
    assert kinds.count(act.ReplaceMemory) == 4
    assert not {act.Warn, act.BreakRing, act.CloseFds} & set(kinds)
    assert act.ConfigWritten(1) in script.log
    assert not script.started


@pytest.mark.parametrize(("version", "size"), [("7.2", 1024), ("10.0", 1024), ("11.1", 256)])
def test_rings_are_those_of_the_trace(version: str, size: int) -> None:
    script = Script(VhostUserBackend(RECORDER))
    for step in SOURCES[version]():
        script.feed(step.message)
        if step.phase == "read config":
            break
    table = next(a for a in script.log if isinstance(a, act.ReplaceMemory))
    assert [region.guest_phys_addr for region, _ in table.regions] == [0, 0xE0000, 0x100000]
    ring = script.started[0]
    assert (ring.size, ring.base, ring.event_idx) == (size, 0, False)
    assert ring.desc < ring.avail < ring.used  # SET_VRING_ADDR tells used before avail
    assert ring.desc == table.regions[2][0].userspace_addr


@pytest.mark.parametrize("version", SOURCES)
def test_display_is_live_only_where_the_guest_wrote_its_status_again(version: str) -> None:
    script = Script(VhostUserBackend(RECORDER))
    live: dict[str, bool] = {}
    for step in SOURCES[version]():
        before = len(script.log)
        script.feed(step.message)
        for action in script.log[before:]:
            if isinstance(action, act.UseDisplay):
                live[step.phase] = action.live
    assert live == {
        "start": False,
        "QMP cont": False,
        "status written again with DRIVER_OK": True,
        "driver re-init after reset": False,
        "re-init then QMP quit": False,
    }


@pytest.mark.parametrize("version", SOURCES)
def test_a_base_other_than_the_one_returned_is_a_reset_where_none_is_sent(version: str) -> None:
    script = Script(VhostUserBackend(RECORDER), base=7)
    resets: list[str] = []
    for step in rebased(SOURCES[version](), stopped_at=7):
        before = len(script.log)
        script.feed(step.message)
        for action in script.log[before:]:
            if isinstance(action, act.Reset):
                resets.append(step.phase)
                assert not script.started  # nothing of the new driver was looked at yet
    # Not at the first start, not at `cont`; once for two rings.
    assert resets == ["driver re-init after reset", "re-init then QMP quit"]
    bases = [a.setup.base for a in script.log if isinstance(a, act.StartRing)]
    assert bases == [0, 0, 7, 7, 0, 0, 0, 0]


@pytest.mark.parametrize("version", ["10.0", "11.1"])
def test_with_reset_device_only_that_is_a_reset(version: str) -> None:
    """What QEMU sends when RESET_DEVICE is offered: at realize and after the rings stopped."""
    script = Script(VhostUserBackend(RECORDER), base=7)
    reset = Step("reset", Request.RESET_DEVICE, struct.pack("<III", 34, 1, 0), 0)
    resets: list[str] = []
    phase = "realize"
    for step in rebased(SOURCES[version](), stopped_at=7):
        if step.phase != phase:
            if phase in ("realize", "QMP system_reset", "device status=0 (driver unload)"):
                script.feed(reset.message)
            phase = step.phase
        before = len(script.log)
        script.feed(step.message)
        resets += [step.phase for action in script.log[before:] if isinstance(action, act.Reset)]
    assert resets == []
    assert sum(action == act.Reset("RESET_DEVICE") for action in script.log) == 3
