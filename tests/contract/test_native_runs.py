"""Backing.runs(): what of which file a backing is, compared with a model byte by byte."""

from __future__ import annotations

import struct
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mock_driver import GPA, UVA, GuestRam, RamRegion, mem_entries
from vgpud import _native

PAGE = 4096
SIZE = 8 * PAGE
TOP = 1 << 64
# The second region comes first in the file, and the third one starts inside of a page.
REGIONS = [
    RamRegion(GPA, 3 * PAGE, UVA, 4 * PAGE),
    RamRegion(GPA + 3 * PAGE, 3 * PAGE, 0, 0),
    RamRegion(GPA + 8 * PAGE, PAGE, UVA + SIZE, 7 * PAGE + 100 - PAGE),
]


def memory_of(ram):
    return _native.GuestMemory([_native.Region(ram.memfd, *region) for region in ram.regions])


def runs(backing, size):
    data = backing.runs(size)
    found = list(struct.iter_unpack("=IIQQ", data))
    assert all(padding == 0 for _, padding, _, _ in found)
    return [(region, offset, length) for region, _, offset, length in found]


@pytest.fixture
def three():
    with GuestRam(SIZE, regions=REGIONS) as ram:
        yield ram


def test_a_contiguous_frame_buffer_is_one_run():
    """2,025 pages of 1080p: one item for the kernel, whose limit is 1,024."""
    with GuestRam(2025 * PAGE) as ram:
        entries = mem_entries((GPA + i * PAGE, PAGE) for i in range(2025))
        backing = _native.Backing(memory_of(ram), entries)
        assert runs(backing, 1920 * 1080 * 4) == [(0, 0, 2025 * PAGE)]


def test_offsets_are_the_file_s(three):
    ranges = [(GPA + PAGE, PAGE), (GPA + 8 * PAGE, 10), (GPA + 3 * PAGE, 2 * PAGE)]
    backing = _native.Backing(memory_of(three), mem_entries(ranges))
    assert runs(backing, TOP - 1) == [
        (0, 5 * PAGE, PAGE),
        (2, 6 * PAGE + 100, 10),
        (1, 0, 2 * PAGE),
    ]


def test_a_run_ends_with_its_region(three):
    """Mappings may happen to be neighbours in our address space: the files' offsets are not."""
    backing = _native.Backing(memory_of(three), mem_entries([(GPA, 6 * PAGE)]))
    assert runs(backing, 6 * PAGE) == [(0, 4 * PAGE, 3 * PAGE), (1, 0, 3 * PAGE)]


def test_repeated_pages_are_repeated_runs(three):
    backing = _native.Backing(memory_of(three), mem_entries([(GPA, PAGE)] * 3))
    assert runs(backing, 3 * PAGE) == [(0, 4 * PAGE, PAGE)] * 3


@pytest.mark.parametrize(
    ("size", "bytes_"),
    [(0, 0), (1, PAGE), (PAGE, PAGE), (PAGE + 1, 2 * PAGE), (3 * PAGE, 3 * PAGE)]
    + [(size, 3 * PAGE) for size in (3 * PAGE + 1, 1 << 40, TOP - PAGE, TOP - PAGE + 1, TOP - 1)],
)
def test_the_tail_behind_the_last_page_is_dropped(three, size, bytes_):
    backing = _native.Backing(memory_of(three), mem_entries([(GPA, PAGE), (GPA + PAGE, 2 * PAGE)]))
    assert runs(backing, size) == ([(0, 4 * PAGE, bytes_)] if bytes_ else [])


def test_no_entries(three):
    assert _native.Backing(memory_of(three), b"").runs(PAGE) == b""


@pytest.mark.parametrize("arguments", [(), (-1,), (TOP,), (1.0,), (1, 2)])
def test_bad_arguments(three, arguments):
    backing = _native.Backing(memory_of(three), b"")
    with pytest.raises((TypeError, ValueError)):
        backing.runs(*arguments)


def model(ranges, size):
    size = -(-size // PAGE) * PAGE
    flat = [
        (number, region.mmap_offset + gpa - region.guest_phys_addr)
        for start, length in ranges
        for gpa in range(start, start + length)
        for number, region in enumerate(REGIONS)
        if 0 <= gpa - region.guest_phys_addr < region.memory_size
    ][:size]
    found = []
    for number, offset in flat:
        if found and found[-1][0] == number and found[-1][1] + found[-1][2] == offset:
            found[-1][2] += 1
        else:
            found.append([number, offset, 1])
    return [tuple(run) for run in found]


@settings(deadline=None, max_examples=100)
@given(
    ranges=st.lists(
        st.tuples(
            st.sampled_from(range(GPA, GPA + 5 * PAGE, PAGE // 2)) | st.integers(GPA, GPA + PAGE),
            st.sampled_from([1, 100, PAGE // 2, PAGE]),
        ),
        max_size=12,
    ),
    size=st.integers(0, 13 * PAGE),
)
def test_like_the_model(ranges, size):
    with GuestRam(SIZE, regions=REGIONS) as ram:
        backing = _native.Backing(memory_of(ram), mem_entries(ranges))
        assert runs(backing, size) == model(ranges, size)


def best(call, *args):
    times = []
    for _ in range(15):
        start = time.perf_counter()
        call(*args)
        times.append(time.perf_counter() - start)
    return min(times)


def test_16384_entries_cost_no_more_than_reading_them_twice():
    """Issue 4: the array stays in C. Measured here: a fifth of one reading."""
    count = 16384
    with GuestRam(2 * count * PAGE) as ram:
        entries = mem_entries((GPA + 2 * i * PAGE, PAGE) for i in range(count))
        memory = memory_of(ram)
        backing = _native.Backing(memory, entries)
        assert len(backing.runs(TOP - 1)) == 24 * count
        reading = best(lambda: list(struct.iter_unpack("<QII", entries)))
        assert best(_native.Backing, memory, entries) + best(backing.runs, TOP - 1) < 2 * reading
