"""The memory table as QEMU told it: validated, but mapped by somebody else.

A table never changes: each operation returns the next one, so that the caller keeps the old one
until the new one is mapped. A table or region that cannot be is refused with `Refusal`, which
becomes a nack: QEMU logs it, keeps its own old table and tries again at the next change
(hw/virtio/vhost-user.c, vhost_user_add_remove_regions).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

from vgpuwire import MemRegion

MAX_TABLE: Final = 8
"""Regions of one SET_MEM_TABLE: VHOST_MEMORY_BASELINE_NREGIONS, fds that one message carries."""

MAX_SLOTS: Final = 509
"""Answer to GET_MAX_MEM_SLOTS. QEMU takes min(answer, 512); KVM, older QEMUs and libvhost-user
stop at 509. A q35 guest with every DIMM slot used needs fewer than 300."""

_ADDRESSES: Final = 1 << 64
_FILE_OFFSETS: Final = 1 << 63
"""off_t is signed."""


class Refusal(ValueError):
    """The request is answered with a nack; its text is for the operator."""


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """The regions of one front-end, none of them overlapping in guest-physical addresses."""

    regions: tuple[MemRegion, ...] = ()

    @classmethod
    def replaced(cls, regions: tuple[MemRegion, ...]) -> Self:
        """The table of a SET_MEM_TABLE. Raises Refusal; the old table then stays."""
        if len(regions) > MAX_TABLE:
            raise Refusal(
                f"{len(regions)} regions in one table; at most {MAX_TABLE} without"
                " VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS"
            )
        return cls(_checked(regions))

    def added(self, region: MemRegion) -> MemoryTable:
        """With the region of an ADD_MEM_REG; one told again takes its own place. Raises Refusal."""
        if region in self.regions:
            return self
        if len(self.regions) >= MAX_SLOTS:
            raise Refusal(f"no memory slot left of {MAX_SLOTS}: use fewer or larger DIMMs")
        return MemoryTable(_checked((*self.regions, region)))

    def removed(self, region: MemRegion) -> tuple[MemoryTable, MemRegion]:
        """Without the region of a REM_MEM_REG, and the region as it was added.

        It is found by its addresses and size: QEMU sends an mmap_offset of 0 here. Raises
        Refusal where there is none.
        """
        for known in self.regions:
            if _key(known) == _key(region):
                return MemoryTable(tuple(r for r in self.regions if r is not known)), known
        raise Refusal(f"no such region: {describe(region)}")


def describe(region: MemRegion) -> str:
    """A region in the operator's log."""
    return (
        f"guest-physical {region.guest_phys_addr:#x}, {region.memory_size:#x} bytes at"
        f" {region.userspace_addr:#x}, offset {region.mmap_offset:#x}"
    )


def _key(region: MemRegion) -> tuple[int, int, int]:
    return region.guest_phys_addr, region.memory_size, region.userspace_addr


def _checked(regions: tuple[MemRegion, ...]) -> tuple[MemRegion, ...]:
    for region in regions:
        size = region.memory_size
        if size == 0:
            raise Refusal(f"a region without bytes: {describe(region)}")
        if (
            region.guest_phys_addr + size > _ADDRESSES
            or region.userspace_addr + size > _ADDRESSES
            or region.mmap_offset + size > _FILE_OFFSETS
        ):
            raise Refusal(f"a region that wraps around: {describe(region)}")
    ordered = sorted(regions, key=_key)
    for low, high in pairwise(ordered):
        # Userspace addresses may well coincide: one block of RAM seen at two places.
        if low.guest_phys_addr + low.memory_size > high.guest_phys_addr:
            raise Refusal(f"regions overlap: {describe(low)}, and {describe(high)}")
    return regions
