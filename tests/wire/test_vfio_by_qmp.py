"""A blob in device memory that only QMP knows of: commands wait for the answer in their order, and
neither QEMU nor the end of a ring ever waits for it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
import trio.lowlevel

from tests.support.blobs import FEATURES, BlobGuest, Frame, pattern
from tests.support.fake_qmp import FakeQmp, fake_qmp
from tests.support.fake_vfio import FakeVfio
from tests.support.machine import machine
from tests.support.mock_driver import mem_entries
from vgpud import session
from vgpud.backend import actions
from vgpud.config import Config
from vgpud.host.fd import OwnedFd
from vgpud.host.handover import Found
from vgpud.tasks import device_source
from vgpud.tasks.device_source import DeviceSource
from vgpuwire import Ctrl, CtrlHdr, MemRegion

SYSPATH = "/sys/devices/pci0000:00/0000:01:00.0"
BAR, AT, SIZE = 2, 0x8_0000_0000, 1 << 20
FRAME = Frame(64, 48)
OK, UNSPEC = Ctrl.RESP_OK_NODATA, Ctrl.RESP_ERR_UNSPEC
NO_RESOURCE = Ctrl.RESP_ERR_INVALID_RESOURCE_ID


class World:
    """The machine, its passed-through device, and the monitor that knows where its BAR is."""

    def __init__(self, guest: BlobGuest, qmp: FakeQmp, vfio: FakeVfio) -> None:
        self.guest, self.qmp, self.vfio = guest, qmp, vfio
        self.at = AT
        qmp.answers = {"query-pci": self._query_pci, "qom-get": self._qom_get}

    def _query_pci(self) -> object:
        region = {"bar": BAR, "type": "memory", "address": self.at, "size": SIZE}
        return [{"bus": 0, "devices": [{"qdev_id": "hostdev0", "regions": [region]}]}]

    def _qom_get(self, path: str, property: str) -> str:  # noqa: A002
        return {"type": "vfio-pci", "host": "0000:01:00.0"}[property]

    def draw(self, seed: int) -> bytes:
        data = pattern(FRAME.size, seed)
        self.vfio.write(BAR, 0, data)
        return data

    def submit(self, resource: int, at: int = AT) -> int:
        """As Linux shows a new picture, at once; returns the number of commands."""
        vm = self.guest.vm
        create = self.guest.create_command(resource, 1, FRAME.size)
        vm.submit(create, mem_entries([(at, FRAME.size)]))
        vm.submit(self.guest.show_command(resource, FRAME))
        vm.submit(vm.flush_command(resource, FRAME.rect))
        return 3

    async def answers(self, count: int) -> list[int]:
        done = await self.guest.vm.reap(count)
        return [CtrlHdr.decode(answer).type for _, answer in done]


@asynccontextmanager
async def world_of(path: str, made: list[FakeVfio]) -> AsyncIterator[World]:
    config = Config(qmp=path, vfio_from_qemu=True)
    async with fake_qmp(path) as qmp:
        async with machine(features=FEATURES, config=config) as vm:
            await vm.boot()
            yield World(BlobGuest(vm), qmp, made[0])


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[FakeVfio]:
    """QEMU has one device open, which is a fake."""
    vfio = FakeVfio({BAR: SIZE})
    made = []

    def make(fd: OwnedFd, name: str) -> object:
        fd.close()
        made.append(vfio.device(SYSPATH))
        return made[-1]

    monkeypatch.setattr(session, "DeviceSource", partial(DeviceSource, make=make))
    monkeypatch.setattr(device_source, "devices_of", lambda pid: [Found(9, SYSPATH)])
    monkeypatch.setattr(
        device_source, "take_device", lambda pid, n, host: OwnedFd(os.open(os.devnull, os.O_RDONLY))
    )
    yield [vfio]
    assert all(one.fileno() == -1 for one in made), "a device outlived the session"
    vfio.close()


@pytest.fixture
async def world(tmp_path, devices):
    async with world_of(str(tmp_path / "qmp"), devices) as world:
        yield world


async def test_shown_at_once(world):
    """SET_SCANOUT_BLOB comes right behind CREATE_BLOB, and is answered after it."""
    data = world.draw(1)
    assert await world.answers(world.submit(1)) == [OK, OK, OK]
    await world.guest.vm.shown(data)


async def test_a_busy_qemu(world):
    """Commands wait, in order; QEMU's own requests are answered meanwhile."""
    data = world.draw(2)
    world.qmp.mute = True
    count = world.submit(1)
    while "query-pci" not in world.qmp.asked:
        await trio.lowlevel.checkpoint()
    assert list(world.guest.vm.queues[0].used()) == []
    assert len(await world.guest.vm.frontend.read_config()) == 20
    assert await world.guest.vm.frontend.share_memory() == 0
    world.qmp.mute = False
    assert await world.answers(count) == [UNSPEC, NO_RESOURCE, NO_RESOURCE]
    assert await world.answers(world.submit(2)) == [OK, OK, OK]
    await world.guest.vm.shown(data)


async def test_the_ring_stops_while_qmp_is_asked(world):
    """GET_VRING_BASE is answered at once, and what was held is given back."""
    world.qmp.mute = True
    world.submit(1)
    while "query-pci" not in world.qmp.asked:
        await trio.lowlevel.checkpoint()
    with trio.fail_after(0.4):  # less than the wait's own limit
        await world.guest.vm.stop()
    used = list(world.guest.vm.queues[0].used())
    assert len(used) == 1
    assert world.guest.vm.frontend.bases[0] == 1
    world.qmp.mute = False
    await world.guest.vm.start()
    assert len(await world.answers(2)) == 2


async def test_a_bar_that_moved(world):
    """What is shown for the first time is asked about; the old place is nobody's."""
    data = world.draw(3)
    assert await world.answers(world.submit(1)) == [OK, OK, OK]
    await world.guest.vm.shown(data)
    world.at = AT + 16 * SIZE
    assert await world.answers(world.submit(2, world.at)) == [OK, OK, OK]
    assert (await world.answers(world.submit(3)))[0] == UNSPEC


async def test_shown_again_asks_nothing(world):
    """Flips of known pictures."""
    world.draw(4)
    await world.answers(world.submit(1))
    await world.guest.show(1, FRAME)
    asked = len(world.qmp.asked)
    for _ in range(20):
        await world.guest.show(1, FRAME)
    assert len(world.qmp.asked) == asked


async def test_ram_asks_nothing(world):
    gpa = world.guest.vm.ram.alloc(FRAME.size, 4096)
    await world.guest.create(1, [(gpa, FRAME.size)], FRAME.size)
    await world.guest.show(1, FRAME)
    assert world.qmp.asked == []


async def test_an_address_of_nothing(world):
    assert (await world.answers(world.submit(1, 0x7F_0000_0000)))[0] == UNSPEC


async def test_unplugged_while_it_is_shown(world):
    """The head goes dark; the descriptor is closed (the fixture looks)."""
    data = world.draw(5)
    await world.answers(world.submit(1))
    await world.guest.vm.shown(data)
    world.qmp.answers["query-pci"] = []
    await world.qmp.event("DEVICE_DELETED", device="hostdev0", path="/x")
    while world.guest.vm.session._memory.syspaths():
        await trio.lowlevel.checkpoint()
    assert (await world.answers(world.submit(2)))[0] == UNSPEC


async def test_the_uevent_of_an_unbind(world):
    world.draw(6)
    await world.answers(world.submit(1))
    await world.guest.vm.session._unbound(SYSPATH)
    assert world.guest.vm.session.devices.syspaths() == []
    assert (await world.answers(world.submit(2)))[0] == UNSPEC


async def test_a_device_without_regions_is_watched_too(world):
    """Its BARs are off, its descriptor is held: an unbind that was missed waits for it."""
    session = world.guest.vm.session
    await world.answers(world.submit(1))
    world.at = -1
    await session.devices.ask()
    assert session._memory.syspaths() == set()
    assert set(session._watch._known()) == {SYSPATH}


async def test_no_qmp(tmp_path, devices, caplog):
    """UNSPEC for such a blob, one line, and all others are served."""
    config = Config(qmp=str(tmp_path / "none"))
    async with machine(features=FEATURES, config=config) as vm:
        await vm.boot()
        guest = BlobGuest(vm)
        create = guest.create_command(1, 1, FRAME.size)
        answer = await vm.control(create, mem_entries([(AT, FRAME.size)]))
        assert CtrlHdr.decode(answer).type == UNSPEC
        gpa = vm.ram.alloc(FRAME.size, 4096)
        await guest.create(2, [(gpa, FRAME.size)], FRAME.size)
    lines = [r.getMessage() for r in caplog.records if "qmp" in r.getMessage()]
    assert len(lines) == 1


async def test_the_table_has_its_addresses_for_a_while(world):
    """QEMU's table is right while it has them; then the region comes back."""
    data = world.draw(7)
    assert await world.answers(world.submit(1)) == [OK, OK, OK]
    await world.guest.vm.shown(data)
    session = world.guest.vm.session
    region = MemRegion(AT, 4096, 0x7000_0000, 0)
    with OwnedFd(os.memfd_create("ram")) as fd:
        os.ftruncate(fd.fileno(), 4096)
        assert await session._change_memory(actions.AddRegion(region, fd)) == 0
    assert session._memory.in_force() == []
    assert await session._change_memory(actions.RemoveRegion(region)) == 0
    while not session._memory.in_force():
        await trio.lowlevel.checkpoint()
    assert await world.answers(world.submit(2)) == [OK, OK, OK]
