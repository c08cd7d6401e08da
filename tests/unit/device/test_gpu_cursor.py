"""Table K: the cursor queue."""

from __future__ import annotations

import struct

import pytest

from tests.support.fake_pixels import PAGE, entries
from tests.unit.device.driver import (
    FENCE,
    FORMATS,
    U32,
    Driver,
    attach,
    create_2d,
    create_blob,
    furnished,
    move_cursor,
    snapshot,
    transfer,
    unref,
    update_cursor,
)
from vgpud.device.outcome import CursorImage, CursorMove, DisplayMessage

IMAGE = bytes(range(256)) * 64
OLD = b"\x33" * 16384


def with_pointer(pixel_format: int = 1) -> Driver:
    """Resource 1 is 64 x 64 and holds IMAGE."""
    driver = Driver()
    driver.guest.write(0, IMAGE)
    driver.ok(create_2d(1, 64, 64, pixel_format), attach(1, entries((0, 4 * PAGE))), transfer(1))
    return driver


def image(message: DisplayMessage | None) -> CursorImage:
    assert isinstance(message, CursorImage)
    return message


@pytest.mark.parametrize("make", [update_cursor(0, 1), move_cursor(0, 1, (3, 4))])
def test_K01_a_command_that_is_cut_is_ignored(make: bytes) -> None:
    driver = with_pointer()
    before = snapshot(driver.device)
    for length in range(len(make)):
        assert driver.device.execute_cursor(make[:length]) is None
    assert snapshot(driver.device) == before
    assert len(make) == 56
    assert driver.device.execute_cursor(make + b"more") is not None


@pytest.mark.parametrize("heads", [1, 2, 16])
def test_K02_a_head_that_is_not_there_is_ignored(heads: int) -> None:
    driver = Driver(heads=heads)
    before = snapshot(driver.device)
    for head in (heads, 16, 1 << 31, U32):
        assert driver.device.execute_cursor(update_cursor(head, 1)) is None
        assert driver.device.execute_cursor(move_cursor(head, 1, (1, 1))) is None
    assert snapshot(driver.device) == before
    assert driver.device.execute_cursor(move_cursor(heads - 1, 1, (1, 1))) is not None


def test_K03_no_resource_hides_the_pointer_and_keeps_its_image() -> None:
    driver = with_pointer()
    driver.device.execute_cursor(update_cursor(0, 1))
    hidden = driver.device.execute_cursor(update_cursor(0, 0, (8, 9), (1, 2)))
    assert hidden == CursorMove(0, 8, 9, False)
    assert image(driver.device.execute_cursor(update_cursor(0, 77))).pixels == IMAGE


def test_K04_an_image_of_64_by_64_is_shown_where_it_is() -> None:
    driver = with_pointer()
    message = driver.device.execute_cursor(update_cursor(2, 1, (100, 200), (3, 4)))
    assert message == CursorImage(2, 100, 200, 3, 4, IMAGE)


@pytest.mark.parametrize("name", FORMATS)
def test_K04_a_pointer_of_any_format_is_blue_green_red_alpha(name: str) -> None:
    channels = name.replace("8", "").replace("X", "A")
    driver = with_pointer(FORMATS[name])
    pixels = image(driver.device.execute_cursor(update_cursor(0, 1))).pixels
    for channel, at in zip("BGRA", range(4), strict=True):
        assert pixels[at::4] == IMAGE[channels.index(channel) :: 4]


def test_K04_the_image_is_the_one_of_the_command_whatever_is_drawn_later() -> None:
    driver = with_pointer()
    shown = image(driver.device.execute_cursor(update_cursor(0, 1)))
    driver.surface(1).pixels[:] = bytes(16384)
    assert shown.pixels == IMAGE
    again = image(driver.device.execute_cursor(update_cursor(0, 1)))
    assert again.pixels == bytes(16384)


@pytest.mark.parametrize(
    ("width", "height"), [(32, 32), (128, 128), (64, 63), (63, 64), (128, 32), (4096, 1)]
)
def test_K05_another_size_keeps_the_old_image_but_not_the_old_hot_spot(
    width: int, height: int
) -> None:
    driver = with_pointer()
    driver.ok(create_2d(2, width, height))
    driver.device.execute_cursor(update_cursor(0, 1))
    message = driver.device.execute_cursor(update_cursor(0, 2, (5, 6), (7, 8)))
    assert message == CursorImage(0, 5, 6, 7, 8, IMAGE)
    assert driver.device.cursors.wrong_size == 1


BLOBS = {
    "K07 exactly 16,384 bytes": (create_blob(2, 16384, entries((0, 16384))), IMAGE),
    "K07 more": (create_blob(2, 16385, entries((PAGE, 7), (0, 16384))), (IMAGE * 2)[PAGE:][:7]),
    "K07 in pieces": (create_blob(2, 16384, entries((8192, 8192), (0, 8192))), IMAGE[8192:]),
    "K08 no backing": (create_blob(2, 16384), None),
    "K08 no backing, 2**63 bytes": (create_blob(2, 1 << 63), None),
    "K09 16,383 bytes": (create_blob(2, 16383, entries((0, 16384))), None),
    "K09 no bytes": (create_blob(2, 0, entries((0, 16384))), None),
}


@pytest.mark.parametrize("name", BLOBS)
def test_K07_K08_K09_a_blob_is_a_pointer_by_its_first_16384_bytes(name: str) -> None:
    request, start = BLOBS[name]
    driver = with_pointer()
    driver.surface(1).pixels[:] = OLD
    driver.device.set_features(1 << 3)
    driver.device.execute_cursor(update_cursor(0, 1))
    driver.ok(request)
    message = image(driver.device.execute_cursor(update_cursor(0, 2, (5, 6), (7, 8))))
    if start is None:
        assert message == CursorImage(0, 5, 6, 7, 8, OLD)
        assert driver.device.cursors.wrong_size == 1
    else:
        assert message == CursorImage(0, 5, 6, 7, 8, (start + IMAGE)[:16384])


@pytest.mark.parametrize("gone", ["unplugged", "vanished"])
def test_K08_a_blob_whose_memory_has_gone_keeps_the_old_image(gone: str) -> None:
    driver = with_pointer()
    driver.device.set_features(1 << 3)
    driver.ok(create_blob(2, 16384, entries((0, 16384))))
    driver.device.execute_cursor(update_cursor(0, 1))
    if gone == "unplugged":
        driver.guest.unplug(0)
    else:
        driver.guest.vanish(0)
    assert driver.device.execute_cursor(update_cursor(0, 2)) == CursorImage(0, 0, 0, 0, 0, IMAGE)


@pytest.mark.parametrize("number", [9, U32])
def test_K06_an_unknown_resource_shows_the_old_image(number: int) -> None:
    driver = with_pointer()
    first = driver.device.execute_cursor(update_cursor(0, number, (1, 2), (3, 4)))
    assert first == CursorImage(0, 1, 2, 3, 4, bytes(16384)), "there is none yet: transparent"
    driver.device.execute_cursor(update_cursor(0, 1))
    message = driver.device.execute_cursor(update_cursor(0, number, (5, 6), (7, 8)))
    assert message == CursorImage(0, 5, 6, 7, 8, IMAGE)


def test_each_head_has_a_pointer_of_its_own() -> None:
    driver = with_pointer()
    driver.device.execute_cursor(update_cursor(0, 1))
    assert image(driver.device.execute_cursor(update_cursor(1, 77))).pixels == bytes(16384)
    assert image(driver.device.execute_cursor(update_cursor(0, 77))).pixels == IMAGE


@pytest.mark.parametrize(("number", "visible"), [(0, False), (1, True), (77, True), (U32, True)])
def test_K10_a_move_is_visible_where_it_names_a_resource(number: int, visible: bool) -> None:
    driver = with_pointer()
    driver.device.execute_cursor(update_cursor(0, 1))
    message = driver.device.execute_cursor(move_cursor(0, number, (11, 12)))
    assert message == CursorMove(0, 11, 12, visible)


def test_K11_a_move_before_any_image_is_a_move() -> None:
    assert Driver().device.execute_cursor(move_cursor(3, 1, (1, 2))) == CursorMove(3, 1, 2, True)


@pytest.mark.parametrize("hot", [(64, 64), (1000, 0), (U32, U32)])
def test_K12_a_hot_spot_outside_is_passed_on(hot: tuple[int, int]) -> None:
    message = image(with_pointer().device.execute_cursor(update_cursor(0, 1, (0, 0), hot)))
    assert (message.hot_x, message.hot_y) == hot


@pytest.mark.parametrize("at", [(5000, 5000), (U32, U32), (1 << 31, 0)])
def test_K13_a_position_outside_is_passed_on(at: tuple[int, int]) -> None:
    driver = with_pointer()
    shown = image(driver.device.execute_cursor(update_cursor(0, 1, at)))
    assert (shown.x, shown.y) == at
    assert driver.device.execute_cursor(move_cursor(0, 1, at)) == CursorMove(0, *at, True)


def test_K14_a_fence_makes_no_difference() -> None:
    driver = with_pointer()
    fenced = update_cursor(0, 1, (1, 2), flags=FENCE, fence=99)
    assert driver.device.execute_cursor(fenced) == CursorImage(0, 1, 2, 0, 0, IMAGE)


def test_a_pointer_is_no_scanout_and_its_resource_goes_freely() -> None:
    driver = with_pointer()
    driver.device.execute_cursor(update_cursor(0, 1))
    assert driver.ok(unref(1)).display == ()


def test_E07_only_the_two_cursor_commands_are_known() -> None:
    driver = furnished()
    before = snapshot(driver.device)
    for kind in [*range(0x300), *range(0x302, 0x401), 0x1100, U32]:
        body = struct.pack("<8I", 0, 1, 2, 0, 1, 0, 0, 0)
        request = struct.pack("<IIQII", kind, 0, 0, 0, 0) + body
        assert driver.device.execute_cursor(request) is None
    assert snapshot(driver.device) == before
