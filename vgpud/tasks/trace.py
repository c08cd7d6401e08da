"""What a guest asks, as it is served: a JSON object a line, into a pipe that vgpuctl reads.

Nobody who reads: nothing is in the way of a command. A reader who is slow loses lines, which are
counted, never the guest's time.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from vgpud.host.fd import OwnedFd
from vgpud.host.virtqueue import Element
from vgpud.tasks.ring import Push, Server
from vgpuwire import COMMANDS, FLAG_FENCE, Ctrl, CtrlHdr, Record, WireError

PIPE_BYTES: Final = 1 << 20
"""Asked of the kernel: some seconds of a busy guest."""

MAX_TRACES: Final = 4

_NAMES: Final = {kind.name.removeprefix("CMD_") for kind in Ctrl if kind.name.startswith("CMD_")}
"""Nobody waits for ever for a command that was misspelt."""


class Filter(NamedTuple):
    """What is told; everything by default. `slower` is in milliseconds."""

    commands: frozenset[str] = frozenset()
    resource: int | None = None
    errors: bool = False
    slower: float = 0.0

    @classmethod
    def of(cls, request: Mapping[str, Any]) -> Filter:
        """As a client asks for it. Raises TypeError or ValueError for what it cannot mean."""
        resource = request.get("resource")
        commands = frozenset(map(str, request.get("commands", ())))
        if unknown := sorted(commands - _NAMES):
            raise ValueError(f"no command {unknown[0]}; there are {', '.join(sorted(_NAMES))}")
        return cls(
            commands,
            None if resource is None else int(resource),
            bool(request.get("errors", False)),
            float(request.get("slower", 0)),
        )

    def wants(self, line: dict[str, Any]) -> bool:
        return (
            (not self.commands or line["command"] in self.commands)
            and (self.resource is None or line.get("resource_id") == self.resource)
            and (not self.errors or str(line["answer"]).startswith("ERR"))
            and line["us"] >= self.slower * 1000
        )


class Trace:
    """One reader. It is over when the reader closes its end."""

    def __init__(self, wanted: Filter) -> None:
        """Raises OSError."""
        self._wanted = wanted
        self._lost = 0
        out, into = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.reader = OwnedFd(out)
        """Its end: whoever takes it over closes it with the last reference."""
        self._pipe = OwnedFd(into)
        self._readers = select.poll()
        self._readers.register(into, 0)  # nothing but the end of all readers: POLLERR
        os.set_blocking(out, True)
        with suppress(OSError):  # more than a user may have
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def over(self) -> bool:
        """Whether nobody reads it any more, also where nothing is written that would fail."""
        if self._pipe.fileno() >= 0 and self._readers.poll(0):
            self._pipe.close()
        return self._pipe.fileno() < 0

    def tell(self, line: dict[str, Any]) -> None:
        if self._pipe.fileno() < 0 or not self._wanted.wants(line):
            return
        if self._lost:
            line["lost"] = self._lost
        data = json.dumps(line).encode() + b"\n"
        # No more than PIPE_BUF, which a pipe takes whole or not at all.
        assert len(data) <= 4096
        try:
            os.write(self._pipe.fileno(), data)
            self._lost = 0
        except BlockingIOError:
            self._lost += 1
        except OSError:
            self._pipe.close()

    def close(self) -> None:
        self._pipe.close()


class Traced:
    """A ring's server, listened to."""

    def __init__(self, server: Server, ring: str, trace: Trace, done: Callable[[], None]) -> None:
        self.server = server
        self._ring = ring
        self._trace = trace
        self._done = done

    def serve(self, element: Element, push: Push) -> None:
        begin = time.monotonic()

        def answered(element: Element, response: bytes) -> None:
            push(element, response)
            line = described(element.request, response)
            line |= {"ring": self._ring, "at": begin}
            line["us"] = round((time.monotonic() - begin) * 1e6)
            self._trace.tell(line)

        self.server.serve(element, answered)

    def flush(self) -> None:
        self.server.flush()
        if self._trace.over:
            self._done()

    def stop(self) -> None:
        self.server.stop()

    @property
    def waits(self) -> bool:
        return self.server.waits


def described(request: bytes, response: bytes) -> dict[str, Any]:
    """A command and its answer in the specification's names; what cannot be read as numbers."""
    line: dict[str, Any] = {"command": f"{len(request)} bytes", "answer": ""}
    with suppress(WireError):
        hdr = CtrlHdr.decode(request)
        line["command"] = _name(hdr.type, "CMD_")
        if hdr.flags & FLAG_FENCE:
            line["fence"] = hdr.fence_id
        record = COMMANDS.get(hdr.type)
        if record is not None and record is not CtrlHdr:
            for key, value in _fields(record.decode(request)).items():
                line.setdefault(key, value)
    with suppress(WireError):
        line["answer"] = _name(CtrlHdr.decode(response).type, "RESP_")
    return line


def _name(number: int, prefix: str) -> str:
    try:
        return Ctrl(number).name.removeprefix(prefix)
    except ValueError:
        return f"{number:#x}"


def _fields(record: Any) -> dict[str, Any]:
    found = {}
    for key, value in record._asdict().items():
        if isinstance(value, CtrlHdr):
            continue
        found[key] = _fields(value) if isinstance(value, Record) else value
    return found
