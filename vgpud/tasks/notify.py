"""The service manager: what it is told (sd_notify(3)), what it opened for us (sd_listen_fds(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import trio

STATUS_PERIOD: Final = 5.0
"""Seconds between two looks at the status; it is sent where it has changed."""


class ServiceManager:
    """systemd, where it listens; its absence never stops the daemon.

    The socket is connected at once: after the start the sandbox allows no new one.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._socket = _connect(environment.get("NOTIFY_SOCKET", ""))
        self._status = ""
        self.watchdog = _watchdog(environment)
        """Seconds after which it takes a silent daemon for dead; 0: never."""

    def tell(self, *lines: str) -> None:
        """Send `lines`, each KEY=VALUE; nothing where nobody listens."""
        if self._socket is not None and lines:
            # It may be restarting, or its queue be full: the next one tells.
            with suppress(OSError):
                self._socket.send("\n".join(lines).encode())

    def status(self, text: str) -> list[str]:
        """The line for `systemctl status`, where it says something new."""
        if text == self._status:
            return []
        self._status = text
        return [f"STATUS={text}"]

    async def run(self, status: Callable[[float], str]) -> None:
        """Tell it that the loop turns, at half of its patience, and what `status` says of the
        seconds since it was last asked. Returns at once where nobody listens."""
        if self._socket is None:
            return
        period = min(STATUS_PERIOD, self.watchdog / 2) if self.watchdog else STATUS_PERIOD
        before = trio.current_time()
        while True:
            await trio.sleep(period)
            now = trio.current_time()
            alive = ["WATCHDOG=1"] if self.watchdog else []
            self.tell(*alive, *self.status(status(now - before)))
            before = now

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _connect(path: str) -> socket.socket | None:
    if not path.startswith(("/", "@")):
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    try:
        sock.connect("\0" + path[1:] if path[0] == "@" else path)
    except OSError:
        sock.close()
        return None
    return sock


def _watchdog(environment: Mapping[str, str]) -> float:
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    microseconds = environment.get("WATCHDOG_USEC", "")
    return int(microseconds) / 1e6 if microseconds.isdecimal() else 0.0


def passed_fds(environment: Mapping[str, str] = os.environ) -> list[tuple[str, int]]:
    """(name, number) of each descriptor that the service manager opened for this very process,
    from 3 on; the name of its unit file's FileDescriptorName= or OpenFile=."""
    if environment.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environment.get("LISTEN_FDS", "")
    if not count.isdecimal():
        return []
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    names += [""] * int(count)
    return [(names[n], 3 + n) for n in range(int(count))]
