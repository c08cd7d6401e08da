"""gather(): compared with slices of the surface."""

from __future__ import annotations

import random

import pytest

from vgpud import _native

STRIDE, ROWS = 52, 9
SURFACE = random.Random(1).randbytes(STRIDE * ROWS)


@pytest.mark.parametrize(
    ("x", "y", "width", "height"),
    [
        (0, 0, 13, 9),
        (0, 0, 1, 1),
        (12, 8, 1, 1),
        (3, 2, 5, 4),
        (0, 8, 13, 1),
        (4, 4, 0, 3),
        (4, 4, 3, 0),
        (0xFFFFFFFF, 0xFFFFFFFF, 0, 0),
    ],
)
def test_is_the_rows_of_the_rectangle(x, y, width, height):
    rows = range(y * STRIDE + 4 * x, (y + height) * STRIDE + 4 * x, STRIDE)
    expected = b"".join(SURFACE[at : at + 4 * width] for at in rows)
    assert _native.gather(SURFACE, STRIDE, x, y, width, height) == expected


def test_large_ones_too():
    surface = random.Random(2).randbytes(1 << 20)
    pieces = [surface[at + 40 : at + 4040] for at in range(0, 1 << 20, 4096)]
    assert _native.gather(surface, 4096, 10, 0, 1000, 256) == b"".join(pieces)


@pytest.mark.parametrize(
    ("stride", "x", "y", "width", "height"),
    [
        (STRIDE, 1, 0, 13, 1),
        (STRIDE, 0, 1, 13, 9),
        (STRIDE, 0, 9, 1, 1),
        (STRIDE, 0xFFFFFFFF, 0, 1, 1),
        (STRIDE, 0, 0xFFFFFFFF, 1, 0xFFFFFFFF),
        (4, 0, 0, 2, 1),
        ((1 << 64) - 1, 0, 2, 1, 1),
        (0, 0, 0, 1, 1),
    ],
)
def test_nothing_beyond_the_surface(stride, x, y, width, height):
    with pytest.raises(ValueError, match="not inside"):
        _native.gather(SURFACE, stride, x, y, width, height)
