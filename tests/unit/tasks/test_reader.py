"""vgpud.tasks.reader: threads that read, and are stopped."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing

from tests.support.fake_pixels import FakeSurface
from vgpud.errors import GuestError
from vgpud.tasks.reader import Reader, Rows
from vgpuwire import Ctrl, Rect

RECT = Rect(1, 2, 3, 4)


class Slow(FakeSurface):
    """Reads until it is told to go on, or to stop."""

    slow = True

    def __init__(self) -> None:
        super().__init__(8, 8, 2)
        self.reading = threading.Event()
        self.go_on = threading.Event()
        self.error: BaseException | None = None
        self.stopped = 0
        self.threads: set[int] = set()

    def fetch(self, rect: Rect, stop: bytearray) -> Rows | None:
        self.threads.add(threading.get_ident())
        self.reading.set()
        while not self.go_on.wait(0.001):
            if stop[0]:
                self.stopped += 1
                return None
        if self.error is not None:
            raise self.error
        return self.rows(rect)


async def begun(picture: Slow) -> None:
    await trio.to_thread.run_sync(picture.reading.wait)


async def test_the_rows_come_from_a_thread() -> None:
    picture = Slow()
    picture.go_on.set()
    rows = await Reader().read(picture, RECT)
    assert rows is not None
    assert b"".join(rows) == b"".join(picture.rows(RECT))
    assert threading.get_ident() not in picture.threads


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GuestError(Ctrl.RESP_ERR_UNSPEC, "gone"), Ctrl.RESP_ERR_UNSPEC),
        (MemoryError(), Ctrl.RESP_ERR_OUT_OF_MEMORY),
    ],
)
async def test_an_error_of_the_guest_s(error: BaseException, code: int) -> None:
    """It comes without the thread's frames, which hold mappings of the device."""
    picture = Slow()
    picture.go_on.set()
    picture.error = error
    with pytest.raises(GuestError) as caught:
        await Reader().read(picture, RECT)
    assert caught.value.code == code
    assert caught.value.__context__ is caught.value.__cause__ is None


async def test_another_error_is_a_bug() -> None:
    picture = Slow()
    picture.go_on.set()
    picture.error = ZeroDivisionError()
    with pytest.raises(ExceptionGroup) as caught:
        await Reader().read(picture, RECT)
    assert caught.value.subgroup(ZeroDivisionError) is not None


async def test_a_pause_ends_what_reads_and_holds_back_what_would() -> None:
    reader, picture, later = Reader(), Slow(), Slow()
    later.go_on.set()
    results: list[Rows | None] = []

    async def read(one: Slow) -> None:
        results.append(await reader.read(one, RECT))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, picture)
        await begun(picture)
        async with reader.pause():
            assert picture.stopped == 1
            nursery.start_soon(read, later)
            await trio.testing.wait_all_tasks_blocked()
            assert not later.threads
            assert results == [None]
    assert results[0] is None
    assert results[1] is not None


async def test_those_who_wait_for_their_turn_do_not_begin() -> None:
    reader, pictures = Reader(), [Slow() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.read, pictures[0], RECT)
        await begun(pictures[0])
        for picture in pictures[1:]:
            nursery.start_soon(reader.read, picture, RECT)
        await trio.testing.wait_all_tasks_blocked()
        async with reader.pause():
            pass
    assert sum(len(picture.threads) for picture in pictures) == 1, "one at a time"


async def test_pauses_may_overlap() -> None:
    reader, picture = Reader(), Slow()
    picture.go_on.set()
    inner = trio.Event()

    async def pause() -> None:
        async with reader.pause():
            await inner.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pause)
        await trio.testing.wait_all_tasks_blocked()
        async with reader.pause():
            pass
        nursery.start_soon(reader.read, picture, RECT)
        await trio.testing.wait_all_tasks_blocked()
        assert not picture.threads
        inner.set()
    assert picture.threads


async def test_the_end_of_a_session_ends_a_screenshot() -> None:
    reader, picture = Reader(), Slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.read, picture, RECT)
        await begun(picture)
        reader.abort()
    assert picture.stopped == 1


async def test_a_cancelled_read_ends_at_once() -> None:
    picture = Slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Reader().read, picture, RECT)
        await begun(picture)
        nursery.cancel_scope.cancel()
    assert picture.stopped == 1
