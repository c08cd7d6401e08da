"""A QMP server for tests: as QEMU where it is told to, wrong in each way where it is not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

GREETING = {"QMP": {"version": {"qemu": {"major": 11, "minor": 1, "micro": 3}}, "capabilities": []}}

Answers = dict[str, Any]
"""What each command returns; a callable is called with its arguments; KeyError is an error."""


class Client:
    """One connection, as the server sees it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._buffer = b""

    async def send(self, message: object) -> None:
        await self.stream.send_all(json.dumps(message).encode() + b"\r\n")

    async def receive(self) -> dict[str, Any] | None:
        while b"\n" not in self._buffer:
            data = await self.stream.receive_some()
            if not data:
                return None
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message

    async def greet(self) -> None:
        await self.send(GREETING)
        message = await self.receive()
        assert message is not None
        assert message["execute"] == "qmp_capabilities"
        await self.send({"return": {}, "id": message["id"]})


class FakeQmp:
    """Serves one client at a time, as QEMU's monitor does."""

    def __init__(self) -> None:
        self.answers: Answers = {}
        self.asked: list[str] = []
        self.clients = 0
        self.script: Callable[[Client], Awaitable[None]] | None = None
        """Instead of QEMU's behaviour."""
        self.mute = False
        """Whether commands get no answer: QEMU's main loop is busy."""
        self._client: Client | None = None
        self._scope = trio.CancelScope()

    async def event(self, name: str, **data: Any) -> None:
        assert self._client is not None
        await self._client.send({"event": name, "data": data, "timestamp": {"seconds": 1}})

    def hang_up(self) -> None:
        self._scope.cancel()

    async def serve(self, stream: trio.SocketStream) -> None:
        self.clients += 1
        self._scope = trio.CancelScope()
        with self._scope:
            try:
                async with stream:
                    client = self._client = Client(stream)
                    await (self.script or self._as_qemu)(client)
            except trio.BrokenResourceError:
                pass

    async def _as_qemu(self, client: Client) -> None:
        await client.greet()
        while (message := await client.receive()) is not None:
            command = message["execute"]
            self.asked.append(command)
            if self.mute:
                continue
            try:
                answer = self.answers[command]
                if callable(answer):
                    answer = answer(**message.get("arguments", {}))
            except KeyError as missing:
                desc = f"The command {missing.args[0]} has not been found"
                error = {"class": "CommandNotFound", "desc": desc}
                await client.send({"error": error, "id": message["id"]})
            else:
                await client.send({"return": answer, "id": message["id"]})


@asynccontextmanager
async def fake_qmp(path: str) -> AsyncIterator[FakeQmp]:
    """A server that listens on `path`."""
    server = FakeQmp()
    sock = trio.socket.socket(trio.socket.AF_UNIX)
    await sock.bind(path)
    sock.listen(8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.serve, [trio.SocketListener(sock)])
        yield server
        nursery.cancel_scope.cancel()
