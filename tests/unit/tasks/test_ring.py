"""A ring's task, between a fake queue and a server that counts."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from vgpud.host.fd import EventFd
from vgpud.tasks import ring as module
from vgpud.tasks.ring import BATCH, RingTask
from vgpud.tasks.stats import Stats


class Queue:
    """Elements are numbers. `script` happens at each spin; what is kept is in `log`."""

    def __init__(self) -> None:
        self.waiting: deque[int] = deque()
        self.pushed: list[int] = []
        self.log: list[str] = []
        self.script: deque[Callable[[], None]] = deque()
        self.next_avail = 0

    def pop(self, arm: bool) -> int | None:
        if self.waiting:
            self.next_avail += 1
            return self.waiting.popleft()
        self.log.append("arm" if arm else "look")
        return None

    def spin(self, seconds: float) -> bool:
        self.log.append("spin")
        if self.script:
            self.script.popleft()()
        return bool(self.waiting)

    def push(self, element: int, response: bytes) -> int:
        self.pushed.append(element)
        return len(response)

    def publish(self) -> bool:
        self.log.append(f"publish {len(self.pushed)}")
        return True


class Server:
    def __init__(self) -> None:
        self.waits = False
        self.flushes = 0

    def serve(self, element: Any, push: Any) -> None:
        push(element, b"")

    def flush(self) -> None:
        self.flushes += 1

    def stop(self) -> None:
        pass


class Rig:
    def __init__(self) -> None:
        self.queue: Any = Queue()
        self.server = Server()
        self.stats = Stats()
        self.task = RingTask(0, self.server, self.stats)
        self.kick = EventFd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self.call = EventFd(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        self.task.set_call(self.call)
        self.task.start(self.queue, self.kick)
        self.task.enable(True)

    def calls(self) -> int:
        try:
            return os.eventfd_read(self.call.fileno())
        except BlockingIOError:
            return 0

    async def kicked(self) -> list[str]:
        """What the task does when the driver kicks."""
        self.queue.log.clear()
        self.kick.signal()
        await wait_all_tasks_blocked()
        return list(self.queue.log)


@asynccontextmanager
async def running() -> AsyncIterator[Rig]:
    rig = Rig()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.task.run)
        await wait_all_tasks_blocked()
        yield rig
        await rig.task.stop()
    rig.task.close()


async def test_a_batch_is_published_and_told_once() -> None:
    async with running() as rig:
        rig.queue.waiting.extend(range(5))
        log = await rig.kicked()
        assert [word for word in log if word != "spin"] == ["look", "publish 5", "arm"]
        assert rig.calls() == 1
        assert rig.queue.pushed == [0, 1, 2, 3, 4]
        assert (rig.stats.commands, rig.server.flushes) == (5, 1)


async def test_a_long_batch_is_shown_and_published_in_pieces() -> None:
    async with running() as rig:
        rig.queue.waiting.extend(range(2 * BATCH + 1))
        log = await rig.kicked()
        published = [word for word in log if word.startswith("publish")]
        assert published == [f"publish {BATCH}", f"publish {2 * BATCH}", f"publish {2 * BATCH + 1}"]
        assert rig.server.flushes == 3


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Each look at the clock is so many seconds after the one before."""
    now, step = 0.0, 0.0

    def monotonic() -> float:
        nonlocal now
        now += step
        return now

    def set_step(seconds: float) -> None:
        nonlocal step
        step = seconds

    monkeypatch.setattr(module.time, "monotonic", monotonic)
    return set_step


async def test_a_driver_that_comes_back_fast_is_waited_for_awake(
    clock: Callable[[float], None],
) -> None:
    async with running() as rig:
        await rig.kicked()  # so soon that the clock did not move
        rig.queue.script.append(lambda: rig.queue.waiting.append(7))
        log = await rig.kicked()
        assert log == ["look", "spin", "look", "publish 1", "spin", "arm"]


async def test_a_driver_that_takes_its_time_is_not(clock: Callable[[float], None]) -> None:
    async with running() as rig:
        await rig.kicked()
        assert "spin" in await rig.kicked()
        clock(2 * module.SPIN)
        assert "spin" not in await rig.kicked()
        clock(0.0)
        await rig.kicked()
        assert "spin" in await rig.kicked()


async def test_no_time_is_spent_where_the_display_must_answer(
    clock: Callable[[float], None],
) -> None:
    async with running() as rig:
        await rig.kicked()
        rig.server.waits = True
        assert await rig.kicked() == ["look", "arm"]


async def test_a_driver_that_never_stops_leaves_turns_to_others() -> None:
    async with running() as rig:
        turns = 0

        async def others() -> None:
            nonlocal turns
            for _ in range(3):
                await trio.lowlevel.checkpoint()
                turns += 1
            rig.queue.waiting.clear()

        serve = rig.server.serve

        def endless(element: Any, push: Any) -> None:
            serve(element, push)
            rig.queue.waiting.append(element)

        rig.server.serve = endless
        rig.queue.waiting.append(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            rig.kick.signal()
        assert turns == 3


async def test_a_stopped_ring_takes_nothing_more() -> None:
    async with running() as rig:
        rig.queue.waiting.append(1)
        await rig.kicked()
        assert await rig.task.stop() == 1
        rig.queue.waiting.append(2)
        await wait_all_tasks_blocked()
        assert rig.queue.pushed == [1]


async def test_a_disabled_ring_keeps_its_elements() -> None:
    async with running() as rig:
        rig.task.enable(False)
        rig.queue.waiting.append(1)
        await rig.kicked()
        assert rig.queue.pushed == []
        rig.task.enable(True)
        await wait_all_tasks_blocked()
        assert rig.queue.pushed == [1]
