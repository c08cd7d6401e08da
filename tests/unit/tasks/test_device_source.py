"""Devices by QMP: where their BARs are, whose descriptors are held, and when they are let go."""

from __future__ import annotations

import os
import threading

import pytest
import trio
import trio.testing

from tests.support.fake_qmp import fake_qmp
from tests.support.fake_vfio import FakeVfio
from vgpud.errors import HostError
from vgpud.host.fd import OwnedFd
from vgpud.host.handover import Found
from vgpud.tasks import device_source
from vgpud.tasks.device_source import PATIENCE, Bar, DeviceSource, Place, places_of

MIB = 1 << 20
SYSPATH = "/sys/devices/pci0000:00/0000:01:00.0"
AT = 0xE000_0000


def device(name, *regions, bridge=()):
    made = {
        "bus": 0,
        "slot": 3,
        "function": 0,
        "qdev_id": name,
        "regions": [
            {"bar": bar, "type": kind, "address": address, "size": size}
            for bar, kind, address, size in regions
        ],
    }
    if bridge:
        made["pci_bridge"] = {"bus": {"number": 1}, "devices": list(bridge)}
    return made


def bus(*devices):
    return [{"bus": 0, "devices": list(devices)}]


GPU = device("gpu0", (1, "memory", 0xF000_0000, 4096))
HOSTDEV = device("hostdev0", (0, "memory", 0xD000_0000, 256), (2, "memory", AT, MIB))


@pytest.mark.parametrize(
    ("buses", "found"),
    [
        ([], []),
        (bus(HOSTDEV), [Place("hostdev0", (Bar(0, 0xD000_0000, 256), Bar(2, AT, MIB)))]),
        (bus(device("", (2, "memory", AT, MIB))), []),
        (bus(device("a", (2, "memory", -1, MIB))), [Place("a", ())]),
        (bus(device("a", (4, "io", 0xC000, 64), (6, "memory", AT, MIB))), [Place("a", ())]),
        (
            bus(device("root", bridge=[device("b", (0, "memory", AT, 4096))])),
            [Place("root", ()), Place("b", (Bar(0, AT, 4096),))],
        ),
        (bus(device("deep", bridge=[device("x", bridge=[HOSTDEV])])), ["deep", "x", "hostdev0"]),
        (None, []),
        ({"devices": 3}, []),
        ([{"devices": [1, None, {"qdev_id": 3}, {"qdev_id": "a", "regions": {}}]}], ["a"]),
        (bus({"qdev_id": "a", "regions": [{"bar": "0", "type": "memory"}]}), [Place("a", ())]),
    ],
)
def test_places(buses, found):
    places = list(places_of(buses))
    assert places == found or [place.id for place in places] == found


class World:
    """QEMU with one passed-through device, and the session that is told."""

    def __init__(self, server, path):
        self.server = server
        self.vfio = FakeVfio({0: 256, 2: MIB})
        self.buses = bus(GPU, HOSTDEV)
        self.hosts = {"hostdev0": "0000:01:00.0"}
        server.answers = {"query-pci": lambda: self.buses, "qom-get": self._qom_get}
        self.applied = []
        self.in_force = []
        self.refuse = ""
        self.ram = -1
        self.made = []
        self.path = path

    def source(self, may_take=False):
        return DeviceSource(
            self.path,
            self._apply,
            lambda: self.in_force,
            lambda: [77],
            may_take=may_take,
            make=self._make,
        )

    def _make(self, fd, name):
        made = self.vfio.device(SYSPATH)
        fd.close()
        self.made.append(made)
        return made

    def _qom_get(self, path, property):  # noqa: A002
        name = path.rpartition("/")[2]
        if property == "type":
            return "vfio-pci" if name in self.hosts else "vhost-user-gpu-pci"
        return self.hosts[name]

    async def _apply(self, regions):
        if self.refuse:
            raise HostError(self.refuse)
        if any(region.guest_phys_addr == self.ram for region in regions):
            raise HostError(f"memory table: the region at {self.ram:#x} overlaps another")
        self.in_force = list(regions)
        self.applied.append(self.in_force)

    def last(self):
        return [(r.guest_phys_addr, r.size, r.bar, r.offset) for r in self.applied[-1]]


@pytest.fixture
async def world(tmp_path):
    path = str(tmp_path / "qmp")
    async with fake_qmp(path) as server:
        world = World(server, path)
        yield world
        for one in world.made:
            one.close()
        world.vfio.close()


@pytest.fixture
def vfio_fd(monkeypatch):
    """Any descriptor is a device's, as sysfs has SYSPATH."""
    monkeypatch.setattr(device_source, "device_syspath", lambda fd: SYSPATH)
    return lambda: OwnedFd(os.open(os.devnull, os.O_RDONLY))


@pytest.fixture
async def source(world, nursery):
    source = world.source()
    nursery.start_soon(source.run)
    yield source
    nursery.cancel_scope.cancel()


@pytest.fixture
async def held(source, vfio_fd):
    await source.add("hostdev0", vfio_fd())
    return source


def messages(caplog, event):
    return [r.getMessage() for r in caplog.records if f"event={event} " in r.getMessage()]


async def test_handed_over(world, held):
    """Whole BARs of at least a page, and none of other devices."""
    assert world.last() == [(AT, MIB, 2, 0)]
    assert held.syspaths() == [SYSPATH]
    status = await held.status()
    assert status["devices"] == [
        {
            "id": "hostdev0",
            "host": "0000:01:00.0",
            "held": True,
            "bars": [
                {"bar": 0, "address": 0xD000_0000, "size": 256},
                {"bar": 2, "address": AT, "size": MIB},
            ],
        }
    ]
    assert status["pid"] == os.getpid()


async def test_nobody_gave_one(world, source, caplog):
    """Said once, with what to do."""
    await source.ask()
    await source.ask()
    assert world.applied == []
    (line,) = messages(caplog, "vfio-device")
    assert "no descriptor of hostdev0 (0000:01:00.0)" in line
    assert "vgpuctl vfio add ID, or --vfio-from-qemu" in line


async def test_a_bar_that_moved(world, held):
    version = held.version
    world.buses = bus(device("hostdev0", (2, "memory", AT + MIB, MIB)))
    await held.ask()
    assert world.last() == [(AT + MIB, MIB, 2, 0)]
    assert held.version > version


async def test_the_same_again_is_not_applied(world, held):
    version = held.version
    await held.ask()
    assert (len(world.applied), held.version) == (1, version)


async def test_a_bar_that_was_switched_off(world, held):
    world.buses = bus(device("hostdev0", (2, "memory", -1, MIB)))
    await held.ask()
    assert world.last() == []
    assert world.made[0].fileno() >= 0


async def test_unplugged(world, held):
    """DEVICE_DELETED: regions first, then the descriptor, without a command of the guest's."""
    world.buses = bus(GPU)
    await world.server.event("DEVICE_DELETED", device="hostdev0", path="/machine/x")
    while world.made[0].fileno() >= 0:
        await trio.lowlevel.checkpoint()
    assert world.last() == []
    assert held.syspaths() == []


async def test_reset(world, held):
    """RESET: BARs are off until the guest programs them."""
    world.buses = bus(device("hostdev0", (2, "memory", -1, MIB)))
    await world.server.event("RESET", guest=True)
    while len(world.applied) < 2:
        await trio.lowlevel.checkpoint()
    assert world.last() == []


async def test_events_that_were_lost(world, held, autojump_clock):
    """Connected again: all is asked anew, also whether an id is the same device's."""
    version = held.version
    world.server.hang_up()
    world.buses = bus(device("hostdev0", (2, "memory", AT + MIB, MIB)))
    world.server.asked.clear()
    await trio.sleep(5)
    assert world.last() == [(AT + MIB, MIB, 2, 0)]
    assert world.server.asked == ["query-pci", "qom-get", "qom-get"]
    assert held.version > version


async def test_connected_for_the_first_time(world, source):
    """Nothing is held: nothing is asked, but what a guest shows is checked once more."""
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert world.server.asked == []
    assert source.version == 1


async def test_a_device_deleted_while_qemu_is_busy(world, held, autojump_clock):
    """The status tells what was known."""
    await world.server.event("DEVICE_DELETED", device="hostdev0", path="/machine/x")
    world.server.mute = True
    status = await held.status()
    assert [one["host"] for one in status["devices"]] == ["0000:01:00.0"]


async def test_a_refusal_is_not_remembered(world, source, vfio_fd):
    """QEMU's error may be of the moment; a device that is held stays."""
    world.server.answers.pop("qom-get")
    await source.ask()
    with pytest.raises(HostError, match="it has none"):
        await source.add("hostdev0", vfio_fd())
    world.server.answers["qom-get"] = world._qom_get
    await source.add("hostdev0", vfio_fd())
    world.server.answers.pop("qom-get")
    source._connected()
    await source.ask()
    assert source.syspaths() == [SYSPATH]


async def test_no_device_is_closed_in_the_event_loop(world, held, monkeypatch):
    """Its last descriptor's end resets it."""
    made, threads = world.made[0], []
    close = made.close
    monkeypatch.setattr(made, "close", lambda: (threads.append(threading.get_ident()), close()))
    await held.remove("hostdev0")
    assert made.fileno() == -1
    assert threads != [threading.get_ident()]


async def test_other_events_ask_nothing(world, held):
    asked = len(world.server.asked)
    await world.server.event("RTC_CHANGE", offset=1)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert len(world.server.asked) == asked


async def test_unbound(world, held):
    """The uevent: it is let go at once, and not held again until QEMU has let go of it."""
    await held.drop("/sys/devices/other")
    assert world.made[0].fileno() >= 0
    await held.drop(SYSPATH)
    assert world.made[0].fileno() == -1
    assert world.last() == []


async def test_removed_by_hand(world, held):
    await held.remove("hostdev0")
    assert world.made[0].fileno() == -1
    with pytest.raises(HostError, match="no descriptor of hostdev0 is held"):
        await held.remove("hostdev0")


async def test_replaced(world, held, vfio_fd):
    await held.add("hostdev0", vfio_fd())
    assert [one.fileno() >= 0 for one in world.made] == [False, True]
    assert world.last() == [(AT, MIB, 2, 0)]


async def test_closed_with_the_session(world, held):
    held.close()
    assert world.made[0].fileno() == -1


@pytest.mark.parametrize(
    ("name", "hosts", "reason"),
    [
        ("hostdev0", {"hostdev0": "0000:02:00.0"}, "the descriptor is 0000:01:00.0, QEMU's"),
        ("other", {"hostdev0": "0000:01:00.0"}, "no vfio-pci device other; it has hostdev0"),
        ("gpu0", {}, "no vfio-pci device gpu0; it has none with an id="),
    ],
)
async def test_another_device(world, source, vfio_fd, name, hosts, reason):
    world.hosts = hosts
    fd = vfio_fd()
    with pytest.raises(HostError, match=reason):
        await source.add(name, fd)
    assert world.made == []
    assert fd.fileno() == -1


async def test_what_is_no_device(source):
    fd = OwnedFd(os.open(os.devnull, os.O_RDONLY))
    with pytest.raises(HostError, match="no VFIO device"):
        await source.add("hostdev0", fd)
    assert fd.fileno() == -1


async def test_a_sysfsdev(world, source, vfio_fd):
    """vfio-pci,sysfsdev=...: QEMU has no host property then."""
    answers = {"type": "vfio-pci", "host": "", "sysfsdev": "/sys/bus/pci/devices/0000:01:00.0"}
    world.server.answers["qom-get"] = lambda path, property: answers[property]  # noqa: A006
    await source.add("hostdev0", vfio_fd())
    assert world.last() == [(AT, MIB, 2, 0)]


async def test_regions_that_are_refused(world, source, vfio_fd, caplog):
    """Said once; tried again when asked again."""
    world.refuse = "they overlap"
    await source.add("hostdev0", vfio_fd())
    await source.ask()
    assert len(messages(caplog, "vfio-regions")) == 1
    world.refuse = ""
    await source.ask()
    assert world.last() == [(AT, MIB, 2, 0)]


@pytest.fixture
async def two(world, source, vfio_fd, monkeypatch):
    """Two devices are held, each with a BAR."""
    world.hosts["hostdev1"] = "0000:01:00.0"  # the fake's path
    world.buses = bus(HOSTDEV, device("hostdev1", (2, "memory", AT + MIB, MIB)))
    for name in ("hostdev0", "hostdev1"):
        await source.add(name, vfio_fd())
    return source


def move(world, first, second):
    places = (("hostdev0", first), ("hostdev1", second))
    world.buses = bus(*(device(name, (2, "memory", at, MIB)) for name, at in places))


def in_force(world):
    return [(r.guest_phys_addr, world.made.index(r.device)) for r in world.in_force]


async def test_one_bar_over_ram(world, two, caplog):
    """The others are where they are, and go where they go; whatever the guest does, one line."""
    for turn in range(1, 20):
        world.ram = AT + 100 * turn * MIB
        move(world, world.ram, AT + (turn + 2) * MIB)
        await two.ask()
        assert in_force(world) == [(AT + (turn + 2) * MIB, 1)]
    (line,) = messages(caplog, "vfio-regions")
    assert "hostdev0: memory table:" in line
    assert [one for one in two._said if one[0] == "regions"] == [("regions", "hostdev0")]
    version = two.version
    await two.ask()
    assert two.version == version


async def test_removed_while_another_is_refused(world, two):
    """What is closed is in no table."""
    world.ram = AT + 16 * MIB
    move(world, world.ram, AT + MIB)
    await two.ask()
    assert in_force(world) == [(AT + MIB, 1)]
    await two.remove("hostdev1")
    assert world.in_force == []
    assert [one.fileno() >= 0 for one in world.made] == [True, False]


async def test_what_the_table_dropped_comes_back(world, held):
    """QEMU's memory table had its addresses for a while."""
    version = held.version
    held.table_changed()
    assert held.version == version
    world.in_force = []
    world.ram = AT
    held.table_changed()
    await held.ask()
    assert world.in_force == []
    world.ram = -1
    version = held.version
    held.table_changed()
    while not world.in_force:
        await trio.lowlevel.checkpoint()
    assert in_force(world) == [(AT, 0)]
    assert held.version > version


async def test_qemu_is_busy(world, source, caplog, autojump_clock):
    """The command goes on after PATIENCE; one line."""
    world.server.mute = True
    for _ in range(2):
        begin = trio.current_time()
        assert not await source.ask()
        assert trio.current_time() - begin == pytest.approx(PATIENCE, abs=0.01)
    (line,) = messages(caplog, "vfio-qmp")
    assert "did not answer in 0.5 s" in line


async def test_no_qmp(tmp_path, caplog, nursery, autojump_clock):
    """The remedy is in the one line of the client."""
    source = DeviceSource(str(tmp_path / "none"), None, list, list, may_take=True)
    nursery.start_soon(source.run)
    for _ in range(3):
        assert await source.ask(), "the connection will tell"
    (line,) = messages(caplog, "qmp-down")
    assert "-qmp unix:PATH,server=on,wait=off" in line
    assert messages(caplog, "vfio-qmp") == []
    with pytest.raises(HostError, match="QMP: no answer"):
        await source._find("hostdev0")
    nursery.cancel_scope.cancel()


async def test_a_wait_that_is_cut_off(world, source):
    """The ring stops: nothing is left half done."""
    world.server.mute = True
    with trio.CancelScope() as scope:
        scope.cancel()
        await source.ask()
    world.server.mute = False
    await source.ask()
    assert "query-pci" in world.server.asked


# -- taken from QEMU


@pytest.fixture
def qemu(monkeypatch):
    """A process with VFIO devices; what is taken is noted."""
    found = {os.getpid(): [Found(9, "/sys/devices/0000:02:00.0"), Found(12, SYSPATH)]}
    taken = []

    def look(pid):
        result = found.get(pid, [])
        if isinstance(result, Exception):
            raise result
        return result

    def take(pid, number, host):
        assert host == "0000:01:00.0"
        taken.append((pid, number))
        return OwnedFd(os.open(os.devnull, os.O_RDONLY))

    monkeypatch.setattr(device_source, "devices_of", look)
    monkeypatch.setattr(device_source, "take_device", take)
    return found, taken


@pytest.fixture
async def taker(world, qemu, nursery):
    source = world.source(may_take=True)
    nursery.start_soon(source.run)
    yield source
    nursery.cancel_scope.cancel()


async def test_taken(world, taker, qemu):
    await taker.ask()
    assert qemu[1] == [(os.getpid(), 12)]
    assert world.last() == [(AT, MIB, 2, 0)]
    await taker.ask()
    assert len(qemu[1]) == 1


async def test_taken_from_who_connected(world, taker, qemu):
    """A launcher opened the monitor, so QMP's peer is not QEMU."""
    found, taken = qemu
    found[77] = found.pop(os.getpid())
    await taker.ask()
    assert taken == [(77, 12)]


async def test_not_taken_again_while_it_is_unbound(world, taker, qemu):
    await taker.ask()
    await taker.drop(SYSPATH)
    await taker.ask()
    assert len(qemu[1]) == 1
    world.buses = bus(GPU)  # unplugged, and back later
    await taker.ask()
    world.buses = bus(HOSTDEV)
    await taker.ask()
    assert len(qemu[1]) == 2


async def test_not_taken_without_leave(world, source, qemu):
    await source.ask()
    assert qemu[1] == []


async def test_a_kernel_that_does_not_tell(world, taker, qemu, caplog):
    """One device and one descriptor are each other's; of two nobody knows."""
    found, taken = qemu
    found[os.getpid()] = [Found(9, ""), Found(12, "")]
    await taker.ask()
    assert taken == []
    assert "this kernel does not tell" in messages(caplog, "vfio-take")[0]
    found[os.getpid()] = [Found(9, "")]
    await taker.ask()
    assert taken == [(os.getpid(), 9)]


async def test_refused(world, taker, qemu, caplog):
    found, _ = qemu
    found[os.getpid()] = HostError("pidfd_getfd", 1, "run both as the same")
    for _ in range(3):
        await taker.ask()
    (line,) = messages(caplog, "vfio-take")
    assert "run both as the same" in line
    assert world.made == []
