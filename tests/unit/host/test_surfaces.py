"""Surfaces that can be exported: their memory, their rows, their number. What every surface does
is in tests/contract/test_pixel_store.py."""

from __future__ import annotations

import fcntl
import os
import resource

import pytest

from tests.support.fake_udmabuf import FakeUdmabuf
from tests.unit.host.memory import GPA, PAGE, SEALS, memfd, open_fds, pages, region, rss
from vgpud.errors import GuestError
from vgpud.host.guest_memory import EMPTY, GuestMemory
from vgpud.host.surfaces import SMALL, HostPixelStore, HostSurface
from vgpud.host.udmabuf import Udmabuf
from vgpuwire import Ctrl, Rect

XR24 = 0x34325258


def store(kernel: FakeUdmabuf | None = None, **arguments: int) -> HostPixelStore:
    udmabuf = Udmabuf("/dev/null", None, "/nowhere", kernel or FakeUdmabuf())
    return HostPixelStore(EMPTY, udmabuf, exportable=True, **arguments)


def pattern(surface: HostSurface) -> None:
    for y in range(surface.height):
        row = b"".join(bytes([y % 256, x % 256, x // 256, 1]) for x in range(surface.width))
        surface.pixels[y * surface.stride : y * surface.stride + len(row)] = row


@pytest.mark.parametrize(
    ("width", "height", "stride"),
    [(256, 64, 1024), (257, 64, 1280), (1366, 768, 5632), (64, 1024, 256), (16384, 1, 65536)],
)
def test_an_exportable_surface_is_a_sealed_memfd_of_aligned_rows(
    width: int, height: int, stride: int
) -> None:
    surface = store().create_surface(width, height, 1)
    assert (surface.stride, surface.fourcc, surface.lost) == (stride, XR24, False)
    exported = surface.export()
    assert exported is not None
    fd, size = exported
    assert size % PAGE == 0
    assert 0 <= size - height * stride < PAGE
    assert os.fstat(fd).st_size == size
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == SEALS
    assert surface.pixels.nbytes == height * stride
    assert not any(surface.pixels)
    surface.pixels[stride * (height - 1)] = 77
    assert os.pread(fd, 1, stride * (height - 1)) == b"\x4d", "one memory"


def test_without_exportable_it_is_as_tight_as_ever() -> None:
    surface = HostPixelStore(EMPTY).create_surface(257, 64, 1)
    assert (surface.stride, surface.export(), surface.dmabuf()) == (4 * 257, None, None)


def test_a_fill_takes_the_guest_s_stride_to_ours() -> None:
    """T16: the guest's rows are 4 * width bytes apart whatever ours are."""
    memory = GuestMemory()
    data = os.urandom(300 * 100 * 4)
    with memfd(64 * PAGE) as fd:
        os.pwrite(fd.fileno(), data, 0)
        memory.add(region(GPA, 64 * PAGE), fd)
    made = HostPixelStore(memory.snapshot, exportable=True)
    surface = made.create_surface(300, 100, 1)
    assert surface.stride == 1280
    surface.fill(made.resolve(pages(*range(30))), Rect(0, 0, 300, 100), 0)
    rows = surface.rows(Rect(0, 0, 300, 100))
    assert b"".join(rows) == data
    surface.fill(made.resolve(pages(*range(30))), Rect(10, 50, 2, 2), 8)
    assert bytes(surface.rows(Rect(10, 50, 2, 1))[0]) == data[8:16]
    assert bytes(surface.rows(Rect(10, 51, 2, 1))[0]) == data[1208:1216]


@pytest.mark.parametrize("exportable", [False, True])
@pytest.mark.parametrize("width", [1600, 1536])
@pytest.mark.parametrize(
    ("rect", "copied"),
    [
        (Rect(0, 0, 1536, 60), False),
        (Rect(0, 3, 1024, 2), False),
        (Rect(0, 3, 1023, 2), True),  # each row less than a page: a piece each would cost more
        (Rect(7, 5, 2, 3), True),
        (Rect(0, 5, 2, 1), False),
        (Rect(299, 59, 1, 1), False),
    ],
)
def test_rows_are_the_pixels_of_the_rectangle(
    exportable: bool, width: int, rect: Rect, copied: bool
) -> None:
    surface = HostPixelStore(EMPTY, exportable=exportable).create_surface(width, 60, 1)
    pattern(surface)
    expected = b"".join(
        bytes([y, x % 256, x // 256, 1])
        for y in range(rect.y, rect.y + rect.height)
        for x in range(rect.x, rect.x + rect.width)
    )
    pieces = surface.rows(rect)
    assert b"".join(pieces) == expected
    surface.pixels[:] = bytes(surface.pixels.nbytes)
    assert (b"".join(pieces) == expected) is copied


def test_rows_that_touch_are_one_piece() -> None:
    surface = store().create_surface(320, 60, 1)
    assert len(surface.rows(Rect(0, 0, 320, 60))) == 1
    assert len(surface.rows(Rect(0, 0, 319, 60))) == 1
    assert len(surface.rows(Rect(0, 0, 319, 1))) == 1
    wide = store().create_surface(1152, 60, 1)
    assert len(wide.rows(Rect(0, 0, 1152, 60))) == 1
    assert len(wide.rows(Rect(0, 0, 1151, 60))) == 60


def test_its_dmabuf_is_all_of_it_and_made_once() -> None:
    kernel = FakeUdmabuf()
    surface = store(kernel).create_surface(300, 60, 1)
    pattern(surface)
    dmabuf = surface.dmabuf()
    assert dmabuf is not None
    assert dmabuf.size == -(-1280 * 60 // PAGE) * PAGE
    data = os.pread(dmabuf.fileno(), dmabuf.size, 0)
    assert data[: surface.pixels.nbytes] == bytes(surface.pixels)
    assert surface.dmabuf() is dmabuf
    exported = surface.export()
    assert exported is not None
    assert kernel.calls == [[(exported[0], 0, dmabuf.size)]]


def test_small_images_stay_on_the_heap() -> None:
    """Pointers: a guest has thousands, and no head shows one."""
    made = store()
    assert made.create_surface(64, 64, 1).export() is None
    assert made.create_surface(SMALL // 4 - 1, 1, 1).export() is None
    assert made.create_surface(SMALL // 4, 1, 1).export() is not None


def test_a_private_surface_is_exportable_whatever_its_size() -> None:
    private = store().create_private(16, 16)
    assert private.stride == 256
    dmabuf = private.dmabuf()
    assert dmabuf is not None
    assert dmabuf.size == PAGE


def test_the_number_of_memfds_is_bounded() -> None:
    """A guest may have 4,000 surfaces of 64 KiB; the process has 1,024 descriptors."""
    made = store(max_exportable=3)
    surfaces = [made.create_surface(256, 64, 1) for _ in range(5)]
    assert [one.export() is not None for one in surfaces] == [True] * 3 + [False] * 2
    assert surfaces[4].dmabuf() is None
    del surfaces[0]
    assert made.create_surface(256, 64, 1).export() is not None


def test_where_no_descriptor_is_left_it_is_not_exportable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = store()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        surfaces = [made.create_surface(256, 64, 1) for _ in range(2)]
        assert made.create_private(16, 16) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [one.export() for one in surfaces] == [None, None]
    assert len(caplog.records) == 1
    assert "Too many open files" in caplog.text


def test_C12_a_host_without_memory() -> None:
    made = store()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, hard))
    try:
        with pytest.raises(GuestError) as error:
            made.create_surface(8192, 8191, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert error.value.code == Ctrl.RESP_ERR_OUT_OF_MEMORY


def test_nothing_grows_over_2_000_surfaces() -> None:
    made = store()

    def rounds(count: int) -> None:
        for _ in range(count):
            surface = made.create_surface(256, 64, 1)
            surface.pixels[0] = 1
            assert surface.dmabuf() is not None
            made.create_private(16, 16).dmabuf()

    rounds(100)
    fds, memory = open_fds(), rss()
    rounds(2_000)
    assert open_fds() == fds
    assert rss() < memory + (1 << 20)
