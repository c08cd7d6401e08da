"""Which pictures are asked about, and what counts as an answer."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

import pytest

from vgpud.host.backing import HostBacking
from vgpud.tasks.device_gate import DeviceGate
from vgpuwire import Ctrl, CtrlHdr, Rect, SetScanoutBlob

RESOURCE = 7
SHOW = SetScanoutBlob(
    CtrlHdr(Ctrl.CMD_SET_SCANOUT_BLOB, 0, 0, 0, 0),
    Rect(0, 0, 64, 48),
    0,
    RESOURCE,
    64,
    48,
    2,
    (256, 0, 0, 0),
    (0, 0, 0, 0),
).encode()


class FakeSource:
    """Answers, or does not."""

    def __init__(self):
        self.version = 1
        self.answers = True
        self.moves = False

    async def ask(self):
        if self.moves:
            self.version += 1
        return self.answers


class Lost(HostBacking):
    """A backing whose addresses nobody knows."""

    def __init__(self):
        pass

    lost = True
    slow = False


@pytest.fixture
def source():
    return FakeSource()


@pytest.fixture
def resources():
    return {RESOURCE: SimpleNamespace(backing=Lost())}


@pytest.fixture
def gate(source, resources):
    return DeviceGate(source, SimpleNamespace(resources=resources), None)


async def test_an_answer_holds_until_the_version_grows(gate, source):
    assert gate.wants(SHOW)
    await gate.ask()
    assert not gate.wants(SHOW)
    source.version += 1
    assert gate.wants(SHOW)


async def test_no_answer_is_none(gate, source):
    """A late answer, which nobody reads, must not pass for one."""
    source.answers = False
    for _ in range(3):
        assert gate.wants(SHOW)
        await gate.ask()
    source.answers = True
    assert gate.wants(SHOW)
    await gate.ask()
    assert not gate.wants(SHOW)


async def test_what_is_held_back_is_not_yet_checked(gate):
    """The ring stopped before it asked."""
    assert gate.wants(SHOW)
    assert gate.wants(SHOW)


async def test_what_grew_meanwhile_is_asked_again(gate, source):
    source.moves = True
    assert gate.wants(SHOW)
    await gate.ask()
    assert gate.wants(SHOW)


async def test_it_keeps_no_backing_alive(gate, resources):
    assert gate.wants(SHOW)
    died = weakref.ref(resources.pop(RESOURCE).backing)
    gc.collect()
    assert died() is None
    await gate.ask()
