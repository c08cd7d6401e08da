"""Blobs: guest pages as pictures, copied and exported, under a changing memory table."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.fake_pixels import CHANNELS
from tests.support.fake_udmabuf import FakeUdmabuf
from tests.unit.host.memory import GPA, PAGE, SEALS, entries, memfd, open_fds, pages, region, rss
from vgpud.device.pixels import Backing, Layout, Picture
from vgpud.errors import GuestError
from vgpud.host.backing import HostBacking, HostPicture
from vgpud.host.dmabuf import Dmabuf
from vgpud.host.fd import OwnedFd
from vgpud.host.guest_memory import GuestMemory
from vgpud.host.surfaces import HostPixelStore
from vgpud.host.udmabuf import Udmabuf
from vgpuwire import Ctrl, Rect

SIZE = 64 * PAGE
DRM = {b"XR24": "XRGB", b"BX24": "BGRX", b"XB24": "XBGR", b"RX24": "RGBX"}
"""<drm/drm_fourcc.h>: a little-endian word from its high bits, so the bytes are in reverse."""


class Guest:
    """64 pages of random bytes at GPA, in a sealed memfd, and a store with a fake udmabuf."""

    def __init__(self, stack: ExitStack, seals: int = SEALS, size: int = SIZE) -> None:
        self.fd: OwnedFd = stack.enter_context(memfd(size, seals))
        self.bytes = random.Random(1).randbytes(SIZE)
        os.pwrite(self.fd.fileno(), self.bytes, 0)
        self.kernel = FakeUdmabuf()
        self.udmabuf = Udmabuf("/dev/null", None, "/nowhere", self.kernel)
        self.memory = GuestMemory()
        self.store = HostPixelStore(self.memory.snapshot, self.udmabuf)
        self.size = size
        self.plug()

    def plug(self) -> None:
        self.memory.replace([(region(GPA, self.size), self.fd)])
        self.store.set_memory(self.memory.snapshot)

    def unplug(self) -> None:
        self.memory.clear()
        self.store.set_memory(self.memory.snapshot)


@pytest.fixture
def guest() -> Iterator[Guest]:
    with ExitStack() as stack:
        guest = Guest(stack)
        yield guest
        guest.unplug()
        guest.udmabuf.close()


def frame(
    backing: HostBacking, offset: int = 0, pixel_format: int = 2, size: int = 0
) -> HostPicture:
    """16 x 16 pixels, rows 80 bytes apart."""
    return backing.picture(Layout(16, 16, 80, offset, pixel_format), size or backing.size)


def content(dmabuf: Dmabuf | None) -> bytes:
    assert dmabuf is not None
    return os.pread(dmabuf.fileno(), dmabuf.size + 1, 0)


def refuses(call: object, *args: object) -> None:
    with pytest.raises(GuestError) as error:
        call(*args)
    assert error.value.code == Ctrl.RESP_ERR_UNSPEC


def test_it_is_the_device_s_port(guest: Guest) -> None:
    backing: Backing = guest.store.resolve(pages(0))
    picture: Picture = backing.picture(Layout(4, 4, 16, 0, 2), PAGE)
    assert (picture.width, picture.height, picture.stride, picture.lost) == (4, 4, 16, False)


# -- pixels


@pytest.mark.parametrize(
    ("pixel_format", "fourcc"),
    [
        (1, b"XR24"),
        (2, b"XR24"),
        (3, b"BX24"),
        (4, b"BX24"),
        (67, b"XB24"),
        (68, b"RX24"),
        (121, b"RX24"),
        (134, b"XB24"),
    ],
)
def test_F14_rows_are_blue_green_red_and_the_fourcc_is_true(
    guest: Guest, pixel_format: int, fourcc: bytes
) -> None:
    picture = frame(guest.store.resolve(pages(3, 1)), 100, pixel_format)
    assert picture.fourcc == int.from_bytes(fourcc, "little")
    order = CHANNELS[pixel_format].replace("A", "X")
    assert order == DRM[fourcc][::-1]
    flat = guest.bytes[3 * PAGE : 4 * PAGE] + guest.bytes[PAGE : 2 * PAGE]
    (row,) = picture.rows(Rect(5, 7, 3, 2))
    expected = b""
    for y in (7, 8):
        for x in (5, 6, 7):
            at = 100 + y * 80 + x * 4
            pixel = dict(zip(order, flat[at : at + 4], strict=True))
            expected += bytes(pixel[channel] for channel in "BGRX")
    assert bytes(row) == expected


def test_rows_of_a_whole_frame_are_one_piece(guest: Guest) -> None:
    backing = guest.store.resolve(pages(*range(64)))
    picture = backing.picture(Layout(128, 512, 512, 0, 1), SIZE)
    (rows,) = picture.rows(Rect(0, 0, 128, 512))
    assert bytes(rows) == guest.bytes


def test_read(guest: Guest) -> None:
    backing = guest.store.resolve(pages(2, 0))
    assert backing.read(PAGE - 2, 4) == guest.bytes[3 * PAGE - 2 : 3 * PAGE] + guest.bytes[:2]
    assert backing.read(2 * PAGE - 1, 4) == guest.bytes[PAGE - 1 : PAGE]


def test_a_layout_that_does_not_fit_the_backing_any_more_is_the_guest_s_error(guest: Guest) -> None:
    picture = guest.store.resolve(pages(0)).picture(Layout(1024, 2, 4096, 0, 2), PAGE)
    assert len(picture.rows(Rect(0, 0, 1024, 1))) == 1
    refuses(picture.rows, Rect(0, 0, 1024, 2))


def test_memory_that_vanishes_is_the_guest_s_error() -> None:
    """An unsealed memfd that was truncated: a plain read is a SIGBUS."""
    with ExitStack() as stack:
        guest = Guest(stack, 0)
        backing = guest.store.resolve(pages(0, 1))
        picture = frame(backing)
        os.ftruncate(guest.fd.fileno(), 0)
        refuses(picture.rows, Rect(0, 0, 16, 16))
        refuses(backing.read, 0, 4)
        assert not picture.lost
        assert picture.dmabuf() is None


# -- dma-bufs


def test_a_blob_s_dmabuf_is_its_pages_in_their_order(guest: Guest) -> None:
    backing = guest.store.resolve(pages(5, 6, 7, 0, 9))
    dmabuf = frame(backing).dmabuf()
    assert content(dmabuf) == b"".join(
        guest.bytes[n * PAGE : (n + 1) * PAGE] for n in (5, 6, 7, 0, 9)
    )
    fd = guest.memory.snapshot.files[0].fileno()
    assert guest.kernel.calls == [[(fd, 5 * PAGE, 3 * PAGE), (fd, 0, PAGE), (fd, 9 * PAGE, PAGE)]]


def test_a_blob_s_tail_is_whole_to_its_page_and_no_further(guest: Guest) -> None:
    dmabuf = frame(guest.store.resolve(pages(4, 5, 6, 7)), size=PAGE + 100).dmabuf()
    assert content(dmabuf) == guest.bytes[4 * PAGE : 6 * PAGE]


def test_pictures_of_one_blob_share_its_dmabuf(guest: Guest) -> None:
    """Two heads, or one frame buffer set again at each flip: made once, reused."""
    backing = guest.store.resolve(pages(0, 1))
    one = frame(backing).dmabuf()
    assert one is not None
    assert frame(backing, pixel_format=67).dmabuf() is one
    assert len(guest.kernel.calls) == 1


def test_an_offset_has_no_dmabuf(guest: Guest) -> None:
    """QEMU ignores it and would show the wrong pixels (decision 5)."""
    assert frame(guest.store.resolve(pages(0, 1)), 4).dmabuf() is None
    assert not guest.kernel.calls


def test_a_blob_that_is_never_shown_pins_nothing(guest: Guest) -> None:
    backing = guest.store.resolve(pages(0, 1))
    frame(backing).rows(Rect(0, 0, 16, 16))
    assert (guest.udmabuf.quota.dmabufs, guest.kernel.calls) == (0, [])


def test_without_a_udmabuf_nothing_has_a_dmabuf(caplog: pytest.LogCaptureFixture) -> None:
    with ExitStack() as stack:
        guest = Guest(stack)
        store = HostPixelStore(guest.memory.snapshot)
        assert frame(store.resolve(pages(0))).dmabuf() is None
    assert not caplog.records


def test_a_dmabuf_goes_with_its_backing(guest: Guest) -> None:
    """Unref, detach and reset drop the backing; the display may still be sending it."""
    before = open_fds()
    backing = guest.store.resolve(pages(0, 1))
    dmabuf = frame(backing).dmabuf()
    assert guest.udmabuf.quota.dmabufs == 1
    del backing
    assert content(dmabuf) == guest.bytes[: 2 * PAGE]
    del dmabuf
    assert guest.udmabuf.quota.dmabufs == 0
    guest.udmabuf.close()
    assert open_fds() == before


def test_each_reason_is_said_once(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    odd = [guest.store.resolve(entries([(GPA + 4 * n, PAGE)])) for n in range(1, 5)]
    assert [frame(one).dmabuf() for one in odd] == [None] * 4
    guest.kernel.errno = errno.ENOMEM
    assert [frame(guest.store.resolve(pages(n))).dmabuf() for n in range(4)] == [None] * 4
    assert len(caplog.records) == 2
    assert "are not whole pages" in caplog.text
    assert "Cannot allocate memory" in caplog.text


def test_memory_that_cannot_be_exported_is_still_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with ExitStack() as stack:
        guest = Guest(stack, seals=0)
        picture = frame(guest.store.resolve(pages(0, 1)))
        for _ in range(3):
            assert picture.dmabuf() is None
        (rows,) = picture.rows(Rect(0, 0, 2, 1))
        assert bytes(rows) == guest.bytes[:8]
    assert "seal=off" in caplog.text
    assert len(caplog.records) == 1


# -- the memory table changes (decision 11)


def test_A22_R09_a_changed_table_closes_every_dmabuf_before_it_returns(guest: Guest) -> None:
    """QEMU unplugs what was removed right after the answer. Also where the display holds it."""
    backings = [guest.store.resolve(pages(n)) for n in range(3)]
    shown = [frame(backing).dmabuf() for backing in backings]
    guest.plug()
    assert [one.fileno() for one in shown if one is not None] == [-1] * 3
    assert guest.udmabuf.quota.dmabufs == 0
    assert content(frame(backings[1]).dmabuf()) == guest.bytes[PAGE : 2 * PAGE]


def test_a_lost_backing_has_no_dmabuf_and_comes_back(
    guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    backing = guest.store.resolve(pages(0))
    picture = frame(backing)
    guest.unplug()
    assert picture.lost
    assert picture.dmabuf() is None
    refuses(picture.rows, Rect(0, 0, 1, 1))
    refuses(backing.read, 0, 1)
    guest.plug()
    assert not picture.lost
    assert content(picture.dmabuf()) == guest.bytes[:PAGE]


def test_a_change_while_a_thread_exports(guest: Guest) -> None:
    """The ioctl runs without the interpreter's lock. It holds no mapping of the old table, and
    its result is closed, not shown."""
    backing = guest.store.resolve(pages(0))
    picture = frame(backing)
    inside, changed = threading.Event(), threading.Event()
    got: list[Dmabuf | None] = []

    def during() -> None:
        inside.set()
        assert changed.wait(10)

    guest.kernel.during = during
    thread = threading.Thread(target=lambda: got.append(picture.dmabuf()))
    thread.start()
    assert inside.wait(10)
    mapped = maps()
    guest.unplug()
    assert maps() == mapped - 1
    changed.set()
    thread.join(10)
    assert got == [None]
    assert guest.udmabuf.quota.dmabufs == 0


def maps() -> int:
    return Path("/proc/self/maps").read_text().count("/memfd:ram")


def test_nothing_grows_over_10_000_blobs(guest: Guest) -> None:
    """Create, show, unref, and the table changing in between."""
    null = os.open(os.devnull, os.O_RDONLY)
    udmabuf = Udmabuf("/dev/null", None, "/nowhere", lambda *_: os.dup(null))
    store = HostPixelStore(guest.memory.snapshot, udmabuf)
    array = pages(*range(0, 64, 2))

    def rounds(count: int) -> None:
        for number in range(count):
            picture = frame(store.resolve(array))
            assert picture.dmabuf() is not None
            picture.rows(Rect(0, 0, 16, 16))
            if number % 10 == 0:
                guest.plug()
                store.set_memory(guest.memory.snapshot)

    rounds(500)
    fds, memory = open_fds(), rss()
    rounds(10_000)
    assert open_fds() == fds
    assert rss() < memory + (1 << 20)
    os.close(null)
