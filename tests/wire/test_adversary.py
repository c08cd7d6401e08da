"""A display that does not play along: on real sockets, with every answer that it can get wrong.
Whatever it does, rings and the control socket are served, memory is bounded, and a QEMU that comes
back with another socket has the right picture."""

from __future__ import annotations

import gc
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.support.fake_display import HEADER, FakeDisplay
from tests.support.machine import Machine, hdr, machine
from vgpud.errors import PeerError
from vgpud.tasks.display import MAX_KEPT
from vgpud.tasks.gpu_socket import MAX_OWED, QUEUED
from vgpuwire import Ctrl, CtrlHdr, CursorPos, GetEdid, Rect, UpdateCursor

W, H = 64, 64
PIXELS = bytes(range(256)) * (W * H // 64)
WHOLE = Rect(0, 0, W, H)


class Adversary(FakeDisplay):
    """`wrong` makes of QEMU's right answer (request, payload) what is sent instead."""

    def __init__(self) -> None:
        super().__init__()
        self.wrong = "nothing"

    async def _reply(self, sock: trio.socket.SocketType, request: int, payload: bytes) -> None:
        whole = HEADER.pack(request, 4, len(payload)) + payload
        if request == 1:  # without features there is nothing to get wrong
            data = whole
        else:
            data = {
                "nothing": whole,
                "twice": whole * 2,
                "never": b"",
                "shorter": HEADER.pack(request, 4, 8) + payload[:8],
                "longer": HEADER.pack(request, 4, len(payload) + 8) + payload + bytes(8),
                "of 4 GiB": HEADER.pack(request, 4, 0xFFFFFFFF) + payload,
                "with flags": HEADER.pack(request, 0, len(payload)) + payload,
                "another request": HEADER.pack(request ^ 1, 4, len(payload)) + payload,
                "no request": HEADER.pack(0xFFFFFFFF, 4, len(payload)) + payload,
                "half": whole[: len(whole) // 2],
                "half a header": whole[:7],
                "noise": b"\xff" * len(whole),
            }[self.wrong]
        while data:
            data = data[await sock.send(data) :]
        if self.wrong.startswith("half"):
            self.close()


def open_fds() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


WRONG = (
    *("twice", "never", "shorter", "longer", "of 4 GiB", "with flags", "another request"),
    *("no request", "half", "half a header", "noise"),
)


@asynccontextmanager
async def shown(display: FakeDisplay) -> AsyncIterator[Machine]:
    """A machine that shows a picture; in the end the display is a good one again, and QEMU comes
    with a new socket."""
    async with machine(display=display, ram_size=64 << 20) as vm:
        await vm.boot()
        await vm.picture(W, H, PIXELS)
        yield vm
        if isinstance(display, Adversary):
            display.wrong = "nothing"
        await vm.stop()
        await vm.start()
        await vm.shown(PIXELS)
        await vm.flush(1, WHOLE)


@pytest.mark.parametrize("wrong", WRONG)
async def test_an_answer_that_is_wrong(wrong: str, autojump_clock: trio.testing.MockClock) -> None:
    """The guest has an answer to all that it asks, QEMU's or our own, within the deadlines."""
    display = Adversary()
    async with shown(display) as vm:
        before = len(os.listdir("/proc/self/fd"))
        display.wrong = wrong
        began = trio.current_time()
        for fence in range(1, 6):
            info = await vm.control(hdr(Ctrl.CMD_GET_DISPLAY_INFO, fence), room=408)
            edid = await vm.control(GetEdid(hdr(Ctrl.CMD_GET_EDID, fence), 0), room=1056)
            assert CtrlHdr.decode(info).type == Ctrl.RESP_OK_DISPLAY_INFO
            assert CtrlHdr.decode(edid).type == Ctrl.RESP_OK_EDID
            assert (CtrlHdr.decode(info).fence_id, len(info), len(edid)) == (fence, 408, 1056)
            await vm.flush(1, WHOLE)
        assert trio.current_time() - began < 5 * 2 * 1.1, "no more than each deadline"
        await vm.frontend.read_config()
        assert len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("after", [1, 12, 31, 500, 16_400])
async def test_it_goes_in_the_middle_of_a_message(after: int) -> None:
    """So many bytes of an UPDATE are read, then the socket is closed."""
    display = FakeDisplay()
    async with shown(display) as vm:
        display.paused = trio.Event()
        await vm.flush(1, WHOLE)  # the one that it waits for already
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(3):
            vm.submit(vm.flush_command(1, WHOLE))
        sock = display._sock
        assert sock is not None
        left = after
        while left:
            left -= len(await sock.recv(left))
        display.close()
        display.paused.set()
        display.paused = None
        await vm.reap(3)
        await vm.frontend.read_config()


async def test_it_reads_nothing_for_a_minute(autojump_clock: trio.testing.MockClock) -> None:
    """Every flush is answered after its 40 ms, pointers at once, questions after their second; what
    waits is bounded, and the last picture is the one that is shown."""
    display = FakeDisplay()
    size = 512
    whole = Rect(0, 0, size, size)
    async with shown(display) as vm:
        gpa = await vm.resource(2, size, size)
        await vm.scanout(2, whole)
        display.paused = trio.Event()
        end = trio.current_time() + 60
        rounds = 0
        while trio.current_time() < end:
            rounds += 1
            vm.ram.write(gpa, bytes([rounds & 0xFF]) * (size * size * 4))
            await vm.transfer(2, whole)
            for side in range(1, 17):
                vm.submit(vm.flush_command(2, Rect(side, side, side, size - side)))
            vm.submit(hdr(Ctrl.CMD_GET_DISPLAY_INFO), room=408)
            move = UpdateCursor(hdr(Ctrl.CMD_MOVE_CURSOR), CursorPos(0, 1, rounds), 1, 0, 0)
            vm.submit(move, room=0, ring=1)
            await vm.reap(1, ring=1)
            await vm.reap(17)
            await vm.frontend.read_config()
            usage = vm.session.view.usage()
            assert usage["display_bytes"].used <= QUEUED
            assert usage["questions"].used <= MAX_OWED
        await vm.flush(2, whole)
        assert rounds >= 60
        assert vm.session.view.usage()["display_bytes"].refused > 10 * rounds
        display.paused.set()
        display.paused = None
        await vm.shown(bytes([rounds & 0xFF]) * (size * size * 4))
        await vm.scanout(1, WHOLE)


async def test_answers_that_nobody_asked_for() -> None:
    """A thousand, while the guest draws."""
    display = FakeDisplay()
    async with shown(display) as vm:
        sock = display._sock
        assert sock is not None
        for n in range(1000):
            request, size = ((3, 408), (11, 1056), (10, 0), (1, 8))[n % 4]
            await sock.send(
                HEADER.pack(request, 4, size) + struct.pack("<I", 0x1101).ljust(size)[:size]
            )
            if n % 50 == 0:
                await vm.flush(1, WHOLE)
        info = await vm.control(hdr(Ctrl.CMD_GET_DISPLAY_INFO), room=408)
        assert CtrlHdr.decode(info).type == Ctrl.RESP_OK_DISPLAY_INFO


async def test_a_padded_question_is_not_kept() -> None:
    """A request of 256 KiB, again and again: none outlives its answer."""
    display = FakeDisplay()
    async with shown(display) as vm:
        padding = bytes(250_000)
        ask = hdr(Ctrl.CMD_GET_DISPLAY_INFO).encode()
        for _ in range(200):
            await vm.control(ask, padding, room=408)
        deadlines = vm.session._display._deadlines._heap
        kept = [one for _, _, one in deadlines if not one.done]
        assert kept == []


async def test_a_guest_that_brings_display_sockets_without_end() -> None:
    """With every write of its status QEMU sends one more and closes none: the session ends, the
    daemon has as many descriptors as before."""
    before = open_fds()
    async with machine(fails=True) as vm:
        await vm.boot()
        kept = []
        for _ in range(MAX_KEPT):
            ours, theirs = socket.socketpair()
            kept.append(ours)
            await vm.frontend.send(33, b"", [theirs.fileno()])
            theirs.close()
            await vm.frontend.read_config()
        ours, theirs = socket.socketpair()
        await vm.frontend.send(33, b"", [theirs.fileno()])
        theirs.close()
        with trio.fail_after(5):
            await vm.ended.wait()
        assert isinstance(vm.error, PeerError)
        assert "64 display sockets" in str(vm.error)
        for sock in (*kept, ours):
            sock.close()
    assert open_fds() == before


FLOOD = 200


async def test_heads_that_are_switched_while_it_reads_nothing() -> None:
    """Pictures that come and go: only the last is ever said, and the old ones are freed."""
    display = FakeDisplay()
    async with shown(display) as vm:
        display.paused = trio.Event()
        for number in range(2, FLOOD):
            await vm.resource(number, 128, 128)
            await vm.scanout(number, Rect(0, 0, 128, 128))
            vm.submit(vm.flush_command(number, Rect(0, 0, 128, 128)))
            await vm.reap(1)
            await vm.ok(struct.pack("<IIQIIII", 0x102, 0, 0, 0, 0, number, 0))
            assert vm.session.view.usage()["display_bytes"].used <= QUEUED
        assert vm.session.view.usage()["hostmem_bytes"].used == W * H * 4
        display.paused.set()
        display.paused = None
        await vm.scanout(1, WHOLE)
        await vm.flush(1, WHOLE)
        await vm.shown(PIXELS)
