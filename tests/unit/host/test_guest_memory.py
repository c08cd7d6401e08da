"""The memory table as it is mapped: which file each region has, and who closes what."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.unit.host.memory import GPA, PAGE, memfd, open_fds, region
from vgpud.errors import HostError
from vgpud.host.fd import OwnedFd
from vgpud.host.guest_memory import EMPTY, GuestMemory


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
