"""A copy of what a head shows of device memory, which only a thread may read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from vgpud.device.geometry import union
from vgpud.device.pixels import Picture
from vgpud.tasks.outgoing import Ticket
from vgpuwire import Rect


class Canvas(Picture, Protocol):
    """A picture of our own, for a scanout that is not the whole of its buffer: QEMU ignores x, y
    and any offset of a dma-buf (decision 5). Or for one that is read by a thread."""

    def paint(self, rect: Rect, pieces: Sequence[memoryview]) -> None:
        """Put tightly packed B8G8R8X8 pixels into `rect`."""


MakeCanvas = Callable[[int, int], Canvas | None]
"""(width, height) in pixels; None where there is no memory for it."""


class Read(NamedTuple):
    """A read that a thread is to make: `source` of `picture` goes to `rect` of the head."""

    picture: Picture
    source: Rect
    rect: Rect
    tickets: list[Ticket]


class Mirror:
    """Of one picture and the part `rect` of it that a head shows. `stale` is what the guest has
    changed since it was read, in the head's coordinates; one read is made at a time."""

    def __init__(self, picture: Picture, rect: Rect, copy: Canvas) -> None:
        self.copy = copy
        self.shows = False
        """Whether `copy` has the picture: not before the first read, nor after one that failed."""
        self.dark = False
        """Whether the last read failed: there is nothing to show until the next."""
        self._picture, self._rect = picture, rect
        self._stale: Rect | None = None
        self._tickets: list[Ticket] = []
        self._reading: Read | None = None

    @property
    def unread(self) -> bool:
        """Whether a read is to be made now."""
        return self._stale is not None and self._reading is None

    def add(self, rect: Rect, tickets: list[Ticket]) -> None:
        """Pixels changed; the tickets go on with them to the display."""
        if not self.shows:
            rect = Rect(0, 0, self._rect.width, self._rect.height)
        self._stale = rect if self._stale is None else union(self._stale, rect)
        self._tickets += tickets

    def begin(self) -> Read:
        """What to read; then done() or failed() is called."""
        assert self.unread
        rect, self._stale = self._stale, None
        assert rect is not None
        tickets, self._tickets = self._tickets, []
        x, y = self._rect.x + rect.x, self._rect.y + rect.y
        source = Rect(x, y, rect.width, rect.height)
        self._reading = Read(self._picture, source, rect, tickets)
        return self._reading

    def done(self, rows: Sequence[memoryview] | None) -> tuple[Rect, list[Ticket]] | None:
        """The read has ended: what of the copy is to be shown. None where it was stopped half way:
        it must be made again."""
        read, self._reading = self._reading, None
        assert read is not None
        if rows is None:
            self.add(read.rect, read.tickets)
            return None
        self.copy.paint(read.rect, rows)
        self.shows, self.dark = True, False
        return read.rect, read.tickets

    def failed(self) -> None:
        """Device memory could not be read: the guest has switched it off, perhaps. Nobody waits
        for it; the next change of the picture tries again."""
        self._reading = None
        self.shows, self.dark = False, True

    def drop(self) -> list[Ticket]:
        """Whoever waits, which nobody does here any more."""
        tickets, self._tickets = self._tickets, []
        if self._reading is not None:
            tickets += self._reading.tickets
            self._reading.tickets.clear()
        self._stale = None
        return [ticket for ticket in tickets if not ticket.done]
