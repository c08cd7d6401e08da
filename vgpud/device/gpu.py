"""The virtio-gpu device model: one command in, one outcome out.

Every guest rule lives here. A command is refused before it changes anything; the order of the
checks is QEMU's (hw/display/virtio-gpu.c, master), because the first failing one names the
error code that a guest sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from vgpud.device.blob import layout_of
from vgpud.device.envelope import NO_HDR, Envelope, entries_of
from vgpud.device.geometry import fits
from vgpud.device.outcome import Ask, DisplayMessage, Outcome, Silence
from vgpud.device.outputs import DEFAULT_SIZES, Outputs, Sizes
from vgpud.device.pixels import FORMATS, Backing, PixelStore
from vgpud.device.resource import Blob, Budget, Image, ResourceTable
from vgpud.device.scanout import Cursors, Scanouts
from vgpud.errors import GuestError
from vgpuwire import (
    BLOB_MEM_GUEST,
    Ctrl,
    CtrlHdr,
    Feature,
    GetEdid,
    Record,
    Rect,
    ResourceAssignUuid,
    ResourceAttachBacking,
    ResourceCreate2D,
    ResourceCreateBlob,
    ResourceDetachBacking,
    ResourceFlush,
    ResourceUnref,
    RespResourceUuid,
    SetScanout,
    SetScanoutBlob,
    TransferToHost2D,
    UpdateCursor,
)

FEATURES: Final = Feature.EDID | Feature.RESOURCE_UUID | Feature.RESOURCE_BLOB
"""What this device can do. A bit is added together with the guest test that shows it."""

_Handler = Callable[["GpuDevice", Any, bytes], Outcome | Ask]
"""(device, command, request): the command is an instance of the record beside it."""


class GpuDevice:
    """Resources, scanouts, pointers and fences of one guest. `store` makes surfaces and resolves
    backings; 2D resources take less than `max_hostmem` bytes of it. `sizes` are those of the heads
    where QEMU has none of its own."""

    def __init__(self, store: PixelStore, max_hostmem: int, sizes: Sizes = DEFAULT_SIZES) -> None:
        self._store = store
        self._envelope = Envelope()
        self.resources = ResourceTable(Budget(max_hostmem))
        self.scanouts = Scanouts()
        self.cursors = Cursors()
        self.outputs = Outputs(self._envelope, sizes)

    @property
    def features(self) -> int:
        """Those that the driver acked; none before."""
        return self._envelope.features

    @property
    def guest_errors(self) -> dict[int, int]:
        """How often each error response was given, by its code."""
        return self._envelope.errors

    def set_features(self, features: int) -> None:
        self._envelope.features = features

    def reset(self) -> None:
        """VIRTIO reset (virtio 1.3, 2.4): nothing of the guest's is left (row R01). The features
        stay: each start sets them, and a reset that is only told by SET_VRING_BASE comes after
        that (decision 10)."""
        self.scanouts.clear()
        self.cursors.clear()
        self.resources.clear()

    # -- control queue

    def execute(self, request: bytes) -> Outcome | Ask:
        """Run one command of the control queue. Never raises: a bad one has an error response."""
        row = _BY_TYPE.get(request[:4])
        try:
            if row is None or len(request) < row[1]:
                raise _unreadable(request)
            return row[2](self, row[0](request), request)
        except GuestError as error:
            hdr = NO_HDR if len(request) < CtrlHdr.SIZE else CtrlHdr.decode(request)
            return self._envelope.error(hdr, error)

    def answer(self, ask: Ask, reply: bytes | Silence) -> Outcome:
        """The answer to a question. `reply` is QEMU's payload (408 or 1056 bytes, a whole
        virtio-gpu response). Where it was late: the last display info, an EDID of our own, a
        head taken for real (rows D01, D07)."""
        outcome = self.outputs.answer(ask, reply)
        if outcome is not None:
            return outcome
        return self.outputs.refuse(ask, self.scanouts.disable(ask.scanout_id))

    # -- cursor queue

    def execute_cursor(self, request: bytes) -> DisplayMessage | None:
        """Run one command of the cursor queue; None where it is ignored (K01, K02, E07). The
        guest gets no answer, only its buffer back (K14)."""
        if len(request) < UpdateCursor.SIZE:
            return None
        kind = request[:4]
        if kind != _MOVE_CURSOR and kind != _UPDATE_CURSOR:
            return None
        command = UpdateCursor.decode(request)
        if command.pos.scanout_id >= self.outputs.limit:
            return None
        if kind == _MOVE_CURSOR:
            return self.cursors.move(command)
        return self.cursors.update(command, self.resources)

    # -- resources

    def _create_2d(self, cmd: ResourceCreate2D, _: bytes) -> Outcome:
        self.resources.require_free(cmd.resource_id)
        if cmd.format not in FORMATS:
            raise GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, f"format {cmd.format} is not known")
        size = self.resources.budget.image_size(cmd.width, cmd.height)
        surface = self._store.create_surface(cmd.width, cmd.height, cmd.format)
        self.resources.add(Image(cmd.resource_id, surface, size))
        return self._envelope.ok(cmd.hdr)

    def _create_blob(self, cmd: ResourceCreateBlob, request: bytes) -> Outcome:
        self._require_blobs()
        if cmd.resource_id == 0:
            raise GuestError(Ctrl.RESP_ERR_INVALID_RESOURCE_ID, "id 0 means none")
        if cmd.blob_mem != BLOB_MEM_GUEST:  # the others need a renderer (rows L04, L05)
            raise GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, f"blob_mem {cmd.blob_mem}")
        self.resources.require_free(cmd.resource_id)
        blob = Blob(cmd.resource_id, cmd.size)
        backing = self._resolve(request[ResourceCreateBlob.SIZE :], cmd.nr_entries, blob)
        self.resources.add(blob)
        if backing is not None:
            self.resources.attach(blob, backing, cmd.nr_entries)
        return self._envelope.ok(cmd.hdr)

    def _unref(self, cmd: ResourceUnref, _: bytes) -> Outcome:
        resource = self.resources.require(cmd.resource_id)
        display = self.scanouts.drop(resource)
        self.resources.remove(resource)
        return self._envelope.ok(cmd.hdr, display)

    def _attach_backing(self, cmd: ResourceAttachBacking, request: bytes) -> Outcome:
        resource = self.resources.require(cmd.resource_id)
        if resource.backing is not None:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, "the resource has a backing already")
        backing = self._resolve(request[ResourceAttachBacking.SIZE :], cmd.nr_entries, resource)
        if backing is not None:
            self.resources.attach(resource, backing, cmd.nr_entries)
        return self._envelope.ok(cmd.hdr)

    def _detach_backing(self, cmd: ResourceDetachBacking, _: bytes) -> Outcome:
        resource = self.resources.require(cmd.resource_id)
        self.resources.detach(resource)
        # An image still has the host's pixels (A20); a blob has none left to show (A21).
        display = self.scanouts.drop(resource) if isinstance(resource, Blob) else ()
        return self._envelope.ok(cmd.hdr, display)

    def _assign_uuid(self, cmd: ResourceAssignUuid, _: bytes) -> Outcome:
        if not self.features & Feature.RESOURCE_UUID:
            raise GuestError(Ctrl.RESP_ERR_UNSPEC, "RESOURCE_UUID was not negotiated")
        uuid = self.resources.require(cmd.resource_id).assign_uuid()
        header = self._envelope.header(cmd.hdr, Ctrl.RESP_OK_RESOURCE_UUID)
        response = RespResourceUuid(header, uuid.bytes).encode()
        return Outcome(response, (), self._envelope.timeline(cmd.hdr))

    # -- pixels

    def _transfer_to_host_2d(self, cmd: TransferToHost2D, _: bytes) -> Outcome:
        resource = self.resources.require(cmd.resource_id)
        if isinstance(resource, Blob):
            # Linux sends TRANSFER for each frame of a dumb blob: there is nothing to do (T03).
            return self._envelope.ok(cmd.hdr)
        if resource.backing is None:
            raise GuestError(Ctrl.RESP_ERR_INVALID_RESOURCE_ID, "the resource has no backing")
        _require_inside(resource, cmd.r)
        resource.surface.fill(resource.backing, cmd.r, cmd.offset)
        return self._envelope.ok(cmd.hdr)

    def _flush(self, cmd: ResourceFlush, _: bytes) -> Outcome:
        resource = self.resources.require(cmd.resource_id)
        if isinstance(resource, Image):
            _require_inside(resource, cmd.r)
        elif not self.scanouts.touches(resource, cmd.r):
            raise GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, f"no head shows {cmd.r}")
        return self._envelope.ok(cmd.hdr, self.scanouts.damage(resource, cmd.r))

    # -- heads

    def _set_scanout(self, cmd: SetScanout, _: bytes) -> Outcome | Ask:
        def show() -> tuple[DisplayMessage, ...]:
            image = self.resources.require_image(cmd.resource_id)
            return self.scanouts.show(cmd.scanout_id, image, image.surface, cmd.r)

        return self._change_head(cmd, show)

    def _set_scanout_blob(self, cmd: SetScanoutBlob, _: bytes) -> Outcome | Ask:
        def show() -> tuple[DisplayMessage, ...]:
            blob = self.resources.require_blob(cmd.resource_id)
            if blob.backing is None:
                raise GuestError(Ctrl.RESP_ERR_INVALID_RESOURCE_ID, "the blob has no backing")
            layout = layout_of(cmd, min(blob.size, blob.backing.size))
            picture = blob.backing.picture(layout, blob.size)
            return self.scanouts.show(cmd.scanout_id, blob, picture, cmd.r)

        self._require_blobs()
        return self._change_head(cmd, show)

    def _change_head(
        self, cmd: SetScanout | SetScanoutBlob, show: Callable[[], tuple[DisplayMessage, ...]]
    ) -> Outcome | Ask:
        """Show something on a head, or nothing for resource 0. Where it is not sure that there is
        such a head, the answer waits for QEMU's; what was done does not."""
        self.outputs.require(cmd.scanout_id)
        try:
            if cmd.resource_id == 0:
                done = self._envelope.ok(cmd.hdr, self.scanouts.disable(cmd.scanout_id))
            else:
                done = self._envelope.ok(cmd.hdr, show())
        except GuestError as error:
            done = self._envelope.error(cmd.hdr, error)
        return self.outputs.confirmed(cmd.hdr, cmd.scanout_id, done)

    def _get_display_info(self, hdr: CtrlHdr, _: bytes) -> Ask:
        return self.outputs.display_info(hdr)

    def _get_edid(self, cmd: GetEdid, _: bytes) -> Ask:
        return self.outputs.edid(cmd)

    # -- rules that several share

    def _require_blobs(self) -> None:
        """Blob commands without RESOURCE_BLOB (rows L01, B01): as QEMU with blob=off."""
        if not self.features & Feature.RESOURCE_BLOB:
            raise GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, "RESOURCE_BLOB was not negotiated")

    def _resolve(self, tail: bytes, count: int, resource: Image | Blob) -> Backing | None:
        """The backing that the guest describes; None for one without entries, which an image or
        a blob may have. A blob's must be as large as the blob (L09, A15)."""
        entries = entries_of(tail, count)
        if not entries:
            return None
        self.resources.require_entries(count)
        backing = self._store.resolve(entries)
        self.resources.require_entries(max(count, backing.segments))
        if isinstance(resource, Blob) and backing.size < resource.size:
            raise GuestError(
                Ctrl.RESP_ERR_INVALID_PARAMETER,
                f"{backing.size} bytes of backing for a blob of {resource.size}",
            )
        return backing


def _require_inside(image: Image, rect: Rect) -> None:
    surface = image.surface
    if not fits(rect, surface.width, surface.height):
        raise GuestError(
            Ctrl.RESP_ERR_INVALID_PARAMETER,
            f"{rect} is not inside {surface.width}x{surface.height}",
        )


def _unreadable(request: bytes) -> GuestError:
    """Why a request is no command: it is too short for its kind, or of none."""
    if len(request) < CtrlHdr.SIZE:
        return GuestError(Ctrl.RESP_ERR_INVALID_PARAMETER, f"{len(request)} bytes are no header")
    kind = CtrlHdr.decode(request).type
    if kind not in _COMMANDS:
        return GuestError(Ctrl.RESP_ERR_UNSPEC, f"command {kind:#x} is not known")
    size = _COMMANDS[kind][0].SIZE
    return GuestError(
        Ctrl.RESP_ERR_INVALID_PARAMETER, f"command {kind:#x} has {len(request)} of {size} bytes"
    )


_COMMANDS: Final[dict[int, tuple[type[Record], _Handler]]] = {
    Ctrl.CMD_GET_DISPLAY_INFO: (CtrlHdr, GpuDevice._get_display_info),
    Ctrl.CMD_GET_EDID: (GetEdid, GpuDevice._get_edid),
    Ctrl.CMD_RESOURCE_CREATE_2D: (ResourceCreate2D, GpuDevice._create_2d),
    Ctrl.CMD_RESOURCE_CREATE_BLOB: (ResourceCreateBlob, GpuDevice._create_blob),
    Ctrl.CMD_RESOURCE_UNREF: (ResourceUnref, GpuDevice._unref),
    Ctrl.CMD_RESOURCE_ATTACH_BACKING: (ResourceAttachBacking, GpuDevice._attach_backing),
    Ctrl.CMD_RESOURCE_DETACH_BACKING: (ResourceDetachBacking, GpuDevice._detach_backing),
    Ctrl.CMD_RESOURCE_ASSIGN_UUID: (ResourceAssignUuid, GpuDevice._assign_uuid),
    Ctrl.CMD_TRANSFER_TO_HOST_2D: (TransferToHost2D, GpuDevice._transfer_to_host_2d),
    Ctrl.CMD_RESOURCE_FLUSH: (ResourceFlush, GpuDevice._flush),
    Ctrl.CMD_SET_SCANOUT: (SetScanout, GpuDevice._set_scanout),
    Ctrl.CMD_SET_SCANOUT_BLOB: (SetScanoutBlob, GpuDevice._set_scanout_blob),
}

_BY_TYPE: Final = {
    int(kind).to_bytes(4, "little"): (record.decode, record.SIZE, handler)
    for kind, (record, handler) in _COMMANDS.items()
}
"""The same by the bytes that a request starts with: (decode, bytes at least, handler)."""

_MOVE_CURSOR: Final = int(Ctrl.CMD_MOVE_CURSOR).to_bytes(4, "little")
_UPDATE_CURSOR: Final = int(Ctrl.CMD_UPDATE_CURSOR).to_bytes(4, "little")
