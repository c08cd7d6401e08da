"""The process: where QEMU's connection comes from, signals, the service manager."""

from __future__ import annotations

import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import trio

from vgpud import __version__, log
from vgpud.config import DEFAULT_UDMABUF, Config
from vgpud.confine import confine
from vgpud.errors import GuestError, HostError, PeerError
from vgpud.host.fd import OwnedFd
from vgpud.host.sockets import bound, inherited, is_listening
from vgpud.host.udmabuf import Device, opened
from vgpud.session import Session
from vgpud.tasks.control import Answer, Command, Commands, Refused, control_socket
from vgpud.tasks.device_source import DeviceSource
from vgpud.tasks.notify import ServiceManager, passed_fds
from vgpud.tasks.trace import Filter

WAITING: Final = "waiting for QEMU"

UDMABUF: Final = "udmabuf"
"""The name under which the service manager hands the device over (OpenFile=)."""


class Daemon:
    """Serves one virtual machine: one connection at a time, again and again where it listens."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._session: Session | None = None
        self._idle = trio.Event()
        self._idle.set()
        self._udmabuf = _udmabuf(config)
        self._manager = ServiceManager()
        self._frames = 0
        self._scanout = "dmabuf" if config.dmabuf else "shm"

    async def main(self) -> int:
        """Run until QEMU left (an inherited connection) or SIGTERM; returns the exit status.

        Raises HostError where the socket cannot be had.
        """
        _raise_fd_limit()
        async with trio.open_nursery() as nursery:
            await nursery.start(self._watch_signals, nursery.cancel_scope)
            nursery.start_soon(self._manager.run, self._say)
            async with self._control():
                with _open(self._config) as (sock, listening):
                    confine(self._config)
                    log.info("ready", version=__version__, pid=os.getpid(), scanout=self._scanout)
                    self._manager.tell("READY=1", *self._manager.status(WAITING))
                    if listening:
                        await self._listen(sock)
                    self._session = Session(sock, self._config, self._udmabuf)
                    ended_well = await self._serve(self._session)
            nursery.cancel_scope.cancel()
            return 0 if ended_well else 1
        self._manager.tell("STOPPING=1")
        log.info("stopped")
        return 0

    def _say(self, seconds: float) -> str:
        """For `systemctl status`, so long after it was last asked."""
        if self._session is None:
            return WAITING
        frames, self._frames = self._session.stats.frames - self._frames, self._session.stats.frames
        heads = [f"head {n} {size} by {way}" for n, size, way in self._session.view.heads()]
        shown = ", ".join(heads) or "no head shows anything"
        return f"serving QEMU: {shown}; {frames / seconds:.0f} frames a second"

    @asynccontextmanager
    async def _control(self) -> AsyncIterator[None]:
        if self._config.control is None:
            yield
            return
        commands: dict[str, Command] = {
            "status": self._status,
            "screenshot": self._screenshot,
            "vfio-list": self._vfio_list,
            "vfio-add": self._vfio_add,
            "vfio-remove": self._vfio_remove,
            "trace": self._trace,
        }
        costly = frozenset({"screenshot"})
        async with control_socket(self._config.control, Commands(commands, costly)):
            yield

    async def _status(self, request: dict[str, Any], _: OwnedFd | None) -> Answer:
        session = None if self._session is None else self._session.view.status()
        fields = {"version": __version__, "pid": os.getpid(), "scanout": self._scanout}
        return Answer({**fields, "session": session})

    async def _screenshot(self, request: dict[str, Any], _: OwnedFd | None) -> Answer:
        head = request.get("head", 0)
        if type(head) is not int:
            raise Refused('"head" is a number')
        try:
            shot = None if self._session is None else await self._session.view.screenshot(head)
        except GuestError as error:
            raise Refused(f"head {head}: {error}") from error
        if shot is None:
            raise Refused(f"head {head} shows nothing")
        width, height, file = shot
        return Answer({"width": width, "height": height}, file)

    async def _vfio_list(self, request: dict[str, Any], _: OwnedFd | None) -> Answer:
        return Answer(await self._devices().status())

    async def _vfio_add(self, request: dict[str, Any], fd: OwnedFd | None) -> Answer:
        if fd is None:
            raise Refused("no descriptor came with the request")
        try:
            await self._devices().add(_id(request), fd)
        except HostError as error:
            raise Refused(str(error)) from error
        return Answer({})

    async def _vfio_remove(self, request: dict[str, Any], _: OwnedFd | None) -> Answer:
        try:
            await self._devices().remove(_id(request))
        except HostError as error:
            raise Refused(str(error)) from error
        return Answer({})

    def _devices(self) -> DeviceSource:
        if self._config.qmp is None:
            raise Refused("vgpud does not ask QEMU for devices: start it with --qmp=PATH")
        if self._session is None or self._session.devices is None:
            raise Refused("QEMU is not connected")
        return self._session.devices

    async def _trace(self, request: dict[str, Any], _: OwnedFd | None) -> Answer:
        if self._session is None:
            raise Refused("no QEMU is connected: there is nothing to trace")
        try:
            return Answer({}, self._session.view.trace(Filter.of(request)))
        except (OSError, TypeError, ValueError) as error:
            raise Refused(f"trace: {error}") from error

    async def _listen(self, sock: socket.socket) -> None:
        """Serve one connection after another. Those that come meanwhile are turned away, so that
        a second QEMU ends with an error instead of waiting for ever."""
        sock.setblocking(False)
        async with trio.open_nursery() as nursery:
            while True:
                await trio.lowlevel.wait_readable(sock)
                try:
                    connection, _ = sock.accept()
                except OSError as error:
                    log.warning("accept-failed", reason=error)
                    await trio.sleep(0.1)  # EMFILE does not go away by asking again at once
                    continue
                if self._session is not None and self._session.has_peer():
                    log.warning(
                        "refused", reason="serving a QEMU already; each needs its own vgpud"
                    )
                    connection.close()
                    continue
                await self._idle.wait()  # the one before has left, and that was not seen yet
                self._idle = trio.Event()
                self._session = Session(connection, self._config, self._udmabuf)
                nursery.start_soon(self._serve, self._session)

    async def _serve(self, session: Session) -> bool:
        """One connection; False where it ended by an error, which is logged."""
        self._frames = 0
        try:
            await session.run()
        except PeerError as error:
            log.error("session-failed", reason=error)
            return False
        finally:
            self._session = None
            self._idle.set()
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
                    session = self._session
                    log.info(
                        "stats", **(session.stats.fields() if session else {"session": "none"})
                    )
                else:
                    log.info("signal", name=signal.Signals(number).name)
                    scope.cancel()
                    return


def _id(request: dict[str, Any]) -> str:
    name = request.get("id")
    if not isinstance(name, str):
        raise Refused('"id" is the id= of a vfio-pci device')
    return name


@contextmanager
def _open(config: Config) -> Iterator[tuple[socket.socket, bool]]:
    """The socket to serve and whether it listens. Raises HostError where it cannot be had."""
    if config.socket_path is not None:
        with bound(config.socket_path) as sock:
            yield sock, True
        return
    number = config.fd
    if number is None:
        passed = [fd for name, fd in passed_fds() if name != UDMABUF]
        if len(passed) != 1:
            reason = "LISTEN_PID is another process" if not passed else "one is needed"
            raise HostError(f"the service manager passed {len(passed)} sockets: {reason}")
        number = passed[0]
    with inherited(number) as sock:
        yield sock, is_listening(sock)


def _udmabuf(config: Config) -> Device:
    """The device: what a launcher opened of it, or its path; opened now if it will be needed and
    the sandbox closes. Raises HostError for a descriptor that is not open."""
    option = config.udmabuf
    if option == DEFAULT_UDMABUF:
        for name, number in passed_fds():
            if name == UDMABUF:
                option = f"fd={number}"
    if not option.startswith("fd="):
        return opened(option) if config.dmabuf and config.sandbox != "off" else option
    try:
        fd = int(option.removeprefix("fd="))
        os.set_inheritable(fd, False)
        return OwnedFd(fd)
    except (ValueError, OverflowError):
        raise HostError(f"--udmabuf={option}: no file descriptor") from None
    except OSError as error:
        raise HostError.of(error, f"--udmabuf={option}") from error


def _raise_fd_limit() -> None:
    """QEMU may send 509 memory regions and a guest may have many buffers: take all that the
    launcher allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # a launcher's seccomp filter: live with what there is
        log.debug("fd-limit", limit=soft, reason=error)
