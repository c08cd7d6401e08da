"""Table A: ATTACH_BACKING and DETACH_BACKING."""

from __future__ import annotations

import tracemalloc

import pytest

from tests.support.fake_pixels import PAGE, FakeGuest, FakePixelStore, entries, entry
from tests.unit.device.driver import (
    BAD_RESOURCE,
    NO_MEMORY,
    OK,
    U32,
    UNSPEC,
    Driver,
    attach,
    create_2d,
    detach,
    flush,
    furnished,
    set_scanout,
    transfer,
    unref,
)

ONE_PAGE = entries((0, PAGE))
TOP = 1 << 64


@pytest.mark.parametrize("number", [0, 3, U32])
def test_A01_an_unknown_id_is_refused(number: int) -> None:
    furnished().refused(attach(number, ONE_PAGE), BAD_RESOURCE)


def test_A02_a_second_backing_is_refused_and_the_first_stays() -> None:
    driver = furnished()
    driver.refused(attach(1, entries((8 * PAGE, PAGE))), UNSPEC)
    assert driver.pieces(1) == [(0, 4 * PAGE)]


def test_A03_sixteen_thousand_entries_are_fine() -> None:
    driver = furnished()
    driver.ok(attach(2, ONE_PAGE * 16384))
    assert driver.resource(2).backing is not None
    assert len(driver.pieces(2)) == 16384


def test_A03_the_entries_of_all_backings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 bytes each on the host, and a guest needs but one page to name it millions of times."""
    monkeypatch.setattr("vgpud.device.resource.MAX_ALL_ENTRIES", 25)
    driver = Driver()
    driver.ok(*(create_2d(number, 4, 4) for number in (1, 2, 3)))
    driver.ok(attach(1, ONE_PAGE * 10), attach(2, ONE_PAGE * 10))
    driver.refused(attach(3, ONE_PAGE * 6), NO_MEMORY)
    driver.refused(attach(3, entries((0, 0)) * 6), NO_MEMORY)
    driver.ok(attach(3, ONE_PAGE * 5), detach(2), detach(2))
    driver.refused(attach(2, ONE_PAGE * 11), NO_MEMORY)
    driver.ok(attach(2, ONE_PAGE * 10), unref(1), detach(3), attach(3, ONE_PAGE * 15))
    driver.device.reset()
    driver.ok(create_2d(1, 4, 4), attach(1, ONE_PAGE * 25))


def test_A04_one_more_is_refused() -> None:
    furnished().refused(attach(2, ONE_PAGE * 16385), UNSPEC)


@pytest.mark.parametrize("count", [16385, 1 << 28, 1 << 31, U32])
@pytest.mark.parametrize("given", [0, 1, 100])
def test_A05_a_huge_count_is_refused_without_an_allocation(count: int, given: int) -> None:
    driver = furnished()
    request = attach(2, ONE_PAGE * given, count)
    driver.refused(request, UNSPEC)
    tracemalloc.start()
    driver.run(request)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 10


@pytest.mark.parametrize(
    ("count", "given"), [(1, 0), (1, 15), (2, 16), (2, 31), (16384, 16 * 16384 - 1)]
)
def test_A06_fewer_entries_than_claimed_are_refused(count: int, given: int) -> None:
    furnished().refused(attach(2, (ONE_PAGE * count)[:given], count), UNSPEC)


def test_A06_more_entries_than_claimed_are_ignored() -> None:
    driver = furnished()
    driver.ok(attach(2, entries((PAGE, PAGE)) + entries((0, 0), (TOP - 1, 99)), 1))
    assert driver.pieces(2) == [(PAGE, PAGE)]


def test_A07_no_entries_change_nothing_and_it_can_be_attached_later() -> None:
    driver = furnished()
    driver.ok(attach(2), attach(2))
    assert driver.resource(2).backing is None
    driver.ok(attach(2, ONE_PAGE))
    assert driver.resource(2).backing is not None


@pytest.mark.parametrize("before", [0, 1, 3])
def test_A08_an_empty_entry_is_refused_wherever_it_is(before: int) -> None:
    furnished().refused(attach(2, ONE_PAGE * before + entries((0, 0)) + ONE_PAGE), UNSPEC)


@pytest.mark.parametrize(
    ("address", "length"),
    [(1 << 40, PAGE), (64 * PAGE, 1), (63 * PAGE, PAGE + 1), (64 * PAGE - 1, 2), (0, U32)],
)
def test_A09_an_entry_that_is_not_all_in_memory_is_refused(address: int, length: int) -> None:
    driver = furnished()
    driver.refused(attach(2, entries((address, length))), UNSPEC)
    driver.refused(attach(2, ONE_PAGE * 1023 + entries((address, length))), UNSPEC)


@pytest.mark.parametrize(
    ("address", "length"), [(TOP - 1, 1), (TOP - 1, 2), (TOP - PAGE, PAGE), (TOP - PAGE, U32)]
)
def test_A10_an_entry_that_wraps_around_is_refused(address: int, length: int) -> None:
    furnished().refused(attach(2, entries((address, length))), UNSPEC)


def test_A11_an_entry_may_cross_from_one_region_into_the_next() -> None:
    driver = Driver(FakePixelStore(FakeGuest((0, PAGE), (PAGE, PAGE))))
    driver.guest.write(PAGE - 8, bytes(range(16)))
    driver.ok(
        create_2d(1, 4, 1),
        attach(1, entries((PAGE - 8, 16))),
        transfer(1, (0, 0, 4, 1)),
    )
    assert bytes(driver.surface(1).pixels) == bytes(range(16))


def test_A12_A13_memory_that_is_not_in_the_table_is_refused() -> None:
    """A BAR that QEMU does not share, and ROM, which it never does."""
    furnished().refused(attach(2, entries((0xFD00_0000, PAGE))), UNSPEC)
    furnished().refused(attach(2, entries((0, PAGE), (0xFFFC_0000, PAGE))), UNSPEC)


def test_A14_entries_may_overlap_and_repeat() -> None:
    driver = Driver()
    driver.guest.write(0, bytes(range(16)))
    driver.ok(
        create_2d(1, 2, 4),
        attach(1, entries((0, 8), (4, 8), (0, 8), (0, 8))),
        transfer(1, (0, 0, 2, 4)),
    )
    first, second = bytes(range(8)), bytes(range(4, 12))
    assert bytes(driver.surface(1).pixels) == first + second + first + first


def test_A17_two_resources_may_share_their_memory() -> None:
    driver = Driver()
    driver.guest.write(0, bytes(range(16)))
    for number in (1, 2):
        driver.ok(
            create_2d(number, 2, 2),
            attach(number, entries((0, 16))),
            transfer(number, (0, 0, 2, 2)),
        )
    driver.ok(unref(1), transfer(2, (0, 0, 2, 2)))
    assert bytes(driver.surface(2).pixels) == bytes(range(16))


@pytest.mark.parametrize("number", [0, 3, U32])
def test_A18_detaching_from_an_unknown_id_is_refused(number: int) -> None:
    furnished().refused(detach(number), BAD_RESOURCE)


def test_A19_detaching_where_nothing_is_attached_is_fine() -> None:
    furnished().ok(detach(2), detach(2))


def test_A20_detaching_what_is_shown_leaves_the_picture() -> None:
    driver = furnished()
    picture = bytes(driver.surface(1).pixels)
    assert driver.ok(detach(1)).display == ()
    assert bytes(driver.surface(1).pixels) == picture != bytes(len(picture))
    assert len(driver.ok(flush(1)).display) == 2
    driver.refused(transfer(1), BAD_RESOURCE)
    driver.ok(attach(1, ONE_PAGE * 4), transfer(1))


def test_A22_a_backing_whose_memory_has_gone_fails_until_it_is_back() -> None:
    driver = furnished()
    here, elsewhere = driver.guest, FakeGuest((1 << 30, PAGE))
    driver.store.set_memory(elsewhere)
    driver.refused(transfer(1), UNSPEC)
    driver.ok(flush(1), set_scanout(0, 1))
    driver.store.set_memory(here)
    driver.ok(transfer(1))
    driver.store.set_memory(elsewhere)
    driver.ok(detach(1), attach(1, entries((1 << 30, PAGE))), transfer(1))


def test_the_padding_of_an_entry_is_ignored() -> None:
    driver = furnished()
    assert driver.run(attach(2, entry(0, PAGE, padding=U32))).kind == OK
    assert driver.pieces(2) == [(0, PAGE)]
