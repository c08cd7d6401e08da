"""What is known of QEMU's heads: how many there are, their modes and EDIDs.

QEMU knows; it is asked at each command (rows D01, D03), and what it said last stands in for an
answer that is late.
"""

from __future__ import annotations

from typing import Final

from vgpud.device.edid import make_edid, padded
from vgpud.device.envelope import NO_HDR, Envelope
from vgpud.device.outcome import Ask, DisplayMessage, Outcome, Question, Silence
from vgpud.errors import GuestError
from vgpuwire import (
    MAX_SCANOUTS,
    Ctrl,
    CtrlHdr,
    DisplayOne,
    GetEdid,
    Rect,
    RespDisplayInfo,
    RespEdid,
)

_OFF: Final = DisplayOne(Rect(0, 0, 0, 0), 0, 0)

Sizes = tuple[tuple[int, int], ...]
"""(width, height) of each head, in pixels; 1 to 16 of them."""

DEFAULT_SIZES: Final[Sizes] = ((1280, 800),)
"""As QEMU's own first head."""


class Outputs:
    """QEMU does not tell how many heads it has: there are at least `known` and at most `limit`,
    and it is asked about one between. A QEMU without a display of its own (the generic
    vhost-user device) has the heads of `sizes`, which else stand in until it has answered."""

    def __init__(self, envelope: Envelope, sizes: Sizes) -> None:
        self._envelope = envelope
        self._sizes = sizes
        self.known = 1
        self.limit = MAX_SCANOUTS
        heads = tuple(DisplayOne(Rect(0, 0, *size), 1, 0) for size in sizes)
        off = (_OFF,) * (MAX_SCANOUTS - len(sizes))
        self._display_info = RespDisplayInfo(NO_HDR, heads + off)

    def require(self, scanout_id: int) -> None:
        """Raises GuestError(ERR_INVALID_SCANOUT_ID) for a head that is known not to be there."""
        if scanout_id >= self.limit:
            raise _no_scanout(scanout_id)

    def may_lack(self, scanout_id: int) -> bool:
        return scanout_id >= self.known

    # -- questions

    def display_info(self, hdr: CtrlHdr) -> Ask:
        return Ask(Question.DISPLAY_INFO, hdr, self._envelope.timeline(hdr))

    def edid(self, cmd: GetEdid) -> Ask:
        """Raises GuestError(ERR_INVALID_PARAMETER) for a head that is known not to be there: QEMU
        never answers GET_EDID of such a one (row D05)."""
        if cmd.scanout >= self.limit:
            raise GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, f"no scanout {cmd.scanout}")
        return Ask(Question.EDID, cmd.hdr, self._envelope.timeline(cmd.hdr), cmd.scanout)

    def confirmed(self, hdr: CtrlHdr, scanout_id: int, done: Outcome) -> Outcome | Ask:
        """What a command did to a head, once it is sure that there is that head."""
        if not self.may_lack(scanout_id):
            return done
        return Ask(Question.HEAD, hdr, self._envelope.timeline(hdr), scanout_id, done)

    # -- answers

    def answer(self, ask: Ask, reply: bytes | Silence) -> Outcome | None:
        """The outcome of a question. None: the head turned out not to be there, and what was done
        to it must be undone."""
        if reply is Silence.NOBODY:
            absent = ask.scanout_id >= len(self._sizes)
            reply = Silence.ABSENT if absent else Silence.LATE
        about_a_head = ask.question is not Question.DISPLAY_INFO
        if reply is Silence.ABSENT and not (about_a_head and self.may_lack(ask.scanout_id)):
            reply = Silence.LATE  # a question was lost: a head that was there stays there
        if reply is Silence.ABSENT:
            self.limit = min(self.limit, ask.scanout_id)
        elif about_a_head and reply is not Silence.LATE:
            self.known = max(self.known, ask.scanout_id + 1)
        if ask.question is Question.DISPLAY_INFO:
            return self._display_info_outcome(ask, reply)
        if ask.question is Question.EDID:
            return self._edid_outcome(ask, reply)
        assert ask.done is not None
        if reply is Silence.ABSENT:
            return None
        return Outcome(ask.done.response, (), ask.timeline)

    def refuse(self, ask: Ask, undone: tuple[DisplayMessage, ...]) -> Outcome:
        """The answer to a command for a head that is not there, and what undid it."""
        return self._envelope.error(ask.hdr, _no_scanout(ask.scanout_id), undone)

    def _display_info_outcome(self, ask: Ask, reply: bytes | Silence) -> Outcome:
        if isinstance(reply, bytes):
            self._display_info = RespDisplayInfo.decode(reply)
        header = self._envelope.header(ask.hdr, Ctrl.RESP_OK_DISPLAY_INFO)
        response = RespDisplayInfo(header, self._display_info.pmodes).encode()
        return Outcome(response, (), ask.timeline)

    def _edid_outcome(self, ask: Ask, reply: bytes | Silence) -> Outcome:
        if reply is Silence.ABSENT:
            reason = f"no scanout {ask.scanout_id}"
            return self._envelope.error(
                ask.hdr, GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, reason)
            )
        header = self._envelope.header(ask.hdr, Ctrl.RESP_OK_EDID)
        if isinstance(reply, bytes):
            theirs = RespEdid.decode(reply)
            response = RespEdid(header, theirs.size, theirs.edid)
        else:
            mode = self._display_info.pmodes[ask.scanout_id].r
            width, height = (mode.width, mode.height) if mode.width else self._sizes[0]
            own = make_edid(width, height, ask.scanout_id)
            response = RespEdid(header, len(own), padded(own))
        return Outcome(response.encode(), (), ask.timeline)


def _no_scanout(scanout_id: int) -> GuestError:
    return GuestError(Ctrl.RESP_ERR_INVALID_SCANOUT_ID, f"no scanout {scanout_id}")
