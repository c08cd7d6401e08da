"""The virtio-gpu device model: one command in, one outcome out.

Every guest rule lives here. A command is refused before it changes anything; the order of the
checks is QEMU's (hw/display/virtio-gpu.c, master), because the first failing one names the
error code that a guest sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from vgpud.device.edid import make_edid, padded
from vgpud.device.geometry import fits
from vgpud.device.outcome import (
    DEVICE_TIMELINE,
    Ask,
    DisplayMessage,
    Outcome,
    Question,
    Silence,
    Timeline,
)
from vgpud.device.pixels import FORMATS, PixelStore
from vgpud.device.resource import Budget, Resource, ResourceTable
from vgpud.device.scanout import Cursors, Scanouts
from vgpud.errors import GuestError
from vgpuwire import (
    FLAG_FENCE,
    FLAG_INFO_RING_IDX,
    MAX_SCANOUTS,
    Ctrl,
    CtrlHdr,
    DisplayOne,
    Feature,
    GetEdid,
    MemEntry,
    Record,
    Rect,
    ResourceAssignUuid,
    ResourceAttachBacking,
    ResourceCreate2D,
    ResourceDetachBacking,
    ResourceFlush,
    ResourceUnref,
    RespDisplayInfo,
    RespEdid,
    RespResourceUuid,
    SetScanout,
    TransferToHost2D,
    UpdateCursor,
)

FEATURES: Final = Feature.EDID | Feature.RESOURCE_UUID
"""What this device can do. A bit is added together with the guest test that shows it."""

MAX_ENTRIES: Final = 16384
"""Entries of one backing, as in QEMU: 64 MiB of scattered 4 KiB pages."""

DEFAULT_WIDTH, DEFAULT_HEIGHT = 1280, 800

_NO_HDR: Final = CtrlHdr(0, 0, 0, 0, 0)
_Handler = Callable[["GpuDevice", Any, bytes], Outcome | Ask]
"""(device, command, request): the command is an instance of the record beside it."""


class GpuDevice:
    """Resources, scanouts, pointers and fences of one guest.

    `store` makes surfaces and resolves backings. QEMU does not tell how many heads it has: there
    are at least `known_scanouts` and at most `num_scanouts`, and it is asked about one between.
    """

    def __init__(self, store: PixelStore, max_hostmem: int) -> None:
        self._store = store
        self.resources = ResourceTable(Budget(max_hostmem))
        self.scanouts = Scanouts()
        self.cursors = Cursors()
        self.known_scanouts = 1
        self.num_scanouts = MAX_SCANOUTS
        self.features = 0
        self.guest_errors: dict[int, int] = {}
        self._display_info = RespDisplayInfo(_NO_HDR, _default_modes())

    def reset(self) -> None:
        """VIRTIO reset (virtio 1.3, 2.4): nothing of the guest's is left (row R01)."""
        self.scanouts.clear()
        self.cursors.clear()
        self.resources.clear()
        self.features = 0

    def set_features(self, features: int) -> None:
        """The features that the driver acked; until then none is on."""
        self.features = features

    # -- control queue

    def execute(self, request: bytes) -> Outcome | Ask:
        """Run one command of the control queue. Never raises: a bad one has an error response."""
        if len(request) < CtrlHdr.SIZE:
            return Outcome(self._error(_NO_HDR, GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER)))
        hdr = CtrlHdr.decode(request)
        try:
            row = _COMMANDS.get(hdr.type)
            if row is None:
                raise GuestError(Ctrl.RESP_ERR_UNSPEC, f"command {hdr.type:#x} is not known")
            record, handler = row
            if len(request) < record.SIZE:
                raise GuestError(
                    Ctrl.RESP_ERR_INVALID_PARAMETER,
                    f"command {hdr.type:#x} has {len(request)} of {record.SIZE} bytes",
                )
            return handler(self, record.decode(request), request)
        except GuestError as error:
            return Outcome(self._error(hdr, error), (), self._timeline(hdr))

    def answer(self, ask: Ask, reply: bytes | Silence) -> Outcome:
        """The answer to a question. `reply` is QEMU's payload (408 or 1056 bytes, a whole
        virtio-gpu response). Where it was late: the last display info, an EDID of our own, a
        head taken for real (rows D01, D07)."""
        about_a_head = ask.question is not Question.DISPLAY_INFO
        if reply is Silence.ABSENT and not (about_a_head and self._may_lack(ask.scanout_id)):
            reply = Silence.LATE  # a question was lost: a head that was there stays there
        if reply is Silence.ABSENT:
            self.num_scanouts = min(self.num_scanouts, ask.scanout_id)
        elif about_a_head and reply is not Silence.LATE:
            self.known_scanouts = max(self.known_scanouts, ask.scanout_id + 1)
        if ask.question is Question.DISPLAY_INFO:
            return Outcome(self._display_info_response(ask, reply), (), ask.timeline)
        if ask.question is Question.EDID:
            return Outcome(self._edid_response(ask, reply), (), ask.timeline)
        assert ask.done is not None
        if reply is not Silence.ABSENT:
            return Outcome(ask.done.response, (), ask.timeline)
        display = self.scanouts.disable(ask.scanout_id)
        return Outcome(self._error(ask.hdr, _no_scanout(ask.scanout_id)), display, ask.timeline)

    def _may_lack(self, scanout_id: int) -> bool:
        return scanout_id >= self.known_scanouts

    def _display_info_response(self, ask: Ask, reply: bytes | Silence) -> bytes:
        if isinstance(reply, bytes):
            self._display_info = RespDisplayInfo.decode(reply)
        header = self._header(ask.hdr, Ctrl.RESP_OK_DISPLAY_INFO)
        return RespDisplayInfo(header, self._display_info.pmodes).encode()

    def _edid_response(self, ask: Ask, reply: bytes | Silence) -> bytes:
        if reply is Silence.ABSENT:
            reason = f"no scanout {ask.scanout_id}"
            return self._error(ask.hdr, GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, reason))
        header = self._header(ask.hdr, Ctrl.RESP_OK_EDID)
        if isinstance(reply, bytes):
            theirs = RespEdid.decode(reply)
            return RespEdid(header, theirs.size, theirs.edid).encode()
        mode = self._display_info.pmodes[ask.scanout_id].r
        own = make_edid(mode.width or DEFAULT_WIDTH, mode.height or DEFAULT_HEIGHT, ask.scanout_id)
        return RespEdid(header, len(own), padded(own)).encode()

    # -- cursor queue

    def execute_cursor(self, request: bytes) -> DisplayMessage | None:
        """Run one command of the cursor queue; None where it is ignored (K01, K02, E07). The
        guest gets no answer, only its buffer back (K14)."""
        if len(request) < UpdateCursor.SIZE:
            return None
        command = UpdateCursor.decode(request)
        if command.pos.scanout_id >= self.num_scanouts:
            return None
        if command.hdr.type == Ctrl.CMD_MOVE_CURSOR:
            return self.cursors.move(command)
        if command.hdr.type == Ctrl.CMD_UPDATE_CURSOR:
            return self.cursors.update(command, self.resources)
        return None

    # -- commands

    def _create_2d(self, cmd: ResourceCreate2D, _: bytes) -> Outcome:
        self.resources.require_free(cmd.resource_id)
        if cmd.format not in FORMATS:
            raise GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, f"format {cmd.format} is not known")
        size = self.resources.budget.image_size(cmd.width, cmd.height)
        surface = self._store.create_surface(cmd.width, cmd.height, cmd.format)
        self.resources.add(Resource(cmd.resource_id, surface, size))
        return self._ok(cmd.hdr)

    def _unref(self, cmd: ResourceUnref, _: bytes) -> Outcome:
        resource = self.resources.require(cmd.resource_id)
        display = self.scanouts.drop(resource)
        self.resources.remove(resource)
        return self._ok(cmd.hdr, display)

    def _attach_backing(self, cmd: ResourceAttachBacking, request: bytes) -> Outcome:
        resource = self.resources.require(cmd.resource_id)
        if resource.backing is not None:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, "the resource has a backing already")
        entries = _entries(request[ResourceAttachBacking.SIZE :], cmd.nr_entries)
        if entries:
            self.resources.require_entries(cmd.nr_entries)
            self.resources.attach(resource, self._store.resolve(entries), cmd.nr_entries)
        return self._ok(cmd.hdr)

    def _detach_backing(self, cmd: ResourceDetachBacking, _: bytes) -> Outcome:
        self.resources.detach(self.resources.require(cmd.resource_id))
        return self._ok(cmd.hdr)

    def _set_scanout(self, cmd: SetScanout, _: bytes) -> Outcome | Ask:
        if cmd.scanout_id >= self.num_scanouts:
            raise _no_scanout(cmd.scanout_id)
        try:
            if cmd.resource_id == 0:
                display = self.scanouts.disable(cmd.scanout_id)
            else:
                resource = self.resources.require(cmd.resource_id)
                display = self.scanouts.show(cmd.scanout_id, resource, cmd.r)
            done = self._ok(cmd.hdr, display)
        except GuestError as error:
            if not self._may_lack(cmd.scanout_id):
                raise
            done = Outcome(self._header(cmd.hdr, error.code).encode())
        if not self._may_lack(cmd.scanout_id):
            return done
        return Ask(Question.HEAD, cmd.hdr, self._timeline(cmd.hdr), cmd.scanout_id, done)

    def _transfer_to_host_2d(self, cmd: TransferToHost2D, _: bytes) -> Outcome:
        resource = self.resources.require(cmd.resource_id)
        if resource.backing is None:
            raise GuestError(Ctrl.RESP_ERR_INVALID_RESOURCE_ID, "the resource has no backing")
        self._require_inside(resource, cmd.r)
        resource.surface.fill(resource.backing, cmd.r, cmd.offset)
        return self._ok(cmd.hdr)

    def _flush(self, cmd: ResourceFlush, _: bytes) -> Outcome:
        resource = self.resources.require(cmd.resource_id)
        self._require_inside(resource, cmd.r)
        return self._ok(cmd.hdr, self.scanouts.damage(resource, cmd.r))

    def _get_display_info(self, hdr: CtrlHdr, _: bytes) -> Ask:
        return Ask(Question.DISPLAY_INFO, hdr, self._timeline(hdr))

    def _get_edid(self, cmd: GetEdid, _: bytes) -> Ask:
        # QEMU never answers GET_EDID of a head that it does not have: it must not be asked.
        if cmd.scanout >= self.num_scanouts:
            raise GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, f"no scanout {cmd.scanout}")
        return Ask(Question.EDID, cmd.hdr, self._timeline(cmd.hdr), cmd.scanout)

    def _assign_uuid(self, cmd: ResourceAssignUuid, _: bytes) -> Outcome:
        if not self.features & Feature.RESOURCE_UUID:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, "RESOURCE_UUID was not negotiated")
        uuid = self.resources.require(cmd.resource_id).assign_uuid()
        header = self._header(cmd.hdr, Ctrl.RESP_OK_RESOURCE_UUID)
        return Outcome(RespResourceUuid(header, uuid.bytes).encode(), (), self._timeline(cmd.hdr))

    def _blob_is_off(self, hdr: CtrlHdr, _: bytes) -> Outcome:
        """Blob commands without RESOURCE_BLOB (rows L01, B01: as QEMU with blob=off)."""
        raise GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, "RESOURCE_BLOB was not negotiated")

    # -- the envelope

    def _ok(self, hdr: CtrlHdr, display: tuple[DisplayMessage, ...] = ()) -> Outcome:
        response = self._header(hdr, Ctrl.RESP_OK_NODATA).encode()
        return Outcome(response, display, self._timeline(hdr))

    @staticmethod
    def _require_inside(resource: Resource, rect: Rect) -> None:
        surface = resource.surface
        if not fits(rect, surface.width, surface.height):
            raise GuestError(
                Ctrl.RESP_ERR_INVALID_PARAMETER,
                f"{rect} is not inside {surface.width}x{surface.height}",
            )

    def _header(self, hdr: CtrlHdr, kind: int) -> CtrlHdr:
        """The response's header; a fenced command's fence comes back with it, on errors too
        (virtio 1.3, 5.7.6.7; rows E15 to E18)."""
        if not hdr.flags & FLAG_FENCE:
            return CtrlHdr(kind, 0, 0, 0, 0)
        if self._has_ring_idx(hdr):
            flags = FLAG_FENCE | FLAG_INFO_RING_IDX
            return CtrlHdr(kind, flags, hdr.fence_id, hdr.ctx_id, hdr.ring_idx)
        return CtrlHdr(kind, FLAG_FENCE, hdr.fence_id, hdr.ctx_id, 0)

    def _error(self, hdr: CtrlHdr, error: GuestError) -> bytes:
        self.guest_errors[error.code] = self.guest_errors.get(error.code, 0) + 1
        return self._header(hdr, error.code).encode()

    def _timeline(self, hdr: CtrlHdr) -> Timeline | None:
        if not hdr.flags & FLAG_FENCE:
            return None
        return (hdr.ctx_id, hdr.ring_idx) if self._has_ring_idx(hdr) else DEVICE_TIMELINE

    def _has_ring_idx(self, hdr: CtrlHdr) -> bool:
        return bool(hdr.flags & FLAG_INFO_RING_IDX and self.features & Feature.CONTEXT_INIT)


def _entries(tail: bytes, count: int) -> bytes:
    """The entries of a backing. The count is the guest's claim: it is held against QEMU's cap
    and the bytes that really came before anything is allocated (rows A04 to A06)."""
    if count > MAX_ENTRIES:
        raise GuestError(Ctrl.RESP_ERR_UNSPEC, f"{count} entries; at most {MAX_ENTRIES}")
    size = count * MemEntry.SIZE
    if len(tail) < size:
        raise GuestError(Ctrl.RESP_ERR_UNSPEC, f"{count} entries need {size} bytes")
    return tail[:size]


def _no_scanout(scanout_id: int) -> GuestError:
    return GuestError(Ctrl.RESP_ERR_INVALID_SCANOUT_ID, f"no scanout {scanout_id}")


def _default_modes() -> tuple[DisplayOne, ...]:
    first = DisplayOne(Rect(0, 0, DEFAULT_WIDTH, DEFAULT_HEIGHT), 1, 0)
    return (first,) + (DisplayOne(Rect(0, 0, 0, 0), 0, 0),) * (MAX_SCANOUTS - 1)


_COMMANDS: Final[dict[int, tuple[type[Record], _Handler]]] = {
    Ctrl.CMD_GET_DISPLAY_INFO: (CtrlHdr, GpuDevice._get_display_info),
    Ctrl.CMD_RESOURCE_CREATE_2D: (ResourceCreate2D, GpuDevice._create_2d),
    Ctrl.CMD_RESOURCE_UNREF: (ResourceUnref, GpuDevice._unref),
    Ctrl.CMD_SET_SCANOUT: (SetScanout, GpuDevice._set_scanout),
    Ctrl.CMD_RESOURCE_FLUSH: (ResourceFlush, GpuDevice._flush),
    Ctrl.CMD_TRANSFER_TO_HOST_2D: (TransferToHost2D, GpuDevice._transfer_to_host_2d),
    Ctrl.CMD_RESOURCE_ATTACH_BACKING: (ResourceAttachBacking, GpuDevice._attach_backing),
    Ctrl.CMD_RESOURCE_DETACH_BACKING: (ResourceDetachBacking, GpuDevice._detach_backing),
    Ctrl.CMD_GET_EDID: (GetEdid, GpuDevice._get_edid),
    Ctrl.CMD_RESOURCE_ASSIGN_UUID: (ResourceAssignUuid, GpuDevice._assign_uuid),
    Ctrl.CMD_RESOURCE_CREATE_BLOB: (CtrlHdr, GpuDevice._blob_is_off),
    Ctrl.CMD_SET_SCANOUT_BLOB: (CtrlHdr, GpuDevice._blob_is_off),
}
