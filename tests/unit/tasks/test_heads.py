"""Heads, told to a QEMU that dies where the real one would: what it shows must be the picture."""

from __future__ import annotations

import struct
from collections import Counter
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.support.fake_pixels import FakeSurface
from vgpud.device.outcome import CursorImage, CursorMove, ShowSurface
from vgpud.tasks import heads
from vgpud.tasks.heads import MAX_RECTS, TILE_BYTES, Head, Outgoing, Ticket
from vgpud.tasks.stats import Stats
from vgpuwire import Rect

SCANOUT, UPDATE = 7, 8
POS, HIDE, IMAGE = 4, 5, 6
OFF = Rect(0, 0, 0, 0)

Box = tuple[int, int, int, int]


class Screen:
    """QEMU's end of one socket, for one head (hw/display/vhost-user-gpu.c)."""

    def __init__(self) -> None:
        self.size: tuple[int, int] | None = None
        self.pixels = bytearray()
        self.updated = True
        self.log: list[tuple[int, ...]] = []

    def read(self, data: bytes) -> None:
        """Messages, each whole."""
        while data:
            request, flags, size = struct.unpack_from("<III", data)
            assert flags == 0
            assert len(data) >= 12 + size, "a message is cut"
            self._message(request, data[12 : 12 + size])
            data = data[12 + size :]

    def _message(self, request: int, body: bytes) -> None:
        if request == SCANOUT:
            _, width, height = struct.unpack("<3I", body)
            self.log.append((SCANOUT, width, height))
            if width:
                assert self.updated, "QEMU leaks the surface of a SCANOUT without an UPDATE"
                assert 16 <= width <= 16384
                assert 16 <= height <= 16384
                self.updated = False
            self.size = (width, height) if width else None
            self.pixels = bytearray(width * height * 4)
        elif request == UPDATE:
            _, x, y, width, height = struct.unpack_from("<5I", body)
            self.log.append((UPDATE, x, y, width, height))
            assert self.size is not None, "QEMU crashes: UPDATE without SCANOUT"
            assert min(width, height) > 0, "an empty UPDATE"
            assert x + width <= self.size[0], "outside"
            assert y + height <= self.size[1], "outside"
            pixels = body[20:]
            assert len(pixels) == width * height * 4
            assert len(pixels) <= max(heads.TILE_BYTES, width * 4)
            for row in range(height):
                at = ((y + row) * self.size[0] + x) * 4
                self.pixels[at : at + width * 4] = pixels[row * width * 4 :][: width * 4]
            self.updated = True
        else:
            self.log.append((request, *struct.unpack_from("<3I", body, 0)[1:]))

    def requests(self) -> list[int]:
        return [entry[0] for entry in self.log]

    def boxes(self) -> list[tuple[int, ...]]:
        return [entry[1:] for entry in self.log if entry[0] == UPDATE]


def send(out: Outgoing, screen: Screen) -> None:
    screen.read(b"".join(out.parts))
    for ticket in out.tickets:
        ticket.taken()


def drain(head: Head, screen: Screen) -> int:
    """Send all that there is; how many messages it took."""
    count = 0
    while (out := head.next_cursor() or head.next_picture()) is not None:
        send(out, screen)
        count += 1
        assert count < 10_000
    return count


def picture(surface: FakeSurface, rect: Rect) -> bytes:
    """The part of a surface that a head should show."""
    rows = range(rect.y, rect.y + rect.height)
    columns = range(rect.x, rect.x + rect.width)
    return b"".join(surface.pixel(x, y) for y in rows for x in columns)


def painted(width: int, height: int, seed: int = 1) -> FakeSurface:
    surface = FakeSurface(width, height, 1)
    count = width * height * 4
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
    assert bytes(screen.pixels) == picture(surface, rect)


def test_a_size_is_never_told_without_pixels_to_show() -> None:
    """QEMU frees the surface of a SCANOUT only once an UPDATE has shown it."""
    head, screen, surface = Head(0), Screen(), painted(64, 64)
    for side in (16, 32, 48, 64):
        head.show(ShowSurface(0, surface, Rect(0, 0, side, side)))
        out = head.next_picture()
        assert out is not None
        send(out, screen)
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
    assert head.next_picture() is None
    assert head.next_cursor() is None


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
    assert bytes(screen.pixels) == picture(surface, Rect(16, 8, 32, 32))


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
    assert bytes(screen.pixels) == picture(other, Rect(0, 0, 32, 24))


def test_R06_all_is_told_again_to_a_new_socket() -> None:
    head, _, surface = showing(64, 64, Rect(8, 8, 32, 32))
    head.cursor_image(CursorImage(0, 1, 2, 3, 4, bytes(16384)))
    head.cursor_move(CursorMove(0, 9, 9, True))
    drain(head, Screen())
    for _ in range(2):
        screen = Screen()
        head.release()
        head.replay()
        drain(head, screen)
        assert screen.requests() == [IMAGE, POS, SCANOUT, UPDATE]
        assert bytes(screen.pixels) == picture(surface, Rect(8, 8, 32, 32))


def test_R06_a_pointer_that_moved_before_its_image_is_told_where_the_image_was() -> None:
    head = Head(0)
    head.cursor_move(CursorMove(0, 9, 9, False))
    head.cursor_image(CursorImage(0, 1, 2, 3, 4, bytes(16384)))
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
    head, _, _ = showing()
    head.show(ShowSurface(0, None, OFF))
    head.release()
    head.replay()
    screen = Screen()
    drain(head, screen)
    assert screen.log == [(SCANOUT, 0, 0)], "QEMU's surface outlives the socket"


def test_two_heads_show_their_parts_of_one_surface() -> None:
    surface = painted(64, 32)
    rects = [Rect(0, 0, 32, 32), Rect(32, 0, 32, 32)]
    both, screens = [Head(0), Head(1)], [Screen(), Screen()]
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
    assert [bytes(s.pixels) for s in screens] == [picture(surface, rect) for rect in rects]


@pytest.mark.parametrize("rect", [Rect(0, 0, 64, 48), Rect(8, 4, 32, 32)])
def test_V11_a_large_update_goes_in_tiles_and_is_shown_with_the_last(rect: Rect) -> None:
    surface, head, screen, ticket = painted(64, 48), Head(0), Screen(), Counted()
    with patch.object(heads, "TILE_BYTES", rect.width * 4 * 5):
        head.show(ShowSurface(0, surface, rect))
        drain(head, screen)
        screen.log.clear()
        head.damage(Rect(0, 0, rect.width, rect.height), ticket)
        tiles = 0
        while (out := head.next_picture()) is not None:
            assert not ticket.done
            send(out, screen)
            tiles += 1
    assert tiles == -(-rect.height // 5)
    assert screen.boxes() == [
        (0, y, rect.width, min(5, rect.height - y)) for y in range(0, rect.height, 5)
    ]
    assert ticket.times == 1
    assert bytes(screen.pixels) == picture(surface, rect)


def test_V11_one_row_is_the_smallest_tile() -> None:
    with patch.object(heads, "TILE_BYTES", 1):
        head, screen, surface = showing(16, 16)
        head.damage(Rect(0, 0, 16, 16), Counted())
        assert drain(head, screen) == 16
    assert bytes(screen.pixels) == bytes(surface.pixels)


def test_V11_a_4k_frame_is_a_few_messages_of_bounded_size() -> None:
    head = Head(0)
    head.show(ShowSurface(0, FakeSurface(3840, 2160, 1), Rect(0, 0, 3840, 2160)))
    sizes = []
    while (out := head.next_picture()) is not None:
        sizes.append(out.pixels)
    assert sum(sizes) == 3840 * 2160 * 4
    assert max(sizes) <= TILE_BYTES
    assert len(sizes) == 8


def test_the_pixels_are_sent_from_where_they_are() -> None:
    head, _, surface = showing(32, 32)
    head.damage(Rect(0, 0, 32, 4), Counted())
    head.damage(Rect(3, 8, 5, 4), Counted())
    whole_rows, narrow = head.next_picture(), head.next_picture()
    assert whole_rows is not None
    assert narrow is not None
    assert len(whole_rows.parts) == 2, "rows that follow each other are one piece"
    assert len(narrow.parts) == 1 + 4
    surface.pixels[:] = bytes([0xEE]) * len(surface.pixels)
    assert bytes(whole_rows.parts[1]) == bytes([0xEE]) * 512, "not copied"


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
    out = head.next_picture()
    assert out is not None
    expected = bytes(surface.pixels)
    del surface
    head.show(ShowSurface(0, None, OFF))
    send(out, screen)
    assert bytes(screen.pixels) == expected


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
        head.cursor_move(CursorMove(0, n, 2 * n, True))
    drain(head, screen)
    assert screen.log == [(POS, 9_999, 19_998)]


def test_K10_a_hidden_pointer_is_hidden_where_it_is() -> None:
    head, screen = Head(0), Screen()
    head.cursor_move(CursorMove(0, 3, 4, True))
    head.cursor_move(CursorMove(0, 5, 6, False))
    drain(head, screen)
    assert screen.log == [(HIDE, 5, 6)]


def test_an_image_replaces_moves_and_images_before_it_and_moves_come_after() -> None:
    head, screen = Head(0), Screen()
    head.cursor_move(CursorMove(0, 1, 1, True))
    head.cursor_image(CursorImage(0, 2, 2, 0, 0, bytes(16384)))
    head.cursor_image(CursorImage(0, 3, 3, 0, 0, b"\1" * 16384))
    head.cursor_move(CursorMove(0, 4, 4, True))
    drain(head, screen)
    assert screen.log == [(IMAGE, 3, 3), (POS, 4, 4)]


def test_K04_V03_an_image_is_a_whole_message_of_16416_bytes() -> None:
    head = Head(7)
    pixels = bytes(range(256)) * 64
    head.cursor_image(CursorImage(7, 10, 20, 3, 4, pixels))
    out = head.next_cursor()
    assert out is not None
    assert b"".join(out.parts) == struct.pack("<8I", 6, 0, 16404, 7, 10, 20, 3, 4) + pixels
    assert head.next_cursor() is None


# -- anything in any order

side = st.sampled_from([16, 20, 31])


class AnyDisplay(RuleBasedStateMachine):
    """A guest that draws and shows, a display that reads now and then, sockets that come and go.
    Everything drawn is flushed, so that in the end QEMU must show the picture."""

    tile: int

    @initialize(tile=st.sampled_from([1, 100, 700, 4 << 20]), limit=st.sampled_from([2, 5, 64]))
    def start(self, tile: int, limit: int) -> None:
        self.limits = patch.multiple(heads, TILE_BYTES=tile, MAX_RECTS=limit)
        self.limits.start()
        self.head, self.screen = Head(0), Screen()
        self.surfaces = [painted(40, 40, seed) for seed in (1, 90)]
        self.shown: tuple[FakeSurface, Rect] | None = None
        self.tickets: list[Counted] = []
        self.colour = 0

    def teardown(self) -> None:
        try:
            if hasattr(self, "head"):
                self.all_is_told()
        finally:
            self.limits.stop()

    def all_is_told(self) -> None:
        drain(self.head, self.screen)
        assert {ticket.times for ticket in self.tickets} <= {1}
        assert all(ticket.done for ticket in self.tickets)
        if self.shown is None:
            assert self.screen.size is None
        else:
            assert bytes(self.screen.pixels) == picture(*self.shown)

    @rule(number=st.integers(0, 1), x=st.integers(0, 9), y=st.integers(0, 9), w=side, h=side)
    def show(self, number: int, x: int, y: int, w: int, h: int) -> None:
        rect = Rect(x, y, w, h)
        if self.shown is not None and self.shown == (self.surfaces[number], rect):
            return
        self.shown = (self.surfaces[number], rect)
        self.head.show(ShowSurface(0, *self.shown))

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
        self.tickets.append(ticket)
        if self.shown is None:
            self.head.damage(Rect(x, y, w, h), ticket)
            return
        surface, rect = self.shown
        w, h = min(w, rect.width - x), min(h, rect.height - y)
        if w > 0 and h > 0:
            self.colour = (self.colour + 1) % 256
            for row in range(rect.y + y, rect.y + y + h):
                at = (row * 40 + rect.x + x) * 4
                surface.pixels[at : at + w * 4] = bytes([self.colour]) * (w * 4)
            self.head.damage(Rect(x, y, w, h), ticket)
        else:
            self.tickets.pop()

    @rule(count=st.sampled_from([1, 1, 1, 2, 4]))
    def display_reads(self, count: int) -> None:
        for _ in range(count):
            out = self.head.next_picture()
            if out is None:
                return
            send(out, self.screen)

    @rule()
    def everything_is_read(self) -> None:
        self.all_is_told()

    @rule(lost=st.booleans())
    def new_socket(self, lost: bool) -> None:
        if lost and (out := self.head.next_picture()) is not None:
            for ticket in out.tickets:
                ticket.taken()
        self.head.release()
        size = self.screen.size
        self.screen = Screen()
        if self.shown is None:
            self.screen.size = size  # QEMU goes on showing what it has
        self.head.replay()


TestAnyDisplay = AnyDisplay.TestCase
TestAnyDisplay.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)

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
        if read and (out := head.next_picture()) is not None:
            send(out, screen)
    drain(head, screen)

    def cells(box: tuple[int, ...]) -> set[tuple[int, int]]:
        x, y, w, h = box
        return {(x + i, y + j) for i in range(w) for j in range(h)}

    damaged = set().union(*map(cells, boxes))
    assert set().union(*map(cells, screen.boxes())) == damaged
    assert Counter(screen.requests())[UPDATE] <= len(boxes)
