"""The GPU device's numbers: commands, responses, formats and bits (virtio 1.3, 5.7).

Names are the specification's without the VIRTIO_GPU_ prefix. Feature bits are masks.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

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
