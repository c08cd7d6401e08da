"""Bounds on waiting for the display, without a wake-up for each that was not needed."""

from __future__ import annotations

import heapq
from itertools import count
from typing import Protocol

import trio


class Waiter(Protocol):
    """Something that may come true before its deadline."""

    @property
    def done(self) -> bool: ...
    def expire(self) -> None:
        """The deadline has come; nothing where it is done."""


class Deadlines:
    """Waiters by deadline, in seconds of trio's clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Waiter]] = []
        self._order = count()
        self._added = trio.Event()

    def add(self, seconds: float, waiter: Waiter) -> None:
        """Expire `waiter` in so many seconds if it is not done by then."""
        heapq.heappush(self._heap, (trio.current_time() + seconds, next(self._order), waiter))
        self._added.set()

    async def run(self) -> None:
        """Sleep to the first deadline that still matters, until cancelled."""
        while True:
            while self._heap and self._heap[0][2].done:
                heapq.heappop(self._heap)
            if not self._heap:
                self._added = trio.Event()
                await self._added.wait()
                continue
            await trio.sleep_until(self._heap[0][0])
            while self._heap and self._heap[0][0] <= trio.current_time():
                heapq.heappop(self._heap)[2].expire()
