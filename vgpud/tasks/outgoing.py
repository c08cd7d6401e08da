"""Messages on their way to the display, and who waits for them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from vgpud.device.pixels import Dmabuf
from vgpud.tasks.stats import Stats


class Ticket:
    """A flush that is answered when each head it touched has shown it, or at its deadline."""

    __slots__ = ("_stats", "done", "on_taken", "started", "waiting")

    def __init__(self, waiting: int, stats: Stats) -> None:
        self._stats = stats
        self.waiting = waiting
        self.done = waiting == 0
        self.started = time.monotonic()
        self.on_taken: Callable[[], None] | None = None

    def taken(self) -> None:
        """One head has shown it."""
        self.waiting -= 1
        if self.waiting <= 0:
            self.finish()

    def expire(self) -> None:
        """The deadline has come: the guest has waited long enough."""
        if not self.done:
            self._stats.late_flushes += 1
            self.finish()

    def finish(self) -> None:
        """It is over, whatever the display did. Happens once."""
        if not self.done:
            self.done = True
            self._stats.flushed(time.monotonic() - self.started)
            # Let go of it: a stalled head keeps tickets, and this one's element with its request.
            on_taken, self.on_taken = self.on_taken, None
            if on_taken is not None:
                on_taken()


Piece = bytes | memoryview


@dataclass(slots=True)
class Outgoing:
    """One message, or `updates` of one head: their bytes in pieces, the dma-buf that goes with the
    first byte, and who waits for the end, or, if it is `answered`, for QEMU's answer. `pixels`
    counts pixel bytes."""

    parts: deque[Piece]
    tickets: list[Ticket] = field(default_factory=list)
    pixels: int = 0
    updates: int = 0
    dmabuf: Dmabuf | None = None
    answered: bool = False

    def take(self) -> None:
        for ticket in self.tickets:
            ticket.taken()


class Terms(NamedTuple):
    """What may be sent on a socket at the moment.

    `may_update`: no DMABUF_UPDATE is unanswered, of which QEMU takes one at a time. `modifiers`:
    DMABUF2 was negotiated.
    """

    may_update: bool
    modifiers: bool


def small(data: bytes) -> Outgoing:
    return Outgoing(deque([data]))
