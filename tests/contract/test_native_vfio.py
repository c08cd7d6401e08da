"""The requests to a VFIO device as far as a machine without one goes, and memory that is not
mapped. The rest is in tests/lab/vfio: a VM has devices."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mock_driver import GPA, UVA, GuestRam, RamRegion, mem_entries
from tests.support.silent_device import silent
from vgpud import _native

PAGE = 4096
BAR = 0x20_0000_0000


@pytest.fixture
def wrong():
    """A descriptor that answers every ioctl of VFIO with ENOTTY."""
    fd = os.open("/dev/null", os.O_RDWR)
    yield fd
    os.close(fd)


REQUESTS = [
    (_native.vfio_device_info, ()),
    (_native.vfio_region_info, (0,)),
    (_native.vfio_probe_dma_buf, ()),
    (_native.vfio_get_dma_buf, (2, struct.pack("=QQ", 0, PAGE))),
    (_native.vfio_get_dma_buf, (2, b"")),
]


@pytest.mark.parametrize(("call", "arguments"), REQUESTS)
def test_the_ioctl_is_made(wrong, call, arguments):
    with pytest.raises(OSError, match="Inappropriate ioctl") as error:
        call(wrong, *arguments)
    assert error.value.errno == errno.ENOTTY
    with pytest.raises(OSError, match="Bad file descriptor"):
        call(1 << 30, *arguments)


@pytest.mark.parametrize(("call", "arguments"), REQUESTS)
def test_bad_arguments(wrong, call, arguments):
    for bad in ((-1, *arguments), (None, *arguments), (), (wrong, *arguments, 1)):
        with pytest.raises((TypeError, ValueError)):
            call(*bad)


@pytest.mark.parametrize("length", [1, 15, 17])
def test_half_a_range(wrong, length):
    with pytest.raises(ValueError, match=f"{length} bytes are no array of 16-byte ranges"):
        _native.vfio_get_dma_buf(wrong, 2, bytes(length))


# -- memory that is elsewhere


@pytest.fixture
def memory():
    """A page of RAM, and two regions of a device that touch."""
    with GuestRam(PAGE) as ram:
        yield _native.GuestMemory(
            [
                _native.Region(ram.memfd, GPA, PAGE, UVA, 0),
                _native.Region(None, BAR, PAGE, 0, 2 << 40),
                _native.Region(None, BAR + PAGE, PAGE, 0, (2 << 40) + 5 * PAGE),
            ]
        )


def test_such_a_region(memory):
    region = memory.regions[1]
    assert (region.access, region.mmap_offset, region.memory_size) == ("none", 2 << 40, PAGE)
    with pytest.raises(ValueError, match="not all mapped"):
        memory.read(BAR, 1)


@pytest.mark.parametrize(
    ("ranges", "mapped", "segments"),
    [
        ([(GPA, PAGE)], True, 1),
        ([(BAR, PAGE)], False, 1),
        ([(BAR, 2 * PAGE)], False, 1),
        ([(BAR + PAGE, 8), (BAR, 8)], False, 2),
        ([(GPA, 100), (BAR, 100)], False, 2),
        ([(BAR, 100), (GPA, 100)], False, 2),
    ],
)
def test_a_backing_may_be_there(memory, ranges, mapped, segments):
    backing = _native.Backing(memory, mem_entries(ranges))
    assert (backing.mapped, backing.segments) == (mapped, segments)
    assert backing.size == sum(length for _, length in ranges)
    again = backing.rebind(memory)
    assert (again.mapped, again.segments) == (mapped, segments)


def test_its_runs_are_the_files(memory):
    backing = _native.Backing(memory, mem_entries([(BAR, 2 * PAGE), (GPA, PAGE)]))
    runs = list(struct.iter_unpack("=IIQQ", backing.runs(3 * PAGE)))
    assert runs == [(1, 0, 2 << 40, PAGE), (2, 0, (2 << 40) + 5 * PAGE, PAGE), (0, 0, 0, PAGE)]


@pytest.mark.parametrize(
    "ranges", [[(BAR, PAGE)], [(GPA, PAGE), (BAR, 8)], [(BAR, 8), (GPA, PAGE)]]
)
def test_no_byte_of_it_is_touched(memory, ranges):
    """Not even of the part that is mapped."""
    backing = _native.Backing(memory, mem_entries(ranges))
    out = bytearray(b"\xaa" * PAGE)
    for call in (
        lambda: backing.read(0, 8),
        lambda: _native.copy_out(backing, 0, 64, 0, 0, 2, 2, 0, out),
        lambda: _native.transfer(out, 64, 0, 0, 2, 2, 0, backing, 0, 64),
    ):
        with pytest.raises(_native.GuestFault, match="device memory is not mapped here"):
            call()
    assert out == b"\xaa" * PAGE


@pytest.mark.parametrize(
    "ranges",
    [
        [(BAR + PAGE, PAGE + 1)],
        [(BAR - 1, 2)],
        [(BAR, 0)],
        [((1 << 64) - 8, 16)],
        [(GPA, 2 * PAGE)],
    ],
)
def test_what_is_not_all_there(memory, ranges):
    with pytest.raises(ValueError, match="entry 0"):
        _native.Backing(memory, mem_entries(ranges))


def test_a_ring_cannot_be_there(memory):
    with pytest.raises(ValueError, match="not"):
        _native.Virtqueue(memory, 16, 0, 0x400, 0x800, 0, False)


# -- a device's memory, mapped


@settings(deadline=None, max_examples=60)
@given(
    ranges=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 100)), min_size=1, max_size=6),
    start=st.integers(0, 40),
)
def test_wide_loads_bring_the_same_bytes(ranges, start):
    """From any address, of any length."""
    data = os.urandom(PAGE)
    with GuestRam(PAGE, regions=[RamRegion(GPA, PAGE, UVA, 0)]) as ram:
        ram.write(GPA, data)
        mapped = _native.Region(ram.memfd, GPA, PAGE, UVA, 0, device=True)
        assert mapped.access == "ro"
        memory = _native.GuestMemory([mapped])
        backing = _native.Backing(memory, mem_entries((GPA + at, size) for at, size in ranges))
        flat = b"".join(data[at : at + size] for at, size in ranges)
        assert backing.read(start, 1000) == flat[start:]


# -- a copy that is stopped


def copied(stop, height=64, width=4096):
    with GuestRam(width * height * 4) as ram:
        memory = _native.GuestMemory([_native.Region(ram.memfd, *ram.regions[0])])
        ram.write(GPA, b"\x11" * (width * height * 4))
        backing = _native.Backing(memory, mem_entries([(GPA, width * height * 4)]))
        out = bytearray(width * height * 4)
        done = _native.copy_out(backing, 0, width * 4, 0, 0, width, height, 0, out, stop)
        return done, out.count(0x11)


def test_a_copy_that_nobody_stops():
    assert copied(bytearray(1)) == (True, 1 << 20)
    assert copied(b"") == (True, 1 << 20)


@pytest.mark.parametrize("flag", [1, 0xFF])
def test_a_copy_ends_within_256_kib(flag):
    assert copied(bytearray([flag])) == (False, 256 << 10)


def test_a_short_copy_is_whole():
    assert copied(bytearray([1]), height=16) == (True, 256 << 10)


# -- a device that does not answer


WHOLE = 16 * PAGE
SHAPES = [(16, WHOLE // 64), (WHOLE // 4, 1)]
"""64 KiB, in many rows and in one: what is RAM's is copied under the interpreter's lock."""


class SilentBar:
    """64 KiB of 0x11 but for the first page, which is never there by itself."""

    def __init__(self) -> None:
        fd = os.memfd_create("silent-bar", os.MFD_CLOEXEC)
        os.ftruncate(fd, WHOLE)
        os.pwrite(fd, b"\x11" * (WHOLE - PAGE), PAGE)
        region = _native.Region(fd, BAR, WHOLE, 0, 0, device=True)
        os.close(fd)
        maps = Path("/proc/self/maps").read_text().splitlines()
        (line,) = (one for one in maps if "/memfd:silent-bar" in one)
        self.address = int(line.split("-")[0], 16)
        self.backing = _native.Backing(_native.GuestMemory([region]), mem_entries([(BAR, WHOLE)]))

    def copy(self, shape, stop, out):
        width, height = shape
        return _native.copy_out(self.backing, 0, 4 * width, 0, 0, width, height, 0, out, stop)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stops", [False, True])
def test_nobody_waits_for_a_device_but_who_reads_it(shape, stops):
    """A reset keeps it silent for seconds. And a copy that is told to stop asks it once more at
    most for 4 KiB."""
    bar, stop, out, done = SilentBar(), bytearray(1), bytearray(WHOLE), []
    with silent(bar.address) as device:
        thread = Thread(target=lambda: done.append(bar.copy(shape, stop, out)))
        thread.start()
        device.wait_for_load()
        stop[0] = stops
        device.answer()
        thread.join()
    assert device.answered, "the interpreter stood still"
    assert done == [not stops]
    assert out.count(0x11) == (0 if stops else WHOLE - PAGE)


def test_nobody_waits_for_a_read():
    bar, got = SilentBar(), []
    with silent(bar.address) as device:
        thread = Thread(target=lambda: got.append(bar.backing.read(0, 8)))
        thread.start()
        device.wait_for_load()
        device.answer()
        thread.join()
    assert device.answered
    assert got == [bytes(8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_copy_that_was_stopped_before_asks_no_device(shape):
    out = bytearray(WHOLE)
    with GuestRam(WHOLE) as ram:
        ram.write(GPA, b"\x11" * WHOLE)
        mapped = _native.Region(ram.memfd, BAR, WHOLE, 0, 0, device=True)
        backing = _native.Backing(_native.GuestMemory([mapped]), mem_entries([(BAR, WHOLE)]))
        width, height = shape
        arguments = (backing, 0, 4 * width, 0, 0, width, height, 0, out)
        assert _native.copy_out(*arguments, bytearray([1])) is False
        assert out.count(0x11) == 0
        assert _native.copy_out(*arguments, bytearray([0])) is True
        assert out.count(0x11) == WHOLE
