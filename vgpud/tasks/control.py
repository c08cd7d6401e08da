"""The control socket: one request a line, as JSON, for the same user and for root only.

{"command": "status"}                   -> {"ok": true, "version": ..., "session": {...}}
{"command": "screenshot", "head": 0}    -> {"ok": true, "width": ..., "height": ...} and a memfd
                                           with width * height pixels of B, G, R, x
{"command": "vfio-list"}                -> {"ok": true, "pid": ..., "devices": [...]}
{"command": "vfio-add", "id": "..."}    -> {"ok": true}; a VFIO device comes with the request
{"command": "vfio-remove", "id": "..."} -> {"ok": true}
{"command": "trace", "errors": true, ...} -> {"ok": true} and a pipe: a JSON object a command
anything else                           -> {"ok": false, "error": "..."}

A client may send several, and is answered in their order; one that says nothing for 10 s is
forgotten.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import trio

from vgpud import log
from vgpud.host.fd import OwnedFd, unread
from vgpud.host.sockets import bound

MAX_LINE: Final = 4096
"""Bytes of a request: far more than any has."""

_INT: Final = struct.Struct("i")

PATIENCE: Final = 10.0
"""Seconds for a request and for taking its answer: a client that hangs is one for so long."""

LOOK: Final = 0.005
"""Seconds between looks at whether a descriptor has been taken, which nothing tells."""


class Refused(Exception):
    """The request cannot be served; the message goes to the client."""


class Answer(NamedTuple):
    """Fields beside "ok", and at most one descriptor."""

    fields: dict[str, Any]
    fd: OwnedFd | None = None


Command = Callable[[dict[str, Any], OwnedFd | None], Awaitable[Answer]]
"""Serves a request, with the descriptor that came with it, which it owns; raises Refused or
OSError."""


class Commands(NamedTuple):
    """By their names. Those of `costly` make memory for an answer: one at a time, until its
    client has it, for what lies in a socket is held by nobody's limits."""

    all: dict[str, Command]
    costly: frozenset[str] = frozenset()


@asynccontextmanager
async def control_socket(path: str, commands: Commands) -> AsyncIterator[None]:
    """Listen on `path` while the block runs. Raises HostError where it cannot be bound."""
    with bound(path, 0o600) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept, trio.socket.from_stdlib_socket(sock), commands)
            yield
            nursery.cancel_scope.cancel()


async def _accept(sock: trio.socket.SocketType, commands: Commands) -> None:
    turn = trio.Lock()
    async with trio.open_nursery() as nursery:
        while True:
            try:
                client, _ = await sock.accept()
            except OSError as error:
                log.warning("control-accept", reason=error)
                await trio.sleep(0.1)
                continue
            nursery.start_soon(_Client(client, commands, turn).serve)


class _Client:
    """One connection."""

    def __init__(self, sock: trio.socket.SocketType, commands: Commands, turn: trio.Lock) -> None:
        self._sock = sock
        self._commands = commands
        self._turn = turn
        self._buffer = b""
        self._fd: OwnedFd | None = None

    async def serve(self) -> None:
        with self._sock:
            if not self._allowed():
                return
            try:
                while True:
                    with trio.fail_after(PATIENCE):
                        line = await self._line()
                    if line is None:
                        return
                    await self._answer(line)
                    if len(line) > MAX_LINE:
                        return
            except (OSError, trio.TooSlowError) as error:
                log.debug("control-client", reason=error)

    def _allowed(self) -> bool:
        raw = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", raw)
        if uid in (0, os.geteuid()):
            return True
        log.warning("control-refused", uid=uid)
        return False

    async def _line(self) -> bytes | None:
        """A request, without its end; None after the last. One that is too long is cut."""
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE:
                return self._buffer
            data = await self._receive()
            if not data:
                rest, self._buffer = self._buffer, b""
                return rest or None
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    async def _receive(self) -> bytes:
        """Bytes; the last descriptor that came is kept for the next request."""
        data, ancillary, _, _ = await self._sock.recvmsg(
            MAX_LINE, socket.CMSG_SPACE(_INT.size), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = payload[: len(payload) // _INT.size * _INT.size]
                for (number,) in _INT.iter_unpack(whole):
                    self._fd = OwnedFd(number)  # and the one before is closed
        return data

    async def _answer(self, line: bytes) -> None:
        came, self._fd = self._fd, None
        try:
            if len(line) > MAX_LINE:
                raise Refused(f"a request of more than {MAX_LINE} bytes")
            request = _parse(line)
            command = request.get("command")
            if not isinstance(command, str) or command not in self._commands.all:
                known = ", ".join(sorted(self._commands.all))
                raise Refused(f"no such command; there are: {known}")
        except Refused as error:
            await self._say({"ok": False, "error": str(error)})
            return
        if command not in self._commands.costly:
            await self._run(command, request, came)
            return
        async with self._turn:
            await self._run(command, request, came)
            with trio.fail_after(PATIENCE):
                while unread(self._sock):  # noqa: ASYNC110 - the kernel tells nobody
                    await trio.sleep(LOOK)

    async def _run(self, command: str, request: dict[str, Any], came: OwnedFd | None) -> None:
        try:
            fields, fd = await self._commands.all[command](request, came)
        except (Refused, OSError, MemoryError) as error:
            await self._say({"ok": False, "error": str(error) or "no memory for the answer"})
            return
        await self._say({"ok": True, **fields}, fd)

    async def _say(self, reply: dict[str, Any], fd: OwnedFd | None = None) -> None:
        data = json.dumps(reply).encode() + b"\n"
        with trio.fail_after(PATIENCE):
            sent = await self._sock.sendmsg([data], [] if fd is None else [_rights(fd)])
            while sent < len(data):
                sent += await self._sock.send(data[sent:])


def _parse(line: bytes) -> dict[str, Any]:
    """Raises Refused."""
    try:
        request = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise Refused(f"no JSON: {error}") from error
    if not isinstance(request, dict):
        raise Refused("a request is a JSON object")
    return request


def _rights(fd: OwnedFd) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd.fileno())
