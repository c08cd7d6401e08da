"""Each workload on both back-ends, briefly, for its pixels; the charts."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET

import pytest

from tests.bench import growth
from tests.bench.__main__ import backends, ratio, row
from tests.bench.machine import BenchError, machine
from tests.bench.plot import chart
from tests.bench.workloads import (
    Result,
    Workload,
    damage,
    expect,
    frame,
    picture,
    repeated,
)
from tests.unit.device import driver as guest

BOTH = pytest.mark.parametrize("which", [0, 1], ids=["C", "vgpud"])
SHORT = {
    "frame": frame(640, 480, False, 3),
    "scattered": frame(640, 480, True, 3),
    "damage": damage(4, True, 3),
    "nop": repeated([guest.create_2d(1)], [guest.flush(1)] * 64, 3, each=64),
    "cursor": repeated([], [guest.move_cursor(0, 1, (n, n)) for n in range(16)], 3, 1, 16),
}


@BOTH
@pytest.mark.parametrize("name", SHORT)
async def test_a_workload_runs_and_its_pixels_are_right(which: int, name: str) -> None:
    async with machine(backends()[which]) as made:
        result = SHORT[name](made)
    assert all(value > 0 and math.isfinite(value) for value in result)


async def test_wrong_pixels_are_seen() -> None:
    async with machine(backends()[1]) as made:
        picture(made, 64, 64, False)
        made.execute([guest.transfer(1), guest.flush(1)])
        _, _, shown = made.shown()
        expect(made, shown)
        with pytest.raises(BenchError, match="not what was drawn"):
            expect(made, shown[:-1] + bytes([shown[-1] ^ 1]))


async def test_a_refused_command_is_no_measurement() -> None:
    async with machine(backends()[1]) as made:
        with pytest.raises(BenchError, match="answered 0x1203"):
            made.execute([guest.unref(9)])


@pytest.mark.parametrize("wanted", growth.CURVES, ids=lambda curve: curve.name)
async def test_the_first_point_of_each_curve(wanted: growth.Curve) -> None:
    async with machine(backends()[1]) as made:
        assert wanted.measure(made, wanted.points[0]) > 0


async def test_several_machines_at_once() -> None:
    assert growth.VMS[-1] == 32
    assert set(await growth.machines(backends()[1], (1, 2))) == {1, 2}


def test_ratios_are_of_pairs_not_of_medians() -> None:
    pairs = [(Result(r, 1, 1e-6), Result(r * k, 1, 2e-6)) for r, k in ((1, 2), (10, 3), (5, 4))]
    assert ratio(pairs, "rate") == 3
    assert ratio(pairs, "cpu") == 2
    workload = Workload("w", "o", lambda _: pairs[0][0])
    assert row(workload, pairs) == "| w | 5 | 20 | **3.00** | 1.0 | 2.0 | **2.00** |"


def test_growth_in_proportion_is_a_straight_line() -> None:
    svg = chart("t < u", "x", "y", {"a": {1: 2.0, 10: 20.0, 100: 200.0}, "b": {1: 3, 100: 3}})
    ET.fromstring(svg)
    lines = re.findall(r'points="([^"]+)"', svg)
    rising, flat = ([tuple(map(float, p.split(","))) for p in line.split()] for line in lines)
    assert len({y for _, y in flat}) == 1
    (x0, y0), (x1, y1), (x2, y2) = rising
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert y1 < y0
