"""Waits for kernel uevents, once there is something that they can concern."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from vgpud import log
from vgpud.errors import HostError
from vgpud.host.uevents import Gone, Lost, UdmabufAppeared, Uevents, is_bound

OFF: Final = "devices are given up and /dev/udmabuf is found later than need be"


class UeventWatch:
    """`gone` is called with the sysfs path of a device that is about to be unbound, `appeared` when
    /dev/udmabuf is there. `known` are the devices that are held: where events were lost, and
    before the first, sysfs is looked at."""

    def __init__(
        self,
        gone: Callable[[str], Awaitable[None]],
        appeared: Callable[[], None],
        known: Callable[[], Iterable[str]],
        make: Callable[[], Uevents] = Uevents,
    ) -> None:
        self._gone = gone
        self._appeared = appeared
        self._known = known
        self._make = make
        self._needed = trio.Event()

    def need(self) -> None:
        """There is something to watch."""
        self._needed.set()

    async def run(self) -> None:
        """Until cancelled. Where there are no uevents that is said, and nothing is watched."""
        await self._needed.wait()
        try:
            uevents = await trio.to_thread.run_sync(self._make)  # an import of 100 ms
        except HostError as error:
            log.warning("uevents-off", reason=error, instead=OFF)
            return
        try:
            await self._look()
            while True:
                await trio.lowlevel.wait_readable(uevents.fileno())
                for event in uevents.read():
                    match event:
                        case Gone(syspath):
                            await self._gone(syspath)
                        case UdmabufAppeared():
                            self._appeared()
                        case Lost():
                            log.warning("uevents-lost")
                            await self._look()
                            self._appeared()
        finally:
            uevents.close()

    async def _look(self) -> None:
        """A device that was unbound before we listened."""
        for syspath in list(self._known()):
            if not is_bound(syspath):
                await self._gone(syspath)
