"""Backing: entries resolved, merged and found again by offset."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mock_driver import GPA, UVA, GuestRam, RamRegion, mem_entries
from vgpud import _native

PAGE = 4096
SIZE = 16 * PAGE
TWO = [RamRegion(GPA, SIZE // 2, UVA, SIZE // 2), RamRegion(GPA + SIZE // 2, SIZE // 2, 0, 0)]


def memory_of(ram):
    return _native.GuestMemory([_native.Region(ram.memfd, *region) for region in ram.regions])


@pytest.fixture
def two():
    with GuestRam(SIZE, regions=TWO) as ram:
        ram.write(GPA, b"".join(struct.pack("<I", i) for i in range(SIZE // 4)))
        yield ram


def test_adjacent_entries_are_merged(two):
    memory = memory_of(two)
    backing = _native.Backing(memory, mem_entries((GPA + i * PAGE, PAGE) for i in range(8)))
    assert (backing.size, backing.segments) == (8 * PAGE, 1)
    assert backing.read(0, 8 * PAGE) == two.read(GPA, 8 * PAGE)


def test_an_entry_may_span_regions(two):
    backing = _native.Backing(memory_of(two), mem_entries([(GPA + 100, SIZE - 200)]))
    assert (backing.size, backing.segments) == (SIZE - 200, 2)
    assert backing.read(0, SIZE) == two.read(GPA + 100, SIZE - 200)


def test_entries_may_overlap_and_repeat(two):
    ranges = [(GPA + 10, 20), (GPA + 10, 20), (GPA, 100), (GPA + 50, 1)]
    backing = _native.Backing(memory_of(two), mem_entries(ranges))
    assert backing.segments == 4
    assert backing.read(0, 1000) == b"".join(two.read(*r) for r in ranges)


def test_segments_of_one_byte(two):
    ranges = [(GPA + 3 * i, 1) for i in range(1000)]
    backing = _native.Backing(memory_of(two), mem_entries(ranges))
    assert (backing.size, backing.segments) == (1000, 1000)
    data = two.read(GPA, 3000)[::3]
    for offset in (0, 1, 499, 998, 999):
        assert backing.read(offset, 7) == data[offset : offset + 7]


def test_no_entries(two):
    backing = _native.Backing(memory_of(two), b"")
    assert (backing.size, backing.segments, backing.read(0, 10)) == (0, 0, b"")


@pytest.mark.parametrize("offset", [100, 101, 1 << 40, (1 << 64) - 1])
def test_read_beyond_the_end(two, offset):
    backing = _native.Backing(memory_of(two), mem_entries([(GPA, 100)]))
    assert backing.read(offset, (1 << 64) - 1) == b""
    assert backing.read(99, (1 << 64) - 1) == two.read(GPA + 99, 1)


@pytest.mark.parametrize(
    "bad",
    [
        (GPA, 0),
        (GPA - 1, 1),
        (GPA - 1, 2),
        (GPA + SIZE, 1),
        (GPA + SIZE - 1, 2),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 2),
        (GPA, 0xFFFFFFFF),
    ],
)
def test_the_first_bad_entry_is_named(two, bad):
    ranges = [(GPA, PAGE)] * 3 + [bad, (0, 0)]
    with pytest.raises(ValueError, match=rf"entry 3: {bad[1]} bytes at {bad[0]:#x}"):
        _native.Backing(memory_of(two), mem_entries(ranges))


@pytest.mark.parametrize("length", [1, 15, 17, 31])
def test_half_an_entry(two, length):
    with pytest.raises(ValueError, match=f"{length} bytes"):
        _native.Backing(memory_of(two), bytes(length))


@pytest.mark.parametrize("arguments", [(), (1, b""), (None, b""), ("memory", "entries")])
def test_bad_types(two, arguments):
    with pytest.raises(TypeError):
        _native.Backing(*arguments)
    with pytest.raises(TypeError):
        _native.Backing(memory_of(two), "")


def test_entries_may_be_any_buffer(two):
    entries = memoryview(bytearray(b"head" + mem_entries([(GPA, 8)])))[4:]
    assert _native.Backing(memory=memory_of(two), entries=entries).read(0, 8) == two.read(GPA, 8)


def test_all_entries_that_qemu_allows(two):
    backing = _native.Backing(memory_of(two), mem_entries([(GPA, 2), (GPA + 8, 2)] * 8192))
    assert (backing.size, backing.segments) == (32768, 16384)
    assert backing.read(32766, 9) == two.read(GPA + 8, 2)


def test_it_holds_the_memory(two):
    backing = _native.Backing(memory_of(two), mem_entries([(GPA, 8)]))
    two.write(GPA, b"still up")
    assert backing.read(0, 8) == b"still up"


def test_rebind_to_a_table_that_is_cut_differently(two):
    whole = [(GPA + 100, SIZE - 200), (GPA, 50)]
    backing = _native.Backing(memory_of(two), mem_entries(whole))
    expected = backing.read(0, SIZE)
    parts = [
        _native.Region(two.memfd, GPA, PAGE, 0, SIZE // 2),
        _native.Region(two.memfd, GPA + PAGE, SIZE // 2 - PAGE, 0, SIZE // 2 + PAGE),
        _native.Region(two.memfd, GPA + SIZE // 2, SIZE // 2, 0, 0),
    ]
    again = backing.rebind(_native.GuestMemory(parts)).rebind(memory_of(two))
    assert (again.size, again.read(0, SIZE)) == (backing.size, expected)
    assert again.segments == backing.segments


def test_rebind_with_the_region_gone(two):
    backing = _native.Backing(memory_of(two), mem_entries([(GPA, 8), (GPA + SIZE // 2, 8)]))
    left = _native.GuestMemory([_native.Region(two.memfd, *TWO[0])])
    with pytest.raises(ValueError, match=f"{GPA + SIZE // 2:#x}"):
        backing.rebind(left)
    assert backing.read(0, 16) == two.read(GPA, 8) + two.read(GPA + SIZE // 2, 8)
    with pytest.raises(TypeError):
        backing.rebind(None)


@settings(deadline=None, max_examples=80)
@given(
    ranges=st.lists(
        st.tuples(st.integers(GPA, GPA + SIZE - 300), st.integers(1, 300)), max_size=40
    ),
    offset=st.integers(0, 3000),
    length=st.integers(0, 3000),
)
def test_reads_are_slices_of_all_bytes(ranges, offset, length):
    with GuestRam(SIZE, regions=TWO) as ram:
        ram.write(GPA, b"".join(struct.pack("<I", i) for i in range(SIZE // 4)))
        backing = _native.Backing(memory_of(ram), mem_entries(ranges))
        data = b"".join(ram.read(*r) for r in ranges)
        assert backing.size == len(data)
        assert backing.read(offset, length) == data[offset : offset + length]
