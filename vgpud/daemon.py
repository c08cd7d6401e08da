"""The process: where QEMU's connection comes from, signals, the service manager."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio

from vgpud import __version__, log
from vgpud.config import Config
from vgpud.errors import GuestError, HostError, PeerError
from vgpud.host.fd import OwnedFd, memory_file
from vgpud.session import Session
from vgpud.tasks.control import Answer, Command, Refused, control_socket
from vgpud.tasks.notify import listen_fds, notify


class Daemon:
    """Serves one virtual machine: one connection at a time, again and again where it listens."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._session: Session | None = None
        self._udmabuf = _udmabuf(config.udmabuf)
        self._scanout = "dmabuf" if config.dmabuf else "shm"

    async def main(self) -> int:
        """Run until QEMU left (an inherited connection) or SIGTERM; returns the exit status.

        Raises HostError where the socket cannot be had.
        """
        _raise_fd_limit()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, nursery.cancel_scope)
            async with _open(self._config) as (sock, listening), self._control():
                log.info("ready", version=__version__, pid=os.getpid(), scanout=self._scanout)
                notify("READY=1", "STATUS=waiting for QEMU")
                if listening:
                    await self._listen(sock)
                else:
                    ended_well = await self._serve(sock)
                    nursery.cancel_scope.cancel()
                    return 0 if ended_well else 1
        notify("STOPPING=1")
        log.info("stopped")
        return 0

    @asynccontextmanager
    async def _control(self) -> AsyncIterator[None]:
        if self._config.control is None:
            yield
            return
        commands: dict[str, Command] = {"status": self._status, "screenshot": self._screenshot}
        async with control_socket(self._config.control, commands):
            yield

    def _status(self, request: dict[str, Any]) -> Answer:
        session = None if self._session is None else self._session.status()
        fields = {"version": __version__, "pid": os.getpid(), "scanout": self._scanout}
        return Answer({**fields, "session": session})

    def _screenshot(self, request: dict[str, Any]) -> Answer:
        head = request.get("head", 0)
        if not isinstance(head, int):
            raise Refused('"head" is a number')
        try:
            shot = None if self._session is None else self._session.screenshot(head)
        except GuestError as error:
            raise Refused(f"head {head}: {error}") from error
        if shot is None:
            raise Refused(f"head {head} shows nothing")
        width, height, rows = shot
        return Answer({"width": width, "height": height}, memory_file(rows))

    async def _listen(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        while True:
            await trio.lowlevel.wait_readable(sock)
            try:
                connection, _ = sock.accept()
            except OSError as error:
                log.warning("accept-failed", reason=error)
                await trio.sleep(0.1)  # EMFILE does not go away by asking again at once
                continue
            await self._serve(connection)
            notify("STATUS=waiting for QEMU")

    async def _serve(self, sock: socket.socket) -> bool:
        """One connection; False where it ended by an error, which is logged."""
        self._session = Session(sock, self._config, self._udmabuf)
        notify("STATUS=serving QEMU")
        try:
            await self._session.run()
        except PeerError as error:
            log.error("session-failed", reason=error)
            return False
        finally:
            self._session = None
        return True

    async def _watch_signals(
        self,
        scope: trio.CancelScope,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGUSR1:
                    if self._session is not None:
                        log.info("stats", **self._session.stats.fields())
                else:
                    log.info("signal", name=signal.Signals(number).name)
                    scope.cancel()
                    return


@asynccontextmanager
async def _open(config: Config) -> AsyncIterator[tuple[socket.socket, bool]]:
    """The socket to serve and whether it listens. A path that we bound is removed at the end."""
    inherited = listen_fds()
    if config.socket_path is not None:
        with _bind(config.socket_path) as sock:
            try:
                yield sock, True
            finally:
                with suppress(FileNotFoundError):  # somebody tidied up
                    os.unlink(config.socket_path)
        return
    if config.fd is None and len(inherited) != 1:
        raise HostError(f"the service manager passed {len(inherited)} sockets; one is needed")
    number = inherited[0] if config.fd is None else config.fd
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise HostError(f"file descriptor {number} is no socket")
        sock = socket.socket(fileno=number)
    except OSError as error:
        raise HostError(f"file descriptor {number}: {error.strerror}") from error
    with sock:
        os.set_inheritable(number, False)
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
            raise HostError(f"file descriptor {number} is no UNIX stream socket")
        yield sock, bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _bind(path: str) -> socket.socket:
    """Listen on a path. A socket that nobody listens on any more is replaced."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(path)
        raise HostError(f"{path}: somebody listens on it already; choose another path")
    except ConnectionRefusedError:
        os.unlink(path)
    except BlockingIOError as error:
        raise HostError(f"{path}: somebody listens on it already; choose another path") from error
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}; remove it or choose another path") from error
    try:
        sock.bind(path)
        sock.listen(1)
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}; is the folder there and writable?") from error
    return sock


def _udmabuf(option: str) -> OwnedFd | str:
    """The device, or what a launcher opened of it: then the daemon needs no right to open it.

    Raises HostError for a descriptor that is not open.
    """
    if not option.startswith("fd="):
        return option
    try:
        fd = int(option.removeprefix("fd="))
        os.set_inheritable(fd, False)
        return OwnedFd(fd)
    except ValueError:
        raise HostError(f"--udmabuf={option}: no number") from None
    except OSError as error:
        raise HostError.of(error, f"--udmabuf={option}") from error


def _raise_fd_limit() -> None:
    """QEMU may send 509 memory regions and a guest may have many buffers: take all that the
    launcher allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except OSError as error:  # a launcher's seccomp filter: live with what there is
        log.debug("fd-limit", limit=soft, reason=error)
