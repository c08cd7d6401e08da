"""The real program as an unprivileged user, with the device opened by whoever launched it."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager

import pytest
import trio

from tests.lab.inner.raw import DEVICE, memfd
from tests.support.blobs import FEATURES, BlobGuest, Frame, pattern
from tests.support.machine import machine

FRAME = Frame(128, 96)
NOBODY = 65534


class Program:
    """vgpud in a process of its own, in the place of a Machine's session."""

    def __init__(self, arguments: Sequence[str], sock: socket.socket, device: int | None) -> None:
        self._sock = sock
        self._inherited = [sock.fileno(), *([] if device is None else [device])]
        self._command = [sys.executable, "-m", "vgpud", f"--fd={sock.fileno()}"]
        self._command += ["--sandbox=kill", *arguments]
        if device is not None:
            self._command.append(f"--udmabuf=fd={device}")
        self.lines: list[str] = []

    async def run(self) -> None:
        with tempfile.TemporaryFile() as log:
            process = await trio.lowlevel.open_process(
                self._command,
                pass_fds=self._inherited,
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                stderr=log,
            )
            self._sock.close()  # so that its end is the end
            status = await process.wait()
            log.seek(0)
            self.lines = log.read().decode().splitlines()
        assert status == 0, self.lines

    def events(self) -> list[str]:
        return [line.split()[1] for line in self.lines]


@asynccontextmanager
async def program(
    *arguments: str, device: int | None = None
) -> AsyncIterator[tuple[BlobGuest, Program]]:
    async with machine(
        features=FEATURES, make_session=lambda sock: Program(arguments, sock, device)
    ) as vm:
        await vm.boot()
        yield BlobGuest(vm), vm.session


@pytest.fixture
def ram(stack: ExitStack) -> int:
    fd = memfd(2 * FRAME.size)
    stack.callback(os.close, fd)
    return fd


async def two_pictures(guest: BlobGuest, ram: int) -> None:
    dimm = await guest.plug(ram)
    for number in (1, 2):
        await guest.picture(number, FRAME, [(dimm.gpa, FRAME.size)])
    pixels = pattern(136 * 128 * 4, 1)
    await guest.vm.picture(136, 128, pixels, 3)


async def ended(guest: BlobGuest) -> None:
    guest.vm.frontend.close()
    await guest.vm.ended.wait()
    if guest.vm.error is not None:
        raise guest.vm.error


async def test_an_inherited_device_needs_no_right_to_open_it(ram: int, device: int) -> None:
    async with program("--scanout=dmabuf", device=device) as (guest, vgpud):
        await two_pictures(guest, ram)
        buffer = guest.vm.display.screens[0].buffer
        assert buffer is not None
        assert buffer.exporter() == "udmabuf"
        assert {"SCANOUT", "UPDATE"}.isdisjoint(guest.vm.display.names())
        await ended(guest)
    assert vgpud.events() == EVENTS


EVENTS = ["event=ready", "event=session-start", "event=session-end"]


async def test_without_the_right_there_are_pixels_and_one_line(ram: int) -> None:
    async with program("--scanout=dmabuf") as (guest, vgpud):
        await two_pictures(guest, ram)
        assert guest.vm.display.screens[0].buffer is None
        await ended(guest)
    assert vgpud.events() == [*EVENTS[:2], "event=no-dmabuf", EVENTS[2]]
    for word in (DEVICE, "errno 13", "udev rule", "--udmabuf=fd=N"):
        assert word in vgpud.lines[2]


async def test_shm_mode_says_so_in_one_line(ram: int) -> None:
    """It wants no device, so that nothing is said of one."""
    async with program("--scanout=shm", "--udmabuf=/dev/no-udmabuf") as (guest, vgpud):
        await two_pictures(guest, ram)
        await ended(guest)
    assert vgpud.events() == EVENTS
    assert [line for line in vgpud.lines if "shm" in line] == [vgpud.lines[0]]
    assert "scanout=shm" in vgpud.lines[0]
