"""systemd's journal, by its native protocol (systemd.io, "Native Journal Protocol"): a datagram a
line, its fields kept apart, so that `journalctl VGPUD_EVENT=no-dmabuf` finds them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from typing import Final

SOCKET: Final = "/run/systemd/journal/socket"
PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}
"""syslog(3)'s."""
MAX_VALUE: Final = 4096
"""Bytes of a field: a datagram stays far below what a socket takes."""


def connected(
    stderr: int = 2, environment: Mapping[str, str] = os.environ, path: str = SOCKET
) -> socket.socket | None:
    """The journal's socket, where standard error goes to the journal ($JOURNAL_STREAM) or nowhere,
    as libvirt has it; None where it goes to a reader of its own, or there is no journal."""
    try:
        found = os.fstat(stderr)
        nowhere = os.stat(os.devnull)
    except OSError:
        return None
    streamed = environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
    if not streamed and (found.st_dev, found.st_ino) != (nowhere.st_dev, nowhere.st_ino):
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sock.setblocking(False)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        return None
    return sock


def datagram(level: str, event: str, line: str, fields: Mapping[str, str]) -> bytes:
    """A line with its fields: MESSAGE, PRIORITY, SYSLOG_IDENTIFIER, VGPUD_EVENT and VGPUD_KEY."""
    entries = {
        "MESSAGE": line,
        "PRIORITY": str(PRIORITY[level]),
        "SYSLOG_IDENTIFIER": "vgpud",
        "VGPUD_EVENT": event,
    }
    for key, value in fields.items():
        # A field's name: A to Z, digits, "_".
        entries["VGPUD_" + re.sub(r"[^A-Z0-9_]", "_", key.upper())] = value
    return b"".join(map(_field, entries, entries.values()))


def _field(key: str, value: str) -> bytes:
    data = value.encode(errors="replace")[:MAX_VALUE]
    # Always with a length: nothing in a value can begin another field.
    return key.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
