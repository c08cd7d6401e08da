"""A front-end and a session without sockets, for the tests of the state machine.

`Script` plays the session: it hands messages over, carries the actions out on plain values, and
fails where a descriptor has no owner or two, or where QEMU could not live with the reply.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from vgpud.backend import actions as act
from vgpud.backend.state import VhostUserBackend
from vgpud.errors import PeerError
from vgpuwire import (
    MemRegion,
    MemTable,
    Message,
    Request,
    VringAddr,
    VringFd,
    VringState,
    vhost_user,
)

NEED_REPLY = 8
REPLY_SIZES = {
    Request.GET_FEATURES: 8,
    Request.GET_PROTOCOL_FEATURES: 8,
    Request.GET_QUEUE_NUM: 8,
    Request.GET_MAX_MEM_SLOTS: 8,
    Request.GET_VRING_BASE: 8,
    Request.GET_STATUS: 8,
}
"""Requests that always have a reply of that size. GET_CONFIG's is as long as the request."""

ANSWERED = {
    Request.CREATE_CRYPTO_SESSION,
    Request.POSTCOPY_ADVISE,
    Request.POSTCOPY_END,
    Request.GET_INFLIGHT_FD,
    Request.GET_SHARED_OBJECT,
    Request.SET_DEVICE_STATE_FD,
    Request.CHECK_DEVICE_STATE,
    Request.GET_SHMEM_CONFIG,
}
"""Requests that always have a reply of their own; see test_refused."""

EDID = 1 << 1
FEATURES = 1 << 32 | 1 << 30 | 1 << 29 | EDID
GUEST_RAM = MemRegion(0, 0x100000, 0x7F0000000000, 0)
DESC, AVAIL, USED = (GUEST_RAM.userspace_addr + n for n in (0, 0x1000, 0x2000))

_fds = count()


class Fd:
    """Something that is closed or handed on, once."""

    def __init__(self) -> None:
        self.number = next(_fds)

    def __repr__(self) -> str:
        return f"<fd {self.number}>"


def message(
    request: int, payload: object = None, fds: int = 0, *, need_reply: bool = False
) -> Message[Fd]:
    """A request as the Framer hands it over, built and parsed."""
    data = vhost_user.build_request(request, payload, need_reply=need_reply)
    return parse(data, fds)


def parse(data: bytes, fds: int) -> Message[Fd]:
    header = vhost_user.Header(*struct.unpack_from("<III", data))
    return vhost_user.parse(header, data[12:], [Fd() for _ in range(fds)])


def fds_of(actions: list[act.Action[Fd]]) -> list[Fd]:
    """Every descriptor in these actions, as often as it is there."""
    found: list[Fd] = []
    for action in actions:
        match action:
            case act.ReplaceMemory(regions):
                found += [fd for _, fd in regions]
            case act.CloseFds(fds):
                found += fds
            case act.AddRegion(_, fd) | act.UseDisplay(fd, _) | act.StartRing(_, _, fd):
                found.append(fd)
            case act.SetCall(_, fd) | act.SetErr(_, fd):
                found += [] if fd is None else [fd]
    return found


def check_reply(asked: Message[Fd], reply: bytes | None, acknowledges: bool) -> bytes | None:
    """Whether QEMU's reader takes this reply; returns its payload."""
    size = REPLY_SIZES.get(asked.request)
    if asked.request == Request.GET_CONFIG:
        size = 12 + asked.payload.size
    if asked.request in ANSWERED:
        assert reply is not None, f"{asked}: QEMU waits for ever"
        return reply[12:]
    if size is None:
        if not (asked.need_reply and acknowledges):
            assert reply is None, f"{asked}: a reply that nobody reads desynchronises"
            return None
        size = 8
    assert reply is not None, f"{asked}: QEMU waits for ever"
    request, flags, told = struct.unpack_from("<III", reply)
    assert (request, flags, told) == (asked.request, 0x5, size)
    assert len(reply) == 12 + size
    return reply[12:]


class Script:
    """One connection. `base` is what a stopped ring has come to, `fails` the kinds of action
    that cannot be carried out."""

    def __init__(self, backend: VhostUserBackend, base: int = 0) -> None:
        self.backend = backend
        self.base = base
        self.fails: tuple[type, ...] = ()
        self.log: list[act.Action[Fd]] = []
        self.started: dict[int, act.RingSetup] = {}

    def feed(self, asked: Message[Fd]) -> bytes | None:
        """Receive, perform, reply; returns the reply's payload. Raises PeerError."""
        actions = self.backend.receive(asked)
        assert sorted(fds_of(actions), key=id) == sorted(asked.fds, key=id)
        result = 0
        for action in actions:
            result = self._perform(action)
        self.log += actions
        acknowledges = bool(self.backend.protocol_features & 8)
        return check_reply(asked, self.backend.reply(asked, result), acknowledges)

    def say(
        self, request: int, payload: object = None, fds: int = 0, *, need_reply: bool = False
    ) -> list[act.Action[Fd]]:
        """feed(), and the actions that came of it."""
        before = len(self.log)
        self.feed(message(request, payload, fds, need_reply=need_reply))
        return self.log[before:]

    def acked(self, request: int, payload: object = None, fds: int = 0) -> int:
        """The value of the acknowledgement."""
        reply = self.feed(message(request, payload, fds, need_reply=True))
        assert reply is not None
        return int.from_bytes(reply, "little")

    def refused(self, request: int, payload: object = None, fds: int = 0) -> str:
        """Why the session ends here."""
        asked = message(request, payload, fds)
        try:
            self.backend.receive(asked)
        except PeerError as error:
            return str(error)
        raise AssertionError(f"{asked} did not end the session")

    def _perform(self, action: act.Action[Fd]) -> int:
        if isinstance(action, self.fails):
            return 1
        match action:
            case act.StartRing(index, setup, _):
                assert index not in self.started, "started twice"
                self.started[index] = setup
            case act.StopRing(index):
                setup = self.started.pop(index, None)
                return self.base if setup is not None else 0
        return 0


def greeted(protocol: int = 0xA209, base: int = 0) -> Script:
    """A connection after QEMU's realize."""
    script = Script(VhostUserBackend(EDID), base)
    script.say(Request.GET_FEATURES)
    script.say(Request.SET_PROTOCOL_FEATURES, protocol)
    script.say(Request.SET_OWNER)
    script.say(Request.SET_FEATURES, FEATURES)
    return script


def shared(protocol: int = 0xA209, base: int = 0) -> Script:
    script = greeted(protocol, base)
    script.say(Request.SET_MEM_TABLE, MemTable((GUEST_RAM,)), 1)
    return script


def start(script: Script, index: int = 0, base: int = 0) -> list[act.Action]:
    script.say(Request.SET_VRING_NUM, VringState(index, 16))
    found = script.say(Request.SET_VRING_BASE, VringState(index, base))
    script.say(Request.SET_VRING_ADDR, VringAddr(index, 0, DESC, USED, AVAIL, 0))
    return found + script.say(Request.SET_VRING_KICK, VringFd(index, False), 1)


# -- recorded traffic

_LINE = re.compile(r"(?P<name>\w+) +size=\d+ +(?P<rest>.*?) ?fds=(?P<fds>\d+)(?P<ack> NEED_REPLY)?")


@dataclass(frozen=True)
class Step:
    """One line of a trace."""

    phase: str
    request: Request
    data: bytes
    fds: int

    @property
    def message(self) -> Message[Fd]:
        return parse(self.data, self.fds)


def trace(version: str) -> Iterator[Step]:
    """What QEMU of that version sent; packed with struct, so that vgpuwire is tested too."""
    phase = ""
    path = Path(__file__).parent / "traces" / f"qemu-{version}.txt"
    for line in path.read_text().splitlines():
        if line.startswith("## "):
            phase = line[3:]
        if line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        assert found, line
        request = Request[found["name"]]
        payload = _pack(request, found["rest"])
        flags = 1 | (NEED_REPLY if found["ack"] else 0)
        header = struct.pack("<III", request, flags, len(payload))
        yield Step(phase, request, header + payload, int(found["fds"]))


def _pack(request: Request, text: str) -> bytes:
    words = dict(re.findall(r"(\w+)=([0-9a-fx]+)", text))
    match request:
        case Request.SET_FEATURES | Request.SET_PROTOCOL_FEATURES:
            return struct.pack("<Q", int(text, 16))
        case Request.SET_MEM_TABLE:
            rows = re.findall(r"\[gpa=(\w+) size=(\w+) uva=(\w+) off=(\w+)\]", text)
            table = b"".join(struct.pack("<QQQQ", *(int(n, 16) for n in row)) for row in rows)
            return struct.pack("<II", len(rows), 0) + table
        case Request.SET_VRING_ADDR:
            areas = [int(words[name], 16) for name in ("desc", "used", "avail", "log")]
            return struct.pack("<IIQQQQ", int(words["idx"]), int(words["flags"]), *areas)
        case Request.GET_CONFIG | Request.SET_CONFIG:
            head = struct.pack("<III", *(int(words[name]) for name in ("off", "size", "flags")))
            return head + bytes.fromhex(words["data"])
        case _ if "u64" in words:
            return struct.pack("<Q", int(words["u64"], 16))
        case _ if "idx" in words:
            return struct.pack("<II", int(words["idx"]), int(words["num"]))
    return b""
