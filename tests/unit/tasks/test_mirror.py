"""vgpud.tasks.mirror: what is stale, who waits, what a read brings."""

from __future__ import annotations

import pytest

from tests.support.fake_pixels import FakeSurface
from vgpud.tasks.mirror import Mirror
from vgpud.tasks.outgoing import Ticket
from vgpud.tasks.stats import Stats
from vgpuwire import Rect

RECT = Rect(4, 6, 20, 16)
WHOLE = Rect(0, 0, 20, 16)


def ticket() -> Ticket:
    return Ticket(1, Stats())


@pytest.fixture
def picture() -> FakeSurface:
    made = FakeSurface(32, 32, 2)
    made.pixels[:] = bytes(n * 7 & 0xFF for n in range(len(made.pixels)))
    return made


@pytest.fixture
def mirror(picture: FakeSurface) -> Mirror:
    return Mirror(picture, RECT, FakeSurface(20, 16, 2))


def shown(mirror: Mirror) -> bytes:
    return b"".join(mirror.copy.rows(WHOLE))


def read(mirror: Mirror) -> tuple[Rect, list[Ticket]] | None:
    made = mirror.begin()
    return mirror.done(made.picture.rows(made.source))


def test_the_first_read_is_of_all_that_is_shown(mirror: Mirror, picture: FakeSurface) -> None:
    waiting = ticket()
    assert not mirror.unread
    mirror.add(Rect(3, 3, 1, 1), [waiting])
    assert mirror.unread
    assert not mirror.shows
    assert read(mirror) == (WHOLE, [waiting])
    assert (mirror.shows, mirror.unread) == (True, False)
    assert shown(mirror) == b"".join(picture.rows(RECT))


def test_then_of_what_has_changed(mirror: Mirror, picture: FakeSurface) -> None:
    mirror.add(WHOLE, [])
    read(mirror)
    picture.pixels[:] = bytes(len(picture.pixels))
    tickets = [ticket(), ticket()]
    mirror.add(Rect(2, 2, 3, 3), tickets[:1])
    mirror.add(Rect(7, 4, 1, 1), tickets[1:])
    assert mirror.begin() == (picture, Rect(6, 8, 6, 3), Rect(2, 2, 6, 3), tickets)
    assert mirror.done(picture.rows(Rect(6, 8, 6, 3))) == (Rect(2, 2, 6, 3), tickets)
    assert shown(mirror).count(b"\0\0\0\0") >= 18


def test_what_changes_meanwhile_is_read_next(mirror: Mirror) -> None:
    mirror.add(WHOLE, [])
    read(mirror)
    mirror.add(Rect(0, 0, 1, 1), [])
    made = mirror.begin()
    late = ticket()
    mirror.add(Rect(5, 5, 2, 2), [late])
    assert not mirror.unread, "one at a time"
    assert mirror.done(made.picture.rows(made.source)) == (Rect(0, 0, 1, 1), [])
    assert mirror.unread
    assert mirror.begin().rect == Rect(5, 5, 2, 2)


def test_a_read_that_was_stopped_is_made_again(mirror: Mirror) -> None:
    waiting = ticket()
    mirror.add(WHOLE, [waiting])
    mirror.begin()
    assert mirror.done(None) is None
    assert mirror.unread
    assert not mirror.shows
    assert read(mirror) == (WHOLE, [waiting])


def test_after_a_failure_it_is_dark_until_all_of_it_was_read(mirror: Mirror) -> None:
    mirror.add(WHOLE, [])
    read(mirror)
    mirror.add(Rect(0, 0, 1, 1), [])
    mirror.begin()
    mirror.failed()
    assert (mirror.shows, mirror.dark, mirror.unread) == (False, True, False)
    mirror.add(Rect(0, 0, 1, 1), [])
    assert read(mirror) == (WHOLE, [])
    assert (mirror.shows, mirror.dark) == (True, False)


def test_whoever_waits_is_given_up_once(mirror: Mirror) -> None:
    first, second, done = ticket(), ticket(), ticket()
    done.finish()
    mirror.add(WHOLE, [first, done])
    made = mirror.begin()
    mirror.add(WHOLE, [second])
    assert mirror.drop() == [second, first]
    assert not mirror.unread
    assert mirror.drop() == []
    assert mirror.done(made.picture.rows(made.source)) == (WHOLE, [])
