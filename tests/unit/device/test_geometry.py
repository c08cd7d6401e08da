"""Rectangles, compared with sets of pixels."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgpud.device.geometry import fits, holds, intersection, union
from vgpuwire import Rect

U32 = (1 << 32) - 1
small = st.builds(Rect, *[st.integers(0, 6)] * 4)
filled = st.builds(Rect, *[st.integers(0, 6)] * 2, *[st.integers(1, 6)] * 2)


def pixels(rect: Rect | None) -> set[tuple[int, int]]:
    if rect is None:
        return set()
    return {(rect.x + i, rect.y + j) for i in range(rect.width) for j in range(rect.height)}


@settings(max_examples=60, deadline=None)
@given(small, small)
def test_the_intersection_holds_the_common_pixels(a: Rect, b: Rect) -> None:
    common = intersection(a, b)
    assert pixels(common) == pixels(a) & pixels(b)
    assert common is None or (common.width and common.height), "never an empty rectangle"


@settings(max_examples=60, deadline=None)
@given(filled, filled)
def test_the_union_is_the_smallest_that_holds_both(a: Rect, b: Rect) -> None:
    both = pixels(a) | pixels(b)
    columns, rows = {x for x, _ in both}, {y for _, y in both}
    assert union(a, b) == Rect(
        min(columns),
        min(rows),
        max(columns) - min(columns) + 1,
        max(rows) - min(rows) + 1,
    )


@settings(max_examples=100, deadline=None)
@given(filled, filled)
def test_one_holds_the_other_where_the_union_is_no_larger(a: Rect, b: Rect) -> None:
    assert holds(a, b) is (union(a, b) == a)


@pytest.mark.parametrize(
    ("rect", "inside"),
    [
        (Rect(0, 0, 64, 32), True),
        (Rect(63, 31, 1, 1), True),
        (Rect(64, 32, 0, 0), True),
        (Rect(0, 0, 65, 32), False),
        (Rect(0, 0, 64, 33), False),
        (Rect(65, 0, 0, 0), False),
        (Rect(U32, 0, 2, 1), False),
        (Rect(1, 0, U32, 1), False),
        (Rect(0, U32, 1, 2), False),
        (Rect(U32, U32, U32, U32), False),
    ],
)
def test_nothing_wraps_around_into_an_image(rect: Rect, inside: bool) -> None:
    assert fits(rect, 64, 32) is inside


def test_F13_rectangles_beyond_16_bits_are_exact() -> None:
    wide = Rect(40_000, 0, 30_000, 10)
    assert fits(wide, 70_000, 10)
    assert intersection(wide, Rect(65_535, 5, 2, 100)) == Rect(65_535, 5, 2, 5)
    assert union(wide, Rect(0, 0, 1, 1)) == Rect(0, 0, 70_000, 10)
