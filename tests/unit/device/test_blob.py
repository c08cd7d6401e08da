"""Frame buffers in blobs of any size, without their gigabytes."""

from __future__ import annotations

import pytest

from vgpud.device.blob import MAX_START, MAX_STRIDE, layout_of
from vgpud.device.pixels import Layout
from vgpud.errors import GuestError
from vgpuwire import Ctrl, CtrlHdr, Rect, SetScanoutBlob

HUGE = 1 << 63
HDR = CtrlHdr(Ctrl.CMD_SET_SCANOUT_BLOB, 0, 0, 0, 0)


def blob(
    rect: Rect, width: int, height: int, stride: int, offset: int = 0, pixel_format: int = 2
) -> SetScanoutBlob:
    planes = (stride, 1, 2, 3), (offset, 4, 5, 6)
    return SetScanoutBlob(HDR, rect, 0, 1, width, height, pixel_format, *planes)


SMALL = Rect(0, 0, 16, 16)
EDGES = {
    "B06 the largest stride": (blob(SMALL, 16, 16, MAX_STRIDE), True),
    "B06 one more": (blob(SMALL, 16, 16, MAX_STRIDE + 1), False),
    "B06 2**32 - 1": (blob(SMALL, 16, 16, (1 << 32) - 1), False),
    "B05 as wide as a stride can be": (blob(SMALL, MAX_STRIDE // 4, 16, MAX_STRIDE), True),
    "B05 one more": (blob(SMALL, MAX_STRIDE // 4 + 1, 16, MAX_STRIDE), False),
    "B07 offset": (blob(SMALL, 16, 16, 64, MAX_START), True),
    "B07 offset and a row": (blob(Rect(0, 1, 16, 16), 16, 17, 64, MAX_START - 64), True),
    "B07 a row more": (blob(Rect(0, 1, 16, 16), 16, 17, 64, MAX_START - 63), False),
    "B07 offset and a pixel": (blob(Rect(1, 0, 16, 16), 17, 16, 68, MAX_START - 4), True),
    "B07 a pixel more": (blob(Rect(1, 0, 16, 16), 17, 16, 68, MAX_START - 3), False),
    "B07 rows": (blob(Rect(0, (1 << 26) - 1, 16, 16), 16, 1 << 27, 64), True),
    "B07 rows, one more": (blob(Rect(0, 1 << 26, 16, 16), 16, 1 << 27, 64), False),
    "B07 beyond 2**64": (blob(Rect(0, (1 << 32) - 1, 16, 16), 16, 1 << 31, MAX_STRIDE), False),
}


@pytest.mark.parametrize("name", EDGES)
def test_B05_B06_B07_the_edges_of_32_bits(name: str) -> None:
    command, legal = EDGES[name]
    if legal:
        expected = (command.width, command.height, command.strides[0], command.offsets[0], 2)
        assert layout_of(command, HUGE) == Layout(*expected)
    else:
        with pytest.raises(GuestError) as error:
            layout_of(command, HUGE)
        assert error.value.code == Ctrl.RESP_ERR_INVALID_PARAMETER


@pytest.mark.parametrize("missing", [0, 1, 4, 255])
def test_B08_B09_the_last_pixel_counts_not_the_last_stride(missing: int) -> None:
    command = blob(Rect(8, 4, 40, 50), 60, 60, 256, 12)
    size = 12 + 53 * 256 + 48 * 4
    if missing == 0:
        assert layout_of(command, size) == Layout(60, 60, 256, 12, 2)
    else:
        with pytest.raises(GuestError):
            layout_of(command, size - missing)
