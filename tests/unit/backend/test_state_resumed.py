"""A QEMU that lost an earlier vgpud and goes on with this one, without a handshake (chardev with
server=on, then QMP stop and cont)."""

from __future__ import annotations

from tests.unit.backend.frontend import EDID, FEATURES, GUEST_RAM, Script, message, start
from vgpud.backend import actions as act
from vgpud.backend.state import VhostUserBackend
from vgpuwire import MemTable, Request, VringState


def test_without_a_handshake_what_was_offered_counts() -> None:
    backend = VhostUserBackend(EDID)
    asked = message(Request.SET_VRING_ENABLE, VringState(0, 0), need_reply=True)
    assert backend.receive(asked) == [act.EnableRing(0, False)]
    assert backend.reply(asked) is not None  # else QEMU waits for ever
    unknown = message(Request.GET_VRING_BASE, VringState(0, 0))
    assert backend.receive(unknown) == []
    reply = backend.reply(unknown)
    assert reply is not None
    assert reply[8:] == bytes(4)  # of the wrong size: QEMU then goes by the used ring
    script = Script(backend, base=6)
    script.say(Request.SET_FEATURES, FEATURES)
    script.say(Request.SET_MEM_TABLE, MemTable((GUEST_RAM,)), 1)
    assert [type(a) for a in start(script, base=500)] == [act.StartRing]  # no reset
    assert script.feed(message(Request.GET_VRING_BASE, VringState(0, 0))) is not None
