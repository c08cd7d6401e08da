"""vgpuwire.virtio_gpu: sizes and fields against the specification, commands to records.

The codecs themselves are compared with construct in test_record.py, and all offsets with the
kernel's headers by native/layout_check.c.
"""

from __future__ import annotations

import struct

import pytest

from tests.unit.vgpuwire.values import RECORDS
from vgpuwire import (
    COMMANDS,
    Config,
    Ctrl,
    CtrlHdr,
    CursorPos,
    DisplayOne,
    Record,
    Rect,
    RespDisplayInfo,
    RespEdid,
    SetScanoutBlob,
    TransferToHost2D,
    UpdateCursor,
    virtio_gpu,
)

SIZES = {
    "CtrlHdr": 24,
    "Rect": 16,
    "DisplayOne": 24,
    "RespDisplayInfo": 408,
    "ResourceCreate2D": 40,
    "ResourceUnref": 32,
    "SetScanout": 48,
    "ResourceFlush": 48,
    "TransferToHost2D": 56,
    "MemEntry": 16,
    "ResourceAttachBacking": 32,
    "ResourceDetachBacking": 32,
    "GetCapsetInfo": 32,
    "RespCapsetInfo": 40,
    "GetCapset": 32,
    "GetEdid": 32,
    "RespEdid": 1056,
    "ResourceAssignUuid": 32,
    "RespResourceUuid": 40,
    "ResourceCreateBlob": 56,
    "SetScanoutBlob": 96,
    "ResourceMapBlob": 40,
    "RespMapInfo": 32,
    "ResourceUnmapBlob": 32,
    "CursorPos": 16,
    "UpdateCursor": 56,
    "Config": 20,
}

HDR = CtrlHdr(0x105, 1, 0x1122334455667788, 3, 4)
HDR_BYTES = struct.pack("<IIQIB3x", 0x105, 1, 0x1122334455667788, 3, 4)


def test_sizes() -> None:
    ours = {record.__name__: record.SIZE for record in RECORDS if record.__module__ == M}
    assert ours == SIZES


M = virtio_gpu.__name__


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (HDR, HDR_BYTES),
        (
            TransferToHost2D(HDR, Rect(1, 2, 3, 4), 5 << 32, 6),
            HDR_BYTES + struct.pack("<4IQI4x", 1, 2, 3, 4, 5 << 32, 6),
        ),
        (
            SetScanoutBlob(HDR, Rect(1, 2, 3, 4), 5, 6, 7, 8, 9, (10, 0, 0, 1), (2, 0, 0, 3)),
            HDR_BYTES
            + struct.pack("<4I5I4x4I4I", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0, 0, 1, 2, 0, 0, 3),
        ),
        (
            UpdateCursor(HDR, CursorPos(1, 2, 3), 4, 5, 6),
            HDR_BYTES + struct.pack("<3I4x3I4x", 1, 2, 3, 4, 5, 6),
        ),
        (RespEdid(HDR, 128, b"e" * 1024), HDR_BYTES + struct.pack("<I4x", 128) + b"e" * 1024),
        (
            RespDisplayInfo(HDR, (DisplayOne(Rect(1, 2, 3, 4), 5, 6),) * 16),
            HDR_BYTES + struct.pack("<6I", 1, 2, 3, 4, 5, 6) * 16,
        ),
        (Config(1, 2, 3, 4, 5), struct.pack("<5I", 1, 2, 3, 4, 5)),
    ],
)
def test_bytes_on_the_wire(value: Record, data: bytes) -> None:
    assert value.encode() == data
    assert type(value).decode(data) == value


def test_every_command_without_a_renderer_has_a_record() -> None:
    commands = {one for one in Ctrl if one.name.startswith("CMD_")}
    three_d = {one for one in commands if "3D" in one.name or "CTX" in one.name}
    assert set(COMMANDS) == commands - three_d


def test_commands_begin_with_the_header() -> None:
    for number, record in COMMANDS.items():
        data = struct.pack("<I", number).ljust(record.SIZE, b"\0")
        command = record.decode(data)
        hdr = command if isinstance(command, CtrlHdr) else command.hdr
        assert hdr.type == number


def test_all_are_exported_flat() -> None:
    import vgpuwire

    for record_name in SIZES:
        assert getattr(vgpuwire, record_name) is getattr(virtio_gpu, record_name)
        assert record_name in vgpuwire.__all__
