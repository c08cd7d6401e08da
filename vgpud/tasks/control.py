"""The control socket: one request a line, as JSON, for the same user and for root only.

{"command": "status"}                   -> {"ok": true, "version": ..., "session": {...}}
{"command": "screenshot", "head": 0}    -> {"ok": true, "width": ..., "height": ...} and a memfd
                                           with width * height pixels of B, G, R, x
{"command": "vfio-list"}                -> {"ok": true, "pid": ..., "devices": [...]}
{"command": "vfio-add", "id": "..."}    -> {"ok": true}; a VFIO device comes with the request
{"command": "vfio-remove", "id": "..."} -> {"ok": true}
anything else                           -> {"ok": false, "error": "..."}
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
from vgpud.host.fd import OwnedFd
from vgpud.host.sockets import bound

MAX_LINE: Final = 4096
"""Bytes of a request: far more than any has."""

_INT: Final = struct.Struct("i")

PATIENCE: Final = 10.0
"""Seconds for a request and for taking its answer: a client that hangs holds no descriptor."""


class Refused(Exception):
    """The request cannot be served; the message goes to the client."""


class Answer(NamedTuple):
    """Fields beside "ok", and at most one descriptor."""

    fields: dict[str, Any]
    fd: OwnedFd | None = None


Command = Callable[[dict[str, Any], OwnedFd | None], Awaitable[Answer]]
"""Serves a request, with the descriptor that came with it, which it owns; raises Refused."""


@asynccontextmanager
async def control_socket(path: str, commands: dict[str, Command]) -> AsyncIterator[None]:
    """Listen on `path` while the block runs. Raises HostError where it cannot be bound."""
    with bound(path, 0o600) as sock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_accept, trio.socket.from_stdlib_socket(sock), commands)
            yield
            nursery.cancel_scope.cancel()


async def _accept(sock: trio.socket.SocketType, commands: dict[str, Command]) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            try:
                client, _ = await sock.accept()
            except OSError as error:
                log.warning("control-accept", reason=error)
                await trio.sleep(0.1)
                continue
            nursery.start_soon(_serve, client, commands)


async def _serve(client: trio.socket.SocketType, commands: dict[str, Command]) -> None:
    with client:
        if not _allowed(client):
            return
        try:
            while True:
                with trio.fail_after(PATIENCE):
                    line, fd = await _read_line(client)
                    if line is None:
                        return
                    await _answer(client, line, fd, commands)
        except (OSError, trio.TooSlowError) as error:
            log.debug("control-client", reason=error)


def _allowed(client: trio.socket.SocketType) -> bool:
    raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    if uid in (0, os.geteuid()):
        return True
    log.warning("control-refused", uid=uid)
    return False


async def _read_line(client: trio.socket.SocketType) -> tuple[bytes | None, OwnedFd | None]:
    """A request and the last descriptor that came with it; None at the end."""
    line, fd = b"", None
    while not line.endswith(b"\n"):
        data, ancillary, _, _ = await client.recvmsg(
            MAX_LINE - len(line), socket.CMSG_SPACE(_INT.size), socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                whole = payload[: len(payload) // _INT.size * _INT.size]
                for (number,) in _INT.iter_unpack(whole):
                    fd = OwnedFd(number)  # and the one before is closed
        if not data:
            return None, None
        line += data
        if len(line) == MAX_LINE:
            raise OSError(f"a request of more than {MAX_LINE} bytes")
    return line, fd


async def _answer(
    client: trio.socket.SocketType,
    line: bytes,
    came: OwnedFd | None,
    commands: dict[str, Command],
) -> None:
    fd: OwnedFd | None = None
    try:
        request = json.loads(line)
        command = request.get("command") if isinstance(request, dict) else None
        if not isinstance(command, str) or command not in commands:
            raise Refused(f"no such command; there are: {', '.join(sorted(commands))}")
        fields, fd = await commands[command](request, came)
        reply: dict[str, Any] = {"ok": True, **fields}
    except (Refused, ValueError, RecursionError, MemoryError) as error:
        reply = {"ok": False, "error": str(error)}
    data = json.dumps(reply).encode() + b"\n"
    rights = [] if fd is None else [_rights(fd)]
    sent = await client.sendmsg([data], rights)
    while sent < len(data):
        sent += await client.send(data[sent:])


def _rights(fd: OwnedFd) -> tuple[int, int, bytes]:
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd.fileno())
