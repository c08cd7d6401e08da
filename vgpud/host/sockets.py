"""UNIX sockets that QEMU or a client comes in by: bound to a path, or inherited."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from vgpud.errors import HostError

MAX_PATH: Final = 107
"""Bytes: sun_path has 108 with the final zero."""

IN_USE: Final = "somebody listens on it already; choose another path"


@contextmanager
def bound(path: str, mode: int = 0o777) -> Iterator[socket.socket]:
    """A socket that listens on `path`, non-blocking, its file of `mode` less the umask. A socket
    there that nobody listens on any more is replaced, and nothing else ever is. At the end the
    file is removed, if it still is the one that was made.

    Raises HostError.
    """
    if not 0 < len(os.fsencode(path)) <= MAX_PATH:
        raise HostError(f"socket path {path!r}: it needs 1 to {MAX_PATH} bytes")
    try:
        _make_room(path)
        sock, identity = _bind(path, mode)
    except OSError as error:
        raise HostError.of(error, path, "is the folder there, and may it be written?") from error
    try:
        with sock:
            yield sock
    finally:
        if _identity(path) == identity:
            os.unlink(path)


def inherited(number: int) -> socket.socket:
    """A connected or listening UNIX stream socket that the launcher opened. Raises HostError."""
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise HostError(f"file descriptor {number} is no socket")
        sock = socket.socket(fileno=number)
    except (OSError, OverflowError) as error:
        raise HostError(f"file descriptor {number}: {error}") from error
    os.set_inheritable(number, False)
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        raise HostError(f"file descriptor {number} is no UNIX stream socket")
    return sock


def is_listening(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _make_room(path: str) -> None:
    """Remove a stale socket. Any other file is somebody's: connect() refuses a plain file with
    the same errno as a stale socket, so its type is looked at first."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise HostError(f"{path} is there and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass  # its backlog is full: somebody is very much there
        except PermissionError as error:
            raise HostError.of(error, path, "it is somebody else's socket") from error
    raise HostError(f"{path}: {IN_USE}")


def _bind(path: str, mode: int) -> tuple[socket.socket, tuple[int, int] | None]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.setblocking(False)
    mask = os.umask(0)
    os.umask(mask)
    try:
        os.umask(mask | ~mode & 0o777)
        sock.bind(path)
        sock.listen(64)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise HostError(f"{path}: it has just been taken; choose another path") from error
        raise
    finally:
        os.umask(mask)
    return sock, _identity(path)


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
