"""vgpud.tasks.refresher: how often device memory is read, and what comes of it."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest
import trio
import trio.testing

from tests.support.fake_pixels import FakeSurface
from vgpud.device.outcome import ShowSurface
from vgpud.errors import GuestError
from vgpud.tasks.heads import Head
from vgpud.tasks.outgoing import Outgoing, Terms, Ticket
from vgpud.tasks.reader import Reader, Rows
from vgpud.tasks.refresher import Refresher
from vgpud.tasks.stats import Stats
from vgpuwire import Ctrl, Rect

WHOLE = Rect(0, 0, 16, 16)


class Fetched(FakeSurface):
    slow = True

    def __init__(self) -> None:
        super().__init__(16, 16, 2)
        self.fails = False
        self.times: list[float] = []


class Now(Reader):
    """Reads at once: what a thread costs is not asked here."""

    async def read(self, picture: object, rect: Rect) -> Rows | None:
        assert isinstance(picture, Fetched)
        await trio.lowlevel.checkpoint()
        picture.times.append(trio.current_time())
        if picture.fails:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, "switched off")
        return picture.rows(rect)


class Rig:
    def __init__(self, fps: float) -> None:
        self.picture = Fetched()
        self.head = Head(0, None, lambda width, height: FakeSurface(width, height, 2))
        self.sent: list[Outgoing] = []
        self.refresher = Refresher(Now(), fps, self.pump)
        self.head.show(ShowSurface(0, self.picture, WHOLE))

    def pump(self) -> None:
        while (out := self.head.next_picture(Terms(True, False))) is not None:
            self.sent.append(out)
            out.take()
        if self.head.unread is not None:
            self.refresher.want(self.head)

    def flush(self) -> Ticket:
        ticket = Ticket(1, Stats())
        self.head.damage(WHOLE, ticket)
        self.pump()
        return ticket


@pytest.mark.parametrize("fps", [10.0, 0.5])
async def test_ten_times_a_second_at_most(
    fps: float, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    rig = Rig(fps)
    nursery.start_soon(rig.refresher.run)
    start = trio.current_time()
    while trio.current_time() < start + 20 / fps:
        rig.flush()
        await trio.sleep(1 / fps / 8)  # of the clock that jumps
    times = rig.picture.times
    assert 19 <= len(times) <= 21
    assert min(b - a for a, b in pairwise(times)) >= 1 / fps - 1e-9
    assert len(rig.sent) == len(times)


async def test_the_first_is_read_at_once(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    rig = Rig(10)
    nursery.start_soon(rig.refresher.run)
    start = trio.current_time()
    ticket = rig.flush()
    await trio.testing.wait_all_tasks_blocked()
    assert rig.picture.times == [start]
    assert ticket.done


async def test_a_failure_is_no_loop_and_no_end(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    rig = Rig(10)
    nursery.start_soon(rig.refresher.run)
    rig.picture.fails = True
    ticket = rig.flush()
    await trio.sleep(5)
    assert ticket.done
    assert (len(rig.picture.times), rig.sent) == (1, [])
    rig.picture.fails = False
    rig.flush()
    await trio.sleep(5)
    assert (len(rig.picture.times), len(rig.sent)) == (2, 1)


async def test_it_is_said_once(
    autojump_clock: trio.testing.MockClock,
    nursery: trio.Nursery,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "vgpud")
    rig = Rig(10)
    nursery.start_soon(rig.refresher.run)
    await trio.testing.wait_all_tasks_blocked()
    assert caplog.text == ""
    for _ in range(3):
        rig.flush()
        await trio.sleep(1)
    assert caplog.text.count("event=device-memory-read frames_per_second=10") == 1
    assert "--device-fps" in caplog.text
