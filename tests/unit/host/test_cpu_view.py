"""vgpud.host.cpu_view on a fake device, whose BARs are parts of a memfd."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.fake_vfio import FakeVfio
from tests.unit.host.memory import GPA, PAGE, entries, memfd, region
from vgpud import _native
from vgpud.errors import GuestError
from vgpud.host.cpu_view import CpuView
from vgpud.host.dmabuf import CannotExport, Quota
from vgpud.host.guest_memory import DeviceRegion, GuestMemory
from vgpud.host.vfio import VfioDevice, Window

MIB = 1 << 20
BAR_GPA = 0x20_0000_0000
PAGES = MIB // PAGE
BEYOND = (1 << 63) - MIB
"""An offset where no mapping can be: its end is no off_t."""


class Rig:
    def __init__(self, sparse: dict[int, list[tuple[int, int]]] | None = None) -> None:
        self.fake = FakeVfio({0: 256, 2: MIB, 4: MIB}, sparse)
        self.device: VfioDevice = self.fake.device()
        self.memory = GuestMemory()
        for number in range(PAGES):
            self.fake.write(2, number * PAGE, bytes([number]) * PAGE)
        with memfd(MIB) as fd:
            self.memory.add(region(GPA, MIB), fd)
        self.memory.set_devices(
            [
                DeviceRegion(BAR_GPA, MIB, self.device, 2),
                DeviceRegion(BAR_GPA + (1 << 30), MIB, self.device, 4),
            ]
        )
        self.quota = Quota()

    def view(self, pieces: list[tuple[int, int]], size: int = 0) -> CpuView:
        snapshot = self.memory.snapshot
        backing = _native.Backing(snapshot.native, entries(pieces))
        return CpuView(snapshot, backing, size or backing.size, self.quota)

    def close(self) -> None:
        self.memory.clear()
        self.device.close()
        self.fake.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:fake-vfio")


def page(number: int) -> tuple[int, int]:
    return BAR_GPA + number * PAGE, PAGE


PIECES = [
    [(BAR_GPA, 8 * PAGE)],
    [page(n) for n in (9, 3, 200, 3, 255)],
    [page(3), (GPA, PAGE), page(4)],
    [(BAR_GPA + 100, 13), (BAR_GPA + 5 * PAGE - 1, 2), (GPA + 7, 1)],
    [page(1), (BAR_GPA + (1 << 30), PAGE)],
]


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("dmabufs", [False, True], ids=["windows", "its dma-buf"])
def test_the_bytes_are_the_devices(rig: Rig, pieces: list[tuple[int, int]], dmabufs: bool) -> None:
    rig.fake.errno = 0 if dmabufs else errno.EINVAL
    flat = bytearray()
    for gpa, length in pieces:
        for at in range(gpa, gpa + length):
            inside = 0 <= at - BAR_GPA < MIB
            flat.append((at - BAR_GPA) // PAGE if inside else 0)
    view = rig.view(pieces)
    assert view.native.mapped
    assert view.native.read(0, 1 << 20)[: len(flat)] == flat


def test_its_own_mapping_is_tried_once_a_device(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux 7.3 maps no dma-buf of VFIO; when one does, a picture is mapped in one piece."""
    rig.fake.errno = errno.EINVAL
    rig.view([page(1)])
    assert rig.device.maps_dmabufs is None, "a refused export says nothing of it"
    rig.fake.errno = 0
    rig.fake.exports.clear()
    for _ in range(3):
        view = rig.view([page(1), page(5)])
    assert (len(rig.fake.exports), rig.device.maps_dmabufs) == (3, True)
    assert view.native.segments == 1
    rig.device.maps_dmabufs = None
    monkeypatch.setattr(rig.fake, "vfio_get_dma_buf", lambda *_: os.eventfd(0, os.EFD_CLOEXEC))
    for _ in range(3):
        assert rig.view([page(1), page(5)]).native.segments == 2
        assert rig.device.maps_dmabufs is False
        monkeypatch.setattr(rig.fake, "vfio_get_dma_buf", lambda *_: pytest.fail("asked again"))
    assert rig.quota.dmabufs == 0


def test_one_mapping_serves_all_views_of_a_table(rig: Rig) -> None:
    rig.device.maps_dmabufs = False
    before = mappings()
    views = [rig.view(pieces) for pieces in PIECES]
    assert mappings() == before + 2
    rig.memory.set_devices([])
    assert mappings() == before + 2
    del views
    assert mappings() == before


def test_it_is_read_only(rig: Rig) -> None:
    rig.device.maps_dmabufs = False
    view = rig.view([page(1)])
    lines = Path("/proc/self/maps").read_text().splitlines()
    assert {line.split()[1] for line in lines if "/memfd:fake-vfio" in line} == {"r--s"}
    del view


def test_a_hole() -> None:
    rig = Rig({2: [(0, 4 * PAGE), (5 * PAGE, MIB - 5 * PAGE)]})
    rig.device.maps_dmabufs = False
    assert rig.view([page(3), page(5)]).native.read(PAGE, 1) == b"\5"
    for pieces in ([page(4)], [(BAR_GPA + 3 * PAGE, 2 * PAGE)]):
        with pytest.raises(CannotExport, match="cannot be mapped at 0x4000"):
            rig.view(pieces)
    rig.close()


def test_a_device_that_was_closed(rig: Rig) -> None:
    rig.device.maps_dmabufs = False
    rig.device.close()
    with pytest.raises(CannotExport, match="memory of fake cannot be mapped") as error:
        rig.view([page(1)])
    assert error.value.reason == "vfio-view"


def test_a_bar_that_the_kernel_does_not_map() -> None:
    """It says that it would, but the other one's pictures are shown."""
    rig = Rig()
    rig.device.maps_dmabufs = False
    bars = [bar._replace(windows=(Window(0, bar.size),)) for bar in rig.device.bars]
    rig.device.bars = tuple(bar._replace(offset=BEYOND) if bar.number == 4 else bar for bar in bars)
    rig.memory.set_devices(
        DeviceRegion(BAR_GPA + (n << 30), MIB, rig.device, bar) for n, bar in enumerate((2, 4))
    )
    assert rig.view([page(3)]).native.read(0, 1) == b"\3"
    with pytest.raises(CannotExport, match="memory of fake cannot be mapped: the kernel") as error:
        rig.view([page(3), (BAR_GPA + (1 << 30), PAGE)])
    assert error.value.reason == "vfio-view"
    rig.close()


def test_decoding_is_looked_at(rig: Rig) -> None:
    view = rig.view([(GPA, PAGE), page(1)])
    view.require_decoding()
    rig.fake.decode(False)
    with pytest.raises(GuestError, match="the guest has switched the memory of fake off"):
        view.require_decoding()
    rig.view([(GPA, PAGE)]).require_decoding()
