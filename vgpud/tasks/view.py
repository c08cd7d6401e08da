"""What an operator sees of a session: status, quotas, screenshots, traces (tasks/control.py)."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import trio

from vgpud.device.gpu import GpuDevice
from vgpud.device.pixels import Picture
from vgpud.device.resource import Blob, Image
from vgpud.errors import GuestError
from vgpud.host.fd import OwnedFd, append, memory_file
from vgpud.tasks.display import DisplayLink
from vgpud.tasks.reader import Reader
from vgpud.tasks.ring import RingTask, Server
from vgpud.tasks.stats import Stats
from vgpud.tasks.trace import MAX_TRACES, Filter, Trace, Traced
from vgpud.usage import Usage
from vgpuwire import Ctrl, Rect

RINGS: Final = ("control", "cursor")

BAND: Final = 1 << 20
"""Bytes of a screenshot that are copied at a time: a fraction of a millisecond."""


class Quotas(Protocol):
    def usage(self) -> Mapping[str, Usage]: ...


class View:
    """Reads the parts of one session, and changes nothing but who listens to its rings."""

    def __init__(
        self,
        device: GpuDevice,
        display: DisplayLink,
        reader: Reader,
        rings: Sequence[RingTask],
        quotas: Sequence[Quotas],
        stats: Stats,
    ) -> None:
        self._device = device
        self._display = display
        self._reader = reader
        self._rings = rings
        self._servers = [ring.server for ring in rings]
        self._quotas = quotas
        self._stats = stats
        self._traces: list[Trace] = []

    def close(self) -> None:
        """The session is over, and so is every trace."""
        for trace in self._traces:
            trace.close()

    def heads(self) -> list[tuple[int, str, str]]:
        """(number, "WxH", how its picture goes to QEMU) of each head that shows something."""
        found = []
        for number, head in sorted(self._display.heads().items()):
            if (shown := head.shown) is not None:
                found.append((number, f"{shown[1].width}x{shown[1].height}", head.way))
        return found

    def usage(self) -> dict[str, Usage]:
        """What the guest has of each quota; in the status as [used, limit, refused]."""
        return {name: usage for one in self._quotas for name, usage in one.usage().items()}

    def status(self) -> dict[str, object]:
        """For the control socket."""
        resources = list(self._device.resources)
        return {
            "heads": {n: {"size": size, "way": way} for n, size, way in self.heads()},
            "images": sum(isinstance(r, Image) for r in resources),
            "blobs": sum(isinstance(r, Blob) for r in resources),
            "quotas": self.usage(),
            "guest_errors": {hex(code): n for code, n in self._device.guest_errors.items()},
            **self._stats.fields(),
        }

    def trace(self, wanted: Filter) -> OwnedFd:
        """The end of a pipe that tells of every command from now on. Raises OSError."""
        self._traces = [one for one in self._traces if not one.over]
        if len(self._traces) >= MAX_TRACES:
            raise OSError(errno.EMFILE, f"{MAX_TRACES} traces are running")
        trace = Trace(wanted)
        self._traces.append(trace)
        self._listen()
        return OwnedFd(trace.reader.steal())

    def _listen(self) -> None:
        """The rings' servers, with those who listen to them."""
        self._traces = [one for one in self._traces if not one.over]
        for name, ring, server in zip(RINGS, self._rings, self._servers, strict=True):
            listened: Server = server
            for trace in self._traces:
                listened = Traced(listened, name, trace, self._listen)
            ring.server = listened

    async def screenshot(self, head: int) -> tuple[int, int, OwnedFd] | None:
        """(width, height, a memfd with its rows of B8G8R8X8) of what a head shows; None while it
        is off. Raises GuestError where the guest's memory vanished, OSError where the host has
        none for it."""
        heads = self._display.heads()
        shown = heads[head].shown if head in heads else None
        if shown is None:
            return None
        picture, rect = shown
        file = memory_file()
        rows = max(1, BAND // (4 * rect.width))
        for y in range(0, rect.height, rows):
            band = Rect(rect.x, rect.y + y, rect.width, min(rows, rect.height - y))
            append(file, await self._band(picture, band))
            # A guest may show a gigabyte; nobody shall wait for all of it.
            await trio.lowlevel.checkpoint()
        return rect.width, rect.height, file

    async def _band(self, picture: Picture, band: Rect) -> list[memoryview]:
        """Device memory is read in a thread."""
        if not picture.slow:
            return picture.rows(band)
        rows = await self._reader.read(picture, band)
        if rows is None:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, "its memory was moved meanwhile: try again")
        return rows
