"""vgpud.host on the real /dev/udmabuf: blobs and surfaces share their memory with their dma-bufs,
and what is dropped is not pinned any more. What the device itself takes is in test_udmabuf.py."""

from __future__ import annotations

import mmap
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.lab.inner.raw import HUGE_PAGE, MIB, PAGE, fdinfo
from tests.unit.host.memory import GPA, entries, memfd, open_fds, pages, region, rss
from vgpud.device.pixels import Layout
from vgpud.host.backing import HostPicture
from vgpud.host.dmabuf import Dmabuf
from vgpud.host.fd import OwnedFd
from vgpud.host.guest_memory import GuestMemory
from vgpud.host.region_file import classify
from vgpud.host.surfaces import HostPixelStore
from vgpud.host.udmabuf import Udmabuf
from vgpuwire import Rect

SECOND = GPA + 16 * MIB
"""Where the second memfd is in the guest."""


class Guest:
    """Two sealed memfds of 64 pages, and a store on the real device."""

    def __init__(self, stack: ExitStack, flags: int = os.MFD_ALLOW_SEALING) -> None:
        self.size = HUGE_PAGE if flags & os.MFD_HUGETLB else 64 * PAGE
        self.fds = [stack.enter_context(memfd(self.size, flags=flags)) for _ in range(2)]
        self.ram = [mmap.mmap(fd.fileno(), self.size) for fd in self.fds]
        self.udmabuf = Udmabuf()
        self.memory = GuestMemory()
        self.store = HostPixelStore(self.memory.snapshot, self.udmabuf, exportable=True)
        self.plug()
        stack.callback(self.close)

    def plug(self) -> None:
        self.memory.replace(
            (region(gpa, self.size), fd) for gpa, fd in zip((GPA, SECOND), self.fds, strict=True)
        )
        self.store.set_memory(self.memory.snapshot)

    def close(self) -> None:
        self.memory.clear()
        self.store.set_memory(self.memory.snapshot)
        self.udmabuf.close()
        for ram in self.ram:
            ram.close()

    def place(self, gpa: int) -> tuple[mmap.mmap, int]:
        number = int(gpa >= SECOND)
        return self.ram[number], gpa - (GPA, SECOND)[number]

    def blob(self, array: bytes, size: int = 0) -> HostPicture:
        backing = self.store.resolve(array)
        return backing.picture(Layout(16, 16, 64, 0, 2), size or backing.size)


@pytest.fixture
def guest() -> Iterator[Guest]:
    with ExitStack() as stack:
        yield Guest(stack)


def pinned() -> int:
    """Pages that somebody keeps in place. The counters are per CPU until they are refreshed."""
    with open("/proc/sys/vm/stat_refresh") as file:
        file.read()
    with open("/proc/vmstat") as file:
        stat = dict(line.split() for line in file)
    return int(stat["nr_foll_pin_acquired"]) - int(stat["nr_foll_pin_released"])


def shares(guest: Guest, dmabuf: Dmabuf | None, addresses: list[int]) -> None:
    """Page n of the dma-buf is the guest's page at addresses[n], written on either side."""
    assert dmabuf is not None
    assert dmabuf.size == len(addresses) * PAGE == int(fdinfo(dmabuf.fileno())["size"])
    assert fdinfo(dmabuf.fileno())["exp_name"] == "udmabuf"
    assert not os.get_inheritable(dmabuf.fileno())
    with mmap.mmap(dmabuf.fileno(), dmabuf.size) as view:
        for number, gpa in enumerate(addresses):
            ram, at = guest.place(gpa)
            ram[at : at + 8] = b"gue%05d" % number
            assert view[number * PAGE : number * PAGE + 8] == b"gue%05d" % number
            view[number * PAGE + 100 : number * PAGE + 108] = b"dma%05d" % number
            assert ram[at + 100 : at + 108] == b"dma%05d" % number


CONTIGUOUS = [GPA + n * PAGE for n in range(64)]
SHUFFLED = random.Random(1).sample(CONTIGUOUS, 64)
TWO_MEMFDS = [start + n * PAGE for n in (5, 6, 0, 63) for start in (GPA, SECOND)]


@pytest.mark.parametrize(
    "addresses", [CONTIGUOUS, SHUFFLED, TWO_MEMFDS], ids=["contiguous", "shuffled", "two memfds"]
)
@pytest.mark.parametrize("flags", [0, os.MFD_HUGETLB], ids=["pages", "huge pages"])
def test_a_blob_shares_its_memory_with_the_guest(addresses: list[int], flags: int) -> None:
    """Issue 4, "must show" 1: contiguous, shuffled, two memfds, hugetlb."""
    with ExitStack() as stack:
        guest = Guest(stack, os.MFD_ALLOW_SEALING | flags)
        picture = guest.blob(entries((gpa, PAGE) for gpa in addresses))
        shares(guest, picture.dmabuf(), addresses)


def test_a_blob_of_less_than_its_pages_shows_no_more(guest: Guest) -> None:
    shares(
        guest, guest.blob(pages(3, 9, 4, 5), PAGE + 1).dmabuf(), [GPA + 3 * PAGE, GPA + 9 * PAGE]
    )


def test_a_surface_shares_its_memory(guest: Guest) -> None:
    surface = guest.store.create_surface(300, 60, 1)
    dmabuf = surface.dmabuf()
    assert dmabuf is not None
    guest.ram[0][:PAGE] = os.urandom(PAGE)
    surface.fill(guest.store.resolve(pages(0)), Rect(8, 2, 300 - 8, 1), 0)
    with mmap.mmap(dmabuf.fileno(), dmabuf.size) as view:
        at = 2 * surface.stride + 32
        assert view[at : at + 292 * 4] == guest.ram[0][: 292 * 4]
        assert not any(view[:at])


def test_the_kind_of_a_dmabuf(guest: Guest) -> None:
    picture = guest.blob(pages(0))
    dmabuf = picture.dmabuf()
    assert dmabuf is not None
    with OwnedFd(os.dup(dmabuf.fileno())) as fd:
        file = classify(fd)
        assert (file.kind, file.obstacle and file.obstacle.reason) == ("dma-buf", "dma-buf")
        assert os.path.sameopenfile(file.fileno(), fd.fileno())
        assert classify(fd, [file]) is file


def test_what_is_dropped_is_not_pinned_any_more(guest: Guest) -> None:
    """By the last reference, and by a change of the memory table whoever holds it."""
    before, fds = pinned(), open_fds()
    one, two = guest.blob(pages(*range(10))), guest.blob(pages(*range(20, 25)))
    dmabufs = [one.dmabuf(), two.dmabuf()]
    assert pinned() == before + 15
    del two
    dmabufs.pop()
    assert pinned() == before + 10
    guest.plug()
    assert pinned() == before
    assert dmabufs[0] is not None
    assert dmabufs[0].fileno() == -1
    del one
    guest.udmabuf.close()
    assert open_fds() == fds


def test_others_run_while_the_kernel_works() -> None:
    """64 MiB that the guest never touched are allocated by the ioctl (kernel-dmabuf.md 1.8)."""
    udmabuf = Udmabuf()
    size = 64 * MIB
    memory = GuestMemory()
    with memfd(size) as fd:
        memory.add(region(GPA, size), fd)
    picture = (
        HostPixelStore(memory.snapshot, udmabuf)
        .resolve(entries([(GPA, size)]))
        .picture(Layout(16, 16, 64, 0, 2), size)
    )
    got: list[object] = []
    took: list[float] = []

    def export() -> None:
        start = time.monotonic()
        got.append(picture.dmabuf())
        took.append(time.monotonic() - start)

    thread = threading.Thread(target=export)
    longest, last = 0.0, time.monotonic()
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    assert got[0] is not None
    print(f"64 MiB: {took[0] * 1e3:.0f} ms, the other thread waited {longest * 1e3:.1f} ms")
    assert longest < took[0] / 2


def test_nothing_grows_over_1_000_blobs(guest: Guest) -> None:
    """Create, show, unref; every tenth time the table changes instead."""
    scattered = pages(*range(0, 64, 2))
    fill = Rect(0, 0, 16, 16)

    def rounds(count: int) -> None:
        for number in range(count):
            picture = guest.blob(scattered)
            assert picture.dmabuf() is not None
            picture.rows(fill)
            if number % 10 == 0:
                guest.plug()

    rounds(50)
    fds, memory, pins = open_fds(), rss(), pinned()
    rounds(1_000)
    assert (open_fds(), pinned()) == (fds, pins)
    assert rss() < memory + MIB


def test_a_limit_that_is_raised_is_seen_at_the_next_change(
    guest: Guest, parameter: Callable[[str, int], object], caplog: pytest.LogCaptureFixture
) -> None:
    parameter("list_limit", 16)
    picture = guest.blob(pages(*range(0, 34, 2)))
    assert picture.dmabuf() is None
    assert "guest memory in 17 pieces, udmabuf takes 16" in caplog.text
    parameter("list_limit", 17)
    assert picture.dmabuf() is None, "not asked again at once"
    guest.plug()
    shares(guest, picture.dmabuf(), [GPA + n * PAGE for n in range(0, 34, 2)])


def test_the_device_s_own_answer_where_it_cannot_be_foreseen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Huge pages that the pool does not have."""
    with ExitStack() as stack:
        fd = stack.enter_context(memfd(64 * HUGE_PAGE, flags=os.MFD_ALLOW_SEALING | os.MFD_HUGETLB))
        memory = GuestMemory()
        memory.add(region(GPA, 64 * HUGE_PAGE), fd)
        store = HostPixelStore(memory.snapshot, Udmabuf())
        backing = store.resolve(entries([(GPA, 32 * HUGE_PAGE)]))
        assert backing.picture(Layout(16, 16, 64, 0, 2), 32 * HUGE_PAGE).dmabuf() is None
    assert "vm.nr_hugepages" in caplog.text
