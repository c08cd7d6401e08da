"""What executing a command leads to: plain values that the ring task carries on.

Outcome      an answer for the guest and messages for the display
Ask          a question for the display; the command is parked until it is answered
ShowSurface, Damage, CursorImage, CursorMove: messages for the display
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from vgpud.device.pixels import Picture
from vgpuwire import CtrlHdr, Rect

Timeline = tuple[int, int]
"""(ctx_id, ring_idx) of a fenced command: fences of one timeline retire in order."""

DEVICE_TIMELINE: Timeline = (-1, -1)
"""The timeline of every fence without RING_IDX: Linux signals all earlier ones with it."""


class ShowSurface(NamedTuple):
    """The scanout shows `rect` of `surface` from now on; None: it is disabled."""

    scanout_id: int
    surface: Picture | None
    rect: Rect


class Damage(NamedTuple):
    """Pixels that changed, in coordinates of the scanout, never empty, inside it."""

    scanout_id: int
    rect: Rect


class CursorImage(NamedTuple):
    """A new pointer image: 64 x 64 pixels of B8G8R8A8, and where it is."""

    scanout_id: int
    x: int
    y: int
    hot_x: int
    hot_y: int
    pixels: bytes


class CursorMove(NamedTuple):
    """The pointer's position and whether it is seen."""

    scanout_id: int
    x: int
    y: int
    visible: bool


DisplayMessage = ShowSurface | Damage | CursorImage | CursorMove


class Question(Enum):
    """What only QEMU knows (peers' rows D01 and D04: never cached across commands)."""

    DISPLAY_INFO = "display info"
    EDID = "EDID"
    HEAD = "is there such a head?"


class Silence(Enum):
    """Instead of QEMU's answer."""

    LATE = "it did not come in time, or there is nobody to ask"
    ABSENT = "QEMU answered what was asked later: it has no such head"
    NOBODY = "this QEMU has no display of its own: the heads are ours"


class Outcome(NamedTuple):
    """A command was executed.

    `response` is the encoded answer. Where `display` holds Damage, the answer is due when the
    display has taken it (a flush paces the guest), else at once. `timeline` is None for an
    unfenced command.
    """

    response: bytes
    display: tuple[DisplayMessage, ...] = ()
    timeline: Timeline | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A command that the display must answer: GpuDevice.answer() makes the Outcome.

    `done` is what the command has done already, provided that the head exists: QEMU alone knows
    how many there are, and the commands behind must not wait for it.
    """

    question: Question
    hdr: CtrlHdr
    timeline: Timeline | None
    scanout_id: int = 0
    done: Outcome | None = None
