"""Attacks on a whole session: rings, sockets, memory tables, and a guest that rewrites what is
being read."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
import trio.testing

from tests.support.machine import PATIENCE, Machine, hdr, machine
from tests.support.mock_driver import WRITE
from tests.unit.device import driver as guest
from vgpud.device.resource import Image
from vgpud.errors import PeerError
from vgpuwire import Ctrl, CtrlHdr, CursorPos, Rect, UpdateCursor

W, H = 32, 32
BLUE = b"\xff\0\0\0" * (W * H)
WHOLE = Rect(0, 0, W, H)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


REQUESTS = {
    "an error": (hdr(0x10B), 24),
    "OK_NODATA": (hdr(Ctrl.CMD_RESOURCE_FLUSH), 24),
    "GET_CAPSET_INFO": (hdr(0x108), 24),
    "GET_CAPSET": (hdr(0x109), 24),
    "GET_DISPLAY_INFO": (hdr(Ctrl.CMD_GET_DISPLAY_INFO), 408),
    "GET_EDID": (hdr(Ctrl.CMD_GET_EDID), 1056),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_attack_02_04_12_36_77_the_used_length_is_what_was_written(name: str) -> None:
    """The guest's buffer is full of something else, and longer than any answer."""
    room = 4096
    header, expected = REQUESTS[name]
    async with machine() as vm:
        await vm.boot()
        queue = vm.queues[0]
        place = vm.ram.alloc(room)
        vm.ram.write(place, b"\xa5" * room)
        request = vm.ram.store(header.encode() + bytes(64))
        queue.add_ranges([(request, 88)], [(place, room)])
        queue.kick()
        with trio.fail_after(PATIENCE):
            while not (done := queue.used()):
                await trio.lowlevel.wait_readable(queue.call_fd)
                queue.called()
        ((_, length),) = done
        answer = vm.ram.read(place, room)
        assert length == expected
        assert answer[length:] == b"\xa5" * (room - length), "written beyond what was said"
        assert answer[4:24] == bytes(20), "a header without a fence"
        assert b"\xa5" not in answer[:length]


async def test_attack_16_73_a_bad_chain_ends_its_ring_and_no_more() -> None:
    """Its response would cover the rings and all that follows. What was answered stays answered,
    the other ring goes on, a reset mends it."""
    async with machine() as vm:
        await vm.boot()
        queue = vm.queues[0]
        good = [queue.add([hdr(0x199).encode()], [24]) for _ in range(5)]
        queue.kick()
        assert [head for head, _ in await vm.reap(5)] == good
        queue.write_descriptor(60, queue.used_gpa, 0xFFFFFFFF, WRITE, 0)
        queue.offer(60)
        queue.add([hdr(0x199).encode()], [24])
        queue.kick()
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(vm.err[0])
        vm.submit(UpdateCursor(hdr(0x301), CursorPos(0, 1, 1), 1, 0, 0), room=0, ring=1)
        await vm.reap(1, ring=1)
        await vm.reboot()
        await vm.picture(W, H, BLUE)


async def test_attack_16_a_response_on_the_rings_ends_no_more_than_the_ring() -> None:
    async with machine() as vm:
        await vm.boot()
        request = vm.ram.store(hdr(Ctrl.CMD_GET_EDID).encode() + bytes(8))
        for area in ("used_gpa", "avail_gpa", "desc_gpa"):
            queue = vm.queues[0]
            place = getattr(queue, area)
            queue.write_descriptor(0, request, 32, 1, 1)
            queue.write_descriptor(1, place, 1056, WRITE, 0)
            queue.offer(0)
            queue.kick()
            await vm.frontend.sync()
            await trio.testing.wait_all_tasks_blocked()
            await vm.reboot()
        await vm.picture(W, H, BLUE)


INFLIGHT = [
    (mmap_size, offset, queues, size)
    for mmap_size in (0, 4096, 1 << 62)
    for offset in (0, 1, (1 << 64) - 1)
    for queues, size in ((0, 0), (3, 65535), (65535, 65535))
]


async def test_attack_30_61_inflight_shapes_are_not_looked_into() -> None:
    """SET_INFLIGHT_FD is not offered: its descriptor is closed and it is refused where QEMU asks.
    GET_INFLIGHT_FD says that nothing is in flight."""
    async with machine() as vm:
        await vm.boot()
        await vm.picture(W, H, BLUE)
        before = open_fds()
        short = os.memfd_create("short")  # a read of it would be a SIGBUS
        for mmap_size, offset, queues, size in INFLIGHT:
            payload = struct.pack("<QQHH", mmap_size, offset, queues, size)
            for padding in (b"", bytes(4)):
                assert await vm.frontend.command(32, payload + padding, [short])
                answer = await vm.frontend.ask(31, payload + padding)
                assert answer == bytes(len(payload + padding))
        os.close(short)
        assert open_fds() == before
        await vm.flush(1, WHOLE)


def region(gpa: int, size: int, uva: int, offset: int = 0) -> bytes:
    return struct.pack("<QQQQ", gpa, size, uva, offset)


MIB = 1 << 20
TABLES = {
    "nine regions": (9, [(n * MIB, MIB, n * MIB) for n in range(8)], 8),
    "2^32-1 regions": (0xFFFFFFFF, [(0, MIB, 0)], 1),
    "more regions than descriptors": (2, [(0, MIB, 0), (MIB, MIB, MIB)], 1),
    "more descriptors than regions": (1, [(0, MIB, 0)], 2),
    "they overlap": (2, [(0, MIB, 0), (MIB // 2, MIB, MIB)], 2),
    "no bytes": (1, [(0, 0, 0)], 1),
    "they wrap": (1, [((1 << 64) - 4096, 8192, 0)], 1),
    "the offset wraps": (1, [(0, MIB, 0, (1 << 63) - 1)], 1),
}


@pytest.mark.parametrize("name", TABLES)
async def test_attack_32_a_memory_table_that_contradicts_itself(name: str) -> None:
    """The session ends with a reason, or QEMU gets its nack and the old table stays."""
    count, rows, descriptors = TABLES[name]
    before = open_fds()
    async with machine(fails=True) as vm:
        await vm.boot()
        await vm.picture(W, H, BLUE)
        payload = struct.pack("<II", count, 0) + b"".join(region(*row) for row in rows)
        fds = [vm.ram.memfd] * descriptors
        try:
            assert await vm.frontend.command(5, payload, fds) == 1
            await vm.flush(1, WHOLE)  # the guest does not notice
        except AssertionError:
            with trio.fail_after(PATIENCE):
                await vm.ended.wait()
            assert isinstance(vm.error, PeerError)
    assert open_fds() == before


async def test_attack_50_51_a_flush_after_the_display_has_gone_is_answered() -> None:
    """And nobody spins on the ended socket: all tasks come to rest."""
    async with machine() as vm:
        await vm.boot()
        await vm.picture(W, H, BLUE)
        vm.display.close()
        for _ in range(3):
            await vm.flush(1, WHOLE)
        await trio.testing.wait_all_tasks_blocked(0.02)
        used = os.times().user
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert os.times().user - used < 0.09
        await vm.frontend.stop()
        await vm.start()
        await vm.shown(BLUE)


async def test_attack_54_questions_to_a_silent_display_are_bounded_and_given_back() -> None:
    async with machine() as vm:
        await vm.boot()
        vm.display.silent |= {"GET_DISPLAY_INFO", "GET_EDID"}
        for _ in range(20):
            for _ in range(30):
                vm.submit(hdr(Ctrl.CMD_GET_DISPLAY_INFO), room=408)
            await trio.testing.wait_all_tasks_blocked()  # all are parked, or given up at once
            await vm.stop()
            await vm.reap(30)
            await vm.start()


@pytest.mark.parametrize("request_number", [0, 45, 200, 0xFFFFFFFF])
async def test_attack_60_a_request_that_there_is_not(request_number: int) -> None:
    async with machine() as vm:
        await vm.boot()
        assert await vm.frontend.command(request_number, b"12345678") == 1
        await vm.frontend.send(request_number)
        await vm.picture(W, H, BLUE)


async def test_attack_76_a_kick_before_the_ring_is_enabled_is_not_lost() -> None:
    async with machine() as vm:
        await vm.boot()
        await vm.frontend.enable(0, False)
        vm.submit(hdr(0x199))
        vm.queues[0].kick()
        await vm.frontend.sync()
        await trio.testing.wait_all_tasks_blocked()
        assert vm.queues[0].used() == []
        await vm.frontend.enable(0, True)
        await vm.reap(1)


async def test_attack_78_more_pointer_commands_than_the_ring_has() -> None:
    async with machine() as vm:
        await vm.boot()
        for n in range(100):
            move = UpdateCursor(hdr(Ctrl.CMD_MOVE_CURSOR), CursorPos(0, n, n), 1, 0, 0)
            for _ in range(16):
                vm.submit(move, room=0, ring=1)
            await vm.reap(16, ring=1)


async def test_attack_81_a_ring_disabled_twice_is_disabled() -> None:
    async with machine() as vm:
        await vm.boot()
        for _ in range(2):
            await vm.frontend.enable(0, False)
        vm.submit(hdr(0x199))
        vm.queues[0].kick()
        await vm.frontend.sync()
        await trio.testing.wait_all_tasks_blocked()
        assert vm.queues[0].used() == []
        for _ in range(2):
            await vm.frontend.enable(0, True)
        await vm.reap(1)


# -- double fetches

REWRITER = """
import mmap, sys
ram = mmap.mmap(int(sys.argv[1]), 0)
at = int(sys.argv[2])
rows = [bytes.fromhex(row) for row in sys.argv[3:]]
print("go", flush=True)
while True:
    for row in rows:
        ram[at : at + len(row)] = row
"""
REWRITTEN = 320
ROUNDS = 3000


@contextmanager
def rewriting(vm: Machine, gpa: int, rows: list[bytes]) -> Iterator[None]:
    """Another process writes these there, one after the other, for as long as the block runs."""
    command = [sys.executable, "-c", REWRITER, str(vm.ram.memfd), str(vm.ram.offset(gpa))]
    command += [row.hex() for row in rows]
    with subprocess.Popen(command, pass_fds=[vm.ram.memfd], stdout=subprocess.PIPE) as rewriter:
        try:
            assert rewriter.stdout is not None
            rewriter.stdout.readline()
            yield
        finally:
            rewriter.kill()


def variants(vm: Machine) -> list[bytes]:
    """Requests of one length that differ in what a second fetch would be fooled by."""
    page = vm.ram.alloc(8192, 4096)
    good = [(page, 4096)] * 16
    evil = [((1 << 64) - 4096, 0xFFFFFFFF)] * 16
    made = [
        guest.create_blob(3, 4096, guest.entries(*good)),
        guest.create_blob(3, 4096, guest.entries(*evil)),
        guest.create_blob(3, 4096, guest.entries(*good), 0xFFFFFFFF),
        guest.create_blob(3, (1 << 64) - 1, guest.entries(*good)),
        guest.create_2d(3, 64, 64),
        guest.create_2d(3, 1 << 31, 1 << 31),
        guest.attach(3, guest.entries(*good)),
        guest.attach(3, guest.entries(*evil)),
        guest.set_scanout_blob(0, 3, (0, 0, 32, 32), (32, 32), 2, 128),
        guest.set_scanout_blob(0, 3, (0, 0, 32, 32), (32, 32), 2, (1 << 32) - 1),
        guest.unref(3),
    ]
    return [one.ljust(REWRITTEN, b"\0") for one in made]


@pytest.mark.slow
async def test_a_request_that_is_rewritten_while_it_is_read() -> None:
    """Another process writes the request over and over. Whatever mixture is read is read once: each
    answer is one of the device's, and what it holds adds up."""
    async with machine(ram_size=4 << 20) as vm:
        await vm.boot()
        rows = variants(vm)
        request = vm.ram.store(rows[0])
        place = vm.ram.alloc(24)
        kinds: dict[int, int] = {}
        with rewriting(vm, request, rows):
            for _ in range(ROUNDS):
                queue = vm.queues[0]
                queue.add_ranges([(request, REWRITTEN)], [(place, 24)])
                if queue.needs_kick():
                    queue.kick()
                ((_, answer),) = await vm.reap(1)
                kind = CtrlHdr.decode(answer).type
                kinds[kind] = kinds.get(kind, 0) + 1
        assert set(kinds) <= {0x1100, *range(0x1200, 0x1206)}
        assert len(kinds) >= 3, kinds
        table = vm.session._device.resources
        assert table.entries == sum(one.entries for one in table)
        assert table.budget.used == sum(one.size for one in table if isinstance(one, Image))


@pytest.mark.slow
async def test_pixels_that_are_rewritten_while_they_are_copied() -> None:
    """They may be torn, which is the guest's own affair; the display's message is whole."""
    async with machine() as vm:
        await vm.boot()
        at = await vm.resource(1, W, H)
        await vm.scanout(1, WHOLE)
        rows = [bytes([value]) * (W * H * 4) for value in (0, 0x55, 0xFF)]
        with rewriting(vm, at, rows):
            for _ in range(300):
                await vm.transfer(1, WHOLE)
                await vm.flush(1, WHOLE)
        assert vm.display.screens[0].shown() is not None
