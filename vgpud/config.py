"""Every option of the daemon with its default and unit. A leaf."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

DEFAULT_HOSTMEM: Final = 256 << 20
"""Bytes, as QEMU's max_hostmem."""


DEFAULT_DEVICE_FPS: Final = 10.0

DEFAULT_UDMABUF: Final = "/dev/udmabuf"


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
    udmabuf: str = DEFAULT_UDMABUF
    """Its path, or "fd=N" for one that the launcher opened."""
    outputs: tuple[tuple[int, int], ...] = ()
    """(width, height) in pixels of each head, where QEMU has no display of its own; empty: one of
    the usual size."""
    control: str | None = None
    """Path of the control socket; None: there is none."""
    sandbox: str = "on"
    """"on", "kill" or "off" (host/sandbox.py)."""
    log_level: str = "info"
    max_hostmem: int = DEFAULT_HOSTMEM
    """Bytes of 2D resources that a guest may have; the sum stays below it."""

    device_fps: float = DEFAULT_DEVICE_FPS
    """Frames a second that the CPU reads from device memory for one head, where its dma-buf cannot
    be shown."""

    qmp: str | None = None
    """Path of a QEMU monitor of our own; None: VFIO memory is what the memory table has."""
    vfio_from_qemu: bool = False
    """Whether VFIO descriptors may be taken from QEMU's process."""

    @property
    def dmabuf(self) -> bool:
        """Whether pictures go as dma-bufs. The protocol never says whether QEMU's display takes
        them, so `auto` does so only if the launcher gave a render node: then the display has GL
        (decision 3)."""
        if self.scanout == "auto":
            return self.render_node is not None
        return self.scanout == "dmabuf"

    @property
    def watches(self) -> bool:
        """Whether kernel uevents may be watched: device memory is shown as dma-bufs, or asked for.
        In shm mode what the memory table has of a device goes with QEMU's own descriptor of it."""
        return self.dmabuf or self.qmp is not None
