"""Which commands need QMP's answer before they are executed.

A guest sends SET_SCANOUT_BLOB right behind CREATE_BLOB, so the ring's task waits, and the commands
behind it with it.
"""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary, ref

from vgpud.device.envelope import entries_of
from vgpud.device.gpu import GpuDevice
from vgpud.errors import GuestError
from vgpud.host.backing import HostBacking
from vgpud.host.surfaces import HostPixelStore
from vgpud.tasks.device_source import DeviceSource
from vgpuwire import Ctrl, ResourceAttachBacking, ResourceCreateBlob, SetScanoutBlob

_WITH_ENTRIES: Final[dict[int, type[ResourceCreateBlob | ResourceAttachBacking]]] = {
    Ctrl.CMD_RESOURCE_CREATE_BLOB: ResourceCreateBlob,
    Ctrl.CMD_RESOURCE_ATTACH_BACKING: ResourceAttachBacking,
}


class DeviceGate:
    """`vgpud.tasks.ring.Gate` of the control queue."""

    def __init__(self, source: DeviceSource, device: GpuDevice, store: HostPixelStore) -> None:
        self._source = source
        self._device = device
        self._store = store
        self._checked: WeakKeyDictionary[HostBacking, int] = WeakKeyDictionary()
        self._unsure: ref[HostBacking] | None = None

    def wants(self, request: bytes) -> bool:
        """An address that nobody knows; or a picture in device memory that is shown for the first
        time since the guest may have moved its BARs."""
        self._unsure = None
        kind = int.from_bytes(request[:4], "little")
        if kind == Ctrl.CMD_SET_SCANOUT_BLOB:
            return self._is_unsure(request)
        record = _WITH_ENTRIES.get(kind)
        if record is None or len(request) < record.SIZE:
            return False
        try:
            entries = entries_of(request[record.SIZE :], record.decode(request).nr_entries)
        except GuestError:
            return False
        return bool(entries) and not self._store.knows(entries)

    async def ask(self) -> None:
        version = self._source.version  # which the answer itself may make older
        answered = await self._source.ask()
        backing = None if self._unsure is None else self._unsure()
        if answered and backing is not None:
            self._checked[backing] = version

    def _is_unsure(self, request: bytes) -> bool:
        if len(request) < SetScanoutBlob.SIZE:
            return False
        resource = self._device.resources.get(SetScanoutBlob.decode(request).resource_id)
        backing = None if resource is None else resource.backing
        if not isinstance(backing, HostBacking) or not (backing.lost or backing.slow):
            return False
        if self._checked.get(backing) == self._source.version:
            return False
        self._unsure = ref(backing)
        return True
