"""copy_out(): a rectangle of a frame buffer in guest pages, compared with a model."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mock_driver import GPA, UVA, GuestRam, RamRegion, mem_entries
from vgpud import _native

# By the number of the swizzle: where a guest's pixel has B, G, R and X.
ORDERS = ["BGRX", "XRGB", "RGBX", "XBGR"]
SIZE = 1 << 16
TWO = [RamRegion(GPA, SIZE // 2, UVA, SIZE // 2), RamRegion(GPA + SIZE // 2, SIZE // 2, 0, 0)]
TOP = 1 << 64


def pixels(flat, offset, stride, x, y, width, height, swizzle):
    """Pixel by pixel; `flat` is all bytes of the backing."""
    places = [ORDERS[swizzle].index(channel) for channel in "BGRX"]
    found = bytearray()
    for row in range(y, y + height):
        for column in range(x, x + width):
            at = offset + row * stride + 4 * column
            found += bytes(flat[at + place] for place in places)
    return bytes(found)


def memory_of(ram):
    return _native.GuestMemory([_native.Region(ram.memfd, *region) for region in ram.regions])


@pytest.fixture
def memory(ram):
    ram.write(GPA, random.Random(1).randbytes(ram.size))
    return memory_of(ram)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_like_the_model(data):
    stride = data.draw(st.integers(0, 100))
    x, y = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 6))
    width, height = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 6))
    offset, swizzle = data.draw(st.integers(0, 50)), data.draw(st.integers(0, 3))
    entry = st.tuples(st.integers(GPA, GPA + SIZE - 300), st.integers(1, 300))
    ranges = data.draw(st.lists(entry, min_size=1, max_size=8))
    with GuestRam(SIZE, regions=TWO) as ram:
        ram.write(GPA, random.Random(2).randbytes(SIZE))
        backing = _native.Backing(memory_of(ram), mem_entries(ranges))
        flat = b"".join(ram.read(*r) for r in ranges)
        out = bytearray(b"\xee" * (4 * width * height + 3))
        arguments = (offset, stride, x, y, width, height, swizzle)
        end = offset + (y + height - 1) * stride + 4 * (x + width)
        if width and height and end > len(flat):
            with pytest.raises(ValueError, match="not inside"):
                _native.copy_out(backing, *arguments, out)
            assert out == b"\xee" * len(out)
        else:
            _native.copy_out(backing, *arguments, out)
            assert out == pixels(flat, *arguments) + b"\xee" * 3


@pytest.mark.parametrize("swizzle", range(4))
@pytest.mark.parametrize("size", [1, 3, 4096])
def test_above_64_KiB_and_across_segments(ram, memory, swizzle, size):
    width, height, stride = 251, 73, 1012
    step = size + 1
    ranges = [(GPA + i * step, size) for i in range(-(-stride * height // size))]
    backing = _native.Backing(memory, mem_entries(ranges))
    flat = b"".join(ram.read(*r) for r in ranges)
    out = bytearray(4 * width * height)
    arguments = (8, stride, 0, 0, width, height - 1, swizzle)
    _native.copy_out(backing, *arguments, out)
    assert out[: 4 * width * (height - 1)] == pixels(flat, *arguments)


def test_the_last_row_may_end_the_backing(memory):
    """B09: stride * (h - 1) + w * 4 bytes are enough, one less is not."""
    out = bytearray(40)
    for short in (0, 1):
        backing = _native.Backing(memory, mem_entries([(GPA, 100 + 4 * 400 + 80 - short)]))
        if short:
            with pytest.raises(ValueError, match="10x1 at 10,4 with a stride of 400 from 100"):
                _native.copy_out(backing, 100, 400, 10, 4, 10, 1, 0, out)
        else:
            _native.copy_out(backing, 100, 400, 10, 4, 10, 1, 0, out)


@pytest.mark.parametrize(
    ("offset", "stride", "x", "y", "width", "height"),
    [
        (TOP - 4, 4, 0, 0, 1, 1),
        (TOP - 4, 4, 1, 0, 1, 1),
        (TOP - 400, 4, 0, 100, 1, 1),
        (0, TOP - 4, 0, 1, 1, 1),
        (0, TOP - 4, 2, 1, 1, 1),
        (0, TOP // 2, 0, 2, 1, 1),
        (0, TOP // 2, 0, 0, 1, 3),
        (0, TOP - 4, 0, 0, 1, 2),
        (0, 4, (1 << 32) - 1, 0, 1, 1),
        (0, 4, 0, (1 << 32) - 1, 1, 1),
    ],
)
def test_nothing_wraps(memory, offset, stride, x, y, width, height):
    backing = _native.Backing(memory, mem_entries([(GPA, 4096)]))
    out = bytearray(b"\xee" * 64)
    with pytest.raises(ValueError, match="not inside 4096 bytes"):
        _native.copy_out(backing, offset, stride, x, y, width, height, 0, out)
    assert out == b"\xee" * 64


@pytest.mark.parametrize(("width", "height"), [(4, 5), (1, 17), (17, 1), ((1 << 32) - 1,) * 2])
def test_an_out_that_is_too_small(memory, width, height):
    backing = _native.Backing(memory, mem_entries([(GPA, 4096)]))
    with pytest.raises(ValueError, match="do not fit in 64 bytes"):
        _native.copy_out(backing, 0, 16, 0, 0, width, height, 0, bytearray(64))


@pytest.mark.parametrize("width", [64, 1000])
def test_pixels_vanish(ram, memory, width):
    """On either side of 64 KiB, again and again: no signal stays blocked."""
    half, length = ram.size // 2, 4 * width * 100
    backing = _native.Backing(memory, mem_entries([(GPA + half - length // 2, length)]))
    out = bytearray(length)
    for _ in range(50):
        os.ftruncate(ram.memfd, half)
        with pytest.raises(_native.GuestFault):
            _native.copy_out(backing, 0, 4 * width, 0, 0, width, 100, 1, out)
        os.ftruncate(ram.memfd, ram.size)
        _native.copy_out(backing, 0, 4 * width, 0, 0, width, 100, 1, out)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"swizzle": 4}, ValueError),
        ({"x": -1}, ValueError),
        ({"height": 1 << 32}, ValueError),
        ({"offset": TOP}, ValueError),
        ({"stride": TOP}, ValueError),
        ({"out": b"read-only" * 100}, TypeError),
        ({"out": memoryview(bytearray(1000))[::2]}, (TypeError, BufferError)),
        ({"backing": b"bytes"}, TypeError),
        ({"width": 1.0}, TypeError),
    ],
)
def test_bad_arguments(memory, changes, error):
    arguments = {
        "backing": _native.Backing(memory, mem_entries([(GPA, 4096)])),
        "offset": 0,
        "stride": 40,
        "x": 0,
        "y": 0,
        "width": 1,
        "height": 1,
        "swizzle": 0,
        "out": bytearray(400),
    }
    assert _native.copy_out(**arguments) is True
    with pytest.raises(error):
        _native.copy_out(**{**arguments, **changes})
