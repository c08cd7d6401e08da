"""Keeps the mirrors of heads up to date: reads device memory, so many times a second at most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from vgpud import log
from vgpud.errors import GuestError
from vgpud.tasks.heads import Head
from vgpud.tasks.reader import Reader

HINT: Final = (
    "uncached reads are slow: with --scanout=dmabuf and a display that imports dma-bufs of device "
    "memory nothing is read; --device-fps changes the rate"
)


class Refresher:
    """`fps`: reads a second for one head; `shown` is called when there is something to send."""

    def __init__(self, reader: Reader, fps: float, shown: Callable[[], None]) -> None:
        self._reader = reader
        self._fps = fps
        self._shown = shown
        self._send, self._receive = trio.open_memory_channel[Head](16)
        self._busy: set[Head] = set()
        self._next: dict[Head, float] = {}
        self._told = False

    def want(self, head: Head) -> None:
        """A head has a read to be made."""
        if head not in self._busy:
            self._busy.add(head)
            self._send.send_nowait(head)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            async for head in self._receive:
                nursery.start_soon(self._refresh, head)

    async def _refresh(self, head: Head) -> None:
        try:
            while True:
                await trio.sleep_until(self._next.get(head, 0.0))
                mirror = head.unread
                if mirror is None:
                    return
                self._tell()
                self._next[head] = trio.current_time() + 1 / self._fps
                read = mirror.begin()
                try:
                    rows = await self._reader.read(read.picture, read.source)
                except GuestError as error:
                    log.debug("device-memory", reason=error)
                    head.unreadable(mirror)
                else:
                    head.read(mirror, rows)
                self._shown()
        finally:
            self._busy.discard(head)

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            log.warning("device-memory-read", frames_per_second=self._fps, hint=HINT)
