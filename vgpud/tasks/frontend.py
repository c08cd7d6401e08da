"""The vhost-user socket: read one message, run its actions in order, answer.

QEMU has no timeouts and waits for each answer with its big lock held, so nothing here waits for
the display. Descriptors stick to the first byte of a message: a read never crosses the end of
one.
"""

from __future__ import annotations

import array
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from vgpud import log
from vgpud.backend.actions import Action
from vgpud.backend.state import VhostUserBackend
from vgpud.errors import PeerError
from vgpud.host.fd import OwnedFd
from vgpuwire import Framer, Message, WireError, vhost_user

MAX_FDS: Final = 16
"""Twice what a message may carry: one too many is a clear error, not a cut-off list."""

Perform = Callable[[Action[OwnedFd]], Awaitable[int]]
"""Runs one action; returns 0, a refusal (anything else), or a ring's base."""


class FrontendLink:
    """One connection of QEMU."""

    def __init__(self, sock: socket.socket, backend: VhostUserBackend, perform: Perform) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._backend = backend
        self._perform = perform

    async def run(self) -> None:
        """Serve until QEMU leaves. Raises PeerError where it broke the protocol."""
        framer: Framer[OwnedFd] = Framer(vhost_user.REQUESTS)
        try:
            while True:
                data, fds = await self._receive(framer.wanted)
                if not data:
                    if not framer.between_messages:
                        raise PeerError("QEMU left in the middle of a message")
                    return
                message = framer.feed(data, fds)
                if message is not None:
                    await self._serve(message)
        except WireError as error:
            raise PeerError(f"vhost-user: {error}") from error
        except (ConnectionResetError, BrokenPipeError):
            return  # killed: it left as well
        except OSError as error:
            raise PeerError(f"vhost-user socket: {error}") from error
        finally:
            for fd in framer.undelivered:
                fd.close()

    async def _serve(self, message: Message[OwnedFd]) -> None:
        name = getattr(message.request, "name", message.request)
        log.debug("vhost-user", request=name, fds=len(message.fds))
        result = 0
        try:
            actions = self._backend.receive(message)
        except PeerError:
            for fd in message.fds:  # none was taken
                fd.close()
            raise
        for action in actions:
            result = await self._perform(action)
        reply = self._backend.reply(message, result)
        if reply is not None:
            await self._send(reply)

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self._sock.send(view) :]

    async def _receive(self, size: int) -> tuple[bytes, list[OwnedFd]]:
        space = socket.CMSG_SPACE(MAX_FDS * 4)
        data, ancillary, flags, _ = await self._sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
        numbers = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
        fds = [OwnedFd(number) for number in numbers]
        if flags & socket.MSG_CTRUNC:
            for fd in fds:
                fd.close()
            # Also what a full descriptor table looks like: the kernel drops what has no room.
            raise PeerError(
                f"more than {MAX_FDS} descriptors in a message, or none left: raise LimitNOFILE"
            )
        return data, fds
