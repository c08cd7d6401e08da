"""Who reads pictures in device memory: threads, which can be stopped.

A read of a BAR goes to the device, 16 bytes at a time, and nobody says how long that takes. The
event loop must never wait for it, and QEMU must not wait for it when it takes the memory away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from vgpud.device.pixels import Picture
from vgpud.errors import GuestError
from vgpuwire import Ctrl, Rect

Rows = list[memoryview]


class Reader:
    """Reads slow pictures; `pause` ends all reads and holds new ones back."""

    def __init__(self) -> None:
        self._one = trio.CapacityLimiter(1)  # more would only share what the bus gives
        self._stops: list[bytearray] = []
        self._idle = trio.Event()
        self._idle.set()
        self._may_read = trio.Event()
        self._may_read.set()
        self._pauses = 0

    async def read(self, picture: Picture, rect: Rect) -> Rows | None:
        """What `picture.rows(rect)` would return; None where it was stopped half way: the memory
        table has changed. Raises GuestError(ERR_UNSPEC) as `Picture.fetch` does."""
        while not self._may_read.is_set():
            await self._may_read.wait()
        stop = bytearray(1)
        self._stops.append(stop)
        if self._idle.is_set():
            self._idle = trio.Event()
        try:
            return await self._read(picture, rect, stop)
        finally:
            self._stops.remove(stop)
            if not self._stops:
                self._idle.set()

    def abort(self) -> None:
        """End what is being read; at the end of a session, a screenshot that somebody waits for."""
        for stop in self._stops:
            stop[0] = 1

    @asynccontextmanager
    async def pause(self) -> AsyncIterator[None]:
        """In the block no thread touches device memory, nor does one that ends later hold it."""
        if self._pauses == 0:
            self._may_read = trio.Event()
        self._pauses += 1
        try:
            self.abort()
            await self._idle.wait()
            yield
        finally:
            self._pauses -= 1
            if self._pauses == 0:
                self._may_read.set()

    async def _read(self, picture: Picture, rect: Rect, stop: bytearray) -> Rows | None:
        """Cancelled, it ends soon: a thread cannot be left behind, but told."""
        result: Rows | GuestError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_set_when_cancelled, stop)
            result = await trio.to_thread.run_sync(_fetch, picture, rect, stop, limiter=self._one)
            nursery.cancel_scope.cancel()
        if isinstance(result, GuestError):
            raise GuestError(result.code, result.reason)
        return result


def _fetch(picture: Picture, rect: Rect, stop: bytearray) -> Rows | GuestError | None:
    if stop[0]:
        return None  # while it waited for its turn
    try:
        return picture.fetch(rect, stop)
    except GuestError as error:
        # Without its traceback, whose frames hold mappings of the device.
        return GuestError(error.code, error.reason)
    except MemoryError:
        return GuestError(Ctrl.RESP_ERR_OUT_OF_MEMORY, "no memory for a copy of device memory")


async def _set_when_cancelled(stop: bytearray) -> None:
    try:
        await trio.sleep_forever()
    finally:
        stop[0] = 1
