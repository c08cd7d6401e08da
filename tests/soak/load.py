"""A guest and a QEMU that do everything, in any order, for as long as one likes.

One process has the session and both of its peers (`tests.support.machine`), so that descriptors,
memory and tasks of all are counted together: nothing may grow. A life is one connection of QEMU, of
one of the versions and in one of the modes. In it come pictures, blobs, pointers, questions, noise,
resets, stops, memory that comes and goes, broken rings, and a display that reads nothing for a
while.
"""

from __future__ import annotations

import gc
import os
import random
from array import array
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import trio
import trio.testing

from tests.fuzz.device import command
from tests.fuzz.source import Source
from tests.support.fake_frontend import QEMU_11_1, VERSIONS, Region
from tests.support.fake_udmabuf import ITEM
from tests.support.machine import Machine, hdr, machine
from tests.support.mock_driver import mem_entries
from tests.unit.device import driver as guest
from vgpud.config import Config
from vgpuwire import Ctrl, CursorPos, Feature, GetEdid, UpdateCursor

FEATURES: Final = (
    1 << 32 | 1 << 28 | 1 << 29 | int(Feature.EDID | Feature.RESOURCE_UUID | Feature.RESOURCE_BLOB)
)
PLUGGED: Final = 1 << 40
"""Guest-physical address of the memory that comes and goes."""
STEPS: Final = 40
PAGE: Final = 4096


def same_memory(device: int, runs: bytes, fds: array[int]) -> int:
    """In the place of the kernel's ioctl: the first memfd itself."""
    region, _, _, _ = ITEM.unpack_from(runs)
    return os.dup(fds[region])


class Sample(NamedTuple):
    """What must be flat. `rss` is in KiB, of anonymous memory."""

    lives: int
    commands: int
    fds: int
    rss: int
    tasks: int


class Life:
    """One connection: `steps` says what may happen in it."""

    def __init__(self, vm: Machine, chance: random.Random) -> None:
        self.vm = vm
        self.chance = chance
        self.commands = 0
        self.steps: list[Callable[[], Awaitable[None]]] = [
            *(self.picture, self.picture, self.blob, self.pointer, self.questions, self.noise),
            *(self.noise, self.reset, self.stop_and_cont, self.hotplug, self.slow_display),
            self.broken_ring,
        ]

    async def run(self) -> None:
        for _ in range(STEPS):
            await self.chance.choice(self.steps)()
            self.vm.display.log.clear()
            for screen in self.vm.display.screens:
                screen.updates.clear()

    async def _each(self, *requests: bytes, tail: bytes = b"") -> None:
        """Commands whose answers may be anything; all come back."""
        for request in requests:
            self.vm.submit(request, tail, room=1056)
        self.commands += len(requests)
        await self.vm.reap(len(requests))

    def _pieces(self, size: int) -> bytes:
        """Pages of a backing, in any order, some of them plugged memory."""
        pages = [self.chance.randrange(1024) * PAGE for _ in range(-(-size // PAGE))]
        base = self.chance.choice((self.vm.ram.regions[0].guest_phys_addr + (8 << 20), PLUGGED))
        return mem_entries([(base + page, PAGE) for page in pages])

    async def picture(self) -> None:
        side, number = self.chance.choice((16, 64, 256, 400)), self.chance.randrange(1, 6)
        box = (0, 0, side, side)
        form = self.chance.choice(list(guest.FORMATS.values()))
        await self._each(
            guest.unref(number),
            guest.create_2d(number, side, side, form),
            guest.attach(number, self._pieces(side * side * 4)),
            guest.transfer(number, box),
            guest.set_scanout(0, number, box),
            *(guest.flush(number, box, flags=1, fence=n) for n in range(3)),
        )

    async def blob(self) -> None:
        side, number = self.chance.choice((64, 128)), self.chance.randrange(6, 9)
        size = side * side * 4
        await self._each(
            guest.unref(number),
            guest.create_blob(number, size, self._pieces(size)),
            guest.set_scanout_blob(0, number, (0, 0, side, side), (side, side), 2, side * 4),
            *(guest.flush(number, (0, 0, side, side)) for _ in range(3)),
        )

    async def pointer(self) -> None:
        await self._each(guest.unref(9), guest.create_2d(9, 64, 64))
        for n in range(8):
            kind = Ctrl.CMD_UPDATE_CURSOR if n % 2 else Ctrl.CMD_MOVE_CURSOR
            self.vm.submit(UpdateCursor(hdr(kind), CursorPos(0, n, n), 9, 0, 0), room=0, ring=1)
        await self.vm.reap(8, ring=1)

    async def questions(self) -> None:
        await self._each(
            hdr(Ctrl.CMD_GET_DISPLAY_INFO, 7).encode(), GetEdid(hdr(Ctrl.CMD_GET_EDID), 0).encode()
        )

    async def noise(self) -> None:
        requests = [command(Source(self.chance.randbytes(80))) for _ in range(8)]
        await self._each(*(request[:4000] for request in requests))

    async def reset(self) -> None:
        box = (0, 0, 64, 64)
        for n in range(6):
            self.vm.submit(guest.flush(1, box, flags=1, fence=n))
        await self.vm.reboot()

    async def stop_and_cont(self) -> None:
        await self.vm.stop()
        await self.vm.start()

    async def hotplug(self) -> None:
        frontend = self.vm.frontend
        if len(frontend.regions) > 1:
            frontend.regions = frontend.regions[:1]
        else:
            more = Region(PLUGGED, 4 << 20, 0x6000_0000_0000, 8 << 20, self.vm.ram.memfd)
            frontend.regions = [*frontend.regions, more]
        await frontend.share_memory()

    async def slow_display(self) -> None:
        """It reads nothing until every flush has met its deadline."""
        paused = self.vm.display.paused = trio.Event()
        for _ in range(4):
            await self.picture()
        self.vm.display.paused = None
        paused.set()

    async def broken_ring(self) -> None:
        queue = self.vm.queues[0]
        queue.write_descriptor(0, self.chance.getrandbits(64), 64, self.chance.getrandbits(3), 1)
        queue.set_avail_idx(self.chance.getrandbits(16))
        queue.kick()
        await self.vm.reboot()


def sample(lives: int, commands: int) -> Sample:
    gc.collect()
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return Sample(
        lives,
        commands,
        len(os.listdir("/proc/self/fd")),
        int(lines["RssAnon"].split()[0]),
        trio.lowlevel.current_statistics().tasks_living,
    )


async def soak(seconds: float, seed: int, tell: Callable[[Sample], None]) -> list[Sample]:
    """Lives until the time is over, at least twelve; a sample after each, `tell` hears of some."""
    chance = random.Random(seed)
    samples: list[Sample] = []
    commands, end = 0, trio.current_time() + seconds
    next_told = 0.0
    while trio.current_time() < end or len(samples) < 12:
        version = chance.choice((*VERSIONS, QEMU_11_1))
        config = Config(scanout=chance.choice(("shm", "dmabuf")))
        async with machine(
            version=version, config=config, features=FEATURES, ram_size=64 << 20
        ) as vm:
            vm.session._udmabuf._device = "/dev/null"
            vm.session._udmabuf._create = same_memory
            await vm.boot()
            life = Life(vm, chance)
            await life.run()
            commands += life.commands
        await trio.testing.wait_all_tasks_blocked()
        samples.append(sample(len(samples) + 1, commands))
        if trio.current_time() >= next_told:
            next_told = trio.current_time() + max(1.0, seconds / 20)
            tell(samples[-1])
    tell(samples[-1])
    return samples


WARM: Final = 4
"""Lives after which caches are full."""
SLACK: Final = 6 << 10
"""KiB that the heap may move, of 40 MiB."""


def growth(samples: list[Sample]) -> list[str]:
    """What is not flat after the first quarter; empty where all is."""
    rest = samples[max(WARM, len(samples) // 4) :]
    found = []
    for name in ("fds", "tasks"):
        values = [getattr(one, name) for one in rest]
        if max(values) != min(values):
            found.append(f"{name}: {min(values)} to {max(values)}")
    third = len(rest) // 3
    early, late = (min(one.rss for one in part) for part in (rest[:third], rest[-third:]))
    if late - early > SLACK:
        found.append(f"rss: {early} to {late} KiB")
    return found
