"""Bounds on waiting for the display, without a wake-up for each that was not needed."""

from __future__ import annotations

import heapq
from itertools import count
from math import inf
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
        entry = (trio.current_time() + seconds, next(self._order), waiter)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._added.set()

    async def run(self) -> None:
        """Wait for the first deadline that matters, or an earlier one, until cancelled."""
        while True:
            while self._heap and self._heap[0][2].done:
                heapq.heappop(self._heap)
            self._added = trio.Event()
            with trio.move_on_at(self._heap[0][0] if self._heap else inf):
                await self._added.wait()
            while self._heap and self._heap[0][0] <= trio.current_time():
                heapq.heappop(self._heap)[2].expire()
