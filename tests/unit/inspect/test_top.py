"""Lines of vgpuctl top, from samples."""

from __future__ import annotations

from typing import Any

import pytest

from vgpud.inspect.client import Usage
from vgpud.inspect.top import HEADER, Sample, amount, lines, row

SESSION = {
    "heads": {"0": {"size": "640x480", "way": "DMABUF_SCANOUT"}, "1": {"size": "8x8", "way": "x"}},
    "quotas": {
        "hostmem_bytes": [1 << 20, 256 << 20, 0],
        "resources": [3, 65536, 0],
        "entries": [0, 10, 0],
        "dmabufs": [128, 256, 0],
        "pinned_bytes": [0, 4 << 30, 0],
    },
    "guest_errors": {"0x1203": 2},
    "frames": 100,
    "commands": 200,
    "updates": 0,
    "pixel_bytes": 3_000_000,
    "dmabuf_updates": 0,
    "late_flushes": 0,
    "unanswered": 0,
    "flush_p50_ms": "1.25",
    "flush_p99_ms": "9.00",
}


def sample(when: float, usage: Usage | None = None, **more: Any) -> Sample:
    session = {**SESSION, **more}
    return Sample(when, {"pid": 7, "session": session}, usage)


def test_rates_are_of_the_time_between_two_samples() -> None:
    before = sample(10.0, Usage(20, 1 << 20, 1.0))
    now = sample(12.0, Usage(21, 2 << 20, 1.5), frames=220, pixel_bytes=5_000_000, commands=600)
    cells = dict(zip(HEADER, row("vm", now, before), strict=True))
    assert cells["HEADS"] == "0:640x480* 1:8x8"
    assert (cells["FPS"], cells["MB/S"], cells["CMD/S"]) == ("60", "1.0", "200")
    assert (cells["P50"], cells["P99"]) == ("1.2ms", "9.0ms")
    assert (cells["RES"], cells["DMABUFS"]) == ("3 0%", "128 50%")
    assert cells["HOSTMEM"] == "1.0M 0%"
    assert (cells["FDS"], cells["MEM"], cells["CPU"]) == ("21", "2.0M", "25%")


def test_a_new_session_has_no_negative_rate() -> None:
    cells = dict(zip(HEADER, row("vm", sample(2, frames=1), sample(1)), strict=True))
    assert cells["FPS"] == "0"
    assert cells["FDS"] == "-"


def test_without_a_qemu() -> None:
    idle = Sample(1, {"pid": 7, "session": None}, None)
    cells = row("vm", idle, None)
    assert len(cells) == len(HEADER)
    assert cells[1] == "no QEMU"
    assert len(lines({"vm": idle, "other": sample(1)}, {})) == 3


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1023, "1023"), (1536, "1.5K"), (300 << 20, "300M"), (5 << 40, "5120G")],
)
def test_amounts(value: int, text: str) -> None:
    assert amount(value) == text
