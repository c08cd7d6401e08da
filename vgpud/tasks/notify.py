"""What the service manager is told (sd_notify(3)): a datagram of KEY=VALUE lines."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(*lines: str) -> None:
    """Send `lines` to $NOTIFY_SOCKET; nothing where no service manager listens. Its absence
    never stops the daemon."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = "\0" + path[1:] if path[0] == "@" else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        with suppress(OSError):
            sock.sendto("\n".join(lines).encode(), address)


def listen_fds() -> list[int]:
    """Descriptors that the service manager opened for this process (sd_listen_fds(3)): from 3
    on, if they are meant for this process."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    try:
        count = int(os.environ.get("LISTEN_FDS", "0"))
    except ValueError:
        return []
    return list(range(3, 3 + count))
