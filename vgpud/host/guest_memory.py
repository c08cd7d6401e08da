"""Guest memory as it is mapped: the native regions behind QEMU's memory table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from vgpud import _native
from vgpud.errors import HostError
from vgpud.host.fd import OwnedFd
from vgpud.host.region_file import RegionFile, classify
from vgpuwire import MemRegion


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One immutable state of the table."""

    native: _native.GuestMemory
    files: tuple[RegionFile, ...]
    """One a region, by its number in `native.regions`."""


EMPTY = Snapshot(_native.GuestMemory([]), ())


class _Mapped(NamedTuple):
    region: _native.Region
    file: RegionFile


_Table = dict[MemRegion, _Mapped]


class GuestMemory:
    """The regions of one front-end. `snapshot` is immutable: whoever resolved addresses in it
    holds its mappings until it has moved to the next one."""

    def __init__(self) -> None:
        self._regions: _Table = {}
        self.snapshot = EMPTY

    def replace(self, regions: Iterable[tuple[MemRegion, OwnedFd]]) -> None:
        """SET_MEM_TABLE: the whole table. Raises HostError; the old one then stays. Here and in
        add() the descriptors are borrowed."""
        table: _Table = {}
        for region, fd in regions:
            table[_key(region)] = self._map(region, fd, table)
        self._commit(table)

    def add(self, region: MemRegion, fd: OwnedFd) -> None:
        """ADD_MEM_REG. Raises HostError; the table then stays as it was."""
        self._commit({**self._regions, _key(region): self._map(region, fd, {})})

    def remove(self, region: MemRegion) -> None:
        """REM_MEM_REG: told by address and size only, its mmap_offset is 0 on the wire."""
        self._commit({k: v for k, v in self._regions.items() if k != _key(region)})

    def untouched(self) -> bool:
        """Whether nobody ever wrote to any of it, as far as its files can be asked. A driver that
        starts a ring has: then QEMU keeps its writes to itself (share=off), which QEMU 7 to 10
        do not tell."""
        files = [one.file for one in self._regions.values()]
        return bool(files) and all(file.is_empty() for file in files)

    def clear(self) -> None:
        self._commit({})

    def _commit(self, table: _Table) -> None:
        mapped = table.values()
        try:
            native = _native.GuestMemory([one.region for one in mapped])
        except ValueError as error:
            raise HostError(f"memory table: {error}") from error
        self._regions = table
        self.snapshot = Snapshot(native, tuple(one.file for one in mapped))

    def _map(self, region: MemRegion, fd: OwnedFd, table: _Table) -> _Mapped:
        known = (*table.values(), *self._regions.values())
        return _Mapped(_map(region, fd), classify(fd, (one.file for one in known)))


def _key(region: MemRegion) -> MemRegion:
    return MemRegion(region.guest_phys_addr, region.memory_size, region.userspace_addr, 0)


def _map(region: MemRegion, fd: OwnedFd) -> _native.Region:
    try:
        return _native.Region(
            fd.fileno(),
            region.guest_phys_addr,
            region.memory_size,
            region.userspace_addr,
            region.mmap_offset,
        )
    except OSError as error:
        raise HostError.of(error, f"mapping the region at {region.guest_phys_addr:#x}") from error
    except ValueError as error:
        raise HostError(f"region at {region.guest_phys_addr:#x}: {error}") from error
