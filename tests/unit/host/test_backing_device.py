"""vgpud.host.backing where the memory is a device's: exports, the CPU's view, one report."""

from __future__ import annotations

import errno
import gc
import os
import weakref
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.fake_udmabuf import FakeUdmabuf
from tests.support.fake_vfio import FakeVfio
from tests.unit.host.memory import GPA, PAGE, entries, memfd, region
from vgpud.device.pixels import Layout
from vgpud.errors import GuestError
from vgpud.host.backing import HostBacking, HostPicture
from vgpud.host.guest_memory import DeviceRegion, GuestMemory
from vgpud.host.surfaces import HostPixelStore
from vgpud.host.udmabuf import Udmabuf
from vgpuwire import Rect

MIB = 1 << 20
BAR_GPA = 0x20_0000_0000
HOLE = 64 * PAGE
WHOLE = Rect(0, 0, 16, 16)
RUN = bytearray(1)


class Rig:
    """A page of RAM and two BARs, one with a hole; every page of BAR 2 begins with its number."""

    def __init__(self, udmabuf: bool = True) -> None:
        self.fake = FakeVfio({2: MIB, 4: MIB}, {2: [(0, HOLE), (HOLE + PAGE, MIB - HOLE - PAGE)]})
        self.device = self.fake.device()
        for number in range(MIB // PAGE):
            self.fake.write(2, number * PAGE, bytes([number]) * PAGE)
        self.memory = GuestMemory()
        with memfd(PAGE) as fd:
            self.memory.add(region(GPA, PAGE), fd)
        self.udmabuf = Udmabuf("/dev/null", None, "/nowhere", FakeUdmabuf()) if udmabuf else None
        self.store = HostPixelStore(self.memory.snapshot, self.udmabuf)
        self.plug()

    def plug(self) -> None:
        places = [(BAR_GPA, 2), (BAR_GPA + (1 << 30), 4)]
        self.memory.set_devices([DeviceRegion(gpa, MIB, self.device, bar) for gpa, bar in places])
        self.store.set_memory(self.memory.snapshot)

    def unplug(self) -> None:
        self.memory.set_devices([])
        self.store.set_memory(self.memory.snapshot)

    def backing(self, *numbers: int) -> HostBacking:
        return self.store.resolve(entries((BAR_GPA + n * PAGE, PAGE) for n in numbers))

    def picture(self, *numbers: int) -> HostPicture:
        return picture_of(self.backing(*numbers))

    def close(self) -> None:
        self.memory.clear()
        self.store.set_memory(self.memory.snapshot)
        self.device.close()
        self.fake.close()
        if self.udmabuf is not None:
            self.udmabuf.close()


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:fake-vfio")


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Who waits for the collector has not let go when QEMU has its answer."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def picture_of(backing: HostBacking) -> HostPicture:
    return backing.picture(Layout(16, 16, 64, 0, 2), backing.size)


@pytest.fixture(params=[True, False], ids=["udmabuf", "no udmabuf"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(request.param)
    yield made
    made.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.text.splitlines() if "event=no-dmabuf" in line]


def test_a_dmabuf_of_the_bar(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    picture = rig.picture(7, 3, 4)
    assert (picture.slow, picture.settled) == (True, False)
    dmabuf = picture.dmabuf()
    assert dmabuf is not None
    assert rig.fake.exports == [(2, [(7 * PAGE, PAGE), (3 * PAGE, 2 * PAGE)])]
    assert [os.pread(dmabuf.fileno(), 1, n * PAGE)[0] for n in range(3)] == [7, 3, 4]
    assert picture.dmabuf() is dmabuf
    assert picture.settled
    assert lines(caplog) == []


def test_its_quota_is_the_guests(rig: Rig) -> None:
    kept = [rig.picture(n).dmabuf() for n in range(3)]
    quota = rig.store._exporter.quota
    assert (quota.dmabufs, quota.size) == (3, 3 * PAGE)
    if rig.udmabuf is not None:
        assert rig.udmabuf.quota is quota
    del kept


def test_the_cpu_reads_it_in_no_other_way(rig: Rig) -> None:
    picture = rig.picture(7)
    with pytest.raises(GuestError, match="device memory is not mapped here"):
        picture.rows(WHOLE)
    with pytest.raises(GuestError, match="device memory is not mapped here"):
        rig.backing(7).read(0, 4)
    surface = rig.store.create_surface(16, 16, 2)
    with pytest.raises(GuestError, match="device memory is not mapped here"):
        surface.fill(rig.backing(7), WHOLE, 0)
    rows = picture.fetch(WHOLE, RUN)
    assert rows is not None
    assert b"".join(rows) == bytes([7]) * 1024


def test_a_fetch_that_is_stopped(rig: Rig) -> None:
    backing = rig.backing(*range(60), *range(60), *range(60))
    picture = backing.picture(Layout(256, 512, 1024, 0, 2), backing.size)
    assert picture.fetch(Rect(0, 0, 256, 512), bytearray([1])) is None
    assert picture.fetch(Rect(0, 0, 256, 512), RUN) is not None


def test_a_fetch_while_decoding_is_off(rig: Rig) -> None:
    picture = rig.picture(7)
    picture.fetch(WHOLE, RUN)
    rig.fake.decode(False)
    with pytest.raises(GuestError, match="switched the memory of fake off"):
        picture.fetch(WHOLE, RUN)
    rig.fake.decode(True)
    assert picture.fetch(WHOLE, RUN) is not None


@pytest.mark.parametrize("export", [False, True])
def test_it_goes_with_its_memory_and_comes_back(rig: Rig, export: bool) -> None:
    picture = rig.picture(7)
    if not export:
        rig.fake.errno = errno.EINVAL
    dmabuf = picture.dmabuf()
    picture.fetch(WHOLE, RUN)
    rig.unplug()
    assert picture.lost
    assert dmabuf is None or dmabuf.fileno() == -1
    assert "fake-vfio" not in Path("/proc/self/maps").read_text()
    with pytest.raises(GuestError, match="unplugged"):
        picture.fetch(WHOLE, RUN)
    rig.plug()
    rows = picture.fetch(WHOLE, RUN)
    assert rows is not None
    assert bytes(rows[0][:1]) == b"\7"
    assert (picture.dmabuf() is not None) == export


def test_a_refused_export_is_read_by_the_cpu(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    rig.fake.errno = errno.ENOMEM
    for _ in range(3):
        picture = rig.picture(7)
        assert picture.dmabuf() is None
        assert picture.fetch(WHOLE, RUN) is not None
    (line,) = lines(caplog)
    assert "a dma-buf of BAR 2 of fake: Cannot allocate memory" in line
    assert "short of memory" in line
    assert 'instead="the CPU reads the device' in line


def test_mixed_memory_is_read_by_the_cpu(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    pieces = [(GPA, PAGE), (BAR_GPA + 3 * PAGE, PAGE), (BAR_GPA + (1 << 30), PAGE)]
    picture = rig.store.resolve(entries(pieces)).picture(Layout(64, 48, 256, 0, 2), 3 * PAGE)
    assert picture.dmabuf() is None
    rows = picture.fetch(Rect(0, 0, 64, 48), RUN)
    assert rows is not None
    assert bytes(rows[0]) == bytes(PAGE) + b"\3" * PAGE + bytes(PAGE)
    assert rig.fake.exports == []
    (line,) = lines(caplog)
    assert "partly in RAM" in line


def test_both_refusals_are_one_report(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    """Each with its remedy, once for all pictures of this kind."""
    rig.fake.errno = errno.EINVAL
    for _ in range(3):
        picture = rig.picture(HOLE // PAGE)
        assert picture.dmabuf() is None
        for _ in range(2):
            with pytest.raises(GuestError, match="cannot be mapped at 0x40000"):
                picture.fetch(WHOLE, RUN)
    (line,) = lines(caplog)
    assert "Invalid argument" in line
    assert "nor can the CPU read it: BAR 2 of fake cannot be mapped at 0x40000" in line
    assert "must not place pictures there" in line
    assert 'instead="the head stays blank"' in line


def test_where_nothing_is_exported_the_hole_is_all_there_is_to_say(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """shm mode: no dma-buf is asked for."""
    rig.device.maps_dmabufs = False
    for _ in range(3):
        with pytest.raises(GuestError):
            rig.picture(HOLE // PAGE).fetch(WHOLE, RUN)
    (line,) = lines(caplog)
    assert "cannot be mapped at 0x40000" in line
    assert rig.fake.exports == []


# -- what was refused holds nothing


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EOPNOTSUPP, errno.EIO])
def test_a_probe_that_was_refused_keeps_no_backing(rig: Rig, number: int) -> None:
    """On every kernel before 6.19: each refusal would hold the frames of all before it."""
    rig.fake.probe_errno = number
    gone: list[weakref.ref[HostBacking]] = []
    for _ in range(20):
        backing = rig.backing(7)
        assert picture_of(backing).dmabuf() is None
        gone.append(weakref.ref(backing))
        del backing
    assert [one() for one in gone] == [None] * 20


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EIO])
@pytest.mark.parametrize("pages", [(7,), (HOLE // PAGE,)], ids=["readable", "a hole"])
@pytest.mark.parametrize("maps_dmabufs", [None, False])
def test_what_was_refused_holds_no_mapping(
    rig: Rig, number: int, pages: tuple[int, ...], maps_dmabufs: bool | None
) -> None:
    """QEMU closes the device when the table's change is acknowledged."""
    rig.fake.probe_errno = number
    rig.device.maps_dmabufs = maps_dmabufs
    good, other = rig.picture(3), rig.picture(*pages)
    for picture in (good, other):
        assert picture.dmabuf() is None
        with suppress(GuestError):
            picture.fetch(WHOLE, RUN)
    assert mappings() > 0
    rig.unplug()
    assert mappings() == 0
