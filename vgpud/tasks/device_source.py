"""VFIO devices of a QEMU that does not send their memory: QMP tells where their BARs are, and their
descriptors are handed over (`vgpuctl vfio add`) or taken from QEMU (`--vfio-from-qemu`).

Asked before a command that needs it (tasks/device_gate.py). No vhost-user handler ever waits here:
QEMU answers QMP from the loop that may be waiting for that handler.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import trio

from vgpud import log
from vgpud.errors import HostError
from vgpud.host.fd import OwnedFd
from vgpud.host.guest_memory import DeviceRegion
from vgpud.host.handover import Found, address_of, device_syspath, devices_of, pick, take_device
from vgpud.host.vfio import PAGE, VfioDevice
from vgpud.tasks.qmp import Qmp, QmpDown, QmpError

PATIENCE: Final = 0.5
"""Seconds that a guest's command waits for QMP. Then it is executed with what is known."""

ADD: Final = "vgpuctl vfio add ID, or --vfio-from-qemu"

Apply = Callable[[Sequence[DeviceRegion]], Awaitable[None]]
"""`Session.set_devices`."""


class Bar(NamedTuple):
    """A memory BAR that the guest has switched on."""

    number: int
    address: int
    """Guest-physical."""
    size: int


class Place(NamedTuple):
    """A PCI device of QEMU's, by its `id=`."""

    id: str
    bars: tuple[Bar, ...]
    host: str = ""
    """Its PCI address here; empty for what is no VFIO device."""


class DeviceSource:
    """The devices of one session. run() must be running for the rest to work."""

    def __init__(
        self,
        path: str,
        apply: Apply,
        in_force: Callable[[], Sequence[DeviceRegion]],
        pids: Callable[[], Sequence[int]],
        *,
        may_take: bool,
        make: Callable[[OwnedFd, str], VfioDevice] = VfioDevice,
    ) -> None:
        """`path` is QEMU's monitor, `pids` are the processes that may be QEMU beside the one that
        has it; `may_take`: their descriptors may be taken. `in_force` tells what is left of what
        was applied: QEMU's memory table drops what it overlaps."""
        self._apply = apply
        self._in_force = in_force
        self._pids = pids
        self._may_take = may_take
        self._make = make
        self._qmp = Qmp(path, self._event, self._connected)
        self._asking = trio.Lock()
        self._setting = trio.Lock()
        self._changed = trio.Event()
        self._devices: dict[str, VfioDevice] = {}
        self._hosts: dict[str, str] = {}  # by id: the answer, until it may be another one
        self._unbound: set[str] = set()
        self._places: list[Place] = []
        self._said: set[tuple[str, str]] = set()
        self.version = 0
        """Grows whenever what was asked may have become wrong."""

    async def run(self) -> None:
        """Keep the connection, and the regions where QEMU says that something changed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._qmp.run)
            while True:
                await self._changed.wait()
                self._changed = trio.Event()
                await self.ask()

    async def ask(self) -> bool:
        """Bring devices and regions up to date; after PATIENCE it is left at what is known. False
        where that may be wrong, and nothing will tell: `version` grows with a new connection."""
        with trio.move_on_after(PATIENCE) as limit:
            try:
                async with self._asking:
                    await self._ask()
            except (QmpDown, QmpError) as error:
                self._say("qmp", str(error))
        if not limit.cancelled_caught or not self._qmp.connected:  # which has said why
            return True
        self._say("qmp", f"QEMU did not answer in {PATIENCE:g} s")
        return False

    async def add(self, name: str, fd: OwnedFd) -> None:
        """A descriptor of the device that QEMU calls `name`; it is owned from now on. Raises
        HostError where it is no VFIO device, or another one than QEMU's."""
        try:
            syspath = device_syspath(fd)
            host = await self._find(name)
            if syspath and address_of(syspath) != host:
                raise HostError(f"the descriptor is {address_of(syspath)}, QEMU's {name} is {host}")
            device = self._make(fd, name)
        except BaseException:
            fd.close()
            raise
        await self._forget(name)
        self._devices[name] = device
        log.info("vfio-added", id=name, device=host)
        await self.ask()

    async def remove(self, name: str) -> None:
        """Let go of a device. It is not taken from QEMU again. Raises HostError."""
        if name not in self._devices:
            raise HostError(f"no descriptor of {name} is held")
        self._unbound.add(name)
        await self._forget(name)

    def table_changed(self) -> None:
        """QEMU's memory table has changed: a region that it dropped, or kept out, may come back."""
        if set(self._regions()) != set(self._in_force()):
            self.version += 1
            self._changed.set()

    async def drop(self, syspath: str) -> None:
        """A device is about to be unbound from VFIO, which waits for its last descriptor."""
        for name, device in list(self._devices.items()):
            if device.syspath == syspath or self._known().get(name) == address_of(syspath):
                self._unbound.add(name)  # QEMU has it still: it would be taken again
                await self._forget(name)

    def syspaths(self) -> list[str]:
        """Of all that are held, where the kernel tells them."""
        return [device.syspath for device in self._devices.values() if device.syspath]

    async def status(self) -> dict[str, Any]:
        """For the control socket. `pid` is QEMU's, 0 where it is not known."""
        await self.ask()
        found = [
            {
                "id": place.id,
                "host": place.host,
                "held": place.id in self._devices,
                "bars": [{"bar": n, "address": at, "size": size} for n, at, size in place.bars],
            }
            for place in self._places
        ]
        return {
            "pid": next((pid for pid in (self._qmp.pid, *self._pids()) if pid), 0),
            "devices": found,
        }

    def close(self) -> None:
        """The session is over: a descriptor that is held longer keeps the device and its group
        busy, and QEMU's next start fails (kernel-dmabuf.md 2.8). The regions are gone already."""
        for device in self._devices.values():
            device.close()
        self._devices.clear()

    # -- inside

    def _connected(self) -> None:
        """Events of the time before are lost."""
        self._hosts.clear()
        self.version += 1
        if self._devices:
            self._changed.set()

    def _event(self, name: str, data: dict[str, Any]) -> None:
        if name == "DEVICE_DELETED":
            self._hosts.pop(str(data.get("device", "")), None)
        elif name != "RESET":
            return
        self.version += 1
        self._changed.set()

    async def _find(self, name: str) -> str:
        """The PCI address of QEMU's device `name`. Raises HostError."""
        try:
            with trio.fail_after(10 * PATIENCE):  # an operator waits, not a guest
                async with self._asking:
                    await self._ask()
        except (trio.TooSlowError, QmpDown, QmpError) as error:
            raise HostError(f"QMP: {str(error) or 'no answer'}") from error
        known = self._known()
        if name not in known:
            names = ", ".join(known) or "none with an id="
            raise HostError(f"QEMU has no vfio-pci device {name}; it has {names}")
        return known[name]

    def _known(self) -> dict[str, str]:
        """The PCI address of each VFIO device, by its id."""
        return {place.id: place.host for place in self._places}

    async def _ask(self) -> None:
        buses = await self._qmp.execute("query-pci")
        self._places = [
            place._replace(host=host)
            for place in places_of(buses)
            if (host := await self._host(place.id))
        ]
        present = set(self._known())
        self._unbound &= present
        for name in set(self._devices) - present:
            await self._forget(name)  # unplugged
        if self._may_take:
            self._take_missing()
        for name, host in sorted(self._known().items()):
            if name not in self._devices and name not in self._unbound:
                self._say("device", f"no descriptor of {name} ({host})", ADD)
        await self._set()

    async def _host(self, name: str) -> str:
        """The PCI address of a device's own; empty for what is not passed through. A refusal is no
        answer: what was known stays, and it is asked again."""
        if name in self._hosts:
            return self._hosts[name]
        version = self.version
        try:
            host = await self._ask_host(f"/machine/peripheral/{name}")
        except QmpError:
            return self._known().get(name, "")
        if version == self.version:  # else it may be another device's by now
            self._hosts[name] = host
        return host

    async def _ask_host(self, path: str) -> str:
        kind = await self._qmp.execute("qom-get", path=path, property="type")
        if not str(kind).startswith("vfio-pci"):
            return ""
        host = await self._qmp.execute("qom-get", path=path, property="host")
        if not host:
            host = await self._qmp.execute("qom-get", path=path, property="sysfsdev")
        return address_of(str(host))

    def _regions(self) -> list[DeviceRegion]:
        """Whole BARs; one that is less than a page can be neither exported nor mapped."""
        return [
            DeviceRegion(bar.address, bar.size, device, bar.number)
            for place in self._places
            if (device := self._devices.get(place.id)) is not None
            for bar in place.bars
            if not (bar.address | bar.size) % PAGE
        ]

    async def _set(self) -> None:
        """Not cut off half way: what is applied is what is held."""
        with trio.CancelScope(shield=True):
            async with self._setting:
                wanted, before = self._regions(), set(self._in_force())
                if set(wanted) == before:
                    return
                try:
                    await self._apply(wanted)
                except HostError:
                    await self._set_singly(wanted)
                if set(self._in_force()) != before:
                    self.version += 1

    async def _set_singly(self, wanted: Sequence[DeviceRegion]) -> None:
        """The guest chooses the addresses: one BAR over RAM must not keep the others out, nor that
        in force which is wanted no more and whose descriptor is closed next."""
        before = set(self._in_force())
        kept = [one for one in wanted if one in before]
        if len(kept) < len(before):
            await self._apply(kept)
        for name, device in sorted(self._devices.items()):
            more = [one for one in wanted if one.device is device and one not in before]
            if more:
                try:
                    await self._apply([*kept, *more])
                    kept += more
                except HostError as error:
                    self._say("regions", f"{name}: {error}", of=name)

    async def _forget(self, name: str) -> None:
        """Out of the tables first: then nobody uses what is closed."""
        device = self._devices.pop(name, None)
        if device is not None:
            with trio.CancelScope(shield=True):
                await self._set()
                # The last descriptor's end resets the device, which takes 100 ms and more.
                await trio.to_thread.run_sync(device.close)
            log.info("vfio-dropped", id=name)

    def _take_missing(self) -> None:
        missing = [
            place.id
            for place in self._places
            if place.id not in self._devices and place.id not in self._unbound
        ]
        if not missing:
            return
        pid, found = self._look()
        for name in missing:
            one = self._pick(name, found)
            if one is None:
                continue
            try:
                host = self._known()[name]
                self._devices[name] = self._make(take_device(pid, one.number, host), name)
                log.info("vfio-taken", id=name, device=host, pid=pid)
            except HostError as error:
                self._say("take", str(error))

    def _look(self) -> tuple[int, list[Found]]:
        """QEMU's process is the one that has VFIO devices."""
        for pid in dict.fromkeys((self._qmp.pid, *self._pids())):
            try:
                if found := devices_of(pid):
                    return pid, found
            except HostError as error:
                self._say("take", str(error))
        return 0, []

    def _pick(self, name: str, found: Sequence[Found]) -> Found | None:
        one = pick(found, self._known()[name], alone=len(self._places) == 1)
        if one is None and not all(other.syspath for other in found):
            self._say("take", f"which descriptor {name} is, this kernel does not tell", ADD)
        return one

    def _say(self, what: str, reason: str, hint: str = "", of: str = "") -> None:
        """Each once a session, told by `of` where the guest chooses what is in the reason: it must
        not fill the operator's log."""
        if (what, of or reason) not in self._said:
            self._said.add((what, of or reason))
            hints = {"hint": hint} if hint else {}
            log.warning(f"vfio-{what}", reason=reason, **hints)


def places_of(buses: Any) -> Iterator[Place]:
    """The devices with an id of what query-pci returned, those behind bridges included."""
    for bus in _list(buses):
        yield from _places_on(bus)


def _places_on(bus: Any) -> Iterator[Place]:
    for device in _list(_get(bus, "devices")):
        name = _get(device, "qdev_id")
        if isinstance(name, str) and name:
            yield Place(name, tuple(_bars(device)))
        yield from _places_on(_get(device, "pci_bridge"))


def _bars(device: Any) -> Iterator[Bar]:
    """A BAR that is switched off has the address -1."""
    for region in _list(_get(device, "regions")):
        number, address, size = (_get(region, key) for key in ("bar", "address", "size"))
        numbers = all(isinstance(one, int) for one in (number, address, size))
        if (
            _get(region, "type") == "memory"
            and numbers
            and number < 6
            and address >= 0
            and size > 0
        ):
            yield Bar(number, address, size)


def _get(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
