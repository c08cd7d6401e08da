"""pidfd_getfd() on this process itself; the unit tests of host/handover.py have another one."""

from __future__ import annotations

import errno
import os

import pytest

from vgpud import _native


@pytest.fixture
def pidfd():
    fd = os.pidfd_open(os.getpid())
    yield fd
    os.close(fd)


def test_the_same_file(pidfd):
    file = os.memfd_create("one")
    try:
        copy = _native.pidfd_getfd(pidfd=pidfd, fd=file)
        try:
            assert os.path.sameopenfile(copy, file)
            assert not os.get_inheritable(copy)
        finally:
            os.close(copy)
    finally:
        os.close(file)


@pytest.mark.parametrize(
    ("pidfd_of", "number", "code"),
    [
        (lambda pidfd: pidfd, 2**31 - 1, errno.EBADF),
        (lambda pidfd: 2**31 - 1, 0, errno.EBADF),
    ],
)
def test_refusals(pidfd, pidfd_of, number, code):
    with pytest.raises(OSError, match="Bad file") as caught:
        _native.pidfd_getfd(pidfd_of(pidfd), number)
    assert caught.value.errno == code


def test_what_is_no_pidfd(pidfd):
    with open(os.devnull) as file, pytest.raises(OSError, match="Bad file"):
        _native.pidfd_getfd(file.fileno(), 0)


@pytest.mark.parametrize("number", [-1, 2**31])
def test_numbers(pidfd, number):
    with pytest.raises(ValueError, match=str(number)):
        _native.pidfd_getfd(pidfd, number)


def test_no_number(pidfd):
    with pytest.raises(TypeError):
        _native.pidfd_getfd(pidfd, "0")
