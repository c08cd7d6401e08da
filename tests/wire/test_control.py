"""The control socket's protocol, with clients that do not do as they should."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from vgpud.host.fd import OwnedFd, memory_file
from vgpud.tasks.control import (
    MAX_LINE,
    PATIENCE,
    Answer,
    Command,
    Commands,
    Refused,
    control_socket,
)


class Served:
    """A control socket whose commands count what they made."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.made = 0

    async def echo(self, request: dict[str, Any], fd: OwnedFd | None) -> Answer:
        return Answer({"said": request.get("say"), "with": fd is not None})

    async def refuse(self, request: dict[str, Any], _: OwnedFd | None) -> Answer:
        raise Refused("no")

    async def fail(self, request: dict[str, Any], _: OwnedFd | None) -> Answer:
        raise OSError(24, os.strerror(24))

    async def make(self, request: dict[str, Any], _: OwnedFd | None) -> Answer:
        self.made += 1
        return Answer({}, memory_file())

    async def connect(self) -> trio.SocketStream:
        return await trio.open_unix_socket(self.path)

    async def ask(self, data: bytes, answers: int = 1, end: bool = False) -> list[dict[str, Any]]:
        async with await self.connect() as client:
            await client.send_all(data)
            if end:
                await client.send_eof()
            got = b""
            with trio.fail_after(5):
                while got.count(b"\n") < answers:
                    more = await client.receive_some()
                    if not more:
                        break
                    got += more
            return [json.loads(line) for line in got.splitlines()]


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[Served]:
    served = Served(path)
    names = ("echo", "refuse", "fail", "make")
    commands: dict[str, Command] = {name: getattr(served, name) for name in names}
    async with control_socket(served.path, Commands(commands, frozenset({"make"}))):
        yield served


def echo(say: object) -> bytes:
    return json.dumps({"command": "echo", "say": say}).encode() + b"\n"


ONE = {"ok": True, "said": 1, "with": False}
TWO = {"ok": True, "said": 2, "with": False}


@pytest.mark.parametrize(
    ("data", "answers"),
    [
        (echo(1) + echo(2), [ONE, TWO]),
        (echo(1) + echo(2)[:-1], [ONE, TWO]),
        (echo(1)[:-1], [ONE]),
        (b"", []),
    ],
    ids=["two at once", "one and a half, then the end", "no newline", "nothing"],
)
async def test_each_line_is_answered(tmp_path: Path, data: bytes, answers: object) -> None:
    async with serving(tmp_path / "control") as served:
        assert await served.ask(data, 2, end=True) == answers


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"nonsense\n", "no JSON: "),
        (b"\xff\xfe\n", "no JSON: 'utf-8'"),
        (b"[" * 2000 + b"\n", "no JSON: "),
        (b"[1]\n", "a request is a JSON object"),
        (b"\n", "no JSON: "),
        (b"{}\n", "no such command; there are: echo, fail, make, refuse"),
        (b'{"command": ["echo"]}\n', "no such command"),
        (b'{"command": "refuse"}\n', "no"),
        (b'{"command": "fail"}\n', "[Errno 24] Too many open files"),
        (b'{"command": "echo"' + b" " * MAX_LINE + b"}\n", "a request of more than 4096 bytes"),
        (b"x" * (MAX_LINE + 1), "a request of more than 4096 bytes"),
    ],
)
async def test_what_is_no_request_is_told(tmp_path: Path, data: bytes, error: str) -> None:
    async with serving(tmp_path / "control") as served:
        (answer,) = await served.ask(data)
        assert answer["ok"] is False
        assert answer["error"].startswith(error)
        assert await served.ask(echo(1)) == [ONE], "and the next client is served"


async def test_a_descriptor_comes_with_its_request(tmp_path: Path) -> None:
    async with serving(tmp_path / "control") as served:
        async with await served.connect() as client:
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", 0))
            await client.socket.sendmsg([echo(1)], [rights])
            assert json.loads(await client.receive_some())["with"] is True
            await client.send_all(echo(1))
            assert json.loads(await client.receive_some())["with"] is False


async def test_an_answer_in_memory_is_made_when_the_one_before_was_taken(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    """Four hundred requests of one client that reads nothing pinned gigabytes."""
    make = b'{"command": "make"}\n'
    async with serving(tmp_path / "control") as served:
        async with await served.connect() as greedy, await served.connect() as other:
            await greedy.send_all(make * 50)
            await trio.sleep(PATIENCE / 4)
            await other.send_all(make)
            await trio.sleep(PATIENCE / 4)
            assert served.made == 1
            assert await served.ask(echo(1)) == [ONE], "the others go on"
            await trio.sleep(PATIENCE)
            assert served.made == 2, "the greedy one was given up"
            assert json.loads(await other.receive_some())["ok"] is True
            await trio.sleep(PATIENCE)
            assert served.made == 2


async def test_a_client_that_says_nothing_is_forgotten(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(tmp_path / "control") as served:
        async with await served.connect() as client:
            await client.send_all(b'{"command"')
            assert await client.receive_some() == b""
            assert trio.current_time() == pytest.approx(PATIENCE, abs=1)
