"""What each head shows and what of it QEMU has not been told yet.

A head outlives the display's sockets: after stop and cont QEMU brings a new one, and all of it
is said again. Nothing here waits or writes; `DisplayLink` takes the next message when its
socket has room.

A picture goes as a dma-buf where one can be had and is wanted (DMABUF_SCANOUT, then DMABUF_UPDATE
of what is damaged), else as pixels (SCANOUT, then UPDATE).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from vgpud.device.geometry import holds, union
from vgpud.device.outcome import ShowSurface
from vgpud.device.pixels import Dmabuf, Picture
from vgpud.errors import GuestError
from vgpud.tasks.mirror import Canvas, MakeCanvas, Mirror
from vgpud.tasks.outgoing import Outgoing, Terms, Ticket, small
from vgpud.tasks.pointer import Pointer
from vgpuwire import Ctrl, Rect, vhost_user_gpu

MAX_RECTS: Final = 64
"""Damaged rectangles kept for a display that does not keep up; then their union is sent once."""

TILE_BYTES: Final = 1 << 20
"""Pixel bytes of one UPDATE, or of several small ones that are sent together. QEMU reads a message
whole while it holds its big lock, so a 4K frame goes in pieces between which the guest may run."""

LARGE: Final = 1 << 20
"""Bytes of a picture from which on a thread makes its dma-buf; below, a thread costs more."""

LINEAR: Final = 0
"""DRM_FORMAT_MOD_LINEAR: rows one after the other, which guest memory always is."""


class _Source(NamedTuple):
    """The dma-buf of a head: the picture's own, or that of a canvas which is kept up to date."""

    shown: Picture
    canvas: Canvas | None
    dmabuf: Dmabuf

    @property
    def layout(self) -> tuple[object, ...]:
        """What QEMU is told of it. A guest may show one blob in several ways, all of which have
        the same dma-buf."""
        shown = self.shown
        return (self.dmabuf, shown.width, shown.height, shown.stride, shown.fourcc)


class _Way(Enum):
    """How QEMU was last told of a head."""

    NEVER = "nothing was said"
    PIXELS = "SCANOUT"
    BUFFER = "DMABUF_SCANOUT"


_OFF: Final = object()
_UNSURE: Final = object()
"""What a new socket's QEMU shows of a head that was told something on the one before."""


class Head:
    """One scanout. `make_canvas` is None where pictures go as pixels only; `make_copy` makes what
    a picture in device memory is copied to."""

    def __init__(
        self,
        scanout_id: int,
        make_canvas: MakeCanvas | None = None,
        make_copy: MakeCanvas | None = None,
    ) -> None:
        self.pointer = Pointer()
        self._id = scanout_id
        self._make_canvas = make_canvas
        self._make_copy = make_copy
        self._mirror: Mirror | None = None
        self._picture: Picture | None = None
        self._rect = Rect(0, 0, 0, 0)
        self._damage: deque[tuple[Rect, list[Ticket]]] = deque()
        self._way = _Way.NEVER
        self._told: object = _OFF
        self._changed_way = False
        """Whether the present socket was told of the change from a dma-buf to pixels."""
        self._doubtful = False
        """Whether that may have been lost: then QEMU shows the one or the other."""
        self._source: _Source | None = None
        self._sourced = False
        self._dark = False
        self._canvas: Canvas | None = None

    @property
    def shown(self) -> tuple[Picture, Rect] | None:
        """What it shows, and which part of it; None while it is off."""
        return None if self._picture is None else (self._picture, self._rect)

    @property
    def way(self) -> str:
        """How QEMU was last told of it."""
        return self._way.value

    @property
    def unmade(self) -> Picture | None:
        """A picture whose dma-buf must be made first, in a thread: it takes long where the kernel
        has to find the pages (decision 12), or to wake a device."""
        picture = self._picture
        if self._make_canvas is None or picture is None or self._sourced or picture.settled:
            return None
        if self._rect != Rect(0, 0, picture.width, picture.height):
            return None  # a canvas, not the whole of it
        return picture if picture.memory > LARGE or picture.slow else None

    # -- what the device says

    def show(self, message: ShowSurface) -> None:
        """Another picture, or none: earlier damage is void, all of the new one is damaged. The
        same one again is nothing new (row S09)."""
        if message.surface is self._picture and message.rect == self._rect:
            return
        tickets = self._drop_damage()
        self._picture, self._rect = message.surface, message.rect
        self._dark = False
        self._forget_source()
        if self._picture is None:
            self._canvas = None
            _take(tickets)
        else:
            self._damage.append((self._whole(), tickets))

    @property
    def unread(self) -> Mirror | None:
        """A mirror for which device memory is to be read."""
        mirror = self._mirror
        return mirror if mirror is not None and mirror.unread else None

    def read(self, mirror: Mirror, rows: Sequence[memoryview] | None) -> None:
        """A read for a mirror has ended, maybe half way (None); it may be another's by now."""
        if mirror is self._mirror and (ready := mirror.done(rows)) is not None:
            self._damage.append(ready)

    def unreadable(self, mirror: Mirror) -> None:
        """A read for a mirror failed: the head goes dark until the guest changes the picture."""
        if mirror is self._mirror:
            _take(self._drop_damage())
            mirror.failed()

    def damage(self, rect: Rect, ticket: Ticket) -> None:
        """Pixels changed; the ticket is taken when the display has them."""
        if self._picture is None or self._dark:
            ticket.taken()
            return
        if self._mirror is not None:
            self._mirror.add(rect, [ticket])
            return
        if self._damage:
            last, tickets = self._damage[-1]
            larger = last if holds(last, rect) else rect if holds(rect, last) else None
            if larger is not None:  # sent once
                waiting = [other for other in tickets if not other.done]
                self._damage[-1] = (larger, [*waiting, ticket])
                return
        self._damage.append((rect, [ticket]))
        if len(self._damage) > MAX_RECTS:
            self._merge_damage()

    def reset(self) -> None:
        """The device was reset: nothing is shown, nobody waits. QEMU forgets pixels by itself, but
        it shows an old dma-buf until it is told otherwise (trap 13)."""
        self.release()
        self.pointer = Pointer()
        self._picture = self._canvas = None
        self._forget_source()
        if self._way is _Way.PIXELS:
            self._way, self._told = _Way.NEVER, _OFF
        elif self._way is _Way.BUFFER:
            self._told = _UNSURE  # and the guest's dma-buf is closed

    def memory_changed(self) -> None:
        """The memory table is another: dma-bufs of the old one are dropped, and a picture whose
        pages have gone is no longer shown."""
        self._forget_source()
        if self._picture is None:
            return
        was_dark, self._dark = self._dark, self._picture.lost
        if self._dark:
            self._canvas = None
            _take(self._drop_damage())
        elif was_dark:
            self._damage.append((self._whole(), self._drop_damage()))

    # -- what the display is told

    def replay(self) -> None:
        """A new socket: say everything again, also that a head is off, because what QEMU shows
        outlives the socket (row R06)."""
        if self._way is not _Way.NEVER:
            self._told = _UNSURE
        tickets = self._drop_damage()
        if self._picture is not None:
            self._add(self._whole(), tickets)
        else:
            _take(tickets)
        self.pointer.replay()

    def release(self) -> None:
        """The socket is gone: nobody will show what is waiting, nobody shall wait for it. QEMU may
        not have read its end: a dma-buf that was to be let go of may be there still (trap 13)."""
        _take(self._drop_damage())
        if self._changed_way:
            self._way, self._told, self._doubtful = _Way.BUFFER, _UNSURE, True
            self._changed_way = False

    def next_picture(self, terms: Terms) -> Outgoing | None:
        """The next message about the picture; None where QEMU knows all, or must answer first."""
        if self._picture is None or self._dark:
            return self._next_off()
        if self.unmade is not None:
            return None
        try:
            source = self._find_source(self._picture)
            picture = self._picture
            if self._mirror is not None:
                if self._mirror.dark:
                    return self._next_off()
                if not self._mirror.shows:
                    return None
                picture = self._mirror.copy
            if source is None:
                return self._next_pixels(picture)
            return self._next_buffer(picture, source, terms)
        except GuestError:  # the guest's memory vanished: there is nothing left to show
            self._turn_off()
            return self._next_off()

    def _next_off(self) -> Outgoing | None:
        """A disabled head is told once, and only if it was shown."""
        if self._way is _Way.NEVER or self._told is _OFF:
            return None
        self._told = _OFF
        no_pixels = vhost_user_gpu.scanout(self._id, 0, 0)
        if self._way is _Way.PIXELS:
            return small(no_pixels)
        doubtful, self._doubtful = self._doubtful, False
        return small(self._no_buffer() + (no_pixels if doubtful else b""))

    def _no_buffer(self) -> bytes:
        empty = vhost_user_gpu.DmabufScanout(self._id, 0, 0, 0, 0, 0, 0, 0, 0, 0)
        return vhost_user_gpu.dmabuf_scanout(empty)

    def _next_pixels(self, picture: Picture) -> Outgoing | None:
        """SCANOUT first, then damage: an UPDATE without a SCANOUT on the same socket, in the same
        mode, crashes QEMU (qemu-frontend, trap 1). A SCANOUT is one piece with an UPDATE, because
        QEMU leaks its surface if another comes in between (3.3)."""
        size = (self._rect.width, self._rect.height)
        scanout = b""
        if self._way is not _Way.PIXELS or self._told != size:
            scanout = vhost_user_gpu.scanout(self._id, *size)
            if self._way is _Way.BUFFER and self._told is not _OFF:
                # QEMU keeps the old dma-buf until it is told to let go (trap 13).
                scanout = self._no_buffer() + scanout
                self._changed_way = True
            self._damage_whole()
        if not self._damage:
            return None
        out = Outgoing(deque([scanout] if scanout else ()))
        whole = 0
        for rect, tickets in self._damage:
            pixels = rect.width * rect.height * 4
            if out.pixels + pixels > TILE_BYTES and (out.pixels or rect.height > 1):
                break
            self._add_update(out, picture, rect)
            out.tickets += tickets
            whole += 1
        if not whole:
            self._add_tile(out, picture)
        for _ in range(whole):  # now: where memory vanished on the way, their tickets are not lost
            self._damage.popleft()
        self._way, self._told = _Way.PIXELS, size
        self._doubtful = False
        return out

    def _add_tile(self, out: Outgoing, picture: Picture) -> None:
        """The upper rows of the first damage, which is too large; its tickets wait for the rest."""
        (x, y, width, height), tickets = self._damage[0]
        rows = max(1, TILE_BYTES // (width * 4))
        self._add_update(out, picture, Rect(x, y, width, rows))
        self._damage[0] = (Rect(x, y + rows, width, height - rows), tickets)

    def _add_update(self, out: Outgoing, picture: Picture, rect: Rect) -> None:
        """UPDATE with the rows of `rect`, from memory that cannot fault: the message is never cut
        half way."""
        x, y, width, height = rect
        out.parts.append(vhost_user_gpu.update(self._id, x, y, width, height))
        out.parts.extend(picture.rows(self._in_picture(rect)))
        out.pixels += width * height * 4
        out.updates += 1

    def _next_buffer(self, picture: Picture, source: _Source, terms: Terms) -> Outgoing | None:
        """DMABUF_SCANOUT where QEMU has another buffer, then DMABUF_UPDATE, one at a time; what
        is damaged or shown meanwhile is merged: QEMU reads nothing before it has answered, and a
        buffer in the socket is one that no quota counts."""
        if not terms.may_update:
            return None
        if self._way is not _Way.BUFFER or self._told != source.layout:
            self._way, self._told = _Way.BUFFER, source.layout
            self._changed_way = self._doubtful = False
            self._damage_whole()
            return self._dmabuf_scanout(source, terms)
        if not self._damage:
            return None
        self._merge_damage()
        rect, tickets = self._damage[0]
        if source.canvas is not None:
            source.canvas.paint(rect, picture.rows(self._in_picture(rect)))
        self._damage.clear()
        update = vhost_user_gpu.dmabuf_update(self._id, rect.x, rect.y, rect.width, rect.height)
        return Outgoing(deque([update]), tickets, answered=True)

    def _dmabuf_scanout(self, source: _Source, terms: Terms) -> Outgoing:
        shown = source.shown
        width, height = shown.width, shown.height
        scanout: vhost_user_gpu.DmabufScanout | vhost_user_gpu.DmabufScanout2
        scanout = vhost_user_gpu.DmabufScanout(
            self._id, 0, 0, width, height, width, height, shown.stride, 0, shown.fourcc
        )
        if terms.modifiers:
            scanout = vhost_user_gpu.DmabufScanout2(scanout, LINEAR)
        data = vhost_user_gpu.dmabuf_scanout(scanout)
        return Outgoing(deque([data]), dmabuf=source.dmabuf)

    # -- where a dma-buf comes from

    def _find_source(self, picture: Picture) -> _Source | None:
        """The picture itself where the head shows all of it, else a canvas with what it shows;
        None where pixels must do. Looked for once a picture."""
        if not self._sourced:
            self._sourced = True
            self._source = None if self._make_canvas is None else self._make_source(picture)
            if self._source is None and picture.slow:
                self._source = self._make_mirror(picture)
        return self._source

    def _make_mirror(self, picture: Picture) -> _Source | None:
        """Show a copy, which is filled when a thread has read the device."""
        copy, _ = self._find_canvas(self._make_copy)
        self._canvas = copy
        if copy is None:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, "no memory for a copy of device memory")
        tickets = self._drop_damage()
        self._mirror = Mirror(picture, self._rect, copy)
        self._mirror.add(self._whole(), tickets)
        dmabuf = None if self._make_canvas is None else copy.dmabuf()
        return None if dmabuf is None else _Source(copy, None, dmabuf)

    def _find_canvas(self, make: MakeCanvas | None) -> tuple[Canvas | None, bool]:
        """One of the head's size, and whether it is new: not where the one that it has fits."""
        size = (self._rect.width, self._rect.height)
        canvas, self._canvas = self._canvas, None  # the old one goes first
        if canvas is not None and (canvas.width, canvas.height) == size:
            return canvas, False
        del canvas
        return None if make is None else make(*size), True

    def _make_source(self, picture: Picture) -> _Source | None:
        if self._rect == Rect(0, 0, picture.width, picture.height):
            dmabuf = picture.dmabuf()
            # A last row shorter than the stride is legal (B09), but GPUs want all of it.
            # No GPU takes rows that do not start at whole pixels.
            whole = dmabuf is not None and picture.stride * picture.height <= dmabuf.size
            if dmabuf is not None and whole and picture.stride % 4 == 0:
                return _Source(picture, None, dmabuf)
        if picture.slow:
            return None
        canvas, fresh = self._find_canvas(self._make_canvas)
        dmabuf = None if canvas is None else canvas.dmabuf()
        if canvas is None or dmabuf is None:
            return None
        if fresh:
            canvas.paint(self._whole(), picture.rows(self._rect))
        else:
            self._damage_whole()
        self._canvas = canvas
        return _Source(canvas, canvas, dmabuf)

    def _forget_source(self) -> None:
        self._source, self._sourced = None, False
        mirror, self._mirror = self._mirror, None
        if mirror is not None and (tickets := mirror.drop()):
            self._damage.append((self._whole(), tickets))

    # -- small things

    def _turn_off(self) -> None:
        self._picture = self._canvas = None
        self._forget_source()
        _take(self._drop_damage())

    def _whole(self) -> Rect:
        return Rect(0, 0, self._rect.width, self._rect.height)

    def _in_picture(self, rect: Rect) -> Rect:
        x, y = self._rect.x, self._rect.y
        if self._mirror is not None or not (x or y):
            return rect  # the copy has no more than that
        return Rect(x + rect.x, y + rect.y, rect.width, rect.height)

    def _merge_damage(self) -> None:
        whole = self._damage[0][0]
        for other, _ in self._damage:
            whole = union(whole, other)
        tickets = self._drop_ready()
        self._damage.append((whole, tickets))

    def _add(self, rect: Rect, tickets: list[Ticket]) -> None:
        if self._mirror is None:
            self._damage.append((rect, tickets))
        else:
            self._mirror.add(rect, tickets)

    def _damage_whole(self) -> None:
        """All is to be drawn, whatever of it was damaged: of what QEMU shows from now on, or of a
        canvas that was not kept up to date, nothing is right yet."""
        whole = self._whole()
        if all(rect != whole for rect, _ in self._damage):
            self._damage.append((whole, self._drop_ready()))

    def _drop_damage(self) -> list[Ticket]:
        return self._drop_ready() + ([] if self._mirror is None else self._mirror.drop())

    def _drop_ready(self) -> list[Ticket]:
        tickets = [ticket for _, waiting in self._damage for ticket in waiting if not ticket.done]
        self._damage.clear()
        return tickets


def _take(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        ticket.taken()
