"""vgpud.host.placement: the table of what makes a dma-buf, and of what the CPU can read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.fake_vfio import SHIFT, FakeVfio
from tests.unit.host.memory import PAGE, memfd
from vgpud.host.dmabuf import CannotExport
from vgpud.host.placement import InBar, InRam, IsDmabuf, devices_of, place, unreadable
from vgpud.host.region_file import Obstacle, RegionFile
from vgpud.host.vfio import VfioDevice
from vgpuwire.ioctls import UdmabufCreateItem

MIB = 1 << 20
RAM, BAR, OTHER, DMABUF, BROKEN = range(5)
"""Regions by number."""
Run = tuple[int, int, int]
"""Region, offset in its descriptor, length."""


def bar(number: int, offset: int, length: int = PAGE, region: int = BAR) -> Run:
    return region, (number << SHIFT) + offset, length


class Table:
    def __init__(self, stack: ExitStack) -> None:
        self.fakes = [FakeVfio({0: MIB, 2: MIB}, {2: [(0, 4 * PAGE), (8 * PAGE, 8 * PAGE)]})]
        self.fakes.append(FakeVfio({2: MIB}))
        self.devices = [fake.device(f"/sys/{n}") for n, fake in enumerate(self.fakes)]
        for one in (*self.fakes, *self.devices):
            stack.callback(one.close)
        obstacle = Obstacle("vfio-device", "device memory cannot be used: asked in vain", "")
        self.files = [
            RegionFile("memfd", stack.enter_context(memfd(MIB)), PAGE),
            RegionFile("vfio", None, PAGE, device=self.devices[0]),
            RegionFile("vfio", None, PAGE, device=self.devices[1]),
            RegionFile("dma-buf", stack.enter_context(memfd(4 * PAGE)), PAGE),
            RegionFile("vfio", None, PAGE, obstacle),
        ]

    def runs(self, runs: list[Run]) -> bytes:
        return b"".join(UdmabufCreateItem(*run).encode() for run in runs)


@pytest.fixture
def table() -> Iterator[Table]:
    with ExitStack() as stack:
        yield Table(stack)


def test_ram(table: Table) -> None:
    assert place(table.runs([(RAM, 0, PAGE), (RAM, 8, 16)]), table.files) == InRam()
    assert place(b"", table.files) == InRam()


@pytest.mark.parametrize(
    "ranges", [[(0, PAGE)], [(PAGE, 2 * PAGE), (0, PAGE), (5 * PAGE, PAGE)], [(13, 8)]]
)
def test_one_bar(table: Table, ranges: list[tuple[int, int]]) -> None:
    found = place(table.runs([bar(2, *one) for one in ranges]), table.files)
    device = table.devices[0]
    assert found == InBar(device, device.bars[1], tuple(ranges))


def test_the_start_of_a_dmabuf(table: Table) -> None:
    for length in (PAGE, 4 * PAGE):
        found = place(table.runs([(DMABUF, 0, length)]), table.files)
        assert found == IsDmabuf(table.files[DMABUF])


REFUSED: list[tuple[list[Run], str, str]] = [
    ([(RAM, 0, PAGE), bar(2, 0)], "mixed", "partly in RAM"),
    ([bar(2, 0), (RAM, 0, PAGE)], "mixed", "one BAR only"),
    ([(DMABUF, 0, PAGE), (RAM, 0, PAGE)], "mixed", "partly in RAM"),
    ([bar(2, 0), bar(0, 0)], "two-bars", "in two BARs of fake"),
    ([bar(2, 0), bar(2, 0, region=OTHER)], "two-devices", "two devices"),
    ([bar(0, 0), bar(2, 0, region=OTHER)], "two-devices", "two devices"),
    ([bar(1, 0)], "vfio-bar", "has no BAR at"),
    ([bar(2, MIB)], "vfio-bar", "has no BAR at"),
    ([bar(2, 0, region=BROKEN)], "vfio-device", "asked in vain"),
    ([(DMABUF, PAGE, PAGE)], "bar-dmabuf", "nothing but its start"),
    ([(DMABUF, 0, PAGE), (DMABUF, 2 * PAGE, PAGE)], "bar-dmabuf", "in 2 pieces.*--qmp"),
    ([(DMABUF, 0, 5 * PAGE)], "bar-dmabuf-end", "of 16384 bytes for 20480"),
    ([(DMABUF, 0, PAGE), bar(2, 0)], "bar-dmabuf", "in 2 pieces"),
]


@pytest.mark.parametrize(("runs", "reason", "told"), REFUSED)
def test_nothing_makes_one_of_these(table: Table, runs: list[Run], reason: str, told: str) -> None:
    with pytest.raises(CannotExport, match=told) as error:
        place(table.runs(runs), table.files)
    assert error.value.reason == reason


READABLE: list[tuple[list[Run], str | None]] = [
    ([(RAM, 0, PAGE)], None),
    ([bar(2, 0, 4 * PAGE), (RAM, 0, PAGE), bar(0, 100, 8)], None),
    ([bar(2, 8 * PAGE + 1, 10), bar(2, 0, region=OTHER)], None),
    ([bar(2, 3 * PAGE, 2 * PAGE)], "hole"),
    ([bar(2, 4 * PAGE)], "hole"),
    ([bar(2, 7 * PAGE, 2 * PAGE)], "hole"),
    ([bar(2, 15 * PAGE, 2 * PAGE)], "hole"),
    ([(RAM, 0, PAGE), bar(2, 3 * PAGE, 6 * PAGE)], "hole"),
    ([(DMABUF, 0, PAGE)], "bar-dmabuf-view"),
    ([bar(2, 0, region=BROKEN)], "vfio-device"),
    ([bar(5, 0)], "vfio-bar"),
]


@pytest.mark.parametrize(("runs", "reason"), READABLE)
def test_what_the_cpu_can_read(table: Table, runs: list[Run], reason: str | None) -> None:
    why = unreadable(table.runs(runs), table.files)
    assert (None if why is None else why.reason) == reason


def test_windows_that_touch_are_no_hole() -> None:
    fake = FakeVfio({2: MIB}, {2: [(4 * PAGE, 4 * PAGE), (0, 4 * PAGE)]})
    device: VfioDevice = fake.device()
    file = RegionFile("vfio", None, PAGE, device=device)
    assert unreadable(UdmabufCreateItem(0, 2 << SHIFT, 8 * PAGE).encode(), [file]) is None
    device.close()
    fake.close()


def test_devices_of(table: Table) -> None:
    runs = [(RAM, 0, PAGE), bar(2, 0), bar(0, 0), bar(2, 0, region=OTHER), (DMABUF, 0, PAGE)]
    assert devices_of(table.runs(runs), table.files) == set(table.devices)
    assert devices_of(table.runs(runs[:1]), table.files) == set()
