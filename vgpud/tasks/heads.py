"""What each head shows and what of it QEMU has not been told yet.

A head outlives the display's sockets: after stop and cont QEMU brings a new one, and all of it
is said again. Nothing here waits or writes; `DisplayLink` takes the next message when its
socket has room.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vgpud.device.geometry import union
from vgpud.device.outcome import CursorImage, CursorMove, ShowSurface
from vgpud.device.pixels import Surface
from vgpud.tasks.stats import Stats
from vgpuwire import GpuRequest, Rect, vhost_user_gpu

MAX_RECTS: Final = 64
"""Damaged rectangles kept for a display that does not keep up; then their union is sent once."""

_UNSURE: Final = (-1, -1)
"""What a new socket's QEMU shows of a head that was told something on the one before."""

TILE_BYTES: Final = 4 << 20
"""Pixel bytes of one UPDATE. QEMU reads a message whole while it holds its big lock, so a 4K
frame goes in pieces between which the guest may run."""


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
            if self.on_taken is not None:
                self.on_taken()


@dataclass(slots=True)
class Outgoing:
    """One message: its bytes in pieces, and who waits for its end."""

    parts: deque[memoryview]
    tickets: list[Ticket]
    pixels: int = 0


def small(data: bytes) -> Outgoing:
    return Outgoing(deque([memoryview(data)]), [])


class Head:
    """One scanout in shm mode: SCANOUT when its size changes, then UPDATEs of what changed."""

    def __init__(self, scanout_id: int) -> None:
        self._id = scanout_id
        self._surface: Surface | None = None
        self._rect = Rect(0, 0, 0, 0)
        self._told: tuple[int, int] | None = None
        self._damage: deque[tuple[Rect, list[Ticket]]] = deque()
        self._image: CursorImage | None = None
        self._move: CursorMove | None = None
        self._image_told = True
        self._move_told = True

    # -- what the device says

    def show(self, message: ShowSurface) -> None:
        """Another picture, or none: earlier damage is void, all of the new one is damaged. The
        same one again is nothing new (row S09)."""
        if message.surface is self._surface and message.rect == self._rect:
            return
        tickets = self._drop_damage()
        self._surface, self._rect = message.surface, message.rect
        if self._surface is None:
            _take(tickets)
        else:
            self._damage.append((self._whole(), tickets))

    def damage(self, rect: Rect, ticket: Ticket) -> None:
        """Pixels changed; the ticket is taken when they were sent."""
        if self._surface is None:
            ticket.taken()
            return
        if self._damage:
            last, tickets = self._damage[-1]
            if union(last, rect) in (last, rect):  # one holds the other: send the larger once
                tickets.append(ticket)
                self._damage[-1] = (union(last, rect), tickets)
                return
        self._damage.append((rect, [ticket]))
        if len(self._damage) > MAX_RECTS:
            whole = self._damage[0][0]
            for other, _ in self._damage:
                whole = union(whole, other)
            self._damage.append((whole, self._drop_damage()))

    def cursor_image(self, message: CursorImage) -> None:
        self._image, self._move = message, None
        self._image_told, self._move_told = False, True

    def cursor_move(self, message: CursorMove) -> None:
        """Only the last of several moves is sent (row K16)."""
        self._move, self._move_told = message, False

    # -- what the display is told

    def replay(self) -> None:
        """A new socket: say everything again, also that a head is off, because what QEMU shows
        outlives the socket (row R06)."""
        self._told = None if self._told is None else _UNSURE
        tickets = self._drop_damage()
        if self._surface is not None:
            self._damage.append((self._whole(), tickets))
        else:
            _take(tickets)
        self._image_told = self._image is None
        self._move_told = self._move is None

    def release(self) -> None:
        """The socket is gone: nobody will show what is waiting, nobody shall wait for it."""
        _take(self._drop_damage())

    def next_cursor(self) -> Outgoing | None:
        if not self._image_told and self._image is not None:
            self._image_told = True
            image = self._image
            head = vhost_user_gpu.cursor_update(
                image.scanout_id, image.x, image.y, image.hot_x, image.hot_y
            )
            return small(head + image.pixels)
        if not self._move_told and self._move is not None:
            self._move_told = True
            move = self._move
            request = GpuRequest.CURSOR_POS if move.visible else GpuRequest.CURSOR_POS_HIDE
            return small(vhost_user_gpu.cursor_pos(request, move.scanout_id, move.x, move.y))
        return None

    def next_picture(self) -> Outgoing | None:
        """SCANOUT first, then damage: an UPDATE without a SCANOUT on the same socket crashes
        QEMU (qemu-frontend, trap 1). A SCANOUT is one piece with an UPDATE, because QEMU leaks
        its surface if another comes in between (3.3). A disabled head is told once, and only if
        it was shown."""
        if self._surface is None:
            if self._told in (None, (0, 0)):
                return None
            self._told = (0, 0)
            return small(vhost_user_gpu.scanout(self._id, 0, 0))
        size = (self._rect.width, self._rect.height)
        scanout = b""
        if self._told != size:
            self._told = size
            scanout = vhost_user_gpu.scanout(self._id, *size)
            if not self._damage:
                self._damage.append((self._whole(), []))
        if not self._damage:
            return None
        rect, tickets = self._damage[0]
        rows = max(1, TILE_BYTES // (rect.width * 4))
        if rows < rect.height:
            rest = Rect(rect.x, rect.y + rows, rect.width, rect.height - rows)
            self._damage[0] = (rest, tickets)
            return self._update(scanout, Rect(rect.x, rect.y, rect.width, rows), [])
        self._damage.popleft()
        return self._update(scanout, rect, tickets)

    def _update(self, scanout: bytes, rect: Rect, tickets: list[Ticket]) -> Outgoing:
        """UPDATE with the rows of `rect`, taken where they are: the surface is ours and cannot
        fault, so the message is never cut half way."""
        assert self._surface is not None
        pixels, stride = self._surface.pixels, self._surface.width * 4
        size = rect.width * rect.height * 4
        header = vhost_user_gpu.update(self._id, rect.x, rect.y, rect.width, rect.height)
        start = (self._rect.y + rect.y) * stride + (self._rect.x + rect.x) * 4
        row = rect.width * 4
        parts = deque([memoryview(scanout + header)])
        if row == stride:
            parts.append(pixels[start : start + size])
        else:
            end = start + rect.height * stride
            parts.extend(pixels[at : at + row] for at in range(start, end, stride))
        return Outgoing(parts, tickets, size)

    def _whole(self) -> Rect:
        return Rect(0, 0, self._rect.width, self._rect.height)

    def _drop_damage(self) -> list[Ticket]:
        tickets = [ticket for _, waiting in self._damage for ticket in waiting]
        self._damage.clear()
        return tickets


def _take(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        ticket.taken()
