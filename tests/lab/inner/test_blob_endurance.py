"""Nothing grows: descriptors, pins and memory over many blobs and many lives of a device."""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack

import pytest
import trio

from tests.lab.inner.raw import memfd
from tests.support.blobs import PAGE, Frame, blob_machine, dmabufs
from tests.support.fake_display import FakeDisplay
from tests.support.machine import PATIENCE, Machine, hdr
from tests.support.mock_driver import mem_entries
from vgpuwire import Ctrl, ResourceUnref

pytestmark = pytest.mark.slow

CYCLES, RESETS = 10_000, 1000
HEADS = 4
"""Shown at once, for fewer wake-ups a cycle."""
FRAME = Frame(16, 16)
SLACK = 2 << 20
"""Bytes that the heap may move without anything leaking: far below one object a cycle."""
USED = struct.Struct("@H")


class Round:
    """The same commands again and again. Their chains are built once, so that a round costs
    little but what the device does; their answers are for `guest_errors` to tell."""

    def __init__(self, vm: Machine, commands: Sequence[tuple[bytes, bytes]]) -> None:
        self._queue = queue = vm.queues[0]
        parts = [[command, tail] if tail else [command] for command, tail in commands]
        before = queue.avail_idx
        self._heads = [queue.add(one, [24]) for one in parts]
        queue.set_avail_idx(before)  # not yet
        self._target = before

    async def run(self) -> None:
        """Until all of them were answered."""
        queue = self._queue
        for head in self._heads:
            queue.offer(head)
        self._target = (self._target + len(self._heads)) & 0xFFFF
        queue.set_used_event(self._target - 1)
        if queue.needs_kick():
            queue.kick()
        with trio.fail_after(PATIENCE):
            while queue.ram.unpack_from(USED, queue.used_gpa + 2) != (self._target,):
                await trio.lowlevel.wait_readable(queue.call_fd)
                queue.called()


def resident() -> int:
    """Bytes of this process's own memory (anonymous pages: guest RAM is in files)."""
    with open("/proc/self/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines["RssAnon"].split()[0]) << 10


def forget(display: FakeDisplay) -> None:
    """What it noted down: that is no leak of vgpud's."""
    display.log.clear()
    for screen in display.screens:
        screen.updates.clear()


def usage() -> tuple[int, int]:
    """(descriptors, resident bytes)"""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), resident()


async def test_ten_thousand_blobs_leave_nothing(stack: ExitStack) -> None:
    """Each is created, shown as a dma-buf and unreferenced."""
    file = memfd(HEADS * PAGE)
    stack.callback(os.close, file)
    async with blob_machine(FakeDisplay(outputs=HEADS)) as guest:
        vm, stats = guest.vm, guest.vm.session.stats
        heads = list(enumerate((await guest.plug(file)).pages(), start=1))
        for number, page in heads:
            await guest.picture(number, FRAME, [page], head=number - 1)
        unref = hdr(Ctrl.CMD_RESOURCE_UNREF)
        commands = [(ResourceUnref(unref, number).encode(), b"") for number, _ in heads]
        for number, page in heads:
            create = guest.create_command(number, 1, FRAME.size)
            commands.append((create.encode(), mem_entries([page])))
            commands.append((guest.show_command(number, FRAME, head=number - 1).encode(), b""))
        turn = Round(vm, commands)
        rounds = CYCLES // HEADS
        inode = 0
        before = (0, 0)
        for count in range(rounds):
            shown = stats.dmabuf_updates
            await turn.run()
            await vm.until(lambda: stats.dmabuf_updates >= shown + HEADS, "all heads show it")  # noqa: B023
            buffer = vm.display.screens[0].buffer
            assert buffer is not None
            inode, last = os.fstat(buffer.fd).st_ino, inode
            assert inode != last, "a new dma-buf each time"
            forget(vm.display)
            if count == rounds // 4:
                before = usage()
        fds, memory = usage()
        assert vm.session.view.status()["guest_errors"] == {}
        assert stats.pixel_bytes == 0
        assert dmabufs() == 2 * HEADS
        assert fds == before[0]
        assert memory < before[1] + SLACK
        print(f"{rounds * HEADS} blobs: {fds} descriptors, {(memory - before[1]) >> 10} KiB more")


async def test_a_thousand_resets_in_mid_flip_leave_nothing(stack: ExitStack) -> None:
    """Whose fence nobody waits for any more, and whose answer never comes."""
    file = memfd(2 * PAGE)
    stack.callback(os.close, file)
    async with blob_machine(ram_size=1 << 30) as guest:
        vm = guest.vm
        pages = (await guest.plug(file)).pages()
        vm.display.silent = {"DMABUF_UPDATE"}
        before = (0, 0)
        for count in range(RESETS):
            for number, page in enumerate(pages, start=1):
                create = guest.create_command(number, 1, FRAME.size)
                vm.submit(create, mem_entries([page]))
                vm.submit(guest.show_command(number, FRAME))
            vm.submit(vm.flush_command(2, FRAME.rect, fence=count + 1))
            await vm.until(lambda: "DMABUF_UPDATE" in vm.display.names(), "QEMU owes an answer")
            assert vm.session.view.status()["blobs"] == 2
            await vm.reboot()
            forget(vm.display)
            if count == RESETS // 4:
                before = usage()
        fds, memory = usage()
        assert vm.session.view.status()["guest_errors"] == {}
        assert vm.session._udmabuf.quota.dmabufs == 0
        assert dmabufs() <= 1  # what QEMU shows still
        assert abs(fds - before[0]) <= 1
        assert memory < before[1] + SLACK
        print(f"{RESETS} resets: {fds} descriptors, {(memory - before[1]) >> 10} KiB more")
