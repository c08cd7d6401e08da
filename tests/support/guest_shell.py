"""The shell behind a guest's second serial port (tests/guest/init has its protocol)."""

import socket
import time


class GuestShell:
    """One guest's, over its resets. Every wait raises TimeoutError: at its end, or with QEMU."""

    def __init__(self, port: socket.socket) -> None:
        self._port = port
        self._buffer = b""

    def wait_ready(self, patience: float) -> str:
        """Wait until the guest has booted (after start or reset); returns its kernel's version."""
        deadline = time.monotonic() + patience
        while not (line := self._line(deadline)).startswith("ready "):
            pass  # the end of an answer that a reset cut off
        return line.removeprefix("ready ")

    def run(self, command: str, patience: float) -> tuple[int, str]:
        """Run a shell command in the guest; returns its exit code and output."""
        deadline = time.monotonic() + patience
        output = []
        self._port.sendall(command.encode() + b"\n")
        while not (line := self._line(deadline)).startswith("= "):
            output.append(line.removeprefix("| "))
        return int(line.removeprefix("= ")), "\n".join(output)

    def _line(self, deadline: float) -> str:
        while b"\n" not in self._buffer:
            self._port.settimeout(max(0.001, deadline - time.monotonic()))
            try:
                data = self._port.recv(65536)
            except TimeoutError:
                raise TimeoutError("the guest did not answer in time") from None
            except OSError:
                data = b""
            if not data:
                raise TimeoutError("QEMU ended while the guest was expected to answer")
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode(errors="replace").rstrip("\r")
