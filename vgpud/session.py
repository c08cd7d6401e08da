"""One QEMU connection: builds the objects, carries actions to them, closes them. Wiring only."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

import trio

from vgpud import log
from vgpud.backend import actions
from vgpud.backend.state import VhostUserBackend
from vgpud.config import Config
from vgpud.device.gpu import FEATURES, GpuDevice
from vgpud.device.outputs import DEFAULT_SIZES
from vgpud.errors import HostError, PeerError, RingBroken
from vgpud.host.fd import EventFd, OwnedFd, hung_up
from vgpud.host.guest_memory import DeviceRegion, GuestMemory
from vgpud.host.handover import peer_pid
from vgpud.host.surfaces import HostPixelStore
from vgpud.host.udmabuf import DEVICE, Device, Udmabuf
from vgpud.host.virtqueue import Virtqueue
from vgpud.tasks.device_gate import DeviceGate
from vgpud.tasks.device_source import DeviceSource
from vgpud.tasks.display import DisplayLink
from vgpud.tasks.frontend import FrontendLink
from vgpud.tasks.reader import Reader
from vgpud.tasks.ring import Gate, RingTask, Server
from vgpud.tasks.servers import ControlServer, CursorServer
from vgpud.tasks.stats import Stats
from vgpud.tasks.uevent_watch import UeventWatch
from vgpud.tasks.view import View

CONTROL: Final = 0
REFUSED: Final = 1
NOT_SHARED: Final = "guest memory is private to QEMU: set share=on on its memory-backend"

Action = actions.Action[OwnedFd]


class Session:
    """Everything of one connection; a reconnect makes a new one."""

    def __init__(self, sock: socket.socket, config: Config, udmabuf: Device = DEVICE) -> None:
        self.stats = Stats()
        self._sock = sock
        self._memory = GuestMemory()
        self._reader = Reader()
        self._udmabuf = Udmabuf(udmabuf)
        self._store = HostPixelStore(self._memory.snapshot, self._udmabuf, exportable=config.dmabuf)
        sizes = config.outputs or DEFAULT_SIZES
        self._device = GpuDevice(self._store, config.max_hostmem, sizes)
        make_canvas = self._store.create_private if config.dmabuf else None
        self._display = DisplayLink(
            self.stats, make_canvas, self._store.create_private, self._reader, config.device_fps
        )
        self._backend = VhostUserBackend(int(FEATURES), num_scanouts=len(sizes))
        self._frontend = FrontendLink(sock, self._backend, self._perform)
        servers: tuple[Server, ...] = (
            ControlServer(self._device, self._display),
            CursorServer(self._device, self._display),
        )
        self.devices = self._device_source(config)
        gates: list[Gate | None] = [None, None]
        if self.devices is not None:
            gates[CONTROL] = DeviceGate(self.devices, self._device, self._store)
        self._rings = [
            RingTask(n, server, self.stats, gates[n]) for n, server in enumerate(servers)
        ]
        quotas = (self._device.resources, self._udmabuf.quota, self._store, self._display)
        self.view = View(self._device, self._display, self._reader, self._rings, quotas, self.stats)
        self._watches = config.watches
        self._watch = UeventWatch(self._unbound, self._appeared, self._syspaths)
        if self.devices is not None or (config.dmabuf and self._udmabuf.absent):
            self._watch.need()
        self._nursery: trio.Nursery | None = None

    def _device_source(self, config: Config) -> DeviceSource | None:
        if config.qmp is None:
            return None
        pids = [peer_pid(self._sock)]
        return DeviceSource(
            config.qmp,
            self.set_devices,
            self._memory.in_force,
            lambda: pids,
            may_take=config.vfio_from_qemu,
        )

    async def run(self) -> None:
        """Serve until QEMU leaves. Raises PeerError where it broke the protocol."""
        log.info("session-start")
        error: PeerError | None = None
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._display.run)
                nursery.start_soon(self._watch.run)
                if self.devices is not None:
                    nursery.start_soon(self.devices.run)
                try:
                    await self._frontend.run()
                except PeerError as caught:
                    error = caught
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._close()
            log.info("session-end", **self.stats.fields())
        if error is not None:
            raise error

    def _close(self) -> None:
        """The main connection first: QEMU must not find a GPU socket closed while it lives
        (qemu-frontend, trap 10)."""
        self._sock.close()
        self._reader.abort()
        self.view.close()
        for ring in self._rings:
            ring.close()
        self._display.close()
        self._device.reset()
        self._memory.clear()
        self._store.set_memory(self._memory.snapshot)
        if self.devices is not None:
            self.devices.close()
        self._udmabuf.close()

    def has_peer(self) -> bool:
        """Whether QEMU's end is still open."""
        return not hung_up(self._sock)

    async def set_devices(self, regions: Iterable[DeviceRegion]) -> None:
        """The BARs that QEMU's memory table does not have, instead of those of before. When this
        returns, nothing is left of the others but what their owner has. Raises HostError, and
        nothing changes, as GuestMemory.set_devices()."""
        async with self._reader.pause():
            self._memory.set_devices(regions)
            self._move()

    async def drop_device(self, syspath: str) -> bool:
        """A device is about to be unbound, which waits until nobody has it open: let go of all
        that the memory table has of it, and forget those of set_devices(), which their owner
        closes. False where there is none."""
        async with self._reader.pause():
            dropped = self._memory.drop_device(syspath)
            if dropped:
                self._move()
            return dropped

    async def _unbound(self, syspath: str) -> None:
        """A kernel uevent: a device is about to be unbound from VFIO."""
        if self.devices is not None:
            await self.devices.drop(syspath)
        if await self.drop_device(syspath):
            log.info("vfio-unbound", device=syspath)

    def _syspaths(self) -> set[str]:
        """Of all devices that are held, also those whose BARs are switched off."""
        held = () if self.devices is None else self.devices.syspaths()
        return self._memory.syspaths().union(held)

    def _appeared(self) -> None:
        """A kernel uevent: /dev/udmabuf is there. Heads look again for dma-bufs."""
        self._store.retry()
        self._display.memory_changed()

    async def _perform(self, action: Action) -> int:
        match action:
            case actions.SetFeatures(features):
                self._device.set_features(features)
            case actions.ReplaceMemory() | actions.AddRegion() | actions.RemoveRegion():
                return await self._change_memory(action)
            case actions.UseDisplay(fd, live):
                self._display.attach(_socket(fd))
                if live:
                    self._display.speak()
            case actions.StartRing():
                return self._start_ring(action)
            case actions.StopRing(index):
                base = await self._rings[index].stop()
                return 0 if base is None else base
            case actions.EnableRing(index, enabled):
                self._rings[index].enable(enabled)
            case actions.SetCall(index, fd):
                self._rings[index].set_call(None if fd is None else EventFd.of(fd))
            case actions.SetErr(index, fd):
                self._rings[index].set_err(None if fd is None else EventFd.of(fd))
            case actions.Reset(reason):
                log.debug("reset", reason=reason)
                self._device.reset()
                self._display.reset()
            case actions.BreakRing(index, reason):
                self._rings[index].refuse(reason)
            case actions.ConfigWritten():
                pass  # the guest may have patched any byte of it
            case actions.CloseFds(fds):
                for unwanted in fds:
                    unwanted.close()
            case actions.Warn(reason):
                log.warning("vhost-user", reason=reason)
        return 0

    def _start_ring(self, action: actions.StartRing[OwnedFd]) -> int:
        ring, setup = self._rings[action.index], action.setup
        kick = EventFd.of(action.kick)
        if action.index == CONTROL and self._memory.untouched():  # before we touch it
            log.warning("memory-never-written", hint=NOT_SHARED)
        try:
            queue = Virtqueue(
                self._memory.snapshot,
                setup.size,
                setup.desc,
                setup.avail,
                setup.used,
                setup.base,
                setup.event_idx,
            )
        except RingBroken as error:
            ring.refuse(str(error))
            return REFUSED
        ring.start(queue, kick)
        assert self._nursery is not None
        self._nursery.start_soon(ring.run)
        if action.index == CONTROL:
            self._display.speak()
        return 0

    async def _change_memory(
        self,
        action: actions.ReplaceMemory[OwnedFd] | actions.AddRegion[OwnedFd] | actions.RemoveRegion,
    ) -> int:
        """Move everything to the new table, then acknowledge: QEMU may free or unplug what was
        removed right after (decision 11). Nothing copies meanwhile: copies of RAM run in this
        task, those of device memory are stopped."""
        async with self._reader.pause():
            return self._change_memory_now(action)

    def _change_memory_now(
        self,
        action: actions.ReplaceMemory[OwnedFd] | actions.AddRegion[OwnedFd] | actions.RemoveRegion,
    ) -> int:
        fds: list[OwnedFd] = []
        try:
            match action:
                case actions.ReplaceMemory(regions):
                    fds = [fd for _, fd in regions]
                    self._memory.replace(regions)
                case actions.AddRegion(region, fd):
                    fds = [fd]
                    self._memory.add(region, fd)
                case actions.RemoveRegion(region):
                    self._memory.remove(region)
        except HostError as error:
            log.warning("memory-refused", reason=error)
            return REFUSED
        finally:
            for fd in fds:
                fd.close()
        self._move()
        if self.devices is not None:
            self.devices.table_changed()
        return 0

    def _move(self) -> None:
        self._store.set_memory(self._memory.snapshot)
        for ring in self._rings:
            ring.rebind(self._memory.snapshot)
        self._display.memory_changed()
        if self._watches and self._memory.syspaths():
            self._watch.need()


def _socket(fd: OwnedFd) -> socket.socket:
    """Raises PeerError where QEMU sent something else."""
    try:
        sock = socket.socket(fileno=fd.fileno())
    except OSError as error:
        raise PeerError(f"GPU_SET_SOCKET: {error.strerror}") from error
    fd.steal()
    return sock
