"""File descriptors with exactly one owner."""

from __future__ import annotations

import array
import fcntl
import os
import select
import socket
import termios
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, Protocol, Self

from vgpud.errors import PeerError


class OwnedFd:
    """A file descriptor that is closed once: by close(), by leaving a `with`, or, where its
    owner was dropped, by the interpreter. After that its number is forgotten, so that a late
    use fails with EBADF and never meets somebody else's file."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = -1  # first, so that __del__ is safe whatever fails below
        if fd < 0:
            raise ValueError(f"{fd} is not a file descriptor")
        self._fd = fd

    def fileno(self) -> int:
        """The number, -1 once closed or stolen. Borrowed: the caller must not close it."""
        return self._fd

    def steal(self) -> int:
        """Give the descriptor up: the caller owns it from now on."""
        fd, self._fd = self._fd, -1
        return fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if os is not None:  # else the interpreter ends, and the kernel closes it
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._fd}>"


class EventFd(OwnedFd):
    """An eventfd shared with QEMU or KVM (kick, call, err), non-blocking."""

    __slots__ = ()

    @classmethod
    def of(cls, fd: OwnedFd) -> Self:
        """Take over what came in a message. Raises PeerError where it is no eventfd: a ring's
        task must not find out later."""
        kind = os.readlink(f"/proc/self/fd/{fd.fileno()}")
        if kind != "anon_inode:[eventfd]":
            raise PeerError(f"a ring's descriptor is {kind}, no eventfd")
        os.set_blocking(fd.fileno(), False)
        return cls(fd.steal())

    def signal(self) -> None:
        """Add one. A counter that is full already wakes its reader: that is no error."""
        with suppress(BlockingIOError):
            os.eventfd_write(self._fd, 1)

    def drain(self) -> None:
        """Take all that was signalled; nothing where nobody did."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)


class Folder:
    """A folder whose files are read long after the start, when the sandbox leaves no path but
    those below it. Opened once, at its first use."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd: OwnedFd | None = None

    def fileno(self) -> int:
        """Borrowed. Raises OSError."""
        if self._fd is None:
            self._fd = OwnedFd(os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        return self._fd.fileno()

    def read(self, name: str) -> str:
        """A small file in it. Raises OSError."""
        with OwnedFd(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.fileno())) as file:
            return os.read(file.fileno(), 4096).decode(errors="replace")


FDINFO: Final = Folder("/proc/self/fdinfo")
"""What the kernel says of our descriptors."""


def hung_up(sock: socket.socket) -> bool:
    """Whether the other end of a UNIX socket is closed, whatever is left to read."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


class HasFileno(Protocol):
    def fileno(self) -> int: ...


def unread(sock: HasFileno) -> bool:
    """Whether the other end of a UNIX socket has not read everything (SIOCOUTQ); False once
    either end is closed."""
    if sock.fileno() < 0:
        return False
    waiting = array.array("i", [0])
    fcntl.ioctl(sock, termios.TIOCOUTQ, waiting)
    return waiting[0] > 0


def memory_file() -> OwnedFd:
    """An empty memfd. Raises OSError."""
    return OwnedFd(os.memfd_create("vgpud", os.MFD_CLOEXEC))


def append(file: OwnedFd, pieces: Iterable[memoryview]) -> None:
    """Write all of them to a file. Raises OSError."""
    with open(file.fileno(), "wb", closefd=False) as out:
        out.writelines(pieces)
