"""Resources by id, and what they may cost."""

from __future__ import annotations

import uuid

import pytest

from tests.support.fake_pixels import FakePixelStore
from vgpud.config import DEFAULT_HOSTMEM
from vgpud.device import resource as module
from vgpud.device.resource import Budget, Image, ResourceTable
from vgpud.errors import GuestError

NO_MEMORY, BAD_RESOURCE = 0x1201, 0x1203
U32 = (1 << 32) - 1


def make(number: int, size: int = 16) -> Image:
    return Image(number, FakePixelStore().create_surface(2, 2, 1), size)


@pytest.mark.parametrize(
    ("used", "width", "height", "fits"),
    [
        (0, 8192, 8191, True),
        (0, 8192, 8192, False),  # the sum must stay below the limit
        (DEFAULT_HOSTMEM - 5, 1, 1, True),
        (DEFAULT_HOSTMEM - 4, 1, 1, False),
        (0, 0, 0, False),
        (0, 0, 100, False),
        (0, 100, 0, False),
        (0, 0x4000_0001, 1, False),
        (0, 1 << 16, 1 << 16, False),
        (0, 1 << 16, (1 << 16) + 1, False),
        (0, U32, U32, False),
    ],
)
def test_an_image_is_counted_without_cutting_its_size(
    used: int, width: int, height: int, fits: bool
) -> None:
    budget = Budget(DEFAULT_HOSTMEM)
    budget.used = used
    if fits:
        assert budget.image_size(width, height) == width * height * 4
    else:
        with pytest.raises(GuestError) as error:
            budget.image_size(width, height)
        assert error.value.code == NO_MEMORY
    assert budget.used == used, "asking takes nothing"


def test_a_limit_of_more_than_4_gib_still_has_no_image_beyond_32_bits() -> None:
    budget = Budget(1 << 40)
    assert budget.image_size(1 << 15, (1 << 15) - 1)
    with pytest.raises(GuestError):
        budget.image_size(1 << 15, 1 << 15)


def test_what_is_removed_is_given_back() -> None:
    table = ResourceTable(Budget(100))
    one, two = make(1, 40), make(2, 30)
    table.add(one)
    table.add(two)
    assert (len(table), table.budget.used, list(table)) == (2, 70, [one, two])
    table.remove(one)
    assert (len(table), table.budget.used, table.get(1), table.get(2)) == (1, 30, None, two)
    table.clear()
    assert (len(table), table.budget.used) == (0, 0)


@pytest.mark.parametrize("number", [0, 1, 7, U32])
def test_an_id_that_is_nobody_s_is_an_error(number: int) -> None:
    with pytest.raises(GuestError) as error:
        ResourceTable(Budget(DEFAULT_HOSTMEM)).require(number)
    assert error.value.code == BAD_RESOURCE


@pytest.mark.parametrize("number", [0, 5])
def test_an_id_that_is_zero_or_taken_is_not_free(number: int) -> None:
    table = ResourceTable(Budget(DEFAULT_HOSTMEM))
    table.add(make(5))
    table.require_free(6)
    with pytest.raises(GuestError) as error:
        table.require_free(number)
    assert error.value.code == BAD_RESOURCE


def test_resources_are_counted_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RESOURCES", 3)
    table = ResourceTable(Budget(DEFAULT_HOSTMEM))
    for number in (1, 2, 3):
        table.require_free(number)
        table.add(make(number))
    with pytest.raises(GuestError) as error:
        table.require_free(4)
    assert error.value.code == NO_MEMORY
    table.remove(table.require(2))
    table.require_free(4)


def test_usage_tells_what_is_left_and_what_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RESOURCES", 2)
    monkeypatch.setattr(module, "MAX_ALL_ENTRIES", 10)
    table = ResourceTable(Budget(100))
    for number in (1, 2):
        table.add(make(number, 40))
    table.entries = 7
    refused = [
        lambda: table.budget.image_size(5, 1),
        lambda: table.budget.image_size(1 << 31, 1 << 31),
        lambda: table.require_free(3),
        lambda: table.require_entries(4),
        lambda: table.require_entries(4),
        lambda: table.budget.image_size(0, 1),  # too little, not too much
    ]
    for one in refused:
        with pytest.raises(GuestError):
            one()
    table.require_entries(3)
    expected = {"hostmem_bytes": (80, 100, 2), "resources": (2, 2, 1), "entries": (7, 10, 2)}
    assert table.usage() == expected
    table.clear()
    assert [usage.used for usage in table.usage().values()] == [0, 0, 0]
    assert [usage.refused for usage in table.usage().values()] == [2, 1, 2], "for the operator"


def test_N03_a_uuid_is_random_and_stays() -> None:
    one, two = make(1), make(2)
    first = one.assign_uuid()
    assert one.assign_uuid() == first != two.assign_uuid()
    assert (first.version, first.variant) == (4, uuid.RFC_4122)
