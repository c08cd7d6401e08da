"""The GPU device's commands, responses and configuration space (virtio 1.3, 5.7).

Fields are those of <linux/virtio_gpu.h>, numbers those of `virtio_gpu_numbers`. Everything is
little-endian; sizes are in bytes and rectangles in pixels. Where a command has a variable part
(memory entries, a capset) the record is what precedes it.
"""

from __future__ import annotations

from typing import Final

from construct import Array, Bytes, Int8ul, Int32ul, Int64ul, Padding

from vgpuwire.record import Record, field
from vgpuwire.virtio_gpu_numbers import MAX_SCANOUTS, Ctrl


class CtrlHdr(Record):
    """struct virtio_gpu_ctrl_hdr, at the start of every command and response (5.7.6.7)."""

    type: int = field(Int32ul)
    flags: int = field(Int32ul)
    fence_id: int = field(Int64ul)
    ctx_id: int = field(Int32ul)
    ring_idx: int = field(Int8ul)
    _padding = Padding(3)


class Rect(Record):
    x: int = field(Int32ul)
    y: int = field(Int32ul)
    width: int = field(Int32ul)
    height: int = field(Int32ul)


class DisplayOne(Record):
    """One head in RespDisplayInfo; `enabled` is 0 or 1."""

    r: Rect = field(Rect)
    enabled: int = field(Int32ul)
    flags: int = field(Int32ul)


class RespDisplayInfo(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    pmodes: tuple[DisplayOne, ...] = field(Array(MAX_SCANOUTS, DisplayOne.layout))


class ResourceCreate2D(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    resource_id: int = field(Int32ul)
    format: int = field(Int32ul)
    width: int = field(Int32ul)
    height: int = field(Int32ul)


class ResourceUnref(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    resource_id: int = field(Int32ul)
    _padding = Padding(4)


class SetScanout(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    r: Rect = field(Rect)
    scanout_id: int = field(Int32ul)
    resource_id: int = field(Int32ul)


class ResourceFlush(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    r: Rect = field(Rect)
    resource_id: int = field(Int32ul)
    _padding = Padding(4)


class TransferToHost2D(Record):
    """`offset` is that of the rectangle's first pixel in the backing, in bytes."""

    hdr: CtrlHdr = field(CtrlHdr)
    r: Rect = field(Rect)
    offset: int = field(Int64ul)
    resource_id: int = field(Int32ul)
    _padding = Padding(4)


class MemEntry(Record):
    """Guest-physical address and length in bytes of one piece of a backing."""

    addr: int = field(Int64ul)
    length: int = field(Int32ul)
    _padding = Padding(4)


class ResourceAttachBacking(Record):
    """Followed by `nr_entries` MemEntry, here or in later descriptors."""

    hdr: CtrlHdr = field(CtrlHdr)
    resource_id: int = field(Int32ul)
    nr_entries: int = field(Int32ul)


class ResourceDetachBacking(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    resource_id: int = field(Int32ul)
    _padding = Padding(4)


class GetCapsetInfo(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    capset_index: int = field(Int32ul)
    _padding = Padding(4)


class RespCapsetInfo(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    capset_id: int = field(Int32ul)
    capset_max_version: int = field(Int32ul)
    capset_max_size: int = field(Int32ul)
    _padding = Padding(4)


class GetCapset(Record):
    """Answered by a CtrlHdr of RESP_OK_CAPSET and the capset's bytes."""

    hdr: CtrlHdr = field(CtrlHdr)
    capset_id: int = field(Int32ul)
    capset_version: int = field(Int32ul)


class GetEdid(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    scanout: int = field(Int32ul)
    _padding = Padding(4)


class RespEdid(Record):
    """`size` is how many of the 1024 bytes are the EDID."""

    hdr: CtrlHdr = field(CtrlHdr)
    size: int = field(Int32ul)
    _padding = Padding(4)
    edid: bytes = field(Bytes(1024))


class ResourceAssignUuid(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    resource_id: int = field(Int32ul)
    _padding = Padding(4)


class RespResourceUuid(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    uuid: bytes = field(Bytes(16))


class ResourceCreateBlob(Record):
    """Followed by `nr_entries` MemEntry; `size` is the blob's in bytes."""

    hdr: CtrlHdr = field(CtrlHdr)
    resource_id: int = field(Int32ul)
    blob_mem: int = field(Int32ul)
    blob_flags: int = field(Int32ul)
    nr_entries: int = field(Int32ul)
    blob_id: int = field(Int64ul)
    size: int = field(Int64ul)


class SetScanoutBlob(Record):
    """`strides` and `offsets` are in bytes, one a plane; the 2D formats have one plane."""

    hdr: CtrlHdr = field(CtrlHdr)
    r: Rect = field(Rect)
    scanout_id: int = field(Int32ul)
    resource_id: int = field(Int32ul)
    width: int = field(Int32ul)
    height: int = field(Int32ul)
    format: int = field(Int32ul)
    _padding = Padding(4)
    strides: tuple[int, ...] = field(Array(4, Int32ul))
    offsets: tuple[int, ...] = field(Array(4, Int32ul))


class ResourceMapBlob(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    resource_id: int = field(Int32ul)
    _padding = Padding(4)
    offset: int = field(Int64ul)


class RespMapInfo(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    map_info: int = field(Int32ul)
    _padding = Padding(4)


class ResourceUnmapBlob(Record):
    hdr: CtrlHdr = field(CtrlHdr)
    resource_id: int = field(Int32ul)
    _padding = Padding(4)


class CursorPos(Record):
    scanout_id: int = field(Int32ul)
    x: int = field(Int32ul)
    y: int = field(Int32ul)
    _padding = Padding(4)


class UpdateCursor(Record):
    """UPDATE_CURSOR and MOVE_CURSOR; the latter ignores all but `pos` (5.7.6.10)."""

    hdr: CtrlHdr = field(CtrlHdr)
    pos: CursorPos = field(CursorPos)
    resource_id: int = field(Int32ul)
    hot_x: int = field(Int32ul)
    hot_y: int = field(Int32ul)
    _padding = Padding(4)


class Config(Record):
    """struct virtio_gpu_config (5.7.4). QEMU up to 10.0 knows only the first 16 bytes."""

    events_read: int = field(Int32ul)
    events_clear: int = field(Int32ul)
    num_scanouts: int = field(Int32ul)
    num_capsets: int = field(Int32ul)
    blob_alignment: int = field(Int32ul)


COMMANDS: Final[dict[int, type[Record]]] = {
    Ctrl.CMD_GET_DISPLAY_INFO: CtrlHdr,
    Ctrl.CMD_RESOURCE_CREATE_2D: ResourceCreate2D,
    Ctrl.CMD_RESOURCE_UNREF: ResourceUnref,
    Ctrl.CMD_SET_SCANOUT: SetScanout,
    Ctrl.CMD_RESOURCE_FLUSH: ResourceFlush,
    Ctrl.CMD_TRANSFER_TO_HOST_2D: TransferToHost2D,
    Ctrl.CMD_RESOURCE_ATTACH_BACKING: ResourceAttachBacking,
    Ctrl.CMD_RESOURCE_DETACH_BACKING: ResourceDetachBacking,
    Ctrl.CMD_GET_CAPSET_INFO: GetCapsetInfo,
    Ctrl.CMD_GET_CAPSET: GetCapset,
    Ctrl.CMD_GET_EDID: GetEdid,
    Ctrl.CMD_RESOURCE_ASSIGN_UUID: ResourceAssignUuid,
    Ctrl.CMD_RESOURCE_CREATE_BLOB: ResourceCreateBlob,
    Ctrl.CMD_SET_SCANOUT_BLOB: SetScanoutBlob,
    Ctrl.CMD_RESOURCE_MAP_BLOB: ResourceMapBlob,
    Ctrl.CMD_RESOURCE_UNMAP_BLOB: ResourceUnmapBlob,
    Ctrl.CMD_UPDATE_CURSOR: UpdateCursor,
    Ctrl.CMD_MOVE_CURSOR: UpdateCursor,
}
"""The layout of each command's fixed part. The 3D commands have none: there is no renderer."""
