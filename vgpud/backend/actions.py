"""What a vhost-user message asks to be done: plain values, carried out by the session in order.

Ownership of descriptors, in two sentences. Where `VhostUserBackend.receive` returns, each fd of
the message is in exactly one action, and whoever carries the action out owns it from then on.
Where `receive` raises, no fd was taken: the caller still owns all of `message.fds`.

Results. Carrying out an action gives an int, and the result of the *last* action of a list goes
into `VhostUserBackend.reply`: 0 for "done", the base for StopRing, anything else for "could not
be done" (it becomes the nack of a request that QEMU wants acknowledged). An action whose result
matters is always the last of its list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from vgpuwire import MemRegion

Fd = TypeVar("Fd")
"""What the caller uses as a descriptor; never looked at here."""


@dataclass(frozen=True, slots=True)
class RingSetup:
    """A split virtqueue as QEMU described it; checked for form, not against memory.

    `desc`, `avail` and `used` are addresses in QEMU (the space of `MemRegion.userspace_addr`).
    `base` is the next available index to serve.
    """

    size: int
    desc: int
    avail: int
    used: int
    base: int
    event_idx: bool


@dataclass(frozen=True, slots=True)
class SetFeatures:
    """The feature bits that the guest and QEMU agreed on, the transport's bits included."""

    features: int


@dataclass(frozen=True, slots=True)
class ReplaceMemory(Generic[Fd]):
    """The whole memory table (SET_MEM_TABLE). Every user of the old one must have moved to the
    new one when this is done: QEMU may free the old memory right after the acknowledgement."""

    regions: tuple[tuple[MemRegion, Fd], ...]


@dataclass(frozen=True, slots=True)
class AddRegion(Generic[Fd]):
    """One more region (ADD_MEM_REG)."""

    region: MemRegion
    fd: Fd


@dataclass(frozen=True, slots=True)
class RemoveRegion:
    """One region less (REM_MEM_REG): `region` is the one that was added, mmap_offset included.
    As with ReplaceMemory nothing may use it any more when this is done."""

    region: MemRegion


@dataclass(frozen=True, slots=True)
class UseDisplay(Generic[Fd]):
    """QEMU's end of the GPU socket (GPU_SET_SOCKET): display messages go there from now on.

    It comes first in every start, before features, memory and rings. The socket it supersedes
    must stay open, neither read nor written, until the session ends: QEMU hangs otherwise
    (vhost-user-gpu.c keeps its read handler on the old one). `live` says that ring 0 is started
    already, so that no StartRing follows: what is shown must be replayed at once.
    """

    fd: Fd
    live: bool


@dataclass(frozen=True, slots=True)
class StartRing(Generic[Fd]):
    """Serve a ring: look at it once without a kick, then at each kick, while it is enabled.

    Result: 0, or anything else where the ring cannot be served as it was set up (its memory is
    not shared). Then it is broken, not the session, and QEMU is told through the err eventfd.
    """

    index: int
    setup: RingSetup
    kick: Fd


@dataclass(frozen=True, slots=True)
class StopRing:
    """Stop serving a ring, answer what is held, publish; close the kick eventfd.

    Result: the next available index. After it no guest memory is written and nobody notified.
    """

    index: int


@dataclass(frozen=True, slots=True)
class EnableRing:
    """Whether a ring, started or not, may be served. A ring is disabled until told otherwise."""

    index: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class SetCall(Generic[Fd]):
    """Where to notify the driver from now on; None: nowhere, the driver polls."""

    index: int
    fd: Fd | None


@dataclass(frozen=True, slots=True)
class SetErr(Generic[Fd]):
    """Where to tell QEMU that the ring is broken. It is told once a connection, and so lasts
    over stops and resets."""

    index: int
    fd: Fd | None


@dataclass(frozen=True, slots=True)
class BreakRing:
    """QEMU wants a ring started that was not set up properly: signal its err eventfd and log
    `reason`. It is not started; the other ring and the session go on."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Reset:
    """Reset the device: resources, scanouts, cursor. Memory table, sockets, call and err eventfds
    and the rings stay as they are; a ring that a reset stops has its own StopRing before."""

    reason: str


@dataclass(frozen=True, slots=True)
class ConfigWritten:
    """The guest wrote the config space. `num_scanouts` is QEMU's `max_outputs`, unless the guest
    patched it, and so not to be relied on."""

    num_scanouts: int


@dataclass(frozen=True, slots=True)
class CloseFds(Generic[Fd]):
    """Descriptors that nobody wants: those of a refused or ignored message."""

    fds: tuple[Fd, ...]


@dataclass(frozen=True, slots=True)
class Warn:
    """Nothing is done about the message; the operator should read why."""

    reason: str


Action: TypeAlias = (
    SetFeatures
    | ReplaceMemory[Fd]
    | AddRegion[Fd]
    | RemoveRegion
    | UseDisplay[Fd]
    | StartRing[Fd]
    | StopRing
    | EnableRing
    | SetCall[Fd]
    | SetErr[Fd]
    | BreakRing
    | Reset
    | ConfigWritten
    | CloseFds[Fd]
    | Warn
)
