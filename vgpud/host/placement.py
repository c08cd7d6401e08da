"""Where a backing's memory is, and so what can make a dma-buf of it (peers.md 7.10).

It is told from the memory table, not by trying one exporter after the other: the errno of one says
nothing about the other, and a guest that mixes memories is not the operator's fault.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from vgpud.host.dmabuf import CannotExport
from vgpud.host.region_file import RegionFile
from vgpud.host.vfio import Bar, VfioDevice
from vgpuwire.ioctls import UdmabufCreateItem

_RUN: Final = struct.Struct("=IIQQ")
assert _RUN.size == UdmabufCreateItem.SIZE

_ONE_BAR: Final = "a dma-buf has memory of one BAR only: the guest's driver must place it so"


class InRam(NamedTuple):
    """All of it is guest RAM: /dev/udmabuf."""


class InBar(NamedTuple):
    """All of it is in one BAR: VFIO. `ranges` are (offset in the BAR, length) in order."""

    device: VfioDevice
    bar: Bar
    ranges: tuple[tuple[int, int], ...]


class IsDmabuf(NamedTuple):
    """It is the start of a dma-buf that QEMU made of the whole BAR."""

    file: RegionFile


Placement = InRam | InBar | IsDmabuf


def place(runs: bytes, files: Sequence[RegionFile]) -> Placement:
    """`runs` is what `_native.Backing.runs()` returned, `files` the regions' files. Raises
    CannotExport where nothing can make one dma-buf of it."""
    pieces = [(files[n], offset, length) for n, _, offset, length in _RUN.iter_unpack(runs)]
    device_pieces = [piece for piece in pieces if not piece[0].mappable]
    if not device_pieces:
        return InRam()
    if len(device_pieces) < len(pieces):
        raise CannotExport("mixed", "the picture is partly in RAM, partly in a device", 0, _ONE_BAR)
    if any(file.kind == "dma-buf" for file, _, _ in pieces):
        return _dmabuf(pieces)
    found = [_in_bar(*piece) for piece in pieces]
    device, bar, _, _ = found[0]
    if any(one[0] is not device for one in found):
        raise CannotExport("two-devices", "the picture is in memory of two devices", 0, _ONE_BAR)
    if any(one[1] != bar for one in found):
        raise CannotExport("two-bars", f"the picture is in two BARs of {device.name}", 0, _ONE_BAR)
    return InBar(device, bar, tuple((offset, length) for _, _, offset, length in found))


def unreadable(runs: bytes, files: Sequence[RegionFile]) -> CannotExport | None:
    """Why the CPU cannot read all of it, by mappings of the BARs; None where it can."""
    try:
        require_readable(runs, files)
    except CannotExport as error:
        return error
    return None


def require_readable(runs: bytes, files: Sequence[RegionFile]) -> None:
    """Raises CannotExport where the CPU cannot read all of it, by mappings of the BARs."""
    for number, _, offset, length in _RUN.iter_unpack(runs):
        file = files[number]
        if file.mappable:
            continue
        if file.kind == "dma-buf":
            what = "a dma-buf of a BAR, which Linux lets nobody map"
            raise CannotExport("bar-dmabuf-view", what)
        device, bar, at, _ = _in_bar(file, offset, length)
        end = at + length
        for window in sorted(bar.windows):
            if window.offset <= at < window.offset + window.size:
                at = min(end, window.offset + window.size)
        if at < end:
            what = f"BAR {bar.number} of {device.name} cannot be mapped at {at:#x}"
            remedy = "the guest's driver must not place pictures there"
            raise CannotExport("hole", what, 0, remedy)


def devices_of(runs: bytes, files: Sequence[RegionFile]) -> set[VfioDevice]:
    """Those whose memory is in it."""
    numbers = {number for number, *_ in _RUN.iter_unpack(runs)}
    return {device for n in numbers if (device := files[n].device) is not None}


def _in_bar(file: RegionFile, offset: int, length: int) -> tuple[VfioDevice, Bar, int, int]:
    device = file.device
    if device is None:
        obstacle = file.obstacle
        what = "device memory cannot be used" if obstacle is None else obstacle.what
        raise CannotExport("vfio-device", what)
    bar = device.bar_at(offset)
    if bar is None:
        remedy = "QEMU's memory table and the device disagree: report this with QEMU's version"
        raise CannotExport("vfio-bar", f"{device.name} has no BAR at {offset:#x}", 0, remedy)
    return device, bar, offset - bar.offset, length


def _dmabuf(pieces: Sequence[tuple[RegionFile, int, int]]) -> IsDmabuf:
    """QEMU's display ignores an offset, and a dma-buf cannot be cut."""
    file, offset, length = pieces[0]
    remedy = (
        "QEMU gave a dma-buf of the whole BAR, of which nothing but its start can be shown; use a "
        "QEMU that gives the VFIO device (docs/qemu.md), or --qmp"
    )
    if len(pieces) > 1 or offset:
        what = f"{length} bytes at {offset:#x} of a dma-buf of a BAR, in {len(pieces)} pieces"
        raise CannotExport("bar-dmabuf", what, 0, remedy)
    there = os.lseek(file.fileno(), 0, os.SEEK_END)
    if length > there:
        raise CannotExport("bar-dmabuf-end", f"a dma-buf of {there} bytes for {length}", 0, remedy)
    return IsDmabuf(file)
