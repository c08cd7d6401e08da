"""A QMP client over a connected socket, for tests: synchronous, with a deadline on every wait.

PyPI's qemu.qmp is well kept but lives in asyncio, which these tests (plain or trio) do not run;
what they need of it is this page.
"""

import json
import socket
import time
from collections.abc import Sequence
from typing import Any


class QmpError(Exception):
    """QEMU refused a command, went away, or did not answer in time."""


class Qmp:
    """One QMP session. `execute` runs a command; `events` keeps every event seen so far."""

    def __init__(self, sock: socket.socket, patience: float = 60.0) -> None:
        """Takes the socket over; `patience` is how many seconds QEMU has to answer."""
        self._sock = sock
        self._patience = patience
        self._buffer = b""
        self.events: list[dict[str, Any]] = []

    def negotiate(self) -> None:
        """Read QEMU's greeting and leave its negotiation mode; call it once, first."""
        greeting = self._read(time.monotonic() + self._patience)
        if "QMP" not in greeting:
            raise QmpError(f"not a QMP greeting: {greeting}")
        self.execute("qmp_capabilities")

    def execute(self, command: str, fds: Sequence[int] = (), **arguments: Any) -> Any:
        """Run one command, with fds passed along; returns what it returns, raises QmpError.

        An underscore in an argument's name stands for QMP's dash.
        """
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        message = json.dumps({"execute": command, "arguments": named}).encode() + b"\n"
        try:
            if fds:
                socket.send_fds(self._sock, [message], list(fds))
            else:
                self._sock.sendall(message)
        except OSError as error:
            raise QmpError(f"{command}: QEMU is gone ({error})") from error
        deadline = time.monotonic() + self._patience
        while True:
            answer = self._read(deadline)
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise QmpError(f"{command}: {answer['error']['desc']}")
            self.events.append(answer)

    def wait_event(self, name: str) -> dict[str, Any]:
        """The next event called `name`: the oldest that is kept, else one waited for."""
        deadline = time.monotonic() + self._patience
        while True:
            for index, event in enumerate(self.events):
                if event["event"] == name:
                    return self.events.pop(index)
            self.events.append(self._read(deadline))

    def close(self) -> None:
        """Close the socket; QEMU goes on."""
        self._sock.close()

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                raise QmpError(f"QEMU did not answer within {self._patience:.0f} s") from None
            except OSError as error:
                raise QmpError(f"QEMU is gone ({error})") from error
            if not data:
                raise QmpError("QEMU closed the QMP connection")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        message: dict[str, Any] = json.loads(line)
        return message
