"""A picture in device memory as the CPU sees it: mappings of the BARs, read in a thread.

One mapping a window of a BAR, not one a run of the picture: the guarded copy finds each piece by
itself, whatever their number, order and alignment (docs/decisions/0011).
"""

from __future__ import annotations

import struct
from typing import Final

from vgpud import _native
from vgpud.errors import GuestError
from vgpud.host.dmabuf import CannotExport, Quota
from vgpud.host.guest_memory import Snapshot
from vgpud.host.placement import InBar, devices_of, place, require_readable
from vgpuwire import Ctrl

_ENTRY: Final = struct.Struct("<QII")
_LONGEST: Final = 1 << 31
"""Bytes of one entry, whose length has 32 bits."""


class CpuView:
    """The first `size` bytes of a backing, mapped. `native` may be read in any thread; it keeps
    the devices open. Raises CannotExport."""

    def __init__(self, memory: Snapshot, backing: _native.Backing, size: int, quota: Quota) -> None:
        runs = backing.runs(size)
        self._devices = devices_of(runs, memory.files)
        dmabuf = _of_dmabuf(runs, memory, size, quota)
        if dmabuf is not None:
            self.native = dmabuf
            return
        # Raised in there: what a local here held would hold this frame, and so the mappings.
        require_readable(runs, memory.files)
        try:
            self.native = backing.rebind(memory.view())
        except (OSError, ValueError) as error:  # the devices' windows were seen to have all of it
            names = ", ".join(sorted(device.name for device in self._devices))
            what = f"memory of {names} cannot be mapped: the kernel refuses ({error})"
            raise CannotExport("vfio-view", what, 0, "see dmesg of the host") from error

    def require_decoding(self) -> None:
        """Raises GuestError(ERR_UNSPEC) where the guest has switched memory decoding off."""
        for device in self._devices:
            if not device.decoding():
                reason = f"the guest has switched the memory of {device.name} off"
                raise GuestError(Ctrl.RESP_ERR_UNSPEC, reason)


def _of_dmabuf(runs: bytes, memory: Snapshot, size: int, quota: Quota) -> _native.Backing | None:
    """Its dma-buf, mapped: in one piece, and write-combined where the kernel knows how. Linux up
    to 7.3 maps none, which is found out once a device."""
    try:
        placement = place(runs, memory.files)
        if not isinstance(placement, InBar) or placement.device.maps_dmabufs is False:
            return None
        dmabuf = placement.device.export(placement.bar, placement.ranges, size, quota)
    except CannotExport:
        return None
    region = _native.Region(dmabuf.fileno(), 0, dmabuf.size, 0, 0, device=True)
    dmabuf.close()  # the mapping holds it
    placement.device.maps_dmabufs = region.access != "none"
    if not placement.device.maps_dmabufs:
        return None
    pieces = range(0, dmabuf.size, _LONGEST)
    entries = b"".join(_ENTRY.pack(at, min(_LONGEST, dmabuf.size - at), 0) for at in pieces)
    return _native.Backing(_native.GuestMemory([region]), entries)
