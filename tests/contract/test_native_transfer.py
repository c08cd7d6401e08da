"""transfer(): compared with a model in plain Python."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mock_driver import GPA, UVA, GuestRam, RamRegion, mem_entries
from vgpud import _native

# By the number of the swizzle: where a guest's pixel has B, G, R and A.
ORDERS = ["BGRA", "ARGB", "RGBA", "ABGR"]
SIZE = 1 << 16
TWO = [RamRegion(GPA, SIZE // 2, UVA, SIZE // 2), RamRegion(GPA + SIZE // 2, SIZE // 2, 0, 0)]
TOP = 1 << 64


def to_bgra(data, swizzle):
    places = [ORDERS[swizzle].index(channel) for channel in "BGRA"]
    return bytes(data[i + place] for i in range(0, len(data), 4) for place in places)


def model(surface, stride, x, y, width, height, swizzle, backing, offset, src_stride):
    """What transfer() does, of a `backing` that is bytes."""
    total = 0
    for row in range(height):
        start = offset + row * src_stride
        data = backing[start : start + 4 * width]
        data = to_bgra(data[: len(data) // 4 * 4], swizzle)
        at = (y + row) * stride + 4 * x
        surface[at : at + len(data)] = data
        total += len(data)
    return total


@pytest.fixture
def memory(ram):
    ram.write(GPA, random.Random(1).randbytes(ram.size))
    return _native.GuestMemory([_native.Region(ram.memfd, *region) for region in ram.regions])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_like_the_model(data):
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 6))
    stride = 4 * width + data.draw(st.integers(0, 9))
    x, y = data.draw(st.integers(0, width)), data.draw(st.integers(0, height))
    w, h = data.draw(st.integers(0, width - x)), data.draw(st.integers(0, height - y))
    swizzle = data.draw(st.integers(0, 3))
    entry = st.tuples(st.integers(GPA, GPA + SIZE - 64), st.integers(1, 64))
    ranges = data.draw(st.lists(entry, max_size=20))
    offset = data.draw(st.integers(0, 2 * stride + 5) | st.integers(0, TOP - 1))
    src_stride = data.draw(st.integers(0, 2 * stride) | st.integers(0, TOP - 1))
    with GuestRam(SIZE, regions=TWO) as ram:
        ram.write(GPA, random.Random(2).randbytes(SIZE))
        memory = _native.GuestMemory([_native.Region(ram.memfd, *r) for r in ram.regions])
        backing = _native.Backing(memory, mem_entries(ranges))
        real = bytearray(b"\xee" * (stride * height + 3))
        wanted = bytearray(real)
        rest = (stride, x, y, w, h, swizzle)
        count = _native.transfer(real, *rest, backing, offset, src_stride)
        flat = b"".join(ram.read(*r) for r in ranges)
        assert count == model(wanted, *rest, flat, offset, src_stride)
        assert real == wanted


@pytest.mark.parametrize("swizzle", range(4))
@pytest.mark.parametrize("size", [1, 3, 5, 7, 4096])
def test_pixels_straddle_segments(ram, memory, swizzle, size):
    """Long enough rows for the vector loops; above 64 KiB, without the GIL."""
    width, height, stride = 251, 73, 1008
    length = stride * height
    step = size + 1
    ranges = [(GPA + i * step, size) for i in range(-(-length // size))]
    backing = _native.Backing(memory, mem_entries(ranges))
    flat = b"".join(ram.read(*r) for r in ranges)
    real, wanted = bytearray(length), bytearray(length)
    arguments = (stride, 0, 0, width, height, swizzle)
    assert _native.transfer(real, *arguments, backing, 0, 992) == 4 * width * height
    model(wanted, *arguments, flat, 0, 992)
    assert real == wanted


@pytest.mark.parametrize("swizzle", range(4))
def test_an_unaligned_surface(memory, swizzle):
    backing = _native.Backing(memory, mem_entries([(GPA + 1, 4096)]))
    surface = memoryview(bytearray(4097))[1:]
    assert _native.transfer(surface, 4096, 0, 0, 1024, 1, swizzle, backing, 0, 0) == 4096
    assert bytes(surface) == to_bgra(backing.read(0, 4096), swizzle)


def test_exactly_the_rows_asked_for(memory):
    """T06: contrib's fast path copied all rows below as well."""
    backing = _native.Backing(memory, mem_entries([(GPA, 4000)]))
    surface = bytearray(4000)
    assert _native.transfer(surface, 400, 0, 2, 100, 3, 0, backing, 800, 400) == 1200
    assert surface == bytes(800) + backing.read(800, 1200) + bytes(2000)


@pytest.mark.parametrize(
    ("offset", "count"),
    [(0, 1000), (200, 800), (997, 0), (996, 4), (999, 0), (1000, 0), (1001, 0), (TOP - 1, 0)],
)
def test_rows_beyond_the_backing_are_left_alone(memory, offset, count):
    """T12 to T15: partial and beyond is no error, and no offset wraps."""
    backing = _native.Backing(memory, mem_entries([(GPA, 1000)]))
    surface = bytearray(b"\xee" * 2000)
    assert _native.transfer(surface, 400, 0, 0, 100, 5, 0, backing, offset, 400) == count
    full = backing.read(offset, 1000)
    assert surface == full[:count] + b"\xee" * (2000 - count)


@pytest.mark.parametrize("src_stride", [TOP - 4, TOP - 1, TOP // 2])
def test_a_guest_s_stride_that_would_wrap_the_offset(memory, src_stride):
    backing = _native.Backing(memory, mem_entries([(GPA, 64)]))
    surface = bytearray(b"\xee" * 16)
    assert _native.transfer(surface, 4, 0, 0, 1, 4, 0, backing, 4, src_stride) == 4
    assert surface == backing.read(4, 4) + b"\xee" * 12


def test_a_stride_that_would_wrap_the_surface(memory):
    backing = _native.Backing(memory, mem_entries([(GPA, 64)]))
    surface = bytearray(8)
    assert _native.transfer(surface, TOP - 4, 0, 0, 1, 1, 0, backing, 4, 4) == 4
    with pytest.raises(ValueError, match="not inside"):
        _native.transfer(surface, TOP - 4, 0, 0, 1, 2, 0, backing, 4, 4)


@pytest.mark.parametrize(
    ("stride", "x", "y", "width", "height"),
    [
        (40, 0, 0, 11, 1),
        (40, 10, 0, 1, 1),
        (40, 11, 0, 0, 0),
        (40, 0, 9, 10, 2),
        (40, 0, 10, 1, 1),
        (40, 0, 11, 0, 0),
        (40, (1 << 32) - 1, 0, 2, 1),
        (40, 0, (1 << 32) - 1, 1, 2),
        (40, 0, 0, 1, (1 << 32) - 1),
        (TOP - 1, 0, 2, 1, 1),
        (TOP - 1, 0, 0, 1, 2),
        (0, 0, 0, 1, 1),
        (44, 0, 0, 10, 10),
    ],
)
def test_rectangles_outside_of_the_surface(memory, stride, x, y, width, height):
    backing = _native.Backing(memory, mem_entries([(GPA, 4096)]))
    surface = bytearray(400)
    with pytest.raises(ValueError, match="not inside 400 bytes"):
        _native.transfer(surface, stride, x, y, width, height, 0, backing, 0, stride)
    assert surface == bytes(400)


@pytest.mark.parametrize(("x", "y", "w", "h"), [(10, 0, 0, 5), (0, 10, 10, 0), (10, 10, 0, 0)])
def test_nothing_to_copy(memory, x, y, w, h):
    backing = _native.Backing(memory, mem_entries([(GPA, 4096)]))
    surface = bytearray(400)
    assert _native.transfer(surface, 40, x, y, w, h, 1, backing, 0, 40) == 0
    assert surface == bytes(400)


def test_the_last_row_needs_no_full_stride(memory):
    backing = _native.Backing(memory, mem_entries([(GPA, 4096)]))
    assert _native.transfer(bytearray(40 + 8), 40, 0, 0, 2, 2, 0, backing, 0, 40) == 16


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"swizzle": 4}, ValueError),
        ({"x": -1}, ValueError),
        ({"width": 1 << 32}, ValueError),
        ({"offset": TOP}, ValueError),
        ({"surface": b"read-only" * 100}, TypeError),
        ({"surface": memoryview(bytearray(1000))[::2]}, (TypeError, BufferError)),
        ({"backing": b"bytes"}, TypeError),
        ({"height": 1.0}, TypeError),
        ({"src_stride": TOP}, ValueError),
    ],
)
def test_bad_arguments(memory, changes, error):
    arguments = {
        "surface": bytearray(400),
        "stride": 40,
        "x": 0,
        "y": 0,
        "width": 1,
        "height": 1,
        "swizzle": 0,
        "backing": _native.Backing(memory, mem_entries([(GPA, 4096)])),
        "offset": 0,
        "src_stride": 40,
    }
    assert _native.transfer(**arguments) == 4
    with pytest.raises(error):
        _native.transfer(**{**arguments, **changes})
