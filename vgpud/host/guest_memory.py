"""Guest memory as it is mapped: the native regions behind QEMU's memory table.

Regions of VFIO devices (their BARs) are in it without a mapping. They come with the table, their
descriptor being the device's, or from whoever asked QEMU for them (`set_devices`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vgpud import _native, log
from vgpud.errors import HostError
from vgpud.host.fd import OwnedFd
from vgpud.host.region_file import PAGE, RegionFile, classify
from vgpud.host.vfio import VfioDevice
from vgpuwire import MemRegion


class Snapshot:
    """One immutable state of the table."""

    __slots__ = ("_view", "files", "native")

    def __init__(self, native: _native.GuestMemory, files: tuple[RegionFile, ...]) -> None:
        self.native = native
        self.files = files
        """One a region, by its number in `native.regions`. The offset of a device's region is the
        one in the device's descriptor."""
        self._view: _native.GuestMemory | None = None

    def view(self) -> _native.GuestMemory:
        """The same, with the BARs mapped as far as they can be: for the CPU to read a picture in
        them, in a thread. Whoever has it keeps their devices open. A window that the kernel does
        not map is not there: pictures elsewhere do not suffer from it."""
        if self._view is None:
            regions: list[_native.Region] = []
            for region, file in zip(self.native.regions, self.files, strict=True):
                regions += [region] if file.device is None else _mapped(region, file.device)
            self._view = _native.GuestMemory(regions)
        return self._view


EMPTY = Snapshot(_native.GuestMemory([]), ())


class DeviceRegion(NamedTuple):
    """A range of guest-physical addresses where a device's BAR is: `size` bytes from the BAR's
    `offset` on."""

    guest_phys_addr: int
    size: int
    device: VfioDevice
    bar: int
    offset: int = 0


class _Mapped(NamedTuple):
    region: _native.Region
    file: RegionFile
    given: DeviceRegion | None = None
    """What set_devices() was given."""


_Table = dict[MemRegion, _Mapped]


class GuestMemory:
    """The regions of one front-end. `snapshot` is immutable: whoever resolved addresses in it
    holds its mappings until it has moved to the next one."""

    def __init__(self) -> None:
        self._regions: _Table = {}
        self._devices: tuple[_Mapped, ...] = ()
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

    def set_devices(self, regions: Iterable[DeviceRegion]) -> None:
        """All device regions that are not in QEMU's table, instead of those of before. The devices
        stay their owner's: close() them when they are in no table.

        Raises HostError, and nothing changes, for a region that is not in its BAR, or where two
        overlap or one overlaps the table, which is always right.
        """
        devices = tuple(map(_device_region, regions))
        self._commit(self._regions, devices)

    def in_force(self) -> list[DeviceRegion]:
        """Of set_devices(): those that the table, which came later, has not dropped."""
        return [one.given for one in self._devices if one.given is not None]

    def syspaths(self) -> set[str]:
        """Of the devices that have regions, where the kernel tells."""
        devices = (file.device for file in self.snapshot.files)
        return {one.syspath for one in devices if one is not None and one.syspath}

    def drop_device(self, syspath: str) -> bool:
        """A device is being unbound, which waits for every descriptor of it: its regions are as if
        they were not there, and those of the table let go of it. False where there is none."""
        devices = {
            one.file.device
            for one in (*self._regions.values(), *self._devices)
            if one.file.device is not None and one.file.device.syspath == syspath
        }
        if not devices:
            return False
        kept = {k: v for k, v in self._regions.items() if v.file.device not in devices}
        self._commit(kept, tuple(one for one in self._devices if one.file.device not in devices))
        return True

    def untouched(self) -> bool:
        """Whether nobody ever wrote to any of it, as far as its files can be asked. A driver that
        starts a ring has: then QEMU keeps its writes to itself (share=off), which QEMU 7 to 10
        do not tell."""
        files = [one.file for one in self._regions.values() if one.file.mappable]
        return bool(files) and all(file.is_empty() for file in files)

    def clear(self) -> None:
        self._commit({}, ())

    def _commit(self, table: _Table, devices: Sequence[_Mapped] | None = None) -> None:
        if devices is None:
            devices = [one for one in self._devices if not _overlaps(one, table)]
            if len(devices) < len(self._devices):
                log.warning("device-region-dropped", reason="QEMU's memory table has its addresses")
        mapped = [*table.values(), *devices]
        try:
            native = _native.GuestMemory([one.region for one in mapped])
        except ValueError as error:
            raise HostError(f"memory table: {error}") from error
        gone = _own_devices(self._regions) - _own_devices(table)
        self._regions, self._devices = table, tuple(devices)
        self.snapshot = Snapshot(native, tuple(one.file for one in mapped))
        for device in gone:
            device.close()

    def _map(self, region: MemRegion, fd: OwnedFd, table: _Table) -> _Mapped:
        known = (*table.values(), *self._regions.values())
        file = classify(fd, (one.file for one in known))
        return _Mapped(_map(region, fd if file.mappable else None), file)


def _own_devices(table: _Table) -> set[VfioDevice]:
    """Those whose descriptor came with the table."""
    return {one.file.device for one in table.values() if one.file.device is not None}


def _overlaps(one: _Mapped, table: _Table) -> bool:
    start, end = one.region.guest_phys_addr, one.region.guest_phys_addr + one.region.memory_size
    return any(
        key.guest_phys_addr < end and start < key.guest_phys_addr + key.memory_size for key in table
    )


def _device_region(region: DeviceRegion) -> _Mapped:
    bar = region.device.bar(region.bar)
    if bar is None or region.offset + region.size > bar.size:
        raise HostError(
            f"{region.size:#x} bytes at {region.offset:#x} are not in BAR {region.bar} of "
            f"{region.device.name}: QEMU shows another device at {region.guest_phys_addr:#x}"
        )
    offset = bar.offset + region.offset
    wanted = MemRegion(region.guest_phys_addr, region.size, 0, offset)
    file = RegionFile("vfio", None, PAGE, device=region.device)
    return _Mapped(_map(wanted, None), file, region)


def _mapped(region: _native.Region, device: VfioDevice) -> Iterator[_native.Region]:
    """The parts of a device's region that can be mapped, mapped."""
    start = region.mmap_offset
    bar = device.bar_at(start)
    if bar is None:
        return
    for window in bar.windows:
        low = max(start, bar.offset + window.offset)
        high = min(start + region.memory_size, bar.offset + window.offset + window.size)
        if low >= high:
            continue
        gpa = region.guest_phys_addr + low - start
        made = _native.Region(device.fileno(), gpa, high - low, 0, low, device=True)
        if made.access != "none":
            yield made


def _key(region: MemRegion) -> MemRegion:
    return MemRegion(region.guest_phys_addr, region.memory_size, region.userspace_addr, 0)


def _map(region: MemRegion, fd: OwnedFd | None) -> _native.Region:
    try:
        return _native.Region(
            None if fd is None else fd.fileno(),
            region.guest_phys_addr,
            region.memory_size,
            region.userspace_addr,
            region.mmap_offset,
        )
    except OSError as error:
        raise HostError.of(error, f"mapping the region at {region.guest_phys_addr:#x}") from error
    except ValueError as error:
        raise HostError(f"region at {region.guest_phys_addr:#x}: {error}") from error
