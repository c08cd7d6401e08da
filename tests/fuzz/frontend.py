"""Any bytes and descriptors on the vhost-user socket: framing, then the back-end's state.

QEMU is trusted more than the guest, but the guest decides much of what it says. Beside an exception
other than PeerError and WireError it is a finding where a descriptor has no owner or two, where
QEMU would wait for a reply or get one that it does not read (`Script` checks both).
"""

from __future__ import annotations

import struct
from typing import Final

from tests.fuzz.source import Source
from tests.unit.backend.frontend import GUEST_RAM, Fd, Script, message, start
from vgpud.backend import actions as act
from vgpud.backend.state import VhostUserBackend
from vgpud.errors import PeerError
from vgpuwire import Framer, MemTable, Request, WireError, vhost_user

KNOWN: Final = tuple(int(request) for request in Request)
FAILING: Final = (act.StartRing, act.ReplaceMemory, act.AddRegion)
PROTOCOL: Final = 0xA209


class Stream:
    """What the front-end sends, in pieces of any size, and who has its descriptors."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._framer: Framer[Fd] = Framer(vhost_user.REQUESTS)
        self._given: list[Fd] = []

    def send(self, data: bytes, fds: int, piece: int) -> None:
        """Raises PeerError or WireError: the session ends."""
        for at in range(0, len(data), piece) if data else ():
            rest = data[at : at + piece]
            while rest:
                taken, rest = rest[: self._framer.wanted], rest[self._framer.wanted :]
                news = [Fd() for _ in range(fds)]
                fds = 0
                self._given += news
                try:
                    whole = self._framer.feed(taken, news)
                finally:
                    undelivered = self._framer.undelivered
                    assert undelivered == self._given[: len(undelivered)], "descriptors got lost"
                if whole is not None:
                    assert list(whole.fds) == self._given, "a message has all that came with it"
                    self._given.clear()
                    self._script.feed(whole)


def payload_of(source: Source, request: int) -> bytes:
    """Half of them of the right shape, so that more is reached than syntax."""
    index, number = source.number(8) % 4, source.number(64)
    match request:
        case Request.SET_MEM_TABLE:
            count = source.number(8) % 12
            rows = [struct.pack("<4Q", *(source.number(64) << 12 & (1 << 64) - 1 for _ in "gsuo"))
                    for _ in range(count)]  # fmt: skip
            return struct.pack("<II", count, 0) + b"".join(rows)
        case Request.ADD_MEM_REG | Request.REM_MEM_REG:
            return struct.pack("<5Q", 0, *(source.number(64) << 12 & (1 << 64) - 1 for _ in "gsuo"))
        case Request.SET_VRING_ADDR:
            areas = (GUEST_RAM.userspace_addr + source.number(16) for _ in "dua")
            return struct.pack("<IIQQQQ", index, source.integer(1), *areas, 0)
        case (
            Request.SET_VRING_NUM
            | Request.SET_VRING_BASE
            | Request.GET_VRING_BASE
            | Request.SET_VRING_ENABLE
        ):
            return struct.pack("<II", index, number & 0xFFFFFFFF)
        case Request.SET_VRING_KICK | Request.SET_VRING_CALL | Request.SET_VRING_ERR:
            return struct.pack("<Q", index | (number & 1) << 8)
        case Request.GET_CONFIG | Request.SET_CONFIG:
            size = source.number(16) % 300
            return struct.pack("<III", number & 0x1FF, size, 0) + source.bytes(size).ljust(size)
        case _:
            return struct.pack("<Q", number)[: source.choose((0, 8, 8, 4))]


def one(data: bytes) -> None:
    """One connection."""
    source = Source(data)
    shape = source.integer(1)
    script = Script(VhostUserBackend(0x2), base=source.integer(2))
    stream = Stream(script)
    # A QEMU that lost an earlier vgpud does not greet; test_state_resumed has its few messages.
    script.say(Request.GET_FEATURES)
    if shape & 1:
        script.say(Request.SET_PROTOCOL_FEATURES, PROTOCOL)
        script.say(Request.SET_FEATURES, 1 << 32 | 1 << 30)
        script.say(Request.SET_MEM_TABLE, MemTable((GUEST_RAM,)), 1)
    if shape & 2:
        script.feed(message(Request.SET_OWNER))
        if shape & 1:
            start(script)
    script.fails = tuple(kind for bit, kind in enumerate(FAILING) if shape >> 4 & 1 << bit)
    while source.left:
        before = script.backend.memory
        how, fds, piece = source.integer(1), source.integer(1), source.integer(1) or 1 << 16
        fds = fds if fds < 12 else fds & 1
        if how < 64:
            sent = source.bytes(source.integer(1))
        else:
            request = KNOWN[how % len(KNOWN)] if how < 240 else source.integer(4)
            body = payload_of(source, request) if how & 1 else source.bytes(source.integer(1))
            flags = source.choose((1, 9, 9, 1, 1, 9, 0, 5))
            sent = struct.pack("<III", request, flags, len(body)) + body
        try:
            stream.send(sent, fds, piece)
        except WireError:
            return
        except PeerError:
            assert script.backend.memory is before
            return
        rings = script.backend.rings
        assert {n for n in range(len(rings)) if rings[n].started} == set(script.started)
