"""The memory table as it is mapped: which file each region has, and who closes what."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.fake_vfio import SHIFT, FakeVfio
from tests.unit.host.memory import GPA, PAGE, memfd, open_fds, region
from vgpud.errors import HostError
from vgpud.host import guest_memory
from vgpud.host.fd import OwnedFd
from vgpud.host.guest_memory import EMPTY, DeviceRegion, GuestMemory
from vgpud.host.region_file import RegionFile
from vgpud.host.vfio import VfioDevice


def kinds(memory: GuestMemory) -> list[str]:
    return [file.kind for file in memory.snapshot.files]


def test_files_are_numbered_as_the_native_regions_are() -> None:
    memory = GuestMemory()
    with memfd(2 * PAGE) as high, memfd(PAGE, 0, 0) as low:
        memory.replace([(region(GPA + PAGE, PAGE), high), (region(GPA, PAGE), low)])
    addresses = [one.guest_phys_addr for one in memory.snapshot.native.regions]
    assert addresses == [GPA + PAGE, GPA]
    assert [file.obstacle is None for file in memory.snapshot.files] == [True, False]


def test_regions_of_one_memfd_share_one_descriptor() -> None:
    """QEMU cuts its RAM at the hole below 4 GiB and sends a descriptor for each part."""
    memory = GuestMemory()
    before = open_fds()
    with memfd(4 * PAGE) as fd:
        for number in range(4):
            with OwnedFd(os.dup(fd.fileno())) as part:
                memory.add(region(GPA + 2 * number * PAGE, PAGE, number * PAGE), part)
    assert len(set(map(id, memory.snapshot.files))) == 1
    assert open_fds() == before + 1
    for number in range(3):
        memory.remove(region(GPA + 2 * number * PAGE, PAGE))
        assert open_fds() == before + 1
    memory.remove(region(GPA + 6 * PAGE, PAGE))
    assert open_fds() == before


def test_what_cannot_be_exported_keeps_no_descriptor() -> None:
    memory = GuestMemory()
    before = open_fds()
    with memfd(PAGE, 0) as fd:
        memory.replace([(region(GPA, PAGE), fd)])
    assert open_fds() == before
    assert kinds(memory) == ["memfd"]


def test_a_new_table_with_the_same_memfd_keeps_its_descriptor() -> None:
    memory = GuestMemory()
    with memfd(4 * PAGE) as fd:
        memory.replace([(region(GPA, PAGE), fd)])
        file, before = memory.snapshot.files[0], open_fds()
        memory.replace([(region(GPA, 2 * PAGE), fd), (region(GPA + 3 * PAGE, PAGE, PAGE), fd)])
    assert memory.snapshot.files == (file, file)
    assert open_fds() == before - 1, "the test's own"


def test_a_table_that_is_refused_leaves_the_old_one() -> None:
    memory = GuestMemory()
    with memfd(4 * PAGE) as fd:
        memory.replace([(region(GPA, 2 * PAGE), fd)])
        old = memory.snapshot
        with memfd(PAGE) as other:
            before = open_fds()
            for overlapping in (region(GPA, PAGE), region(GPA + PAGE, PAGE)):
                with pytest.raises(HostError, match="overlap"):
                    memory.add(overlapping, other)
                with pytest.raises(HostError, match="overlap"):
                    memory.replace([(region(GPA, 2 * PAGE), other), (overlapping, other)])
            with pytest.raises(HostError, match="memory_size is 0"):
                memory.add(region(0, 0), other)
            assert open_fds() == before
    assert memory.snapshot is old


def test_huge_pages_are_mapped_and_unmapped_whole(huge_page: None) -> None:
    """munmap() of less than a huge page fails: the mapping would stay for ever."""
    memory = GuestMemory()
    with memfd(2 << 20, flags=os.MFD_ALLOW_SEALING | os.MFD_HUGETLB) as fd:
        memory.add(region(GPA, 4 * PAGE, 7 * PAGE), fd)
        assert memory.snapshot.native.regions[0].access == "rw"
        os.posix_fallocate(fd.fileno(), 0, 2 << 20)
        assert memory.snapshot.native.read(GPA, 4 * PAGE) == bytes(4 * PAGE)
        assert memory.snapshot.files[0].page_size == 2 << 20
    assert "/memfd:ram" in Path("/proc/self/maps").read_text()
    memory.clear()
    assert "/memfd:ram" not in Path("/proc/self/maps").read_text()


def test_clear_lets_go_of_everything() -> None:
    memory = GuestMemory()
    before = open_fds()
    with memfd(PAGE) as fd:
        memory.add(region(GPA, PAGE), fd)
    memory.clear()
    assert memory.snapshot.files == EMPTY.files == ()
    assert open_fds() == before


def test_a_snapshot_keeps_its_files_open() -> None:
    """An export that runs in a thread may have taken it before the table changed."""
    memory = GuestMemory()
    with memfd(PAGE) as fd:
        memory.add(region(GPA, PAGE), fd)
    files = memory.snapshot.files
    memory.clear()
    assert os.fstat(files[0].fileno()).st_size == PAGE


# -- devices


BAR_GPA = 0x20_0000_0000


@pytest.fixture
def fake() -> Iterator[FakeVfio]:
    made = FakeVfio({2: 16 * PAGE, 4: 4 * PAGE})
    yield made
    made.close()


def bar_region(device: VfioDevice, gpa: int = BAR_GPA, size: int = 16 * PAGE) -> DeviceRegion:
    return DeviceRegion(gpa, size, device, 2)


def test_devices_beside_the_table(fake: FakeVfio) -> None:
    memory, device = GuestMemory(), fake.device()
    with memfd(PAGE) as fd:
        memory.add(region(GPA, PAGE), fd)
    memory.set_devices([bar_region(device), DeviceRegion(0x1000, PAGE, device, 4, 2 * PAGE)])
    regions = memory.snapshot.native.regions
    assert [one.access for one in regions] == ["rw", "none", "none"]
    assert [one.mmap_offset for one in regions[1:]] == [2 << SHIFT, (4 << SHIFT) + 2 * PAGE]
    assert [file.device for file in memory.snapshot.files] == [None, device, device]
    with memfd(PAGE) as fd:
        memory.add(region(GPA + PAGE, PAGE), fd)
    assert len(memory.snapshot.files) == 4, "they stay when the table changes"
    memory.set_devices([bar_region(device)])
    assert len(memory.snapshot.files) == 3
    memory.clear()
    assert memory.snapshot.files == ()
    os.fstat(device.fileno())
    device.close()


def test_devices_that_cannot_be(fake: FakeVfio) -> None:
    memory, device = GuestMemory(), fake.device()
    with memfd(PAGE) as fd:
        memory.add(region(GPA, PAGE), fd)
    memory.set_devices([bar_region(device)])
    before = memory.snapshot
    for regions, why in [
        ([bar_region(device, GPA)], "overlap"),
        ([bar_region(device), bar_region(device, BAR_GPA + 15 * PAGE)], "overlap"),
        ([bar_region(device, size=17 * PAGE)], "not in BAR 2 of fake"),
        ([DeviceRegion(BAR_GPA, PAGE, device, 4, 4 * PAGE)], "not in BAR 4"),
        ([DeviceRegion(BAR_GPA, PAGE, device, 3)], "not in BAR 3"),
        ([bar_region(device, size=0)], "memory_size is 0"),
    ]:
        with pytest.raises(HostError, match=why):
            memory.set_devices(regions)
        assert memory.snapshot is before
    memory.clear()
    device.close()


def test_the_table_is_right(fake: FakeVfio, caplog: pytest.LogCaptureFixture) -> None:
    memory, device = GuestMemory(), fake.device()
    memory.set_devices([bar_region(device), DeviceRegion(0x1000, PAGE, device, 4)])
    with memfd(PAGE) as fd:
        memory.add(region(BAR_GPA + PAGE, PAGE), fd)
    assert [one.guest_phys_addr for one in memory.snapshot.native.regions] == [
        BAR_GPA + PAGE,
        0x1000,
    ]
    assert "event=device-region-dropped" in caplog.text
    assert memory.in_force() == [DeviceRegion(0x1000, PAGE, device, 4)]
    memory.clear()
    assert memory.in_force() == []
    device.close()


def test_a_device_in_the_table(fake: FakeVfio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor makes it one for all its regions, never mapped; it goes with the last."""
    devices: list[VfioDevice] = []

    def classified(fd: OwnedFd, known: Iterable[RegionFile]) -> RegionFile:
        for file in known:
            if file.device is not None:
                return file
        devices.append(fake.device("/sys/one"))
        return RegionFile("vfio", None, PAGE, device=devices[-1])

    monkeypatch.setattr(guest_memory, "classify", classified)
    memory, before = GuestMemory(), open_fds()
    parts = [region(BAR_GPA, PAGE, 2 << SHIFT), region(BAR_GPA + PAGE, PAGE, (2 << SHIFT) + PAGE)]
    with memfd(PAGE) as fd:
        for part in parts:
            memory.add(part, fd)
    assert [one.access for one in memory.snapshot.native.regions] == ["none", "none"]
    assert len(devices) == 1
    assert not memory.untouched(), "nobody can tell"
    assert open_fds() == before + 1
    memory.remove(parts[0])
    assert open_fds() == before + 1
    memory.remove(parts[1])
    assert (devices[0].fileno(), open_fds()) == (-1, before)


def test_a_device_that_is_unbound(fake: FakeVfio) -> None:
    memory, device, other = GuestMemory(), fake.device("/sys/one"), fake.device("/sys/two")
    memory.set_devices([bar_region(device), bar_region(other, BAR_GPA + (1 << 30))])
    assert not memory.drop_device("/sys/three")
    assert not memory.drop_device("")
    assert memory.drop_device("/sys/one")
    assert [file.device for file in memory.snapshot.files] == [other]
    assert not memory.drop_device("/sys/one")
    memory.clear()
    for one in (device, other):
        one.close()


def test_a_view_maps_what_can_be_mapped(fake: FakeVfio) -> None:
    sparse = FakeVfio({2: 16 * PAGE}, {2: [(0, 2 * PAGE), (4 * PAGE, 8 * PAGE)]})
    memory, device, other = GuestMemory(), fake.device(), sparse.device()
    fake.write(2, 5 * PAGE, b"five")
    sparse.write(2, 5 * PAGE, b"FIVE")
    memory.set_devices(
        [
            bar_region(device),
            DeviceRegion(0x1000_0000, 10 * PAGE, other, 2, PAGE),
        ]
    )
    view = memory.snapshot.view()
    assert view is memory.snapshot.view()
    parts = sorted((one.guest_phys_addr, one.memory_size) for one in view.regions)
    assert parts == [
        (0x1000_0000, PAGE),
        (0x1000_0000 + 3 * PAGE, 7 * PAGE),
        (BAR_GPA, 16 * PAGE),
    ]
    assert {one.access for one in view.regions} == {"ro"}
    assert view.read(BAR_GPA + 5 * PAGE, 4) == b"five"
    assert view.read(0x1000_0000 + 4 * PAGE, 4) == b"FIVE"
    memory.clear()
    for one in (device, other, sparse):
        one.close()
