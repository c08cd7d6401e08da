"""All rings of a connection: what a message for one of them asks to be done.

When to reset the device is decided here too (decision 10), because what tells a reset from a
`stop` and `cont` is how the rings go on.
"""

from __future__ import annotations

from typing import Final

from vgpud.backend.actions import (
    Action,
    BreakRing,
    CloseFds,
    EnableRing,
    Fd,
    Reset,
    StartRing,
    StopRing,
)
from vgpud.backend.ring import RingConfig
from vgpud.errors import PeerError
from vgpuwire import VHOST_USER_F_PROTOCOL_FEATURES, RingFeature

NO_MEMORY: Final = (
    "QEMU shares no guest memory; start it with -object"
    " memory-backend-memfd,id=mem,size=...,share=on and -machine memory-backend=mem"
)


class Rings:
    """Indexed by the queue numbers of the messages. Raises PeerError for one there is not."""

    def __init__(self, count: int) -> None:
        self._rings: Final = tuple(RingConfig(index) for index in range(count))
        self._sends_resets = False

    def __len__(self) -> int:
        return len(self._rings)

    def __getitem__(self, index: int) -> RingConfig:
        if not 0 <= index < len(self._rings):
            raise PeerError(
                f"ring {index} of a device that has {len(self._rings)}; a generic vhost-user"
                f" device of QEMU needs num_vqs={len(self._rings)}"
            )
        return self._rings[index]

    def set_base(self, index: int, base: int) -> list[Action[Fd]]:
        """SET_VRING_BASE. `cont` gives back the base that the stop returned, a reset gives 0.

        Only of a front-end that sends no RESET_DEVICE (QEMU 7.2, the generic device): one that
        does may well move a base for its own reasons. A ring never stopped says nothing.
        """
        ring = self[index]
        actions: list[Action[Fd]] = []
        stopped_at = ring.returned
        if not (self._sends_resets or ring.started or stopped_at in (None, base)):
            for each in self._rings:
                each.returned = None  # one reset a start, however many rings moved
            actions = [Reset(f"ring {index} stopped at {stopped_at} and goes on at {base}")]
        ring.set_base(base)
        return actions

    def kick(
        self, index: int, fds: tuple[Fd, ...], features: int | None, obstacle: str | None
    ) -> list[Action[Fd]]:
        """SET_VRING_KICK: the start of a ring, or (BreakRing) the reason why not.

        `features` are those of SET_FEATURES, None before it; `obstacle` is what stands in the way
        of every ring (no memory is shared, features that are not implemented), if anything.
        Raises PeerError for a live ring whose base is not known.
        """
        ring = self[index]
        actions: list[Action[Fd]] = [StopRing(index)] if ring.started else []
        problem = obstacle or ring.problem()  # odd bases come of features, packed rings have one
        if problem is None and not fds:
            problem = "SET_VRING_KICK without an eventfd: polling is not supported"
        if features is None:
            problem = problem or "SET_VRING_KICK came before SET_FEATURES"
        if problem is not None or features is None:
            ring.refuse()
            closing: list[Action[Fd]] = [CloseFds(fds)] if fds else []
            return [*actions, *closing, BreakRing(index, str(problem))]
        setup = ring.start(event_idx=bool(features & RingFeature.EVENT_IDX))
        if not features & VHOST_USER_F_PROTOCOL_FEATURES:
            # vhost-user.rst, "Ring states": without this bit a ring starts enabled.
            actions.append(self.enable(index, True))
        return [*actions, StartRing(index, setup, fds[0])]

    def enable(self, index: int, enabled: bool) -> EnableRing:
        """SET_VRING_ENABLE: comes for both rings, also for one that the guest never set up."""
        self[index].enabled = enabled
        return EnableRing(index, enabled)

    def reset_device(self) -> list[Action[Fd]]:
        """RESET_DEVICE: comes at any time, many times over, and has no reply."""
        self._sends_resets = True
        actions: list[Action[Fd]] = []
        for ring in self._rings:
            if ring.enabled:
                actions.append(EnableRing(ring.index, False))
            if ring.started:
                actions.append(StopRing(ring.index))
            ring.reset()
        return [*actions, Reset("RESET_DEVICE")]
