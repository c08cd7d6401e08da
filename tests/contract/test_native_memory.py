"""Region and GuestMemory."""

from __future__ import annotations

import fcntl
import os

import pytest

from tests.support.mock_driver import GPA, UVA, GuestRam, RamRegion
from vgpud import _native

PAGE = 4096
TOP = 1 << 64
F_ADD_SEALS, F_SEAL_WRITE = 1033, 8
# Two regions that touch in guest-physical addresses and are swapped in the file.
TOUCHING = [
    RamRegion(GPA + 4 * PAGE, 4 * PAGE, UVA, 0),
    RamRegion(GPA, 4 * PAGE, UVA + (1 << 30), 4 * PAGE),
]


def region(fd, gpa=GPA, size=PAGE, uva=UVA, offset=0):
    return _native.Region(fd, gpa, size, uva, offset)


def test_a_region_remembers_what_it_was_told(ram):
    made = _native.Region(
        fd=ram.memfd,
        guest_phys_addr=5 * PAGE,
        memory_size=2 * PAGE,
        userspace_addr=7 * PAGE,
        mmap_offset=PAGE,
    )
    assert (made.guest_phys_addr, made.memory_size) == (5 * PAGE, 2 * PAGE)
    assert (made.userspace_addr, made.access) == (7 * PAGE, "rw")


def test_a_region_may_end_at_the_top_of_the_address_space(ram):
    ram.write(GPA, b"first page here!")
    memory = _native.GuestMemory([region(ram.memfd, gpa=TOP - PAGE, uva=TOP - PAGE)])
    assert memory.read(TOP - PAGE, 10) == b"first page"
    assert len(memory.read(TOP - PAGE, PAGE)) == PAGE
    with pytest.raises(ValueError, match="not all mapped"):
        memory.read(TOP - 1, 2)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"size": 0}, "is 0"),
        ({"gpa": TOP - PAGE + 1}, "wrap"),
        ({"uva": TOP - 1, "size": 2}, "wrap"),
        ({"offset": TOP - PAGE, "size": PAGE + 1}, "wrap"),
        ({"gpa": TOP}, "is not 0 to"),
        ({"gpa": -1}, "is not 0 to"),
        ({"size": TOP}, "is not 0 to"),
        ({"fd": -1}, "is not 0 to"),
        ({"fd": 1 << 31}, "is not 0 to"),
    ],
)
def test_bad_numbers(ram, changes, match):
    with pytest.raises(ValueError, match=match):
        region(**{"fd": ram.memfd, **changes})


@pytest.mark.parametrize("changes", [{"fd": "0"}, {"gpa": 1.5}, {"size": "1"}, {"offset": b""}])
def test_bad_types(ram, changes):
    with pytest.raises(TypeError):
        region(**{"fd": ram.memfd, **changes})
    with pytest.raises(TypeError):
        _native.Region(ram.memfd)


def test_a_closed_fd_is_an_oserror():
    read, write = os.pipe()
    os.close(read)
    os.close(write)
    with pytest.raises(OSError, match="Bad file descriptor"):
        region(write)


def test_a_read_only_fd_is_mapped_read_only(tmp_path):
    path = tmp_path / "rom"
    path.write_bytes(b"rom!" * PAGE)
    with path.open("rb") as file:
        made = region(file.fileno())
    assert made.access == "ro"
    assert _native.GuestMemory([made]).read(GPA, 4) == b"rom!"


def test_a_write_sealed_memfd_is_mapped_read_only():
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, b"sealed")
        fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE)
        made = region(fd)
        # Linux before 6.7 refuses even a shared read-only mapping.
        assert made.access in {"ro", "none"}
    finally:
        os.close(fd)


@pytest.mark.parametrize("what", ["pipe", "huge", "huge offset"])
def test_what_cannot_be_mapped_still_exists(ram, what):
    read, write = os.pipe()
    made = {
        "pipe": lambda: region(read),
        "huge": lambda: region(ram.memfd, gpa=0, uva=0, size=TOP - 1),
        "huge offset": lambda: region(ram.memfd, offset=(1 << 63) - 1),
    }[what]()
    os.close(read)
    os.close(write)
    assert made.access == "none"
    memory = _native.GuestMemory([made])
    assert memory.regions == (made,)
    with pytest.raises(ValueError, match="not all mapped"):
        memory.read(made.guest_phys_addr, 1)


def test_an_offset_inside_of_a_page_is_mapped(ram):
    ram.write(GPA + 100, b"here")
    made = region(ram.memfd, size=200, offset=100)
    assert _native.GuestMemory([made]).read(GPA, 4) == b"here"


def test_the_fd_is_borrowed(ram):
    fd = os.dup(ram.memfd)
    made = region(fd)
    os.close(fd)
    ram.write(GPA, b"alive")
    assert _native.GuestMemory([made]).read(GPA, 5) == b"alive"


def test_read_across_touching_regions():
    with GuestRam(8 * PAGE, regions=TOUCHING) as ram:
        memory = _native.GuestMemory([region(ram.memfd, *r) for r in ram.regions])
        data = bytes(range(256)) * 2
        ram.write(GPA + 4 * PAGE - 100, data)
        assert memory.read(GPA + 4 * PAGE - 100, 512) == data
        assert memory.read(GPA, 8 * PAGE) == ram.read(GPA, 8 * PAGE)
        assert [r.userspace_addr for r in memory.regions] == [r.userspace_addr for r in TOUCHING]


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (GPA - 1, 2),
        (GPA + (1 << 20) - 1, 2),
        (0, 1),
        (TOP - 1, 1),
        (TOP - 1, TOP - 1),
        (GPA, TOP - 1),
    ],
)
def test_read_outside(ram, map_all, gpa, length):
    with pytest.raises(ValueError, match="not all mapped"):
        map_all(ram).read(gpa, length)


def test_read_nothing(ram, map_all):
    assert map_all(ram).read(0, 0) == b""
    assert _native.GuestMemory([]).read(5, 0) == b""


@pytest.mark.parametrize("first", [GPA, GPA + 3 * PAGE])
def test_overlapping_regions(ram, first):
    regions = [
        region(ram.memfd, gpa=first, size=4 * PAGE),
        region(ram.memfd, gpa=GPA + PAGE, size=3 * PAGE),
    ]
    with pytest.raises(ValueError, match=f"{GPA:#x}|{first:#x}"):
        _native.GuestMemory(regions)
    with pytest.raises(ValueError, match="overlap"):
        _native.GuestMemory([regions[0], regions[0]])


def test_one_userspace_range_at_two_guest_addresses(rig):
    """QEMU aliases RAM: the ring is found whichever of the two comes first."""
    made = rig()
    size = made.ram.size
    alias = _native.Region(made.ram.memfd, GPA + size, size, UVA, 0)
    for regions in ([*made.memory.regions, alias], [alias, *made.memory.regions]):
        made.driver.add([b"x"])
        queue = made.queue(memory=_native.GuestMemory(regions))
        assert queue.pop().request == b"x"


@pytest.mark.parametrize("regions", [[1], None, ["Region"], 5])
def test_a_memory_is_made_of_regions(regions):
    with pytest.raises(TypeError):
        _native.GuestMemory(regions)


def test_an_error_half_way_through_the_sequence_is_passed_on(ram):
    def broken():
        yield region(ram.memfd)
        raise LookupError

    with pytest.raises(LookupError):
        _native.GuestMemory(broken())
