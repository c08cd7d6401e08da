"""A QMP client (docs/interop/qmp-spec.rst of QEMU): questions with a deadline, events, reconnects.

QEMU answers from its main loop, which may be waiting for us: nothing that serves a vhost-user
message may wait for an answer of this one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import trio

from vgpud import log
from vgpud.host.handover import peer_pid

MAX_MESSAGE: Final = 1 << 20
"""Bytes of a message: query-pci takes 500 a BAR."""

GREETING: Final = 5.0
"""Seconds for the greeting. A monitor serves one client: the second is connected to and hears
nothing."""

RETRY: Final = 1.0
"""Seconds between attempts to connect while nobody asks for anything."""

OUR_OWN: Final = (
    "give vgpud a monitor of its own: -qmp unix:PATH,server=on,wait=off, and --qmp PATH"
)

_BROKEN: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)

Event = Callable[[str, dict[str, Any]], None]
"""An event's name and its data."""


class QmpError(Exception):
    """QEMU refused a command."""


class QmpDown(Exception):
    """There is no QMP connection, or it ended before the answer."""


class Qmp:
    """One monitor. run() keeps it connected; each outage is logged once."""

    def __init__(
        self, path: str, on_event: Event, on_up: Callable[[], None] = lambda: None
    ) -> None:
        """`on_up` is called with each new connection: the events before it are lost."""
        self._path = path
        self._on_event = on_event
        self._on_up = on_up
        self._stream: trio.SocketStream | None = None
        self._ready = trio.Event()
        self._wanted = trio.Event()
        self._sending = trio.Lock()
        self._waiting: dict[int, _Question] = {}
        self._last = 0
        self._failing = ""
        self.pid = 0
        """Of QEMU, or of who opened the monitor for it; 0 where it is not known."""

    async def run(self) -> None:
        """Connect, again and again, until cancelled."""
        while True:
            try:
                await self._converse()
                reason = "QEMU closed it"
            except (*_BROKEN, QmpDown) as error:
                reason = str(error) or type(error).__name__
            if reason != self._failing:
                log.warning("qmp-down", path=self._path, reason=reason, hint=OUR_OWN)
            self._failing = reason
            self._wanted = trio.Event()
            with trio.move_on_after(RETRY):
                await self._wanted.wait()
                await trio.sleep(RETRY / 20)  # whoever asks: not a busy loop

    @property
    def connected(self) -> bool:
        return self._stream is not None

    async def execute(self, command: str, **arguments: Any) -> Any:
        """What QEMU returns; an underscore in an argument's name stands for a dash. Waits for a
        connection too: the caller sets the limit. Raises QmpError, QmpDown."""
        self._wanted.set()
        await self._ready.wait()
        stream = self._stream
        if stream is None:  # it ended before this task ran
            raise QmpDown("it ended before the question")
        self._last += 1
        number, question = self._last, _Question()
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        message = {"execute": command, "arguments": named, "id": number}
        self._waiting[number] = question
        try:
            await self._send(stream, json.dumps(message).encode() + b"\n")
            await question.answered.wait()
        except _BROKEN as error:
            raise QmpDown(str(error)) from error
        finally:
            del self._waiting[number]
        if question.answer is None:
            raise QmpDown("it ended before the answer")
        if "error" in question.answer:
            raise QmpError(f"{command}: {_description(question.answer)}")
        return question.answer.get("return")

    # -- inside

    async def _send(self, stream: trio.SocketStream, line: bytes) -> None:
        async with self._sending:
            try:
                await stream.send_all(line)
            except trio.Cancelled:
                stream.socket.close()  # half a line may have gone
                raise

    async def _converse(self) -> None:
        """One connection, from its greeting to its end."""
        async with await trio.open_unix_socket(self._path) as stream:
            lines = _Lines(stream)
            self.pid = peer_pid(stream.socket)
            with trio.move_on_after(GREETING) as limit:
                greeting = await lines.next()
                if greeting is None:
                    return
                if "QMP" not in greeting:
                    raise QmpDown("no QMP greeting: it is something else")
                await stream.send_all(b'{"execute": "qmp_capabilities", "id": 0}\n')
                while (answer := await lines.next()) is not None and answer.get("id") != 0:
                    pass
                if answer is None or "error" in answer:
                    raise QmpDown("qmp_capabilities was refused")
            if limit.cancelled_caught:
                raise QmpDown(f"no greeting in {GREETING:g} s: it serves another client")
            self._stream = stream
            self._on_up()
            self._ready.set()
            try:
                while (message := await lines.next()) is not None:
                    self._take(message)
            finally:
                self._ready, self._stream = trio.Event(), None
                for question in self._waiting.values():
                    question.answered.set()

    def _take(self, message: dict[str, Any]) -> None:
        if "event" in message:
            data = message.get("data")
            self._on_event(str(message["event"]), data if isinstance(data, dict) else {})
            return
        number = message.get("id")
        question = self._waiting.get(number) if isinstance(number, int) else None
        if question is None:
            return  # whoever asked has given up
        question.answer = message
        question.answered.set()
        if self._failing:  # not before: a monitor may be lost again and again
            log.info("qmp-up", path=self._path)
            self._failing = ""


class _Question:
    def __init__(self) -> None:
        self.answered = trio.Event()
        self.answer: dict[str, Any] | None = None
        """None once answered: the connection ended."""


class _Lines:
    """JSON objects, one a line."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def next(self) -> dict[str, Any] | None:
        """None at the end of the stream. Raises QmpDown for what is no such line."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_MESSAGE:
                raise QmpDown(f"a message of more than {MAX_MESSAGE} bytes")
            data = await self._stream.receive_some(65536)
            if not data:
                if self._buffer:
                    raise QmpDown("it ended in the middle of a message")
                return None
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise QmpDown("a line that is no JSON object")
        return message


def _description(answer: dict[str, Any]) -> str:
    error = answer["error"]
    return str(error.get("desc", error)) if isinstance(error, dict) else str(error)
