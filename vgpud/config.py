"""Every option of the daemon with its default and unit. A leaf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DEFAULT_HOSTMEM: Final = 256 << 20
"""Bytes, as QEMU's max_hostmem."""


@dataclass(frozen=True, slots=True)
class Config:
    """What the command line said.

    Exactly one of `socket_path` (a path to listen on) and `fd` (an inherited socket, connected
    to QEMU or listening) is set, unless the service manager handed a socket over (LISTEN_FDS).
    """

    socket_path: str | None = None
    fd: int | None = None
    scanout: str = "auto"
    render_node: str | None = None
    log_level: str = "info"
    max_hostmem: int = DEFAULT_HOSTMEM
    """Bytes of 2D resources that a guest may have; the sum stays below it."""
