"""Table R: what a reset leaves. Stop, reconnect and replay are the wire layer's."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from tests.support.fake_pixels import PAGE, entries
from tests.unit.device.driver import (
    BAD_RESOURCE,
    OK,
    OK_UUID,
    UNSPEC,
    Driver,
    assign_uuid,
    attach,
    create_2d,
    flush,
    furnished,
    set_scanout,
    snapshot,
    transfer,
    unref,
    update_cursor,
)
from vgpud.device.outcome import CursorImage


def test_R01_after_a_reset_nothing_of_the_guest_is_left() -> None:
    driver = furnished()
    driver.run(assign_uuid(1))
    driver.device.reset()
    fresh = Driver()
    fresh.device.set_features(0x1F)
    assert snapshot(driver.device) == snapshot(fresh.device)
    for request in (unref(1), transfer(1), flush(1), attach(1), set_scanout(0, 2)):
        driver.refused(request, BAD_RESOURCE)


def test_R01_the_features_stay_until_they_are_acked_again() -> None:
    """Each start sets them, and a reset that is told by SET_VRING_BASE only comes after that."""
    driver = furnished()
    driver.device.reset()
    driver.ok(create_2d(1))
    assert driver.run(assign_uuid(1)).kind == OK_UUID
    driver.device.set_features(0)
    driver.refused(assign_uuid(1), UNSPEC)


def test_R01_the_next_driver_finds_the_ids_and_the_whole_quota_free() -> None:
    driver = Driver(max_hostmem=64 * 64 * 4 + 1)
    for _ in range(3):
        driver.ok(create_2d(1), set_scanout(0, 1), attach(1, entries((0, PAGE))))
        driver.device.reset()


def test_R01_pixels_pages_and_pointers_are_freed() -> None:
    driver = furnished()
    resource = driver.resource(1)
    assert resource.backing is not None
    left: list[Any] = [weakref.ref(driver.surface(1)), weakref.ref(resource.backing)]
    del resource
    driver.device.reset()
    gc.collect()
    assert [one() for one in left] == [None, None]
    message = driver.device.execute_cursor(update_cursor(0, 77))
    assert isinstance(message, CursorImage)
    assert message.pixels == bytes(16384), "the old pointer would be another guest's"


def test_R04_a_reset_shows_nothing_and_says_nothing() -> None:
    driver = furnished()
    driver.device.reset()
    driver.ok(create_2d(1))
    assert driver.ok(flush(1)).display == ()
    assert driver.ok(set_scanout(0, 0)).display == ()


def test_R09_a_resource_whose_memory_has_gone_can_be_taken_down() -> None:
    driver = furnished()
    driver.guest.unplug(0)
    driver.refused(transfer(1), UNSPEC)
    assert driver.run(unref(1)).kind == OK
    driver.refused(transfer(1), BAD_RESOURCE)


def test_a_reset_keeps_what_is_not_the_guest_s() -> None:
    driver = furnished(heads=2)
    driver.refused(unref(99), BAD_RESOURCE)
    driver.device.reset()
    assert driver.device.outputs.limit == 2, "QEMU's heads"
    assert driver.device.guest_errors == {BAD_RESOURCE: 1}, "the operator's counters"
