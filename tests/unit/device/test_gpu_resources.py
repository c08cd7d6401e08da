"""Tables C, U, N and the part of M, P that a device without a renderer decides: resources come, go
and have a UUID. Blobs are in test_gpu_blob.py."""

from __future__ import annotations

import gc
import struct
import uuid
import weakref
from typing import Any

import pytest

from tests.support.fake_pixels import PAGE, FakePixelStore, HollowStore, entries
from tests.unit.device.driver import (
    BAD_PARAMETER,
    BAD_RESOURCE,
    FORMATS,
    NO_MEMORY,
    OK,
    OK_UUID,
    U32,
    UNSPEC,
    Driver,
    assign_uuid,
    attach,
    command,
    create_2d,
    detach,
    flush,
    furnished,
    set_scanout,
    snapshot,
    transfer,
    unref,
    update_cursor,
)
from vgpud.device.outcome import CursorImage, ShowSurface
from vgpud.device.scanout import NOTHING

UUID_FEATURE = 1 << 2
LIMIT = 256 << 20


def test_C01_id_zero_is_refused() -> None:
    furnished().refused(create_2d(0), BAD_RESOURCE)


def test_C02_a_taken_id_is_refused_and_the_old_resource_stays() -> None:
    furnished().refused(create_2d(1, 16, 16), BAD_RESOURCE)


@pytest.mark.parametrize("number", [0, 1])
def test_C03_the_id_is_looked_at_before_format_and_size(number: int) -> None:
    furnished().refused(create_2d(number, 1 << 31, 1 << 31, pixel_format=5), BAD_RESOURCE)


@pytest.mark.parametrize("pixel_format", [0, 5, 66, 69, 120, 122, 133, 135, 1 << 8, 0x101, U32])
def test_C04_a_format_that_is_none_is_refused(pixel_format: int) -> None:
    furnished().refused(create_2d(9, pixel_format=pixel_format), BAD_PARAMETER)


def test_C04_the_format_is_looked_at_before_the_size() -> None:
    furnished().refused(create_2d(9, 1 << 31, 1 << 31, pixel_format=5), BAD_PARAMETER)


@pytest.mark.parametrize("pixel_format", FORMATS.values(), ids=FORMATS)
def test_C05_each_format_makes_a_resource_of_four_bytes_a_pixel(pixel_format: int) -> None:
    driver = Driver()
    answer = driver.ok(create_2d(7, 64, 64, pixel_format))
    assert (answer.display, answer.body) == ((), b"")
    surface = driver.surface(7)
    assert (surface.width, surface.height, surface.pixel_format) == (64, 64, pixel_format)
    assert driver.device.resources.budget.used == 16384


@pytest.mark.parametrize(
    ("width", "height"),
    [(1 << 16, 1 << 16), (1 << 16, (1 << 16) + 1), (U32, U32), (U32, 1), (1, U32), (1 << 31, 2)],
)
def test_C06_an_image_beyond_32_bits_is_out_of_memory(width: int, height: int) -> None:
    furnished().refused(create_2d(9, width, height), NO_MEMORY)


@pytest.mark.parametrize("width", [0x4000_0000, 0x4000_0001, 0x0800_0001, 0x2000_0001])
def test_C07_a_row_whose_bytes_or_bits_wrap_is_out_of_memory(width: int) -> None:
    driver = furnished()
    driver.refused(create_2d(9, width, 1), NO_MEMORY)
    driver.refused(create_2d(9, 1, width), NO_MEMORY)
    driver.refused(transfer(9, (0, 0, width, 1)), BAD_RESOURCE)


def test_C08_exactly_the_quota_is_too_much() -> None:
    driver = Driver(HollowStore())
    driver.refused(create_2d(1, 8192, 8192), NO_MEMORY)


def test_C09_one_row_less_than_the_quota_is_fine() -> None:
    driver = Driver(HollowStore())
    driver.ok(create_2d(1, 8192, 8191))
    assert driver.device.resources.budget.used == 268_402_688


def test_C10_the_sum_stays_below_the_quota_and_unref_gives_back() -> None:
    driver = Driver(HollowStore())
    driver.ok(*(create_2d(n, 1024, 1024) for n in range(1, 64)))
    driver.refused(create_2d(64, 1024, 1024), NO_MEMORY)
    driver.ok(create_2d(64, 1024, 1023))
    assert driver.device.resources.budget.used == LIMIT - 4096
    driver.refused(create_2d(65, 1024, 1), NO_MEMORY)
    driver.ok(create_2d(65, 1023, 1))
    driver.refused(create_2d(66, 1, 1), NO_MEMORY)
    driver.ok(unref(30), create_2d(30, 1024, 1024))
    driver.ok(*(unref(n) for n in range(1, 66)))
    assert driver.device.resources.budget.used == 0
    driver.ok(create_2d(1, 8192, 8191))


def test_C10_the_quota_is_the_operator_s_choice() -> None:
    driver = Driver(max_hostmem=64 * 64 * 4 + 1)
    driver.ok(create_2d(1))
    driver.refused(create_2d(2, 1, 1), NO_MEMORY)


@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 64), (64, 0), (0, U32)])
def test_C11_an_empty_image_is_out_of_memory(width: int, height: int) -> None:
    furnished().refused(create_2d(9, width, height), NO_MEMORY)


def test_C12_after_out_of_memory_the_id_is_free() -> None:
    driver = Driver()
    driver.refused(create_2d(1, 1 << 16, 1 << 16), NO_MEMORY)
    driver.ok(create_2d(1))


def test_C12_a_host_without_memory_costs_no_quota_and_no_id() -> None:
    store = FakePixelStore()
    driver = Driver(store)
    store.refuse = True
    driver.refused(create_2d(1), NO_MEMORY)
    assert driver.device.resources.budget.used == 0
    store.refuse = False
    driver.ok(create_2d(1))


@pytest.mark.parametrize("pixel_format", FORMATS.values(), ids=FORMATS)
def test_C13_a_new_resource_is_zeros(pixel_format: int) -> None:
    driver = Driver()
    driver.ok(create_2d(1, 5, 3, pixel_format))
    assert bytes(driver.surface(1).pixels) == bytes(60)


@pytest.mark.parametrize("number", [0, 3, U32])
def test_U01_an_unknown_id_is_refused(number: int) -> None:
    furnished().refused(unref(number), BAD_RESOURCE)


def test_U02_an_idle_resource_goes_without_a_word_to_the_display() -> None:
    driver = furnished()
    used = driver.device.resources.budget.used
    assert driver.ok(unref(2)).display == ()
    assert driver.device.resources.budget.used == used - 32 * 16 * 4
    for request in (unref(2), flush(2), transfer(2), detach(2), set_scanout(0, 2), attach(2)):
        driver.refused(request, BAD_RESOURCE)


def test_U03_the_scanout_of_a_resource_goes_with_it() -> None:
    driver = Driver()
    driver.ok(create_2d(1), set_scanout(3, 1))
    assert driver.ok(unref(1)).display == (ShowSurface(3, None, NOTHING),)
    assert driver.ok(set_scanout(3, 0)).display == (), "it is off already"


def test_U04_all_its_scanouts_go_with_it_and_no_other() -> None:
    driver = Driver()
    driver.ok(create_2d(1), create_2d(2))
    driver.ok(*(set_scanout(head, 1 + head % 2) for head in range(16)))
    gone = [message.scanout_id for message in driver.ok(unref(1)).display]
    assert gone == list(range(0, 16, 2))
    assert [message.scanout_id for message in driver.ok(flush(2)).display] == list(range(1, 16, 2))


def test_U05_the_pointer_outlives_its_resource() -> None:
    driver = furnished()
    shown = driver.device.execute_cursor(update_cursor(0, 1, (7, 8)))
    assert isinstance(shown, CursorImage)
    driver.ok(unref(1))
    again = driver.device.execute_cursor(update_cursor(0, 1, (9, 9)))
    assert isinstance(again, CursorImage)
    assert again.pixels == shown.pixels != bytes(16384)


def test_U07_a_resource_that_goes_takes_its_pixels_and_pages_along() -> None:
    driver = furnished()
    resource = driver.resource(1)
    assert resource.backing is not None
    left: list[Any] = [weakref.ref(driver.surface(1)), weakref.ref(resource.backing)]
    del resource
    driver.ok(unref(1))
    gc.collect()
    assert [one() for one in left] == [None, None]


def test_U07_a_thousand_rounds_leave_nothing() -> None:
    driver = Driver()
    before = snapshot(driver.device)
    pieces = entries((0, PAGE), (2 * PAGE, PAGE))
    for n in range(1, 1001):
        driver.ok(create_2d(n, 8, 8), attach(n, pieces), set_scanout(0, 0), unref(n))
    assert snapshot(driver.device) == before


def test_N01_a_uuid_needs_the_feature() -> None:
    driver = furnished()
    driver.device.set_features(0x1F & ~UUID_FEATURE)
    driver.refused(assign_uuid(1), UNSPEC)
    driver.refused(assign_uuid(77), UNSPEC)


@pytest.mark.parametrize("number", [0, 3, U32])
def test_N02_an_unknown_resource_has_no_uuid(number: int) -> None:
    furnished().refused(assign_uuid(number), BAD_RESOURCE)


def test_N03_a_uuid_is_the_same_each_time_and_another_for_each_resource() -> None:
    driver = furnished()
    answers = [driver.run(assign_uuid(number, flags=1, fence=6)) for number in (1, 2, 1)]
    assert {(a.kind, a.flags, a.fence, len(a.body)) for a in answers} == {(OK_UUID, 1, 6, 16)}
    one, two, again = (uuid.UUID(bytes=answer.body) for answer in answers)
    assert one == again != two
    assert one.version == 4


def test_a_resource_made_anew_under_an_old_id_has_a_new_uuid() -> None:
    driver = furnished()
    old = driver.run(assign_uuid(2)).body
    driver.ok(unref(2), create_2d(2))
    assert driver.run(assign_uuid(2)).body != old


@pytest.mark.parametrize("kind", [0x0208, 0x0209])
def test_M01_blobs_are_not_mapped_on_a_2d_device(kind: int) -> None:
    furnished().refused(command(kind, bytes(16)), UNSPEC)


@pytest.mark.parametrize("index", [0, 1, U32])
def test_P01_a_2d_device_has_no_capset_to_describe(index: int) -> None:
    furnished().refused(command(0x0108, struct.pack("<II", index, 0)), UNSPEC)


@pytest.mark.parametrize("capset", [0, 1, 2, 4, U32])
def test_P02_a_2d_device_has_no_capset_to_give(capset: int) -> None:
    furnished().refused(command(0x0109, struct.pack("<II", capset, 0)), UNSPEC)


def test_resources_of_one_pixel_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vgpud.device.resource.MAX_RESOURCES", 100)
    driver = Driver()
    driver.ok(*(create_2d(n, 1, 1) for n in range(1, 101)))
    driver.refused(create_2d(101, 1, 1), NO_MEMORY)
    assert driver.run(unref(50)).kind == OK
    driver.ok(create_2d(101, 1, 1))
