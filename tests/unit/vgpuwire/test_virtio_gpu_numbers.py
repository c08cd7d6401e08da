"""vgpuwire.virtio_gpu_numbers: every value, pinned."""

from __future__ import annotations

from vgpuwire import virtio_gpu_numbers as numbers

CTRL = """
    0100 CMD_GET_DISPLAY_INFO      0101 CMD_RESOURCE_CREATE_2D
    0102 CMD_RESOURCE_UNREF        0103 CMD_SET_SCANOUT
    0104 CMD_RESOURCE_FLUSH        0105 CMD_TRANSFER_TO_HOST_2D
    0106 CMD_RESOURCE_ATTACH_BACKING 0107 CMD_RESOURCE_DETACH_BACKING
    0108 CMD_GET_CAPSET_INFO       0109 CMD_GET_CAPSET
    010a CMD_GET_EDID              010b CMD_RESOURCE_ASSIGN_UUID
    010c CMD_RESOURCE_CREATE_BLOB  010d CMD_SET_SCANOUT_BLOB
    0200 CMD_CTX_CREATE            0201 CMD_CTX_DESTROY
    0202 CMD_CTX_ATTACH_RESOURCE   0203 CMD_CTX_DETACH_RESOURCE
    0204 CMD_RESOURCE_CREATE_3D    0205 CMD_TRANSFER_TO_HOST_3D
    0206 CMD_TRANSFER_FROM_HOST_3D 0207 CMD_SUBMIT_3D
    0208 CMD_RESOURCE_MAP_BLOB     0209 CMD_RESOURCE_UNMAP_BLOB
    0300 CMD_UPDATE_CURSOR         0301 CMD_MOVE_CURSOR
    1100 RESP_OK_NODATA            1101 RESP_OK_DISPLAY_INFO
    1102 RESP_OK_CAPSET_INFO       1103 RESP_OK_CAPSET
    1104 RESP_OK_EDID              1105 RESP_OK_RESOURCE_UUID
    1106 RESP_OK_MAP_INFO
    1200 RESP_ERR_UNSPEC           1201 RESP_ERR_OUT_OF_MEMORY
    1202 RESP_ERR_INVALID_SCANOUT_ID 1203 RESP_ERR_INVALID_RESOURCE_ID
    1204 RESP_ERR_INVALID_CONTEXT_ID 1205 RESP_ERR_INVALID_PARAMETER
"""


def test_commands_and_responses() -> None:
    words = CTRL.split()
    pairs = zip(words[::2], words[1::2], strict=True)
    table = {name: int(value, 16) for value, name in pairs}
    assert {one.name: one.value for one in numbers.Ctrl} == table


def test_formats() -> None:
    assert {one.name: one.value for one in numbers.Format} == {
        "B8G8R8A8_UNORM": 1,
        "B8G8R8X8_UNORM": 2,
        "A8R8G8B8_UNORM": 3,
        "X8R8G8B8_UNORM": 4,
        "R8G8B8A8_UNORM": 67,
        "X8B8G8R8_UNORM": 68,
        "A8B8G8R8_UNORM": 121,
        "R8G8B8X8_UNORM": 134,
    }


def test_features_are_masks() -> None:
    bits = ["VIRGL", "EDID", "RESOURCE_UUID", "RESOURCE_BLOB", "CONTEXT_INIT", "BLOB_ALIGNMENT"]
    assert {one.name: one.value for one in numbers.Feature} == {
        name: 1 << bit for bit, name in enumerate(bits)
    }


def test_constants() -> None:
    constants = {n: v for n, v in vars(numbers).items() if n.isupper() and isinstance(v, int)}
    assert constants == {
        "MAX_SCANOUTS": 16,
        "FLAG_FENCE": 1,
        "FLAG_INFO_RING_IDX": 2,
        "EVENT_DISPLAY": 1,
        "BLOB_MEM_GUEST": 1,
        "BLOB_MEM_HOST3D": 2,
        "BLOB_MEM_HOST3D_GUEST": 3,
        "BLOB_FLAG_USE_MAPPABLE": 1,
        "BLOB_FLAG_USE_SHAREABLE": 2,
        "BLOB_FLAG_USE_CROSS_DEVICE": 4,
    }
