"""udmabuf_create() as far as a machine without /dev/udmabuf goes, and file_system().

The rest is in tests/lab: a VM has the device.
"""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from array import array

import pytest

from vgpud import _native

PAGE = 4096


def run(region, offset=0, length=PAGE):
    return struct.pack("=IIQQ", region, 0, offset, length)


@pytest.fixture
def wrong():
    """A descriptor that answers every ioctl of udmabuf with ENOTTY."""
    fd = os.open("/dev/null", os.O_RDWR)
    yield fd
    os.close(fd)


def test_the_ioctl_is_made(wrong):
    with pytest.raises(OSError, match="Inappropriate ioctl") as error:
        _native.udmabuf_create(wrong, run(0), array("i", [0]))
    assert error.value.errno == errno.ENOTTY


def test_a_closed_device():
    with pytest.raises(OSError, match="Bad file descriptor"):
        _native.udmabuf_create(1 << 30, run(0), array("i", [0]))


@pytest.mark.parametrize(
    ("runs", "fds"),
    [
        ([0], []),
        ([1], [5]),
        ([0, 1, 2], [5, 6, -1]),
        ([(1 << 32) - 1], [5] * 10),
        ([1 << 30], [5] * 10),
    ],
)
def test_a_region_without_a_memfd_is_named(wrong, runs, fds):
    message = f"run {len(runs) - 1}: no descriptor for region {runs[-1]}$"
    with pytest.raises(ValueError, match=message):
        _native.udmabuf_create(wrong, b"".join(map(run, runs)), array("i", fds))


def test_the_array_of_descriptors_may_be_any_buffer(wrong):
    with pytest.raises(ValueError, match="no descriptor for region 1"):
        _native.udmabuf_create(wrong, run(1), array("i", [5, 6]).tobytes()[:7])


@pytest.mark.parametrize("length", [1, 23, 25])
def test_half_a_run(wrong, length):
    with pytest.raises(ValueError, match=f"{length} bytes are no array of 24-byte runs"):
        _native.udmabuf_create(wrong, bytes(length), array("i", [0]))


@pytest.mark.parametrize("arguments", [(), (0, b""), (-1, b"", b""), (0, "", b""), (0, b"", None)])
def test_bad_arguments(arguments):
    with pytest.raises((TypeError, ValueError)):
        _native.udmabuf_create(*arguments)


def test_file_system():
    fd = os.memfd_create("memory")
    assert _native.file_system(fd) == (0x01021994, PAGE)
    os.close(fd)
    with tempfile.TemporaryFile(dir="/proc/self/cwd") as file:
        assert _native.file_system(file.fileno())[0] != 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        _native.file_system(fd)
    with pytest.raises(TypeError):
        _native.file_system(file)
