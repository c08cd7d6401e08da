"""A whole virtual machine made of fakes around a real Session: guest RAM in a memfd, a driver's
rings, QEMU's ends of both sockets. Everything runs in one trio loop.

    async with machine() as vm:
        await vm.boot()
        answer = await vm.control(ResourceUnref(hdr(Ctrl.CMD_RESOURCE_UNREF), 1))
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from tests.support.fake_display import FakeDisplay
from tests.support.fake_frontend import (
    EVENT_IDX,
    INDIRECT,
    QEMU_11_1,
    VERSION_1,
    FakeFrontend,
    Region,
    Ring,
    Version,
)
from tests.support.mock_driver import DriverQueue, GuestRam, mem_entries
from vgpud.config import Config
from vgpud.session import Session
from vgpuwire import (
    FLAG_FENCE,
    Ctrl,
    CtrlHdr,
    Format,
    Record,
    Rect,
    ResourceAttachBacking,
    ResourceCreate2D,
    ResourceFlush,
    SetScanout,
    TransferToHost2D,
)

PATIENCE = 5.0
"""Seconds of real time after which a test gives up: then something hangs."""

EDID_AND_UUID = 0x6


def hdr(command: int, fence: int | None = None) -> CtrlHdr:
    return CtrlHdr(command, 0 if fence is None else FLAG_FENCE, fence or 0, 0, 0)


class Machine:
    """One virtual machine; `boot()` is what firmware and driver do until the device works."""

    def __init__(
        self,
        display: FakeDisplay | None = None,
        version: Version = QEMU_11_1,
        features: int = VERSION_1 | INDIRECT | EVENT_IDX | EDID_AND_UUID,
        ram_size: int = 16 << 20,
        config: Config | None = None,
        make_session: Callable[[socket.socket], Any] | None = None,
    ) -> None:
        self.display = display or FakeDisplay()
        self.features = features
        self.ram = GuestRam(ram_size)
        ours, theirs = socket.socketpair()
        self.frontend = FakeFrontend(ours, version)
        # Whatever has run() will do in its place: a session with more, or another process.
        make = make_session or (lambda sock: Session(sock, config or Config()))
        self.session = make(theirs)
        self.error: BaseException | None = None
        self.ended = trio.Event()
        self.queues: list[DriverQueue] = []
        self.err = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
        self._masked = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2)]
        self._nursery: trio.Nursery | None = None

    async def run_session(self) -> None:
        try:
            await self.session.run()
        except Exception as error:
            self.error = error
        finally:
            self.ended.set()

    def attach(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        nursery.start_soon(self.run_session)

    async def boot(self, sizes: Sequence[int] = (64, 16), memfd: int | None = None) -> None:
        await self.frontend.realize(self._masked, self.err)
        self.frontend.regions = [Region(*row, memfd or self.ram.memfd) for row in self.ram.regions]
        self.set_up_rings(sizes)
        await self.start()

    def set_up_rings(self, sizes: Sequence[int] = (64, 16)) -> None:
        """What a driver does at each probe: fresh rings from index 0."""
        for queue in self.queues:
            queue.close()
        self.queues = [
            DriverQueue(
                self.ram,
                size,
                event_idx=bool(self.features & EVENT_IDX),
                indirect=bool(self.features & INDIRECT),
            )
            for size in sizes
        ]
        self.frontend.rings = [None, None]
        self.frontend.bases = [0, 0]
        for n, q in enumerate(self.queues):
            self.frontend.rings[n] = Ring(
                q.size, q.desc, q.used_addr, q.avail, q.kick_fd, q.call_fd, self.err[n]
            )

    async def start(self) -> None:
        """DRIVER_OK, or `cont`: a new GPU socket and the rings."""
        assert self._nursery is not None
        gpu = self.display.new_socket()
        self._nursery.start_soon(self.display.serve)
        await self.frontend.start(gpu, self.features)
        # What the device says before it has the call eventfds is lost here; QEMU looks for it when
        # it unmasks a vector (virtio_pci_vq_vector_unmask).
        await self.frontend.sync()

    async def stop(self) -> None:
        """QMP stop: the GPU socket closes first, then the rings."""
        self.display.close()
        await self.frontend.stop()

    async def reboot(self, sizes: Sequence[int] = (64, 16)) -> None:
        await self.stop()
        await self.frontend.reset()
        self.set_up_rings(sizes)
        await self.start()

    # -- the guest's driver

    def submit(
        self, command: Record | bytes, tail: bytes = b"", room: int = 24, ring: int = 0
    ) -> int:
        """Queue a command and kick if asked to; returns its head."""
        queue = self.queues[ring]
        data = command if isinstance(command, bytes) else command.encode()
        head = queue.add([data, tail] if tail else [data], [room] if room else [])
        if queue.needs_kick():
            queue.kick()
        return head

    async def reap(self, count: int, ring: int = 0) -> list[tuple[int, bytes]]:
        """Wait for `count` elements to come back: (head, answer) in the order of the used ring."""
        queue = self.queues[ring]
        done: list[tuple[int, bytes]] = []
        with trio.fail_after(PATIENCE):
            while True:
                done += [(head, queue.response(head)) for head, _ in queue.used()]
                if len(done) >= count:
                    return done
                await trio.lowlevel.wait_readable(queue.call_fd)
                queue.called()

    async def control(self, command: Record | bytes, tail: bytes = b"", room: int = 24) -> bytes:
        """One command of the control queue and its answer."""
        head = self.submit(command, tail, room)
        ((got, answer),) = await self.reap(1)
        assert got == head
        return answer

    async def ok(self, command: Record | bytes, tail: bytes = b"") -> None:
        answer = CtrlHdr.decode(await self.control(command, tail))
        assert answer.type == Ctrl.RESP_OK_NODATA, f"{Ctrl(answer.type).name}"

    # -- whole things

    async def resource(
        self, resource_id: int, width: int, height: int, fmt: int = Format.B8G8R8X8_UNORM
    ) -> int:
        """Create it with a contiguous backing; returns the backing's guest-physical address."""
        size = width * height * 4
        gpa = self.ram.alloc(size, 4096)
        create = hdr(Ctrl.CMD_RESOURCE_CREATE_2D)
        await self.ok(ResourceCreate2D(create, resource_id, fmt, width, height))
        attach = hdr(Ctrl.CMD_RESOURCE_ATTACH_BACKING)
        await self.ok(ResourceAttachBacking(attach, resource_id, 1), mem_entries([(gpa, size)]))
        return gpa

    async def scanout(self, resource_id: int, rect: Rect, scanout_id: int = 0) -> None:
        await self.ok(SetScanout(hdr(Ctrl.CMD_SET_SCANOUT), rect, scanout_id, resource_id))

    async def transfer(self, resource_id: int, rect: Rect, offset: int = 0) -> None:
        await self.ok(
            TransferToHost2D(hdr(Ctrl.CMD_TRANSFER_TO_HOST_2D), rect, offset, resource_id)
        )

    def flush_command(self, resource_id: int, rect: Rect, fence: int | None = None) -> Record:
        return ResourceFlush(hdr(Ctrl.CMD_RESOURCE_FLUSH, fence), rect, resource_id)

    async def flush(self, resource_id: int, rect: Rect) -> None:
        await self.ok(self.flush_command(resource_id, rect))

    async def picture(self, width: int, height: int, pixels: bytes, resource_id: int = 1) -> None:
        """Show `pixels` on head 0 through a new resource, and wait until the display has it."""
        gpa = await self.resource(resource_id, width, height)
        self.ram.write(gpa, pixels)
        whole = Rect(0, 0, width, height)
        await self.scanout(resource_id, whole)
        await self.transfer(resource_id, whole)
        await self.flush(resource_id, whole)
        await self.shown(pixels)

    async def shown(self, pixels: bytes, scanout_id: int = 0) -> None:
        """Wait until the display shows exactly these pixels."""
        screen = self.display.screens[scanout_id]
        await self.until(
            lambda: screen.shown() == pixels,
            f"head {scanout_id} shows the picture",
        )

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for something that the display will have seen soon."""
        with trio.move_on_after(PATIENCE):
            while not condition():
                await self.display.next_message()
        assert condition(), what

    def close(self) -> None:
        self.frontend.close()
        self.display.close()
        self.display.forget()
        for queue in self.queues:
            queue.close()
        for fd in self.err + self._masked:
            os.close(fd)
        self.ram.close()


@asynccontextmanager
async def machine(*, fails: bool = False, **options: object) -> AsyncIterator[Machine]:
    """A machine whose session runs; at the end QEMU leaves and the session must have ended well,
    unless it `fails`: then `vm.error` says how."""
    vm = Machine(**options)
    async with trio.open_nursery() as nursery:
        vm.attach(nursery)
        try:
            yield vm
            vm.frontend.close()
            with trio.fail_after(PATIENCE):
                await vm.ended.wait()
            if vm.error is not None and not fails:
                raise vm.error
        finally:
            vm.close()
            nursery.cancel_scope.cancel()
