"""A started virtqueue: the native ring, with our errors."""

from __future__ import annotations

from vgpud import _native
from vgpud.errors import RingBroken
from vgpud.host.guest_memory import Snapshot

Element = _native.Element


class Virtqueue:
    """Pop one, push one, publish once a wake-up; see `_native.Virtqueue` for each step.

    Every method raises RingBroken where the driver broke its ring or its memory has gone.
    """

    def __init__(
        self,
        memory: Snapshot,
        size: int,
        desc: int,
        avail: int,
        used: int,
        base: int,
        event_idx: bool,
    ) -> None:
        try:
            self._ring = _native.Virtqueue(memory.native, size, desc, avail, used, base, event_idx)
        except (ValueError, _native.GuestFault) as error:
            raise RingBroken(str(error)) from error

    @property
    def next_avail(self) -> int:
        return self._ring.next_avail

    def pop(self, arm: bool) -> Element | None:
        try:
            return self._ring.pop(arm)
        except (_native.RingError, _native.GuestFault) as error:
            raise RingBroken(str(error)) from error

    def spin(self, seconds: float) -> bool:
        try:
            return self._ring.spin(int(seconds * 1e9))
        except (_native.RingError, _native.GuestFault) as error:
            raise RingBroken(str(error)) from error

    def push(self, element: Element, response: bytes) -> int:
        try:
            return self._ring.push(element, response)
        except (_native.RingError, _native.GuestFault) as error:
            raise RingBroken(str(error)) from error

    def publish(self) -> bool:
        try:
            return self._ring.publish()
        except (_native.RingError, _native.GuestFault) as error:
            raise RingBroken(str(error)) from error

    def rebind(self, memory: Snapshot) -> bool:
        """The memory table changed (decision 11): QEMU does not send the addresses again. True if
        they are in it; else the ring is lost until a later table has them."""
        try:
            self._ring.rebind(memory.native)
        except ValueError:
            return False
        except _native.RingError as error:
            raise RingBroken(str(error)) from error
        return True
