"""Heads, told to a QEMU that dies where the real one would: what it shows must be the picture."""

from __future__ import annotations

import gc
import struct
import weakref
from collections import Counter
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.support.fake_pixels import (
    CHANNELS,
    FOURCC,
    PAGE,
    FakeDmabuf,
    FakeGuest,
    FakePicture,
    FakePixelStore,
    FakeSurface,
    Layout,
    bgrx,
    entries,
)
from vgpud.device.outcome import CursorImage, CursorMove, ShowSurface
from vgpud.errors import GuestError
from vgpud.tasks import heads
from vgpud.tasks.heads import MAX_RECTS, TILE_BYTES, Head
from vgpud.tasks.outgoing import Outgoing, Terms, Ticket
from vgpud.tasks.stats import Stats
from vgpuwire import Ctrl, Rect

SCANOUT, UPDATE, BUFFER, BUFFER_UPDATE, BUFFER2 = 7, 8, 9, 10, 12
POS, HIDE, IMAGE = 4, 5, 6
OFF = Rect(0, 0, 0, 0)
ORDERS = {FOURCC[number]: order for number, order in CHANNELS.items()}

Box = tuple[int, int, int, int]
AnyPicture = FakeSurface | FakePicture


class Socket:
    """What the heads on one socket share: QEMU takes one DMABUF_UPDATE at a time, and answers it
    when its display has drawn."""

    def __init__(self, modifiers: bool = False) -> None:
        self.modifiers = modifiers
        self.drawing: Outgoing | None = None

    @property
    def terms(self) -> Terms:
        return Terms(self.drawing is None, self.modifiers)

    def answer(self) -> None:
        if self.drawing is not None:
            drawing, self.drawing = self.drawing, None
            drawing.take()


class Buffer(NamedTuple):
    """What QEMU was told of a dma-buf: (dma-buf, width, height, stride, fourcc)."""

    dmabuf: FakeDmabuf
    width: int
    height: int
    stride: int
    fourcc: int


class Screen:
    """QEMU's end for one head (hw/display/vhost-user-gpu.c): `pixels` is what one sees, None while
    it is off. Of a dma-buf one sees what an update has drawn, and rubbish before."""

    def __init__(self, socket: Socket | None = None, number: int = 0) -> None:
        self.socket = socket or Socket()
        self.number = number
        self.size = (0, 0)
        self.pixels: bytearray | None = None
        self.surface = False  # whether SCANOUT made one that UPDATE may use
        self.updated = True
        self.buffer: Buffer | None = None
        self.sure = True  # whether all on this socket knows what the head shows
        self.log: list[tuple[int, ...]] = []

    def new_socket(self, modifiers: bool = False) -> None:
        """What is seen outlives a socket; its surface does not."""
        assert self.socket.drawing is None, "who waits for the old socket?"
        self.socket = Socket(modifiers)
        self.surface = self.sure = False
        self.updated = True
        self.log.clear()

    def device_reset(self) -> None:
        """It forgets pixels, and shows an old dma-buf until told otherwise (trap 13)."""
        if self.buffer is None:
            self.pixels = None

    def take(self, out: Outgoing) -> None:
        """Read all of a message, or of several that go in one piece."""
        data, dmabuf = b"".join(out.parts), out.dmabuf
        sure = self.sure  # also of the second message of one piece
        assert dmabuf is None or isinstance(dmabuf, FakeDmabuf)
        while data:
            request, flags, size = struct.unpack_from("<III", data)
            assert flags == 0
            assert len(data) >= 12 + size, "a message is cut"
            assert dmabuf is None or request in (BUFFER, BUFFER2), "a stray fd"
            after, self.sure = self.sure, sure and self.sure
            self._message(request, data[12 : 12 + size], dmabuf)
            self.sure = self.sure or after
            data, dmabuf = data[12 + size :], None
        assert out.answered == (request == BUFFER_UPDATE)
        if out.answered:
            self.socket.drawing = out
        else:
            out.take()

    def _message(self, request: int, body: bytes, dmabuf: FakeDmabuf | None) -> None:
        count = min(len(body) // 4, 5 if request == UPDATE else 12)
        scanout, *fields = struct.unpack_from(f"<{count}I", body)
        if request in (POS, HIDE, IMAGE):
            self.log.append((request, *fields[:2]))
            return
        assert scanout == self.number
        self.log.append((request, *fields))
        if request == SCANOUT:
            self._scanout(*fields)
        elif request == UPDATE:
            self._update(*fields, pixels=body[20:])
        elif request == BUFFER_UPDATE:
            self._draw(*fields)
        else:
            assert request in (BUFFER, BUFFER2)
            assert request == BUFFER or self.socket.modifiers, "this QEMU does not know it"
            self._scanout_dmabuf(fields, dmabuf)

    def _scanout(self, width: int, height: int) -> None:
        assert self.updated, "QEMU leaks the surface of a SCANOUT without an UPDATE"
        if width:
            assert 16 <= width <= 16384
            assert 16 <= height <= 16384
            self.updated = False
            self.pixels = bytearray(width * height * 4)
        else:
            assert self.pixels is not None or not self.sure, "it is off already"
            self.pixels = None
        self.size, self.surface, self.buffer = (width, height), bool(width), None
        self.sure = True

    def _update(self, x: int, y: int, width: int, height: int, pixels: bytes) -> None:
        assert self.surface, "QEMU crashes: UPDATE without SCANOUT"
        assert len(pixels) == width * height * 4
        assert len(pixels) <= max(heads.TILE_BYTES, width * 4)
        self._put(x, y, width, height, pixels)
        self.updated = True

    def _scanout_dmabuf(self, fields: list[int], dmabuf: FakeDmabuf | None) -> None:
        self.surface = False  # QEMU aborts at an UPDATE on it
        self.sure, sure = True, self.sure
        if dmabuf is None:
            assert self.pixels is not None or not sure, "it is off already"
            assert not any(fields), "who knows what that means"
            self.buffer = self.pixels = None
            return
        x, y, width, height, fd_width, fd_height, stride, flags, fourcc = fields[:9]
        assert (x, y, flags) == (0, 0, 0), "QEMU ignores them"
        assert (fd_width, fd_height) == (width, height), "QEMU does not crop"
        assert fields[9:] in ([], [0, 0]), "not linear"
        assert 16 <= width <= 16384
        assert 16 <= height <= 16384
        assert stride >= width * 4
        assert stride * height <= dmabuf.size, "a GPU reads behind the end, or refuses"
        buffer = Buffer(dmabuf, width, height, stride, fourcc)
        assert not sure or self.buffer != buffer, "the same buffer again: it flickers"
        self.buffer, self.size = buffer, (width, height)
        self.pixels = bytearray(b"\xee" * (width * height * 4))

    def _draw(self, x: int, y: int, width: int, height: int) -> None:
        assert self.socket.drawing is None, "QEMU has one flag for it"
        assert self.buffer is not None, "nothing to draw"
        assert self.sure, "of which buffer?"
        content, rows = self.buffer.dmabuf.look(), range(y, y + height)
        starts = [row * self.buffer.stride + x * 4 for row in rows]
        raw = b"".join(content[at : at + width * 4] for at in starts)
        self._put(x, y, width, height, bgrx(raw, ORDERS[self.buffer.fourcc]))

    def _put(self, x: int, y: int, width: int, height: int, pixels: bytes) -> None:
        assert min(width, height) > 0, "an empty update"
        assert x + width <= self.size[0], "outside"
        assert y + height <= self.size[1], "outside"
        assert self.pixels is not None
        for row in range(height):
            at = ((y + row) * self.size[0] + x) * 4
            self.pixels[at : at + width * 4] = pixels[row * width * 4 :][: width * 4]

    def requests(self) -> list[int]:
        return [entry[0] for entry in self.log]

    def boxes(self) -> list[tuple[int, ...]]:
        return [entry[1:] for entry in self.log if entry[0] in (UPDATE, BUFFER_UPDATE)]

    def shown(self) -> bytes | None:
        return None if self.pixels is None else bytes(self.pixels)


def drain(head: Head, screen: Screen) -> int:
    """Send all that there is, each answered at once; how many messages it took."""
    count = 0
    screen.socket.answer()
    while (out := head.pointer.next() or head.next_picture(screen.socket.terms)) is not None:
        screen.take(out)
        screen.socket.answer()
        count += 1
        assert count < 10_000
    return count


def picture(surface: AnyPicture, rect: Rect) -> bytes:
    """The part of a picture that a head should show."""
    return b"".join(surface.rows(rect))


def painted(
    width: int, height: int, seed: int = 1, exports: bool = False, stride: int | None = None
) -> FakeSurface:
    surface = FakeSurface(width, height, 1, exports, stride)
    count = len(surface.pixels)
    surface.pixels[:] = bytes((n * 7 + n // 251 + seed) & 0xFF for n in range(count))
    return surface


class Counted(Ticket):
    """A ticket that notes how often it was taken."""

    __slots__ = ("times",)

    def __init__(self, waiting: int = 1) -> None:
        super().__init__(waiting, Stats())
        self.times = 0

    def taken(self) -> None:
        self.times += 1
        super().taken()


TERMS = Terms(True, False)


def showing(
    width: int = 32, height: int = 24, rect: Rect | None = None
) -> tuple[Head, Screen, FakeSurface]:
    """A head that shows a painted surface, all of it told."""
    head, screen, surface = Head(0), Screen(), painted(width, height)
    head.show(ShowSurface(0, surface, rect or Rect(0, 0, width, height)))
    drain(head, screen)
    screen.log.clear()
    return head, screen, surface


# -- pictures


def test_V05_a_head_is_told_its_size_before_its_pixels() -> None:
    head, screen, surface = Head(0), Screen(), painted(40, 30)
    rect = Rect(4, 2, 32, 24)
    head.show(ShowSurface(0, surface, rect))
    drain(head, screen)
    assert screen.log == [(SCANOUT, 32, 24), (UPDATE, 0, 0, 32, 24)]
    assert screen.shown() == picture(surface, rect)


def test_a_size_is_never_told_without_pixels_to_show() -> None:
    """QEMU frees the surface of a SCANOUT only once an UPDATE has shown it."""
    head, screen, surface = Head(0), Screen(), painted(64, 64)
    for side in (16, 32, 48, 64):
        head.show(ShowSurface(0, surface, Rect(0, 0, side, side)))
        out = head.next_picture(TERMS)
        assert out is not None
        screen.take(out)
    assert screen.requests() == [SCANOUT, UPDATE] * 4


def test_a_size_is_told_with_pixels_even_where_the_damage_was_dropped() -> None:
    head, screen, surface = Head(0), Screen(), painted(64, 64)
    head.show(ShowSurface(0, surface, Rect(0, 0, 64, 64)))
    head.release()
    drain(head, screen)
    assert screen.log == [(SCANOUT, 64, 64), (UPDATE, 0, 0, 64, 64)]


def test_a_new_head_says_nothing() -> None:
    head = Head(3)
    head.replay()
    head.show(ShowSurface(3, None, OFF))
    assert head.next_picture(TERMS) is None
    assert head.pointer.next() is None


def test_U03_a_head_is_switched_off_once() -> None:
    head, screen, _ = showing()
    head.show(ShowSurface(0, None, OFF))
    head.show(ShowSurface(0, None, OFF))
    drain(head, screen)
    assert screen.log == [(SCANOUT, 0, 0)]


def test_nothing_is_sent_of_a_head_that_went_off_before_anybody_saw_it() -> None:
    head, screen = Head(0), Screen()
    head.show(ShowSurface(0, painted(32, 32), Rect(0, 0, 32, 32)))
    head.show(ShowSurface(0, None, OFF))
    assert drain(head, screen) == 0


def test_S09_another_part_of_the_same_size_is_no_new_scanout() -> None:
    head, screen, surface = showing(64, 64, Rect(0, 0, 32, 32))
    head.show(ShowSurface(0, surface, Rect(16, 8, 32, 32)))
    drain(head, screen)
    assert screen.log == [(UPDATE, 0, 0, 32, 32)]
    assert screen.shown() == picture(surface, Rect(16, 8, 32, 32))


def test_S09_the_same_picture_again_is_nothing_new() -> None:
    head, screen, surface = showing()
    ticket = Counted()
    head.damage(Rect(1, 1, 2, 2), ticket)
    head.show(ShowSurface(0, surface, Rect(0, 0, 32, 24)))
    drain(head, screen)
    assert screen.log == [(UPDATE, 1, 1, 2, 2)]
    assert ticket.times == 1


def test_S11_from_one_surface_to_another_the_head_does_not_go_dark() -> None:
    head, screen, _ = showing()
    other = painted(32, 24, seed=99)
    head.show(ShowSurface(0, other, Rect(0, 0, 32, 24)))
    drain(head, screen)
    assert screen.log == [(UPDATE, 0, 0, 32, 24)]
    assert screen.shown() == picture(other, Rect(0, 0, 32, 24))


def test_R06_all_is_told_again_to_a_new_socket() -> None:
    head, _, surface = showing(64, 64, Rect(8, 8, 32, 32))
    head.pointer.set_image(CursorImage(0, 1, 2, 3, 4, bytes(16384)))
    head.pointer.move(CursorMove(0, 9, 9, True))
    drain(head, Screen())
    for _ in range(2):
        screen = Screen()
        head.release()
        head.replay()
        drain(head, screen)
        assert screen.requests() == [IMAGE, POS, SCANOUT, UPDATE]
        assert screen.shown() == picture(surface, Rect(8, 8, 32, 32))


def test_R06_a_pointer_that_moved_before_its_image_is_told_where_the_image_was() -> None:
    head = Head(0)
    head.pointer.move(CursorMove(0, 9, 9, False))
    head.pointer.set_image(CursorImage(0, 1, 2, 3, 4, bytes(16384)))
    drain(head, Screen())
    head.replay()
    screen = Screen()
    drain(head, screen)
    assert screen.log == [(IMAGE, 1, 2)]


def test_R06_who_waits_for_damage_waits_for_its_replay() -> None:
    head, _, _ = showing()
    ticket = Counted()
    head.damage(Rect(0, 0, 4, 4), ticket)
    head.replay()
    assert not ticket.done
    drain(head, Screen())
    assert ticket.times == 1


def test_R06_a_head_that_went_off_while_nobody_listened_is_told_so() -> None:
    head, screen, _ = showing()
    head.show(ShowSurface(0, None, OFF))
    head.release()
    head.replay()
    screen.new_socket()
    drain(head, screen)
    assert screen.log == [(SCANOUT, 0, 0)], "QEMU's surface outlives the socket"


def test_two_heads_show_their_parts_of_one_surface() -> None:
    surface = painted(64, 32)
    rects = [Rect(0, 0, 32, 32), Rect(32, 0, 32, 32)]
    both, screens = [Head(0), Head(1)], [Screen(), Screen(number=1)]
    ticket = Counted(2)
    for number, head in enumerate(both):
        head.show(ShowSurface(number, surface, rects[number]))
        drain(head, screens[number])
    surface.pixels[:] = painted(64, 32, seed=50).pixels
    for head in both:
        head.damage(Rect(0, 0, 32, 32), ticket)
    drain(both[0], screens[0])
    assert not ticket.done, "the other head has not shown it"
    drain(both[1], screens[1])
    assert ticket.done
    assert [s.shown() for s in screens] == [picture(surface, rect) for rect in rects]


@pytest.mark.parametrize("rect", [Rect(0, 0, 64, 48), Rect(8, 4, 32, 32)])
def test_V11_a_large_update_goes_in_tiles_and_is_shown_with_the_last(rect: Rect) -> None:
    surface, head, screen, ticket = painted(64, 48), Head(0), Screen(), Counted()
    with patch.object(heads, "TILE_BYTES", rect.width * 4 * 5):
        head.show(ShowSurface(0, surface, rect))
        drain(head, screen)
        screen.log.clear()
        head.damage(Rect(0, 0, rect.width, rect.height), ticket)
        tiles = 0
        while (out := head.next_picture(TERMS)) is not None:
            assert not ticket.done
            screen.take(out)
            tiles += 1
    assert tiles == -(-rect.height // 5)
    assert screen.boxes() == [
        (0, y, rect.width, min(5, rect.height - y)) for y in range(0, rect.height, 5)
    ]
    assert ticket.times == 1
    assert screen.shown() == picture(surface, rect)


def test_V11_one_row_is_the_smallest_tile() -> None:
    with patch.object(heads, "TILE_BYTES", 1):
        head, screen, surface = showing(16, 16)
        head.damage(Rect(0, 0, 16, 16), Counted())
        assert drain(head, screen) == 16
    assert screen.shown() == bytes(surface.pixels)


def test_V11_a_4k_frame_is_a_few_messages_of_bounded_size() -> None:
    head = Head(0)
    head.show(ShowSurface(0, FakeSurface(3840, 2160, 1), Rect(0, 0, 3840, 2160)))
    sizes = []
    while (out := head.next_picture(TERMS)) is not None:
        sizes.append(out.pixels)
    assert sum(sizes) == 3840 * 2160 * 4
    assert max(sizes) <= TILE_BYTES
    assert len(sizes) == -(-2160 // (TILE_BYTES // (3840 * 4)))


def test_the_pixels_are_sent_from_where_they_are() -> None:
    head, _, surface = showing(32, 32)
    head.damage(Rect(0, 0, 32, 4), Counted())
    head.damage(Rect(3, 8, 5, 4), Counted())
    out = head.next_picture(TERMS)
    assert out is not None
    assert len(out.parts) == 2 + 1 + 4, "rows that follow each other are one piece"
    assert out.updates == 2
    surface.pixels[:] = bytes([0xEE]) * len(surface.pixels)
    assert bytes(out.parts[1]) == bytes([0xEE]) * 512, "not copied"


def test_small_updates_are_sent_together_up_to_a_tile() -> None:
    head, _, _ = showing(64, 64)
    tickets = [Counted() for _ in range(5)]
    with patch.object(heads, "TILE_BYTES", 3 * 8 * 8 * 4):
        for n, ticket in enumerate(tickets):
            head.damage(Rect(12 * n, 3, 8, 8), ticket)
        first, second = head.next_picture(TERMS), head.next_picture(TERMS)
        assert head.next_picture(TERMS) is None
    assert first is not None
    assert second is not None
    assert (first.updates, second.updates) == (3, 2)
    assert [*first.tickets, *second.tickets] == tickets


def test_memory_that_vanishes_between_two_updates_loses_no_ticket() -> None:
    head, screen, surface = showing(64, 64)
    drain(head, screen)
    tickets = [Counted(), Counted()]
    head.damage(Rect(0, 0, 8, 8), tickets[0])
    head.damage(Rect(20, 0, 8, 8), tickets[1])
    rows = surface.rows

    def vanish(rect: Rect) -> list[memoryview]:
        if rect.x:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, "gone")
        return rows(rect)

    with patch.object(surface, "rows", vanish):
        head.next_picture(TERMS)
    assert [ticket.done for ticket in tickets] == [True, True]


# -- damage and tickets


def test_damage_inside_the_last_one_is_sent_once() -> None:
    head, screen, _ = showing()
    tickets = [Counted() for _ in range(3)]
    for ticket, rect in zip(
        tickets, [Rect(4, 4, 4, 4), Rect(5, 5, 1, 1), Rect(2, 2, 10, 10)], strict=True
    ):
        head.damage(rect, ticket)
    drain(head, screen)
    assert screen.boxes() == [(2, 2, 10, 10)]
    assert [ticket.times for ticket in tickets] == [1, 1, 1]


def test_F12_F04_damage_of_a_head_that_is_off_is_over_at_once() -> None:
    head, ticket = Head(0), Counted()
    head.damage(Rect(0, 0, 4, 4), ticket)
    assert ticket.done
    assert ticket.times == 1


def test_U06_damage_that_waits_is_over_when_the_head_goes_off() -> None:
    head, screen, _ = showing()
    ticket = Counted()
    head.damage(Rect(0, 0, 4, 4), ticket)
    head.show(ShowSurface(0, None, OFF))
    assert ticket.done
    drain(head, screen)
    assert ticket.times == 1


def test_U06_pixels_on_their_way_out_live_until_they_are_sent() -> None:
    head, screen, surface = showing()
    head.damage(Rect(0, 0, 32, 24), Counted())
    out = head.next_picture(TERMS)
    assert out is not None
    expected = bytes(surface.pixels)
    del surface
    head.show(ShowSurface(0, None, OFF))
    screen.take(out)
    assert screen.shown() == expected


def test_damage_moves_on_to_the_next_picture() -> None:
    head, screen, _ = showing()
    ticket = Counted()
    head.damage(Rect(0, 0, 4, 4), ticket)
    head.show(ShowSurface(0, painted(64, 64), Rect(0, 0, 64, 64)))
    assert not ticket.done
    drain(head, screen)
    assert ticket.times == 1
    assert screen.boxes() == [(0, 0, 64, 64)]


def test_R02_nobody_waits_for_a_socket_that_is_gone() -> None:
    head, screen, _ = showing()
    tickets = [Counted(), Counted()]
    for n, ticket in enumerate(tickets):
        head.damage(Rect(8 * n, 0, 4, 4), ticket)
    head.release()
    assert [ticket.times for ticket in tickets] == [1, 1]
    head.replay()
    drain(head, screen)
    assert [ticket.times for ticket in tickets] == [1, 1]


def test_E21_damage_for_a_display_that_reads_nothing_stays_bounded() -> None:
    head, screen, surface = showing(320, 240)
    stats = Stats()
    tickets = [Ticket(1, stats) for _ in range(3_000)]
    for n, ticket in enumerate(tickets):
        head.damage(Rect((n * 2) % 300, (n * 3) % 200, 1, 1), ticket)
        assert len(head._damage) <= MAX_RECTS
    surface.pixels[:] = painted(320, 240, seed=9).pixels
    assert drain(head, screen) <= MAX_RECTS
    assert all(ticket.done for ticket in tickets)
    assert stats.frames == 3_000


def test_up_to_64_rectangles_are_sent_as_they_are() -> None:
    head, screen, _ = showing(200, 200)
    boxes = [(n * 3, n, 1, 1) for n in range(MAX_RECTS)]
    for box in boxes:
        head.damage(Rect(*box), Counted())
    drain(head, screen)
    assert screen.boxes() == boxes


def test_one_more_and_their_union_is_sent_once() -> None:
    head, screen, _ = showing(200, 200)
    for n in range(MAX_RECTS + 1):
        head.damage(Rect(n * 3, n, 1, 1), Counted())
    drain(head, screen)
    assert screen.boxes() == [(0, 0, MAX_RECTS * 3 + 1, MAX_RECTS + 1)]


def test_a_ticket_ends_once_whatever_comes_later() -> None:
    stats, ends = Stats(), []
    ticket = Ticket(2, stats)
    ticket.on_taken = lambda: ends.append("now")
    ticket.taken()
    assert ends == []
    ticket.expire()
    ticket.taken()
    ticket.taken()
    ticket.expire()
    ticket.finish()
    assert ends == ["now"]
    assert (stats.frames, stats.late_flushes) == (1, 1)


def test_a_ticket_for_nothing_is_done_and_counts_as_no_frame() -> None:
    stats = Stats()
    ticket = Ticket(0, stats)
    assert ticket.done
    ticket.expire()
    assert (stats.frames, stats.late_flushes) == (0, 0)


def test_a_ticket_that_was_taken_in_time_is_not_late() -> None:
    stats = Stats()
    ticket = Ticket(1, stats)
    ticket.taken()
    ticket.expire()
    assert (stats.frames, stats.late_flushes) == (1, 0)


# -- pointers


def test_K16_ten_thousand_moves_are_one_message() -> None:
    head, screen = Head(0), Screen()
    for n in range(10_000):
        head.pointer.move(CursorMove(0, n, 2 * n, True))
    drain(head, screen)
    assert screen.log == [(POS, 9_999, 19_998)]


def test_K10_a_hidden_pointer_is_hidden_where_it_is() -> None:
    head, screen = Head(0), Screen()
    head.pointer.move(CursorMove(0, 3, 4, True))
    head.pointer.move(CursorMove(0, 5, 6, False))
    drain(head, screen)
    assert screen.log == [(HIDE, 5, 6)]


def test_an_image_replaces_moves_and_images_before_it_and_moves_come_after() -> None:
    head, screen = Head(0), Screen()
    head.pointer.move(CursorMove(0, 1, 1, True))
    head.pointer.set_image(CursorImage(0, 2, 2, 0, 0, bytes(16384)))
    head.pointer.set_image(CursorImage(0, 3, 3, 0, 0, b"\1" * 16384))
    head.pointer.move(CursorMove(0, 4, 4, True))
    drain(head, screen)
    assert screen.log == [(IMAGE, 3, 3), (POS, 4, 4)]


def test_K04_V03_an_image_is_a_whole_message_of_16416_bytes() -> None:
    head = Head(7)
    pixels = bytes(range(256)) * 64
    head.pointer.set_image(CursorImage(7, 10, 20, 3, 4, pixels))
    out = head.pointer.next()
    assert out is not None
    assert b"".join(out.parts) == struct.pack("<8I", 6, 0, 16404, 7, 10, 20, 3, 4) + pixels
    assert head.pointer.next() is None


# -- dma-bufs


def new_canvas(width: int, height: int) -> FakeSurface:
    return FakeSurface(width, height, 2, exports=True, stride=-(-width * 4 // 256) * 256)


BLOB_AT, FAR_AT = 0, 1 << 20
BLOB_SIZE = 8 * PAGE


class Guest(FakePixelStore):
    """Two blobs, far from each other."""

    def __init__(self) -> None:
        ranges = [(BLOB_AT, BLOB_SIZE), (FAR_AT, BLOB_SIZE)]
        super().__init__(FakeGuest(*ranges), exports=True)
        for address, _ in ranges:
            content = bytes((n * 11 + n // 253) & 0xFF for n in range(BLOB_SIZE))
            self.guest.write(address, content)
        self.blobs = {piece[0]: self.resolve(entries(piece)) for piece in ranges}


def blob(
    store: Guest, width: int = 40, height: int = 40, at: int = BLOB_AT, **layout: int
) -> FakePicture:
    """A frame buffer in guest memory: another object each time it is shown."""
    stride, offset = layout.get("stride", width * 4), layout.get("offset", 0)
    made = Layout(width, height, stride, offset, layout.get("pixel_format", 2))
    return store.blobs[at].picture(made, BLOB_SIZE)


def whole(shown: AnyPicture) -> Rect:
    return Rect(0, 0, shown.width, shown.height)


def buffered(
    shown: AnyPicture, rect: Rect | None = None, modifiers: bool = False
) -> tuple[Head, Screen]:
    """A head that shows it as a dma-buf, all of it told."""
    head, screen = Head(0, new_canvas), Screen(Socket(modifiers))
    head.show(ShowSurface(0, shown, rect or whole(shown)))
    drain(head, screen)
    assert screen.buffer is not None
    assert screen.shown() == picture(shown, rect or whole(shown))
    screen.log.clear()
    return head, screen


def test_V12_a_display_that_reads_nothing_is_given_one_buffer_however_many_are_flipped() -> None:
    """Each in its socket is a descriptor and pinned pages that nobody counts."""
    store = Guest()
    head, screen, tickets = Head(0, new_canvas), Screen(), []
    for turn in range(500):
        shown = blob(store, at=(BLOB_AT, FAR_AT)[turn % 2])
        head.show(ShowSurface(0, shown, whole(shown)))
        tickets.append(Counted())
        head.damage(whole(shown), tickets[-1])
        while (out := head.next_picture(screen.socket.terms)) is not None:
            screen.take(out)
    assert screen.requests() == [BUFFER, BUFFER_UPDATE]
    drain(head, screen)
    assert screen.requests() == [BUFFER, BUFFER_UPDATE] * 2
    assert screen.shown() == picture(shown, whole(shown))
    assert {ticket.times for ticket in tickets} == {1}


def test_V12_off_does_not_wait_for_an_answer() -> None:
    head, screen = buffered(painted(32, 32, 1, True))
    head.damage(Rect(0, 0, 1, 1), Counted())
    out = head.next_picture(screen.socket.terms)
    assert out is not None
    screen.take(out)
    head.show(ShowSurface(0, None, OFF))
    out = head.next_picture(screen.socket.terms)
    assert out is not None
    screen.take(out)
    assert screen.shown() is None


@pytest.mark.parametrize("stride", [160, 256, 260])
def test_V06_B13_a_dmabuf_is_told_whole_and_then_what_of_it_is_to_be_drawn(stride: int) -> None:
    head, screen, shown = Head(3, new_canvas), Screen(number=3), painted(40, 40, 1, True, stride)
    head.show(ShowSurface(3, shown, whole(shown)))
    drain(head, screen)
    assert screen.log == [
        (BUFFER, 0, 0, 40, 40, 40, 40, stride, 0, 0x34325258),
        (BUFFER_UPDATE, 0, 0, 40, 40),
    ]
    assert screen.shown() == picture(shown, whole(shown))
    assert screen.buffer is not None
    assert screen.buffer.dmabuf is shown.dmabuf()


def test_V06_the_bytes_of_the_messages() -> None:
    head = Head(3, new_canvas)
    head.show(ShowSurface(3, painted(40, 30, 1, True), Rect(0, 0, 40, 30)))
    for modifiers, request, more in ((False, 9, b""), (True, 12, bytes(8))):
        head.replay()
        out = head.next_picture(Terms(True, modifiers))
        assert out is not None
        fields = struct.pack("<10I", 3, 0, 0, 40, 30, 40, 30, 160, 0, 0x34325258)
        data = struct.pack("<III", request, 0, len(fields + more)) + fields + more
        assert b"".join(out.parts) == data
        assert (out.answered, out.pixels, out.tickets) == (False, 0, [])
    update = head.next_picture(TERMS)
    assert update is not None
    assert b"".join(update.parts) == struct.pack("<8I", 10, 0, 20, 3, 0, 0, 40, 30)
    assert (update.answered, update.dmabuf, update.pixels) == (True, None, 0)


@pytest.mark.parametrize("pixel_format", CHANNELS)
def test_F14_F15_a_blob_of_any_format_is_shown_with_the_right_colours(pixel_format: int) -> None:
    _, screen = buffered(blob(Guest(), pixel_format=pixel_format, stride=172))
    assert screen.buffer is not None
    assert screen.buffer.fourcc == FOURCC[pixel_format]
    cropped = blob(Guest(), pixel_format=pixel_format)
    _, screen = buffered(cropped, Rect(3, 5, 30, 20))
    assert screen.buffer is not None
    assert screen.buffer.fourcc == FOURCC[2], "a canvas is ours"


@pytest.mark.parametrize("modifiers", [False, True])
def test_V09_the_modifier_is_told_where_qemu_knows_the_message(modifiers: bool) -> None:
    head, screen = buffered(painted(32, 32, 1, True), modifiers=modifiers)
    head.replay()
    screen.new_socket(modifiers)
    drain(head, screen)
    assert screen.requests() == [BUFFER2 if modifiers else BUFFER, BUFFER_UPDATE]
    head.show(ShowSurface(0, None, OFF))
    drain(head, screen)
    assert screen.requests()[2:] == [BUFFER]


def test_F10_what_is_damaged_is_drawn_and_nothing_else_is_said() -> None:
    shown = painted(64, 64, 1, True)
    head, screen = buffered(shown)
    ticket = Counted()
    shown.paint(Rect(5, 6, 7, 8), [memoryview(b"\1" * 224)])
    head.damage(Rect(5, 6, 7, 8), ticket)
    drain(head, screen)
    assert screen.log == [(BUFFER_UPDATE, 5, 6, 7, 8)]
    assert ticket.times == 1
    assert screen.shown() == picture(shown, whole(shown))


def test_V07_one_update_at_a_time_and_what_is_damaged_meanwhile_is_merged() -> None:
    shown = painted(64, 64, 1, True)
    head, screen = buffered(shown)
    tickets = [Counted() for _ in range(4)]
    head.damage(Rect(1, 1, 2, 2), tickets[0])
    out = head.next_picture(screen.socket.terms)
    assert out is not None
    screen.take(out)
    for ticket, rect in zip(
        tickets[1:], [Rect(10, 0, 1, 1), Rect(0, 20, 1, 1), Rect(5, 5, 1, 1)], strict=True
    ):
        head.damage(rect, ticket)
        assert head.next_picture(screen.socket.terms) is None
    assert not any(ticket.done for ticket in tickets)
    screen.socket.answer()
    assert [ticket.done for ticket in tickets] == [True, False, False, False]
    drain(head, screen)
    assert screen.boxes() == [(1, 1, 2, 2), (0, 0, 11, 21)]
    assert [ticket.times for ticket in tickets] == [1, 1, 1, 1]


def test_V07_S10_two_heads_of_one_resource_take_turns_on_one_socket() -> None:
    shown, socket = painted(64, 32, 1, True), Socket()
    rects = [Rect(0, 0, 64, 32), Rect(32, 0, 32, 32)]
    both = [Head(n, new_canvas) for n in range(2)]
    screens = [Screen(socket, n) for n in range(2)]
    for head, screen, rect in zip(both, screens, rects, strict=True):
        head.show(ShowSurface(0, shown, rect))
        drain(head, screen)
    shown.pixels[:] = painted(64, 32, seed=77).pixels
    ticket = Counted(2)
    both[0].damage(Rect(0, 0, 64, 32), ticket)
    both[1].damage(Rect(0, 0, 32, 32), ticket)
    out = both[0].next_picture(socket.terms)
    assert out is not None
    screens[0].take(out)
    assert both[1].next_picture(socket.terms) is None
    socket.answer()
    assert (ticket.times, ticket.done) == (1, False)
    drain(both[1], screens[1])
    assert (ticket.times, ticket.done) == (2, True)
    assert [s.shown() for s in screens] == [picture(shown, rect) for rect in rects]


def test_F11_a_head_with_pixels_does_not_wait_for_one_with_a_dmabuf() -> None:
    shown, socket = painted(32, 32, 1, True), Socket()
    one, other = Head(0, new_canvas), Head(1)
    screens = [Screen(socket, n) for n in range(2)]
    for head in (one, other):
        head.show(ShowSurface(0, shown, whole(shown)))
    for _ in range(2):
        out = one.next_picture(socket.terms)
        assert out is not None
        screens[0].take(out)
    assert not socket.terms.may_update
    out = other.next_picture(socket.terms)
    assert out is not None
    screens[1].take(out)
    assert screens[1].shown() == picture(shown, whole(shown))


def test_a_page_flip_is_one_buffer_and_one_update_and_copies_nothing() -> None:
    store = Guest()
    blobs = [(0, 40), (1 << 20, 40)]
    head, screen = Head(0, lambda width, height: pytest.fail("a copy")), Screen()
    for turn in range(6):
        at, side = blobs[turn % 2]
        shown = blob(store, side, side, at)
        head.show(ShowSurface(0, shown, whole(shown)))
        ticket = Counted()
        head.damage(whole(shown), ticket)
        drain(head, screen)
        assert screen.requests() == [BUFFER, BUFFER_UPDATE]
        assert screen.shown() == picture(shown, whole(shown))
        assert ticket.times == 1
        screen.log.clear()
    assert store.exported == 2


def test_S09_the_same_blob_again_is_no_new_buffer() -> None:
    store = Guest()
    head, screen = buffered(blob(store))
    head.show(ShowSurface(0, blob(store), Rect(0, 0, 40, 40)))
    drain(head, screen)
    assert BUFFER not in screen.requests()


LAYOUTS = {
    "size": {"width": 32, "height": 50},
    "height": {"height": 30},
    "stride": {"stride": 240},
    "format": {"pixel_format": 67},
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_S09_the_same_blob_with_another_layout_is_another_buffer(name: str) -> None:
    """Its dma-buf is the same one, but QEMU must look at it in another way."""
    store = Guest()
    first = blob(store, 40, 40, stride=200)
    second = blob(store, **{"width": 40, "height": 40, "stride": 200, **LAYOUTS[name]})
    head, screen = buffered(first)
    head.show(ShowSurface(0, second, whole(second)))
    drain(head, screen)
    assert second.dmabuf() is first.dmabuf()
    assert screen.requests() == [BUFFER, BUFFER_UPDATE]
    assert screen.shown() == picture(second, whole(second))


CROPS = {
    "crop": (Rect(4, 2, 32, 30), {}),
    "right half": (Rect(20, 0, 20, 40), {}),
    "lower half": (Rect(0, 20, 40, 20), {}),
    "offset": (Rect(0, 0, 40, 40), {"offset": 64}),
    "offset of pages": (Rect(0, 0, 40, 40), {"offset": PAGE}),
    "offset and crop": (Rect(1, 1, 39, 39), {"offset": 4}),
}


@pytest.mark.parametrize("name", CROPS)
def test_V06_what_is_not_the_whole_buffer_goes_through_a_canvas(name: str) -> None:
    rect, layout = CROPS[name]
    store = Guest()
    shown = blob(store, 40, 40, **layout)
    head, screen = buffered(shown, rect)
    assert screen.buffer is not None
    canvas = screen.buffer
    assert canvas.stride % 256 == 0
    for n, (x, y, w, h) in enumerate([(0, 0, 5, 5), (rect.width - 3, rect.height - 1, 3, 1)]):
        for row in range(h):
            at = shown.layout.offset + (rect.y + y + row) * shown.stride + (rect.x + x) * 4
            store.guest.write(at, bytes([n + 1]) * (w * 4))
        head.damage(Rect(x, y, w, h), Counted())
        drain(head, screen)
    assert screen.boxes() == [(0, 0, 5, 5), (rect.width - 3, rect.height - 1, 3, 1)]
    assert screen.buffer == canvas, "one canvas for all of them"
    assert screen.shown() == picture(shown, rect)


def test_V06_a_canvas_is_painted_before_it_is_told() -> None:
    """QEMU may draw a new buffer before it is told to."""
    shown = painted(64, 64)
    head = Head(0, new_canvas)
    head.show(ShowSurface(0, shown, Rect(16, 16, 32, 32)))
    out = head.next_picture(TERMS)
    assert out is not None
    assert isinstance(out.dmabuf, FakeDmabuf)
    assert out.dmabuf.look()[: 32 * 4] == picture(shown, Rect(16, 16, 32, 1))


def test_B09_a_buffer_whose_last_row_is_cut_goes_through_a_canvas() -> None:
    """A GPU reads whole strides: it would read behind the end of the dma-buf, or refuse it."""
    backing = Guest().resolve(entries((0, 4 * PAGE)))
    size = 4 * PAGE
    tight = backing.picture(Layout(32, 16, 1040, 0, 2), size)
    head, screen = buffered(tight)
    assert screen.buffer is not None
    assert screen.buffer.stride == 256
    fits = backing.picture(Layout(32, 16, 1024, 0, 2), size)
    head.show(ShowSurface(0, fits, whole(fits)))
    drain(head, screen)
    assert screen.buffer.stride == 1024


def no_canvas(width: int, height: int) -> None:
    return None


def canvas_without_dmabuf(width: int, height: int) -> FakeSurface:
    return FakeSurface(width, height, 2)


@pytest.mark.parametrize("canvas", [no_canvas, canvas_without_dmabuf])
@pytest.mark.parametrize("rect", [Rect(0, 0, 40, 40), Rect(2, 2, 32, 32)])
def test_B14_A16_L14_where_there_is_no_dmabuf_there_are_pixels(canvas: Any, rect: Rect) -> None:
    store = Guest()
    store.exports = False
    head, screen = Head(0, canvas), Screen()
    shown = blob(store)
    head.show(ShowSurface(0, shown, rect))
    drain(head, screen)
    assert screen.requests() == [SCANOUT, UPDATE]
    assert screen.shown() == picture(shown, rect)
    head.damage(Rect(1, 1, 2, 2), Counted())
    drain(head, screen)
    assert screen.boxes()[1:] == [(1, 1, 2, 2)]


def test_B14_a_picture_without_dmabuf_is_copied_to_a_canvas_where_there_is_one() -> None:
    buffered(painted(40, 40))


@pytest.mark.parametrize("first", [True, False])
def test_V05_from_dmabuf_to_pixels_and_back_qemu_is_told_the_mode_each_time(first: bool) -> None:
    exported, plain = painted(32, 32, 1, True), painted(32, 32, 2)
    head, screen = Head(0, no_canvas), Screen()
    for turn in range(5):
        shown = exported if bool(turn % 2) != first else plain
        head.show(ShowSurface(0, shown, whole(shown)))
        drain(head, screen)
        kinds = [BUFFER, BUFFER_UPDATE] if shown is exported else [SCANOUT, UPDATE]
        if shown is plain and turn:
            kinds = [BUFFER, *kinds]  # without an fd: QEMU lets go of the old one (trap 13)
        assert screen.requests() == kinds
        assert screen.shown() == picture(shown, whole(shown))
        screen.log.clear()


@pytest.mark.parametrize("first", [True, False])
def test_V05_where_the_way_changes_all_is_drawn_though_a_part_was_damaged(first: bool) -> None:
    """The host can make dma-bufs from now on, or no longer: QEMU's new surface has nothing yet."""
    shown = painted(32, 32, 1, exports=first)
    head, screen = Head(0, no_canvas), Screen()
    head.show(ShowSurface(0, shown, whole(shown)))
    drain(head, screen)
    head.memory_changed()
    shown.exports = not first
    ticket = Counted()
    head.damage(Rect(3, 4, 5, 6), ticket)
    drain(head, screen)
    assert screen.shown() == picture(shown, whole(shown))
    assert ticket.times == 1


def test_V07_a_head_that_goes_from_dmabuf_to_pixels_does_not_wait_for_the_answer() -> None:
    head, screen = buffered(painted(32, 32, 1, True))
    ticket = Counted()
    head.damage(Rect(0, 0, 1, 1), ticket)
    out = head.next_picture(screen.socket.terms)
    assert out is not None
    screen.take(out)
    head._make_canvas = None
    plain = painted(32, 32, 9)
    head.show(ShowSurface(0, plain, whole(plain)))
    out = head.next_picture(screen.socket.terms)
    assert out is not None
    screen.take(out)
    assert screen.shown() == picture(plain, whole(plain))
    screen.socket.answer()
    assert ticket.times == 1


def test_without_a_canvas_maker_no_dmabuf_is_asked_for() -> None:
    head, screen, shown = Head(0), Screen(), painted(32, 32, 1, True)
    head.show(ShowSurface(0, shown, whole(shown)))
    drain(head, screen)
    assert screen.requests() == [SCANOUT, UPDATE]
    assert shown._made is None


def test_U03_a_buffer_is_switched_off_once_and_without_an_answer() -> None:
    head, screen = buffered(painted(32, 32, 1, True))
    ticket = Counted()
    head.damage(Rect(0, 0, 1, 1), ticket)
    head.show(ShowSurface(0, None, OFF))
    head.show(ShowSurface(0, None, OFF))
    assert ticket.times == 1
    drain(head, screen)
    assert screen.log == [(BUFFER, *[0] * 9)]
    assert screen.shown() is None


def test_U06_a_dmabuf_on_its_way_out_lives_until_it_is_sent() -> None:
    store = Guest()
    shown = blob(store)
    expected = picture(shown, whole(shown))
    head, screen = Head(0, new_canvas), Screen()
    head.show(ShowSurface(0, shown, whole(shown)))
    out = head.next_picture(TERMS)
    assert out is not None
    head.show(ShowSurface(0, None, OFF))
    del shown
    store.blobs.clear()
    gc.collect()
    assert isinstance(out.dmabuf, FakeDmabuf)
    assert out.dmabuf.look()[:160] == expected[:160]
    screen.take(out)
    drain(head, screen)
    assert screen.shown() is None


def test_R06_a_dmabuf_is_told_again_to_a_new_socket() -> None:
    shown = painted(64, 64, 1, True)
    head, screen = buffered(shown)
    tickets = [Counted(), Counted()]
    head.damage(Rect(0, 0, 1, 1), tickets[0])
    head.release()
    head.damage(Rect(1, 1, 1, 1), tickets[1])
    head.replay()
    screen.new_socket()
    drain(head, screen)
    assert screen.requests() == [BUFFER, BUFFER_UPDATE]
    assert screen.boxes() == [(0, 0, 64, 64)]
    assert screen.shown() == picture(shown, whole(shown))
    assert [ticket.times for ticket in tickets] == [1, 1]


def test_R06_a_canvas_that_missed_damage_is_painted_whole() -> None:
    shown, rect = painted(64, 64), Rect(8, 8, 32, 32)
    head, screen = buffered(shown, rect)
    shown.pixels[:] = painted(64, 64, seed=3).pixels
    head.release()  # what was flushed without a socket is in no damage
    head.replay()
    screen.new_socket()
    drain(head, screen)
    assert screen.shown() == picture(shown, rect)


def test_R06_a_buffer_that_went_off_while_nobody_listened_is_told_so() -> None:
    head, screen = buffered(painted(32, 32, 1, True))
    head.show(ShowSurface(0, None, OFF))
    head.release()
    head.replay()
    screen.new_socket()
    drain(head, screen)
    assert screen.log == [(BUFFER, *[0] * 9)]


def test_R01_R04_after_a_reset_a_shown_dmabuf_is_taken_from_qemu_on_the_next_socket() -> None:
    """Trap 13: QEMU goes on showing it, and keeps its memory."""
    head, screen = buffered(painted(32, 32, 1, True))
    ticket = Counted()
    head.damage(Rect(0, 0, 1, 1), ticket)
    head.release()
    head.reset()
    screen.device_reset()
    assert ticket.times == 1
    head.replay()
    screen.new_socket()
    drain(head, screen)
    assert screen.log == [(BUFFER, *[0] * 9)]
    head.replay()
    screen.new_socket()
    drain(head, screen)
    assert screen.log == [(BUFFER, *[0] * 9)], "for all we know"


def test_R04_after_a_reset_in_pixels_nothing_is_said() -> None:
    head, screen, _ = showing()
    head.release()
    head.reset()
    screen.device_reset()
    head.replay()
    screen.new_socket()
    assert drain(head, screen) == 0


def test_R01_after_a_reset_a_new_picture_takes_the_place_of_the_old_buffer() -> None:
    head, screen = buffered(painted(32, 32, 1, True))
    head.reset()
    screen.device_reset()
    head.replay()
    screen.new_socket()
    plain = painted(32, 32, 5, True)
    head.show(ShowSurface(0, plain, whole(plain)))
    drain(head, screen)
    assert screen.requests() == [BUFFER, BUFFER_UPDATE]


@pytest.mark.parametrize("rect", [Rect(0, 0, 40, 40), Rect(1, 1, 32, 32)])
def test_R01_a_reset_leaves_no_dmabuf_behind(rect: Rect) -> None:
    """Its descriptor and its pinned pages are the guest's, whose driver is gone."""
    store = Guest()
    shown = blob(store)
    head, screen = buffered(shown, rect)
    assert screen.buffer is not None
    left = [weakref.ref(shown), weakref.ref(screen.buffer.dmabuf)]
    screen.buffer = None
    store.blobs.clear()
    head.release()
    head.reset()
    del shown
    gc.collect()
    assert [one() for one in left] == [None, None]


@pytest.mark.parametrize("rect", [Rect(0, 0, 40, 40), Rect(1, 1, 32, 32)])
def test_R09_another_memory_table_means_another_dmabuf(rect: Rect) -> None:
    store = Guest()
    shown = blob(store)
    head, screen = buffered(shown, rect)
    assert screen.buffer is not None
    old = screen.buffer.dmabuf
    store.set_memory(store.guest)
    head.memory_changed()
    assert head._source is None
    screen.log.clear()
    drain(head, screen)
    assert screen.buffer is not None
    if rect == whole(shown):
        assert screen.requests() == [BUFFER, BUFFER_UPDATE]
        assert screen.buffer.dmabuf is not old
    else:  # the canvas is our own memory: it stays, and is painted anew
        assert screen.requests() == [BUFFER_UPDATE]
    assert screen.shown() == picture(shown, rect)


def test_R09_a_surface_of_the_host_s_own_does_not_flicker_when_memory_changes() -> None:
    head, screen = buffered(painted(32, 32, 1, True))
    head.memory_changed()
    assert drain(head, screen) == 0


@pytest.mark.parametrize("rect", [Rect(0, 0, 40, 40), Rect(1, 1, 32, 32)])
@pytest.mark.parametrize("make", [new_canvas, None])
def test_R09_a_picture_whose_pages_have_gone_goes_off(rect: Rect, make: Any) -> None:
    store = Guest()
    head, screen = Head(0, make), Screen()
    head.show(ShowSurface(0, blob(store), rect))
    drain(head, screen)
    screen.log.clear()
    ticket = Counted()
    head.damage(Rect(0, 0, 4, 4), ticket)
    store.set_memory(FakeGuest((1 << 30, PAGE)))
    head.memory_changed()
    assert ticket.times == 1
    drain(head, screen)
    assert screen.requests() == [BUFFER if make else SCANOUT]
    assert screen.shown() is None
    head.damage(Rect(0, 0, 4, 4), late := Counted())
    assert late.done
    assert drain(head, screen) == 0


@pytest.mark.parametrize("make", [new_canvas, None])
@pytest.mark.parametrize("told", [True, False])
def test_A22_memory_that_vanishes_under_a_copy_turns_the_head_off(make: Any, told: bool) -> None:
    """The file behind the guest's memory was truncated: nobody tells, a copy finds out."""
    store = Guest()
    head, screen, ticket = Head(0, make), Screen(), Counted()
    head.show(ShowSurface(0, blob(store, offset=4), Rect(0, 0, 40, 40)))
    if told:
        drain(head, screen)
    store.guest.vanish(0)
    head.damage(Rect(0, 0, 4, 4), ticket)
    drain(head, screen)
    assert ticket.times == 1
    assert screen.shown() is None


@pytest.mark.parametrize("way", ["answer", "socket lost", "deadline", "off", "reset", "new one"])
def test_a_ticket_is_taken_exactly_once_whatever_ends_it(way: str) -> None:
    """Both one that is on its way in a DMABUF_UPDATE and one that still waits."""
    shown = painted(32, 32, 1, True)
    head, screen = buffered(shown)
    sent, waits = Counted(), Counted()
    head.damage(Rect(0, 0, 1, 1), sent)
    out = head.next_picture(screen.socket.terms)
    assert out is not None
    screen.take(out)
    head.damage(Rect(1, 1, 1, 1), waits)
    match way:
        case "answer":
            drain(head, screen)
        case "socket lost":
            screen.socket.answer()  # as GpuSocket.abandon() does
            head.release()
        case "deadline":
            sent.expire()
            waits.expire()
            assert (sent.done, waits.done, sent.times, waits.times) == (True, True, 0, 0)
            waits.times = 1  # whoever waits no more may be forgotten
            drain(head, screen)
        case "off":
            head.show(ShowSurface(0, None, OFF))
        case "reset":
            head.reset()
        case _:
            head.show(ShowSurface(0, painted(32, 32), Rect(0, 0, 32, 32)))
            drain(head, screen)
    screen.socket.answer()
    head.release()
    head.replay()
    screen.new_socket()
    drain(head, screen)
    assert (sent.times, waits.times) == (1, 1)
    assert sent.done
    assert waits.done


@pytest.mark.parametrize("ends", ["on", "off", "reset"])
@pytest.mark.parametrize("lost", [True, False])
def test_a_buffer_whose_end_may_be_lost_is_ended_on_the_next_socket(ends: str, lost: bool) -> None:
    """QEMU shows a dma-buf until it is told otherwise (trap 13), and does not read the rest of an
    old socket."""
    shown = painted(32, 32, 1, True)
    canvases = [new_canvas]
    head, screen = Head(0, lambda width, height: canvases[0](width, height)), Screen()
    head.show(ShowSurface(0, shown, whole(shown)))
    drain(head, screen)
    assert screen.buffer is not None
    shown.exports = False
    canvases[0] = lambda width, height: None
    head.memory_changed()
    head.damage(Rect(0, 0, 4, 4), Counted())
    out = head.next_picture(screen.socket.terms)  # to pixels
    assert out is not None
    if lost:
        out.take()
    else:
        screen.take(out)
    head.release()
    if ends == "off":
        head.show(ShowSurface(0, None, OFF))
    elif ends == "reset":
        head.reset()
        screen.device_reset()
    screen.new_socket()
    head.replay()
    drain(head, screen)
    assert screen.buffer is None
    assert screen.shown() == (picture(shown, whole(shown)) if ends == "on" else None)
    assert screen.requests()[0] == BUFFER, "no dma-buf"
    if ends == "off":
        assert screen.requests() == [BUFFER, SCANOUT], "nor pixels"


# -- anything in any order

side = st.sampled_from([16, 20, 31])


class AnyDisplay(RuleBasedStateMachine):
    """A guest that draws and shows images and blobs, as dma-bufs where that is possible and as
    pixels where not; a display that reads and answers now and then; sockets, resets and memory
    tables that come and go. Everything drawn is flushed, so that in the end QEMU must show the
    picture."""

    @initialize(
        tile=st.sampled_from([1, 100, 700, 4 << 20]),
        limit=st.sampled_from([2, 5, 64]),
        dmabufs=st.sampled_from([True, True, True, False]),
    )
    def start(self, tile: int, limit: int, dmabufs: bool) -> None:
        self.limits = patch.multiple(heads, TILE_BYTES=tile, MAX_RECTS=limit)
        self.limits.start()
        self.canvases = True
        self.store = Guest()
        self.head = Head(0, self.make_canvas if dmabufs else None)
        self.screen = Screen()
        self.images = [painted(40, 40, 1, True, 256), painted(40, 40, 90)]
        self.shown: tuple[AnyPicture, Rect] | None = None
        self.tickets: list[Counted] = []
        self.late: set[Counted] = set()
        self.colour = 0

    def make_canvas(self, width: int, height: int) -> FakeSurface | None:
        return new_canvas(width, height) if self.canvases else None

    def make(self, number: int) -> AnyPicture:
        """Two images, three frame buffers in one blob, one in another."""
        match number:
            case 0 | 1:
                return self.images[number]
            case 2:
                return blob(self.store, 40, 40, BLOB_AT, stride=200)
            case 3:
                return blob(self.store, 50, 40, BLOB_AT, stride=200, pixel_format=121)
            case 4:
                return blob(self.store, 40, 39, BLOB_AT, stride=200, offset=64)
            case _:
                return blob(self.store, 40, 40, FAR_AT, pixel_format=67)

    def teardown(self) -> None:
        try:
            if hasattr(self, "head"):
                self.all_is_told()
        finally:
            self.limits.stop()

    def all_is_told(self) -> None:
        drain(self.head, self.screen)
        assert {ticket.times for ticket in self.tickets if ticket not in self.late} <= {1}
        assert {ticket.times for ticket in self.late} <= {0, 1}, "a late one may be forgotten"
        assert all(ticket.done for ticket in self.tickets)
        there = None if self.shown is None or self.shown[0].lost else self.shown
        assert self.screen.shown() == (None if there is None else picture(*there))

    @rule(
        number=st.integers(0, 5),
        x=st.integers(0, 9),
        y=st.integers(0, 8),
        w=side,
        h=side,
        all_of_it=st.booleans(),
    )
    def show(self, number: int, x: int, y: int, w: int, h: int, all_of_it: bool) -> None:
        shown = self.make(number)
        rect = whole(shown) if all_of_it else Rect(x, y, w, h)
        if self.shown is not None and self.shown == (shown, rect):
            return
        self.shown = (shown, rect)
        self.head.show(ShowSurface(0, *self.shown))
        if shown.lost:  # a head finds out when it looks
            self.shown = None
            self.all_is_told()

    @rule()
    def again(self) -> None:
        if self.shown is not None:
            self.head.show(ShowSurface(0, *self.shown))

    @rule()
    def off(self) -> None:
        self.shown = None
        self.head.show(ShowSurface(0, None, OFF))

    @rule(x=st.integers(0, 15), y=st.integers(0, 15), w=st.integers(1, 16), h=st.integers(1, 16))
    def draw_and_flush(self, x: int, y: int, w: int, h: int) -> None:
        ticket = Counted()
        if self.shown is None or self.shown[0].lost:
            self.tickets.append(ticket)
            self.head.damage(Rect(x, y, w, h), ticket)
            return
        shown, rect = self.shown
        w, h = min(w, rect.width - x), min(h, rect.height - y)
        if w <= 0 or h <= 0:
            return
        self.tickets.append(ticket)
        self.colour = (self.colour + 1) % 256
        for row in range(rect.y + y, rect.y + y + h):
            at, data = row * shown.stride + (rect.x + x) * 4, bytes([self.colour]) * (w * 4)
            if isinstance(shown, FakeSurface):
                shown.pixels[at : at + w * 4] = data
            else:
                start = FAR_AT if shown.layout.format == 67 else BLOB_AT
                self.store.guest.write(start + shown.layout.offset + at, data)
        self.head.damage(Rect(x, y, w, h), ticket)

    @rule(count=st.sampled_from([1, 1, 1, 2, 4]))
    def display_reads(self, count: int) -> None:
        for _ in range(count):
            out = self.head.next_picture(self.screen.socket.terms)
            if out is None:
                return
            self.screen.take(out)

    @rule()
    def display_answers(self) -> None:
        self.screen.socket.answer()

    @rule()
    def deadline(self) -> None:
        self.late |= {ticket for ticket in self.tickets if not ticket.done}
        for ticket in self.tickets:
            ticket.expire()

    @rule()
    def everything_is_read(self) -> None:
        self.all_is_told()

    @rule(exports=st.booleans(), canvases=st.booleans())
    def what_the_host_can_do(self, exports: bool, canvases: bool) -> None:
        self.store.exports = self.images[0].exports = exports
        self.canvases = canvases

    @rule(lost=st.booleans(), reset=st.booleans(), modifiers=st.booleans())
    def new_socket(self, lost: bool, reset: bool, modifiers: bool) -> None:
        if lost and (out := self.head.next_picture(self.screen.socket.terms)) is not None:
            out.take()  # it was cut
        self.screen.socket.answer()
        self.head.release()
        if reset:
            self.shown = None
            self.head.reset()
            self.screen.device_reset()
        self.screen.new_socket(modifiers)
        self.head.replay()

    @rule(far=st.booleans())
    def memory_changes(self, far: bool) -> None:
        """The second blob's memory comes and goes, and with it what a head shows of it."""
        old, ranges = self.store.guest, [(BLOB_AT, 8 * PAGE)]
        if far:
            ranges.append((FAR_AT, 8 * PAGE))
        table = FakeGuest(*ranges)
        for address, size in ranges:
            if old.covers(address, size):
                table.write(address, old.read(address, size) or b"")
        self.store.set_memory(table)
        self.head.memory_changed()


TestAnyDisplay = AnyDisplay.TestCase
TestAnyDisplay.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

point = st.integers(0, 31)


@settings(max_examples=60, deadline=None)
@given(
    boxes=st.lists(st.tuples(point, point, st.integers(1, 9), st.integers(1, 9)), max_size=12),
    reads=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_exactly_the_damaged_pixels_are_sent(boxes: list[Box], reads: list[bool]) -> None:
    head, screen, _ = showing(40, 40)
    for box, read in zip(boxes, reads, strict=False):
        head.damage(Rect(*box), Counted())
        if read and (out := head.next_picture(TERMS)) is not None:
            screen.take(out)
    drain(head, screen)

    def cells(box: tuple[int, ...]) -> set[tuple[int, int]]:
        x, y, w, h = box
        return {(x + i, y + j) for i in range(w) for j in range(h)}

    damaged = set().union(*map(cells, boxes))
    assert set().union(*map(cells, screen.boxes())) == damaged
    assert Counter(screen.requests())[UPDATE] <= len(boxes)


def test_a_large_buffer_is_made_elsewhere_first() -> None:
    """Decision 12: nothing is sent of a large picture while a thread makes its dma-buf; a small
    one is not worth a thread."""

    class Unmade(FakeSurface):
        settled = False

    head, small_head = (Head(n, lambda width, height: None) for n in range(2))
    large, little = Unmade(1024, 512, 1), Unmade(64, 64, 1)
    small_head.show(ShowSurface(1, little, Rect(0, 0, 64, 64)))
    assert small_head.unmade is None
    assert small_head.next_picture(TERMS) is not None
    head.show(ShowSurface(0, large, Rect(0, 0, 1024, 512)))
    assert head.unmade is large
    assert head.next_picture(TERMS) is None
    large.settled = True
    assert head.unmade is None
    assert head.next_picture(TERMS) is not None


# -- pictures in device memory


def test_a_devices_buffer_is_made_elsewhere_however_small() -> None:
    """The kernel may have to wake the device first."""
    head, screen = device_head(True)
    picture = device_picture(exports=True)
    picture.settled = False
    head.show(ShowSurface(0, picture, PARTS[0]))
    assert head.unmade is picture
    assert head.next_picture(TERMS) is None
    picture.settled = True
    assert head.unmade is None
    screen.take(head.next_picture(TERMS))
    assert screen.requests() == [BUFFER]


class Device(FakeSurface):
    """Reads of it are made elsewhere: rows() would be a read in the event loop."""

    slow = True
    lost = False

    def rows(self, rect: Rect) -> list[memoryview]:
        pytest.fail("device memory was read in the event loop")

    def look(self, rect: Rect) -> list[memoryview]:
        return super().rows(rect)


def device_picture(exports: bool = False, seed: int = 1) -> Device:
    made = Device(40, 30, 1, exports)
    made.pixels[:] = painted(40, 30, seed).pixels
    return made


def device_head(dmabufs: bool) -> tuple[Head, Screen]:
    return Head(0, new_canvas if dmabufs else None, new_canvas), Screen()


def answer_reads(head: Head) -> int:
    """Play the thread; how many reads it made."""
    count = 0
    while (mirror := head.unread) is not None:
        read = mirror.begin()
        assert isinstance(read.picture, Device)
        head.read(mirror, read.picture.look(read.source))
        count += 1
    return count


PARTS = [Rect(0, 0, 40, 30), Rect(3, 4, 20, 16)]


@pytest.mark.parametrize("dmabufs", [False, True])
@pytest.mark.parametrize("rect", PARTS, ids=["all of it", "a part"])
def test_device_memory_is_shown_from_a_copy(dmabufs: bool, rect: Rect) -> None:
    head, screen = device_head(dmabufs)
    shown, ticket = device_picture(), Counted()
    head.show(ShowSurface(0, shown, rect))
    head.damage(whole_of(rect), ticket)
    assert drain(head, screen) == 0, "nothing is told before it was read"
    assert answer_reads(head) == 1
    drain(head, screen)
    assert screen.shown() == b"".join(shown.look(rect))
    assert ticket.times == 1
    shown.pixels[:] = device_picture(seed=9).pixels
    head.damage(Rect(2, 2, 5, 5), Counted())
    drain(head, screen)
    assert answer_reads(head) == 1
    drain(head, screen)
    after = b"".join(shown.look(Rect(rect.x + 2, rect.y + 2, 5, 5)))
    got = screen.shown()
    assert got is not None
    rows = [got[((2 + y) * rect.width + 2) * 4 :][: 5 * 4] for y in range(5)]
    assert b"".join(rows) == after


def whole_of(rect: Rect) -> Rect:
    return Rect(0, 0, rect.width, rect.height)


def test_a_dmabuf_of_device_memory_needs_no_read() -> None:
    head, screen = device_head(True)
    shown = device_picture(exports=True)
    head.show(ShowSurface(0, shown, PARTS[0]))
    drain(head, screen)
    assert head.unread is None
    assert screen.shown() == b"".join(shown.look(PARTS[0]))
    head.show(ShowSurface(0, shown, PARTS[1]))
    drain(head, screen)
    assert answer_reads(head) == 1, "QEMU ignores a dma-buf's x and y"
    drain(head, screen)
    assert screen.shown() == b"".join(shown.look(PARTS[1]))


@pytest.mark.parametrize("dmabufs", [False, True])
def test_flips_between_pictures_in_device_memory_use_one_copy(dmabufs: bool) -> None:
    made: list[FakeSurface] = []

    def make(width: int, height: int) -> FakeSurface:
        made.append(new_canvas(width, height))
        return made[-1]

    head, screen = Head(0, make if dmabufs else None, make), Screen()
    pictures, tickets = [device_picture(seed=seed) for seed in (3, 4)], []
    for turn in range(6):
        shown, ticket = pictures[turn % 2], Counted()
        tickets.append(ticket)
        head.show(ShowSurface(0, shown, PARTS[0]))
        head.damage(PARTS[0], ticket)
        drain(head, screen)
        if turn % 2:
            answer_reads(head)
            drain(head, screen)
            assert screen.shown() == b"".join(shown.look(PARTS[0]))
    assert [ticket.times for ticket in tickets] == [1] * 6
    assert len(made) == 1


def test_a_read_for_the_picture_before_is_ignored() -> None:
    head, screen = device_head(False)
    old, new = device_picture(seed=5), painted(40, 30, 6)
    head.show(ShowSurface(0, old, PARTS[0]))
    drain(head, screen)
    mirror = head.unread
    assert mirror is not None
    read = mirror.begin()
    head.show(ShowSurface(0, new, PARTS[0]))
    drain(head, screen)
    head.read(mirror, old.look(read.source))
    head.unreadable(mirror)
    drain(head, screen)
    assert screen.shown() == bytes(new.pixels)


@pytest.mark.parametrize("dmabufs", [False, True])
def test_device_memory_that_cannot_be_read_is_dark_until_it_can(dmabufs: bool) -> None:
    head, screen = device_head(dmabufs)
    shown = device_picture()
    head.show(ShowSurface(0, shown, PARTS[0]))
    drain(head, screen)
    answer_reads(head)
    drain(head, screen)
    for _ in range(3):
        ticket = Counted()
        head.damage(PARTS[0], ticket)
        drain(head, screen)
        mirror = head.unread
        assert mirror is not None
        mirror.begin()
        head.unreadable(mirror)
        drain(head, screen)
        assert screen.shown() is None
        assert ticket.times == 1
        assert head.unread is None, "not before the guest draws again"
    head.damage(Rect(0, 0, 1, 1), Counted())
    drain(head, screen)
    assert answer_reads(head) == 1
    drain(head, screen)
    assert screen.shown() == b"".join(shown.look(PARTS[0]))


@pytest.mark.parametrize("dmabufs", [False, True])
def test_R06_a_new_socket_has_the_copy_and_then_what_is_there_now(dmabufs: bool) -> None:
    head, screen = device_head(dmabufs)
    shown = device_picture()
    head.show(ShowSurface(0, shown, PARTS[0]))
    drain(head, screen)
    answer_reads(head)
    drain(head, screen)
    head.release()
    screen.new_socket()
    head.replay()
    before = b"".join(shown.look(PARTS[0]))
    shown.pixels[:] = device_picture(seed=9).pixels
    drain(head, screen)
    assert screen.shown() == before
    assert answer_reads(head) == 1
    drain(head, screen)
    assert screen.shown() == b"".join(shown.look(PARTS[0]))


def test_R09_another_memory_table_means_another_read() -> None:
    head, screen = device_head(False)
    shown, ticket = device_picture(), Counted()
    head.show(ShowSurface(0, shown, PARTS[0]))
    drain(head, screen)
    answer_reads(head)
    drain(head, screen)
    head.damage(PARTS[0], ticket)
    mirror = head.unread
    assert mirror is not None
    mirror.begin()
    head.memory_changed()
    head.read(mirror, None)
    drain(head, screen)
    assert ticket.times == 0
    assert answer_reads(head) == 1
    drain(head, screen)
    assert ticket.times == 1
    shown.lost = True
    head.memory_changed()
    drain(head, screen)
    assert screen.shown() is None
    assert head.unread is None
    shown.lost = False
    head.memory_changed()
    drain(head, screen)
    assert answer_reads(head) == 1
    drain(head, screen)
    assert screen.shown() == b"".join(shown.look(PARTS[0]))


def test_without_memory_for_a_copy_the_head_is_off() -> None:
    head, screen = Head(0, None, lambda width, height: None), Screen()
    ticket = Counted()
    head.show(ShowSurface(0, device_picture(), PARTS[0]))
    head.damage(PARTS[0], ticket)
    assert drain(head, screen) == 0
    assert (ticket.times, head.unread, screen.shown()) == (1, None, None)
