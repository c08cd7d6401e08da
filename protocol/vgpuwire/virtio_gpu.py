"""The GPU device's commands, responses and configuration space (virtio 1.3, 5.7).

Names are the specification's without the VIRTIO_GPU_ prefix; fields are those of
<linux/virtio_gpu.h>. Everything is little-endian; sizes are in bytes and rectangles in pixels.
Where a command has a variable part (memory entries, a capset) the record is what precedes it.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from construct import Array, Bytes, Int8ul, Int32ul, Int64ul, Padding

from vgpuwire.record import Record, field

MAX_SCANOUTS: Final = 16

FLAG_FENCE: Final = 1 << 0
FLAG_INFO_RING_IDX: Final = 1 << 1

EVENT_DISPLAY: Final = 1 << 0

BLOB_MEM_GUEST: Final = 1
BLOB_MEM_HOST3D: Final = 2
BLOB_MEM_HOST3D_GUEST: Final = 3

BLOB_FLAG_USE_MAPPABLE: Final = 1
BLOB_FLAG_USE_SHAREABLE: Final = 2
BLOB_FLAG_USE_CROSS_DEVICE: Final = 4


class Feature(IntFlag):
    """The device's feature bits, as masks (5.7.3)."""

    VIRGL = 1 << 0
    EDID = 1 << 1
    RESOURCE_UUID = 1 << 2
    RESOURCE_BLOB = 1 << 3
    CONTEXT_INIT = 1 << 4
    BLOB_ALIGNMENT = 1 << 5


class Ctrl(IntEnum):
    """enum virtio_gpu_ctrl_type: commands and responses share one field (5.7.6.7)."""

    CMD_GET_DISPLAY_INFO = 0x0100
    CMD_RESOURCE_CREATE_2D = 0x0101
    CMD_RESOURCE_UNREF = 0x0102
    CMD_SET_SCANOUT = 0x0103
    CMD_RESOURCE_FLUSH = 0x0104
    CMD_TRANSFER_TO_HOST_2D = 0x0105
    CMD_RESOURCE_ATTACH_BACKING = 0x0106
    CMD_RESOURCE_DETACH_BACKING = 0x0107
    CMD_GET_CAPSET_INFO = 0x0108
    CMD_GET_CAPSET = 0x0109
    CMD_GET_EDID = 0x010A
    CMD_RESOURCE_ASSIGN_UUID = 0x010B
    CMD_RESOURCE_CREATE_BLOB = 0x010C
    CMD_SET_SCANOUT_BLOB = 0x010D

    CMD_CTX_CREATE = 0x0200
    CMD_CTX_DESTROY = 0x0201
    CMD_CTX_ATTACH_RESOURCE = 0x0202
    CMD_CTX_DETACH_RESOURCE = 0x0203
    CMD_RESOURCE_CREATE_3D = 0x0204
    CMD_TRANSFER_TO_HOST_3D = 0x0205
    CMD_TRANSFER_FROM_HOST_3D = 0x0206
    CMD_SUBMIT_3D = 0x0207
    CMD_RESOURCE_MAP_BLOB = 0x0208
    CMD_RESOURCE_UNMAP_BLOB = 0x0209

    CMD_UPDATE_CURSOR = 0x0300
    CMD_MOVE_CURSOR = 0x0301

    RESP_OK_NODATA = 0x1100
    RESP_OK_DISPLAY_INFO = 0x1101
    RESP_OK_CAPSET_INFO = 0x1102
    RESP_OK_CAPSET = 0x1103
    RESP_OK_EDID = 0x1104
    RESP_OK_RESOURCE_UUID = 0x1105
    RESP_OK_MAP_INFO = 0x1106

    RESP_ERR_UNSPEC = 0x1200
    RESP_ERR_OUT_OF_MEMORY = 0x1201
    RESP_ERR_INVALID_SCANOUT_ID = 0x1202
    RESP_ERR_INVALID_RESOURCE_ID = 0x1203
    RESP_ERR_INVALID_CONTEXT_ID = 0x1204
    RESP_ERR_INVALID_PARAMETER = 0x1205


class Format(IntEnum):
    """enum virtio_gpu_formats: four bytes a pixel, named in the order of memory (5.7.6.8)."""

    B8G8R8A8_UNORM = 1
    B8G8R8X8_UNORM = 2
    A8R8G8B8_UNORM = 3
    X8R8G8B8_UNORM = 4
    R8G8B8A8_UNORM = 67
    X8B8G8R8_UNORM = 68
    A8B8G8R8_UNORM = 121
    R8G8B8X8_UNORM = 134


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
