"""Who is told of which uevent, and what is done where some were lost."""

from __future__ import annotations

import os
import socket

import pytest
import trio
import trio.testing

from vgpud.errors import HostError
from vgpud.host.uevents import Gone, Lost, UdmabufAppeared
from vgpud.tasks.uevent_watch import UeventWatch


class FakeUevents:
    """Events by hand."""

    def __init__(self):
        self.waited = False
        self._ours, self._theirs = socket.socketpair()
        self.events = []
        self.closed = False

    def send(self, *events):
        self.events += events
        self._theirs.send(b"x")

    def fileno(self):
        self.waited = True
        return self._ours.fileno()

    def read(self):
        self._ours.recv(100)
        events, self.events = self.events, []
        return events

    def close(self):
        self.closed = True
        self._ours.close()
        self._theirs.close()


class World:
    def __init__(self):
        self.uevents = FakeUevents()
        self.known = []
        self.gone = []
        self.appeared = 0
        self.made = 0
        self.watch = UeventWatch(self._gone, self._appeared, lambda: self.known, self.make)

    def make(self):
        self.made += 1
        return self.uevents

    async def _gone(self, syspath):
        self.gone.append(syspath)
        self.known = [one for one in self.known if one != syspath]

    def _appeared(self):
        self.appeared += 1

    async def send(self, *events):
        self.uevents.send(*events)
        while self.uevents.events or not self.uevents.waited:  # it is made in a thread
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def world(nursery):
    world = World()
    nursery.start_soon(world.watch.run)
    await trio.testing.wait_all_tasks_blocked()
    yield world
    nursery.cancel_scope.cancel()


async def test_nothing_is_watched_before_it_is_needed(world):
    assert world.made == 0
    world.watch.need()
    await world.send()
    assert world.made == 1


async def test_events(world):
    world.watch.need()
    await world.send(Gone("/sys/a"), UdmabufAppeared(), Gone("/sys/b"))
    assert (world.gone, world.appeared) == (["/sys/a", "/sys/b"], 1)


@pytest.fixture
def devices(tmp_path):
    """(path of one that is bound, path of one that is not)."""
    for name in ("bound", "unbound"):
        (tmp_path / name).mkdir()
    (tmp_path / "bound/vfio-dev").mkdir()
    return str(tmp_path / "bound"), str(tmp_path / "unbound")


async def test_what_was_lost_is_looked_at(world, devices):
    world.watch.need()
    world.known = list(devices)
    await world.send(Lost())
    assert (world.gone, world.appeared) == ([devices[1]], 1)


async def test_what_came_before_the_first_event(world, devices):
    """It was unbound between its arrival and our listening."""
    world.known = list(devices)
    world.watch.need()
    await world.send()
    assert world.gone == [devices[1]]


async def test_no_uevents(caplog):
    def refuse():
        raise HostError("uevents", 97, "allow AF_NETLINK")

    watch = UeventWatch(None, None, list, refuse)
    watch.need()
    await watch.run()
    (record,) = caplog.records
    assert "event=uevents-off" in record.getMessage()
    assert "allow AF_NETLINK" in record.getMessage()


async def test_the_socket_is_closed_at_the_end():
    world = World()
    world.watch.need()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.watch.run)
        await world.send()
        nursery.cancel_scope.cancel()
    assert world.uevents.closed


async def test_the_kernels_own():
    """With pyroute2 and a socket of the kernel's: it listens, and ends."""
    before = set(os.listdir("/proc/self/fd"))
    watch = UeventWatch(None, None, list)
    watch.need()
    with trio.move_on_after(0.5):
        await watch.run()
        pytest.fail("it ended by itself")
    assert set(os.listdir("/proc/self/fd")) <= before
