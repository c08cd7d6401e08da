"""Table F: RESOURCE_FLUSH, and the damage that follows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_pixels import HollowStore
from tests.unit.device.driver import (
    BAD_PARAMETER,
    BAD_RESOURCE,
    FENCE,
    U32,
    Answer,
    Box,
    Driver,
    create_2d,
    flush,
    furnished,
    set_scanout,
)
from vgpud.device.outcome import DEVICE_TIMELINE, Damage


def damage(answer: Answer) -> dict[int, Box]:
    boxes: dict[int, Box] = {}
    for message in answer.display:
        assert isinstance(message, Damage)
        assert message.scanout_id not in boxes
        rect = message.rect
        boxes[message.scanout_id] = (rect.x, rect.y, rect.width, rect.height)
    return boxes


def one_head(box: Box) -> Driver:
    driver = Driver()
    driver.ok(create_2d(1, 100, 80), set_scanout(0, 1, box))
    return driver


@pytest.mark.parametrize("number", [0, 3, U32])
def test_F01_an_unknown_id_is_refused(number: int) -> None:
    furnished().refused(flush(number), BAD_RESOURCE)


def test_F02_a_resource_that_nobody_shows_is_flushed_without_a_message() -> None:
    answer = furnished().ok(flush(2, (0, 0, 32, 16), flags=FENCE, fence=9))
    assert (answer.display, answer.fence, answer.timeline) == ((), 9, DEVICE_TIMELINE)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 65, 1), (0, 0, 1, 65), (65, 0, 0, 0), (0, 65, 0, 0), (U32, 0, 2, 1), (1, 0, U32, 1)],
)
@pytest.mark.parametrize("is_shown", [True, False])
def test_F03_a_rectangle_that_is_not_inside_is_refused(box: Box, is_shown: bool) -> None:
    driver = furnished()
    if not is_shown:
        driver.ok(set_scanout(0, 0), set_scanout(1, 0))
    driver.refused(flush(1, box), BAD_PARAMETER)


@pytest.mark.parametrize(
    "box", [(0, 0, 20, 80), (60, 0, 40, 80), (0, 0, 100, 10), (0, 50, 100, 30)]
)
def test_F04_beside_the_head_s_rectangle_there_is_no_message(box: Box) -> None:
    assert one_head((20, 10, 40, 40)).ok(flush(1, box)).display == ()


@pytest.mark.parametrize(
    ("box", "seen"),
    [
        ((0, 0, 100, 80), (0, 0, 40, 40)),
        ((20, 10, 40, 40), (0, 0, 40, 40)),
        ((0, 0, 21, 11), (0, 0, 1, 1)),
        ((59, 49, 41, 31), (39, 39, 1, 1)),
        ((30, 0, 5, 80), (10, 0, 5, 40)),
        ((25, 15, 3, 2), (5, 5, 3, 2)),
    ],
)
def test_F05_damage_is_cut_and_moved_to_where_the_head_is(box: Box, seen: Box) -> None:
    assert damage(one_head((20, 10, 40, 40)).ok(flush(1, box))) == {0: seen}


def test_F05_each_head_has_its_own_part() -> None:
    driver = Driver()
    driver.ok(create_2d(1, 100, 80))
    driver.ok(set_scanout(0, 1, (0, 0, 50, 80)), set_scanout(4, 1, (50, 0, 50, 80)))
    assert damage(driver.ok(flush(1, (40, 5, 20, 10)))) == {0: (40, 5, 10, 10), 4: (0, 5, 10, 10)}
    assert damage(driver.ok(flush(1, (60, 5, 20, 10)))) == {4: (10, 5, 20, 10)}


def test_F09_a_resource_without_backing_is_flushed() -> None:
    driver = furnished()
    driver.ok(set_scanout(0, 2, (0, 0, 32, 16)))
    assert damage(driver.ok(flush(2, (0, 0, 32, 16)))) == {0: (0, 0, 32, 16)}


def test_F11_every_head_of_a_resource_is_updated() -> None:
    assert damage(furnished().ok(flush(1))) == {0: (0, 0, 64, 64), 1: (0, 0, 32, 32)}


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (20, 20, 0, 5), (20, 20, 5, 0), (64, 64, 0, 0)])
def test_F12_an_empty_rectangle_is_no_damage(box: Box) -> None:
    assert furnished().ok(flush(1, box)).display == ()


def test_F13_a_resource_beyond_16_bits_has_exact_damage() -> None:
    driver = Driver(HollowStore())
    driver.ok(create_2d(1, 70_000, 32), create_2d(2, 32, 70_000))
    driver.ok(set_scanout(0, 1, (65_000, 0, 5_000, 32)), set_scanout(1, 2, (0, 65_530, 32, 100)))
    assert damage(driver.ok(flush(1, (32_768, 3, 32_768, 4)))) == {0: (0, 3, 536, 4)}
    assert damage(driver.ok(flush(2, (1, 65_535, 2, 2)))) == {1: (1, 5, 2, 2)}


side, part = st.integers(16, 24), st.integers(0, 30)


@settings(max_examples=50, deadline=None)
@given(x=part, y=part, width=side, height=side, left=part, top=part, right=part, bottom=part)
def test_damage_is_the_pixels_that_are_in_both(
    x: int, y: int, width: int, height: int, left: int, top: int, right: int, bottom: int
) -> None:
    box = (left, top, right, bottom)
    seen = damage(one_head((x, y, width, height)).ok(flush(1, box)))
    head = {(i, j) for i in range(width) for j in range(height)}
    dirty = {(left + i - x, top + j - y) for i in range(right) for j in range(bottom)} & head
    told = {(a + i, b + j) for a, b, w, h in seen.values() for i in range(w) for j in range(h)}
    assert told == dirty
    assert bool(seen) == bool(dirty), "no message without a pixel in it"
