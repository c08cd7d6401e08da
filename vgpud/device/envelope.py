"""Requests and responses around their meaning: headers, fences, lengths."""

from __future__ import annotations

from typing import Final

from vgpud.device.outcome import DEVICE_TIMELINE, DisplayMessage, Outcome, Timeline
from vgpud.errors import GuestError
from vgpuwire import FLAG_FENCE, FLAG_INFO_RING_IDX, Ctrl, CtrlHdr, Feature, MemEntry

MAX_ENTRIES: Final = 16384
"""Entries of one backing, as in QEMU: 64 MiB of scattered 4 KiB pages."""

NO_HDR: Final = CtrlHdr(0, 0, 0, 0, 0)

_DONE: Final = Outcome(CtrlHdr.pack(Ctrl.RESP_OK_NODATA, 0, 0, 0, 0))
"""Of an unfenced command that leads to nothing else: by far the most."""


class Envelope:
    """Makes responses. A fenced command's fence comes back with its response, on errors too
    (virtio 1.3, 5.7.6.7; rows E15 to E18); its ring_idx only with CONTEXT_INIT."""

    def __init__(self) -> None:
        self.features = 0
        self.errors: dict[int, int] = {}
        """How often each error response was given."""

    def header(self, hdr: CtrlHdr, kind: int) -> CtrlHdr:
        """The header of a response of this kind to a request with that header."""
        if not hdr.flags & FLAG_FENCE:
            return CtrlHdr(kind, 0, 0, 0, 0)
        if self._has_ring_idx(hdr):
            flags = FLAG_FENCE | FLAG_INFO_RING_IDX
            return CtrlHdr(kind, flags, hdr.fence_id, hdr.ctx_id, hdr.ring_idx)
        return CtrlHdr(kind, FLAG_FENCE, hdr.fence_id, hdr.ctx_id, 0)

    def timeline(self, hdr: CtrlHdr) -> Timeline | None:
        if not hdr.flags & FLAG_FENCE:
            return None
        return (hdr.ctx_id, hdr.ring_idx) if self._has_ring_idx(hdr) else DEVICE_TIMELINE

    def ok(self, hdr: CtrlHdr, display: tuple[DisplayMessage, ...] = ()) -> Outcome:
        if not hdr.flags & FLAG_FENCE:
            return Outcome(_DONE.response, display) if display else _DONE
        response = CtrlHdr.pack(*self.header(hdr, Ctrl.RESP_OK_NODATA))
        return Outcome(response, display, self.timeline(hdr))

    def error(
        self, hdr: CtrlHdr, error: GuestError, display: tuple[DisplayMessage, ...] = ()
    ) -> Outcome:
        self.errors[error.code] = self.errors.get(error.code, 0) + 1
        return Outcome(CtrlHdr.pack(*self.header(hdr, error.code)), display, self.timeline(hdr))

    def _has_ring_idx(self, hdr: CtrlHdr) -> bool:
        return bool(hdr.flags & FLAG_INFO_RING_IDX and self.features & Feature.CONTEXT_INIT)


def entries_of(tail: bytes, count: int) -> bytes:
    """The entries of a backing, behind the record in the request. The count is the guest's claim:
    it is held against QEMU's cap and the bytes that really came before anything is allocated.

    Raises GuestError(ERR_UNSPEC) (rows A04 to A06).
    """
    if count > MAX_ENTRIES:
        raise GuestError(Ctrl.RESP_ERR_UNSPEC, f"{count} entries; at most {MAX_ENTRIES}")
    size = count * MemEntry.SIZE
    if len(tail) < size:
        raise GuestError(Ctrl.RESP_ERR_UNSPEC, f"{count} entries need {size} bytes")
    return tail[:size]
