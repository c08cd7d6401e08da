"""The service manager's protocol, spoken to a socket of the test's own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from vgpud.tasks.notify import ServiceManager, passed_fds

ME = str(os.getpid())


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def of(manager: socket.socket, **more: str) -> ServiceManager:
    return ServiceManager({"NOTIFY_SOCKET": manager.getsockname(), **more})


def test_lines_go_in_one_datagram(manager: socket.socket) -> None:
    with_socket = of(manager)
    with_socket.tell("READY=1", "STATUS=x")
    assert manager.recv(100) == b"READY=1\nSTATUS=x"
    with_socket.close()
    with_socket.tell("READY=1")


@pytest.mark.parametrize("path", ["", "relative", "/nowhere/notify", "@nobody-listens"])
def test_without_a_manager_nothing_is_said(path: str) -> None:
    ServiceManager({"NOTIFY_SOCKET": path}).tell("READY=1")


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, 0.0),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": ME}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, 0.0),
        ({"WATCHDOG_USEC": "often"}, 0.0),
    ],
)
def test_the_watchdog(environment: dict[str, str], seconds: float) -> None:
    assert ServiceManager(environment).watchdog == seconds


async def test_it_hears_of_life_and_of_news_only(
    manager: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    said = of(manager, WATCHDOG_USEC="3000000")
    texts = iter(["one", "one", "two"])

    def status(seconds: float) -> str:
        assert seconds == pytest.approx(1.5)
        return next(texts)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(said.run, status)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    manager.setblocking(False)
    heard = [manager.recv(100) for _ in range(3)]
    assert heard == [b"WATCHDOG=1\nSTATUS=one", b"WATCHDOG=1", b"WATCHDOG=1\nSTATUS=two"]
    said.close()


@pytest.mark.parametrize(
    ("environment", "fds"),
    [
        ({}, []),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, []),
        ({"LISTEN_PID": ME, "LISTEN_FDS": "x"}, []),
        ({"LISTEN_PID": ME, "LISTEN_FDS": "2"}, [("", 3), ("", 4)]),
        (
            {"LISTEN_PID": ME, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "vhost-user:udmabuf"},
            [("vhost-user", 3), ("udmabuf", 4)],
        ),
    ],
)
def test_what_it_opened(environment: dict[str, str], fds: list[tuple[str, int]]) -> None:
    assert passed_fds(environment) == fds
