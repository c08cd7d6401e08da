"""Table T: TRANSFER_TO_HOST_2D, against pixels that are counted out one by one."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_pixels import PAGE, entries
from tests.unit.device.driver import (
    BAD_PARAMETER,
    BAD_RESOURCE,
    FENCE,
    FORMATS,
    OK,
    U32,
    UNSPEC,
    Box,
    Driver,
    attach,
    create_2d,
    furnished,
    transfer,
)

WIDTH, HEIGHT = 8, 6
STRIDE = WIDTH * 4
GUEST = bytes((7 * n + n // 256) & 0xFF or 1 for n in range(2 * PAGE))
"""What the guest's memory holds: no byte is 0, neighbours differ."""

OLD = b"\xaa\xbb\xcc\xdd"
"""A pixel that a transfer did not touch."""


def canvas(backed: int = STRIDE * HEIGHT, pixel_format: int = 1) -> Driver:
    """Resource 1 is 8 x 6 pixels, all OLD, over the first `backed` bytes of GUEST."""
    driver = Driver()
    driver.guest.write(0, GUEST)
    driver.ok(create_2d(1, WIDTH, HEIGHT, pixel_format), attach(1, entries((0, backed))))
    driver.surface(1).pixels[:] = OLD * (WIDTH * HEIGHT)
    return driver


def expected(box: Box, offset: int, backed: int = STRIDE * HEIGHT) -> list[bytes]:
    """Pixel by pixel: row r of the rectangle starts at offset + r * stride."""
    x, y, width, height = box
    pixels = [OLD] * (WIDTH * HEIGHT)
    for row in range(height):
        for column in range(width):
            source = offset + row * STRIDE + column * 4
            if source + 4 <= backed:
                pixels[(y + row) * WIDTH + x + column] = GUEST[source : source + 4]
    return pixels


def pixels(driver: Driver) -> list[bytes]:
    surface = driver.surface(1)
    return [surface.pixel(x, y) for y in range(HEIGHT) for x in range(WIDTH)]


def check(box: Box, offset: int, backed: int = STRIDE * HEIGHT) -> None:
    driver = canvas(backed)
    answer = driver.ok(transfer(1, box, offset))
    assert answer.display == (), "nothing is shown before a flush"
    assert pixels(driver) == expected(box, offset, backed)


WHOLE: Box = (0, 0, WIDTH, HEIGHT)
INSIDE: Box = (2, 1, 3, 4)


@pytest.mark.parametrize("number", [0, 3, U32])
def test_T01_an_unknown_id_is_refused(number: int) -> None:
    furnished().refused(transfer(number), BAD_RESOURCE)


def test_T02_a_resource_without_backing_is_refused() -> None:
    furnished().refused(transfer(2, (0, 0, 32, 16)), BAD_RESOURCE)
    furnished().refused(transfer(2, (0, 0, 33, 16)), BAD_RESOURCE)


def test_T05_the_whole_rectangle_is_copied() -> None:
    check(WHOLE, 0)


@pytest.mark.parametrize("pixel_format", FORMATS.values(), ids=FORMATS)
def test_T05_each_format_arrives_as_blue_green_red_alpha(pixel_format: int) -> None:
    names = {value: name for name, value in FORMATS.items()}
    channels = names[pixel_format].replace("8", "").replace("X", "A")
    driver = canvas(pixel_format=pixel_format)
    driver.ok(transfer(1, WHOLE))
    for number, pixel in enumerate(pixels(driver)):
        guest = dict(zip(channels, GUEST[4 * number : 4 * number + 4], strict=True))
        assert pixel == bytes(guest[channel] for channel in "BGRA")


@pytest.mark.parametrize("height", range(HEIGHT + 1))
def test_T06_rows_below_the_rectangle_stay(height: int) -> None:
    check((0, 0, WIDTH, height), 0)


@pytest.mark.parametrize(("y", "height"), [(1, 1), (1, 3), (2, 4), (5, 1)])
def test_T06b_full_rows_in_the_middle_are_exact(y: int, height: int) -> None:
    check((0, y, WIDTH, height), y * STRIDE)


@pytest.mark.parametrize("box", [INSIDE, (0, 0, 1, HEIGHT), (7, 0, 1, HEIGHT), (1, 5, 7, 1)])
def test_T07_each_row_of_a_narrow_rectangle_is_a_stride_further(box: Box) -> None:
    check(box, box[1] * STRIDE + box[0] * 4)


@pytest.mark.parametrize("offset", [0, 4, 20, 36, STRIDE])
def test_T07_the_offset_need_not_be_that_of_the_rectangle(offset: int) -> None:
    check(INSIDE, offset)


@pytest.mark.parametrize(
    "box",
    [
        (WIDTH + 1, 0, 0, 0),
        (0, HEIGHT + 1, 0, 0),
        (0, 0, WIDTH + 1, 1),
        (0, 0, 1, HEIGHT + 1),
        (WIDTH, 0, 1, 1),
        (0, HEIGHT, 1, 1),
        (1, 0, WIDTH, 1),
        (0, 1, 1, HEIGHT),
    ],
)
def test_T08_a_rectangle_that_is_not_inside_is_refused(box: Box) -> None:
    canvas().refused(transfer(1, box), BAD_PARAMETER)


@pytest.mark.parametrize(
    "box",
    [
        (U32, 0, 2, 1),
        (U32, 0, 1, 1),
        (0, U32, 1, 2),
        (1, 0, U32, 1),
        (0, 1, 1, U32),
        (1 << 31, 0, 1 << 31, 1),
        (U32, U32, U32, U32),
    ],
)
def test_T09_a_rectangle_that_would_wrap_is_refused(box: Box) -> None:
    canvas().refused(transfer(1, box), BAD_PARAMETER)


@pytest.mark.parametrize(
    "box", [(WIDTH, 0, 0, HEIGHT), (0, HEIGHT, WIDTH, 0), (WIDTH, HEIGHT, 0, 0)]
)
def test_T10_an_empty_rectangle_on_the_edge_copies_nothing(box: Box) -> None:
    check(box, 0)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (0, 0, WIDTH, 0), (0, 0, 0, HEIGHT), (3, 3, 0, 2)])
def test_T11_an_empty_rectangle_copies_nothing(box: Box) -> None:
    check(box, 0)


@pytest.mark.parametrize("offset", [STRIDE * HEIGHT, STRIDE * HEIGHT + 1, 1 << 31, U32])
@pytest.mark.parametrize("box", [WHOLE, INSIDE])
def test_T12_beyond_the_backing_nothing_is_copied(box: Box, offset: int) -> None:
    check(box, offset)


@pytest.mark.parametrize("backed", [1, 3, 4, 31, 32, 33, 100, 101, 102, 103, 104, 191])
@pytest.mark.parametrize("box", [WHOLE, INSIDE])
def test_T13_what_the_backing_holds_is_copied_in_whole_pixels(box: Box, backed: int) -> None:
    check(box, 0, backed)
    check(box, 40, backed)


@pytest.mark.parametrize("offset", [1 << 32, (1 << 32) + 4, (1 << 63), (1 << 64) - 1])
@pytest.mark.parametrize("box", [WHOLE, INSIDE])
def test_T14_an_offset_is_never_cut_to_32_bits(box: Box, offset: int) -> None:
    check(box, offset)


@pytest.mark.parametrize("rows_before_the_wrap", [1, 2, 3])
@pytest.mark.parametrize("top", [1 << 32, 1 << 64])
def test_T15_rows_never_wrap_around_to_the_start(top: int, rows_before_the_wrap: int) -> None:
    check(WHOLE, top - rows_before_the_wrap * STRIDE)
    check(INSIDE, top - rows_before_the_wrap * STRIDE)


def test_T17_a_fenced_transfer_is_answered_when_it_is_done() -> None:
    driver = canvas()
    answer = driver.run(transfer(1, WHOLE, flags=FENCE, fence=21))
    assert (answer.kind, answer.flags, answer.fence) == (OK, FENCE, 21)
    assert pixels(driver) == expected(WHOLE, 0)


def test_memory_that_vanishes_is_the_guest_s_error() -> None:
    driver = canvas()
    driver.guest.vanish(0)
    answer = driver.run(transfer(1, WHOLE))
    assert answer.kind == UNSPEC


@settings(deadline=None)
@given(
    x=st.integers(0, WIDTH),
    y=st.integers(0, HEIGHT),
    width=st.integers(0, WIDTH),
    height=st.integers(0, HEIGHT),
    offset=st.integers(0, STRIDE * HEIGHT + 8),
    backed=st.integers(1, STRIDE * HEIGHT + 8),
)
def test_any_rectangle_from_any_offset_of_any_backing(
    x: int, y: int, width: int, height: int, offset: int, backed: int
) -> None:
    box = (x, y, min(width, WIDTH - x), min(height, HEIGHT - y))
    check(box, offset, backed)
