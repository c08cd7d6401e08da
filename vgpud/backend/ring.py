"""One virtqueue as QEMU describes it, and when it may be started.

All that changes the state of a ring is the table below::

    NEW ──complete──► READY ──start──► STARTED ──stop──► STOPPED ──complete──► READY
     ▲                  └──refuse──► BROKEN ──complete──► READY           start ► STARTED
     └──────────────────reset (from anywhere)

A state is left by what a message *means* for the ring, not by its number: SET_VRING_NUM, BASE
and ADDR come in any order and any number of times, on a ring that is stopped, live or broken.
Only a second SET_VRING_KICK on a live ring, without a SET_VRING_BASE for it, has no meaning.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

from vgpud.backend.actions import RingSetup
from vgpud.errors import PeerError
from vgpuwire import VringAddr

MAX_SIZE: Final = 1024
"""VIRTQUEUE_MAX_SIZE of QEMU (include/hw/virtio/virtio.h); 10.0 offers it for both queues."""

_ALIGNMENT: Final = {"desc_user_addr": 16, "avail_user_addr": 2, "used_user_addr": 4}
"""virtio 1.3, 2.7: alignment of the three areas of a split virtqueue."""


class State(Enum):
    """Where a ring is."""

    NEW = auto()
    """Its size or its addresses are not known."""
    READY = auto()
    """Described; waits for its SET_VRING_KICK."""
    STARTED = auto()
    """Served."""
    STOPPED = auto()
    """GET_VRING_BASE was answered; the description is kept."""
    BROKEN = auto()
    """It was to be started as it cannot be; waits for a better description."""


class Event(Enum):
    """What a message means for a ring."""

    DESCRIBE = auto()
    """NUM, BASE or ADDR, and something is still missing."""
    COMPLETE = auto()
    """NUM, BASE or ADDR, and nothing is missing."""
    START = auto()
    """KICK, and the description is good."""
    RESTART = auto()
    """START of a live ring that was described anew."""
    REFUSE = auto()
    """KICK, and the description is not good, or its memory is not there."""
    STOP = auto()
    """GET_VRING_BASE."""
    RESET = auto()
    """RESET_DEVICE."""


TRANSITIONS: Final[dict[State, dict[Event, State]]] = {
    State.NEW: {
        Event.DESCRIBE: State.NEW,
        Event.COMPLETE: State.READY,
        Event.REFUSE: State.BROKEN,
        Event.STOP: State.STOPPED,  # never started; answered all the same
        Event.RESET: State.NEW,
    },
    State.READY: {
        Event.COMPLETE: State.READY,
        Event.START: State.STARTED,
        Event.REFUSE: State.BROKEN,
        Event.STOP: State.STOPPED,
        Event.RESET: State.NEW,
    },
    State.STARTED: {
        Event.COMPLETE: State.STARTED,  # counts from the next start on
        Event.RESTART: State.STARTED,
        Event.REFUSE: State.BROKEN,
        Event.STOP: State.STOPPED,
        Event.RESET: State.NEW,
    },
    State.STOPPED: {
        Event.DESCRIBE: State.NEW,
        Event.COMPLETE: State.READY,
        Event.START: State.STARTED,
        Event.REFUSE: State.BROKEN,
        Event.STOP: State.STOPPED,
        Event.RESET: State.NEW,
    },
    State.BROKEN: {
        Event.DESCRIBE: State.NEW,
        Event.COMPLETE: State.READY,
        Event.START: State.STARTED,
        Event.REFUSE: State.BROKEN,
        Event.STOP: State.STOPPED,
        Event.RESET: State.NEW,
    },
}


class RingConfig:
    """What QEMU said about one ring.

    `size` and `addr` are None until told. `base` is where serving begins at the next start, and
    `base_told` whether it still is that: a start uses it up, a stop or SET_VRING_BASE renews it.
    `returned` is what the last GET_VRING_BASE was answered, None after a reset.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.returned: int | None = None
        self.enabled = False
        self._forget()

    def _forget(self) -> None:
        self.state = State.NEW
        self.size: int | None = None
        self.addr: VringAddr | None = None
        self.base = 0
        self.base_told = True

    @property
    def started(self) -> bool:
        return self.state is State.STARTED

    @property
    def described(self) -> bool:
        """Anything was said about it on this connection."""
        return self.size is not None or self.addr is not None

    def set_size(self, size: int) -> None:
        """SET_VRING_NUM. The guest chose it, so a bad one is found at the start of the ring."""
        self.size = size
        self._describe()

    def set_addr(self, addr: VringAddr) -> None:
        """SET_VRING_ADDR; checked at the start, as the size is."""
        self.addr = addr
        self._describe()

    def set_base(self, base: int) -> None:
        """SET_VRING_BASE; checked at the start."""
        self.base, self.base_told = base, True
        self._describe()

    def problem(self) -> str | None:
        """Why the ring cannot be started as described; None if it can. start() comes next, or
        refuse() with the reason.

        Raises PeerError for a live ring whose base was not told again: how far the guest has got
        cannot be guessed (the specification wants GET_VRING_BASE before).
        """
        if self.started and not self.base_told:
            self._move(Event.START)  # not in the table
        if self.size is None:
            return "no SET_VRING_NUM came before SET_VRING_KICK"
        if self.addr is None:
            return "no SET_VRING_ADDR came before SET_VRING_KICK"
        if not 0 < self.size <= MAX_SIZE or self.size & (self.size - 1):
            return f"size {self.size} is no power of two up to {MAX_SIZE}"
        if self.base > 0xFFFF:
            return f"base {self.base:#x} is no 16-bit index"
        for name, alignment in _ALIGNMENT.items():
            if getattr(self.addr, name) % alignment:
                return f"{name} {getattr(self.addr, name):#x} is not aligned to {alignment}"
        return None

    def start(self, event_idx: bool) -> RingSetup:
        """SET_VRING_KICK of a ring without a problem(). If serving it then fails: refuse()."""
        assert self.size is not None
        assert self.addr is not None
        self._move(Event.RESTART if self.started else Event.START)
        self.base_told = False
        return RingSetup(
            size=self.size,
            desc=self.addr.desc_user_addr,
            avail=self.addr.avail_user_addr,
            used=self.addr.used_user_addr,
            base=self.base,
            event_idx=event_idx,
        )

    def refuse(self) -> None:
        """The ring was not started: its base is still where serving begins."""
        self._move(Event.REFUSE)
        self.base_told = True

    def stop(self, base: int) -> None:
        """GET_VRING_BASE was answered with `base`."""
        self._move(Event.STOP)
        self.base, self.base_told, self.returned = base, True, base

    def reset(self) -> None:
        """RESET_DEVICE: nothing of the description is left, and the ring is disabled."""
        self._move(Event.RESET)
        self._forget()
        self.enabled, self.returned = False, None

    def _describe(self) -> None:
        complete = self.size is not None and self.addr is not None
        self._move(Event.COMPLETE if complete else Event.DESCRIBE)

    def _move(self, event: Event) -> None:
        target = TRANSITIONS[self.state].get(event)
        if target is None:
            raise PeerError(
                f"ring {self.index} is {self.state.name} and cannot {event.name};"
                " GET_VRING_BASE must stop it first"
            )
        self.state = target
