"""The memory table: what it takes, what it refuses, and that it never changes."""

from __future__ import annotations

from functools import reduce

import pytest

from vgpud.backend.memory import MAX_SLOTS, MemoryTable, Refusal
from vgpuwire import MemRegion

TOP = 1 << 64
LOW = MemRegion(0, 0xC0000, 0x7F0000000000, 0)
BIOS = MemRegion(0xE0000, 0x10000, 0x7F00000E0000, 0xE0000)
HIGH = MemRegion(0x100000, 0x3F00000, 0x7F0000100000, 0x100000)
Q35 = (LOW, BIOS, HIGH)


def row(n: int) -> MemRegion:
    return MemRegion(n << 20, 1 << 20, (1 << 40) + (n << 20), 0)


def test_qemus_q35_table() -> None:
    assert MemoryTable.replaced(Q35).regions == Q35
    assert MemoryTable.replaced(()).regions == ()


@pytest.mark.parametrize(
    ("regions", "reason"),
    [
        ((MemRegion(0, 0, 0, 0),), "without bytes"),
        ((MemRegion(TOP - 4096, 8192, 0, 0),), "wraps"),
        ((MemRegion(0, 8192, TOP - 4096, 0),), "wraps"),
        ((MemRegion(0, 8192, 0, (1 << 63) - 4096),), "wraps"),
        ((MemRegion(0, TOP - 1, 0, 1),), "wraps"),
        ((LOW, MemRegion(0xBFFFF, 2, 0, 0)), "overlap"),
        ((MemRegion(0x1000, 0x1000, 0, 0), MemRegion(0, 0x10000, 0, 0)), "overlap"),
        ((LOW, BIOS, HIGH, MemRegion(0x200000, 1, 0, 0)), "overlap"),
        (tuple(row(n) for n in range(9)), "9 regions"),
    ],
)
def test_refused(regions: tuple[MemRegion, ...], reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        MemoryTable.replaced(regions)
    if len(regions) < 9:
        with pytest.raises(Refusal, match=reason):
            reduce(MemoryTable.added, regions, MemoryTable())


@pytest.mark.parametrize(
    "regions",
    [
        (MemRegion(TOP - 4096, 4096, TOP - 4096, 0),),  # up to the last byte
        (MemRegion(0, 4096, 0x10000, 0), MemRegion(4096, 4096, 0x10000, 0)),  # one block, twice
        (HIGH, LOW, BIOS),  # in any order
        tuple(row(n) for n in range(8)),
    ],
)
def test_taken(regions: tuple[MemRegion, ...]) -> None:
    assert MemoryTable.replaced(regions).regions == regions


def test_add_and_remove() -> None:
    table = MemoryTable().added(LOW).added(HIGH)
    nothing = MemRegion(HIGH.guest_phys_addr, HIGH.memory_size, HIGH.userspace_addr, 0)
    smaller, removed = table.removed(nothing)  # QEMU tells no mmap_offset here
    assert removed == HIGH
    assert smaller.regions == (LOW,)
    assert table.regions == (LOW, HIGH)  # untouched: it is still what is mapped
    assert smaller.added(HIGH).regions == (LOW, HIGH)


@pytest.mark.parametrize(
    "region",
    [
        MemRegion(1, LOW.memory_size, LOW.userspace_addr, 0),
        MemRegion(0, LOW.memory_size - 1, LOW.userspace_addr, 0),
        MemRegion(0, LOW.memory_size, LOW.userspace_addr + 1, 0),
    ],
)
def test_a_region_is_known_by_addresses_and_size(region: MemRegion) -> None:
    with pytest.raises(Refusal, match="no such region"):
        MemoryTable((LOW,)).removed(region)


def test_slots_are_what_was_told() -> None:
    table = MemoryTable(tuple(row(n) for n in range(MAX_SLOTS - 1)))
    full = table.added(row(MAX_SLOTS))
    with pytest.raises(Refusal, match="no memory slot left of 509"):
        full.added(row(MAX_SLOTS + 1))
    assert full.removed(row(3))[0].added(row(MAX_SLOTS + 1))


def test_a_region_told_again_takes_its_own_place() -> None:
    table = MemoryTable().added(LOW)
    assert table.added(LOW).regions == (LOW,)
    with pytest.raises(Refusal, match="overlap"):
        MemoryTable.replaced((LOW, LOW))
