"""A display that never answers: it delays a flush by the bound, and nothing else by anything."""

from __future__ import annotations

import os
from contextlib import ExitStack

import pytest
import trio

from tests.lab.inner.conftest import Parameter
from tests.lab.inner.raw import memfd
from tests.support.blobs import BlobGuest, Dimm, Frame, blob_machine, dmabufs, pattern
from tests.support.fake_display import FakeDisplay
from tests.support.machine import hdr
from vgpud.tasks.display import ASK_DEADLINE, FLUSH_DEADLINE
from vgpuwire import Ctrl, CursorPos, RespDisplayInfo, UpdateCursor

FRAME = Frame(128, 96)
SIZE = FRAME.size
FLUSHES = 4
DMABUF_UPDATE = 10
assert 6 * FLUSHES * FLUSH_DEADLINE < ASK_DEADLINE  # slack for a busy machine


async def plugged(guest: BlobGuest, stack: ExitStack, size: int) -> Dimm:
    file = memfd(size)
    stack.callback(os.close, file)
    return await guest.plug(file)


async def shown(guest: BlobGuest, stack: ExitStack, heads: int = 1, room: int = 0) -> None:
    """A blob on each head, numbered from 1, whose dma-buf QEMU has; then it answers no more."""
    dimm = await plugged(guest, stack, room or heads * SIZE)
    for head in range(heads):
        await guest.picture(head + 1, FRAME, [(dimm.gpa + head * SIZE, SIZE)], head=head)
    assert dmabufs() >= heads
    guest.vm.display.silent = {"DMABUF_UPDATE", "GET_DISPLAY_INFO"}


@pytest.mark.parametrize("fence", [7, None], ids=["fenced", "without a fence"])
async def test_a_flush_waits_for_the_bound_only(fence: int | None, stack: ExitStack) -> None:
    """A question asked before them, whose bound is 25 times as long, is answered after four."""
    async with blob_machine() as guest:
        vm = guest.vm
        await shown(guest, stack)
        late = vm.session.stats.late_flushes
        question = vm.submit(hdr(Ctrl.CMD_GET_DISPLAY_INFO), room=RespDisplayInfo.SIZE)
        for turn in range(1, FLUSHES + 1):
            start = trio.current_time()
            flush = vm.submit(vm.flush_command(1, FRAME.rect, fence and fence + turn))
            assert [head for head, _ in await vm.reap(1)] == [flush]
            assert trio.current_time() - start >= FLUSH_DEADLINE
        assert vm.session.stats.late_flushes == late + FLUSHES
        assert [head for head, _ in await vm.reap(1)] == [question]


async def test_two_heads_wait_together_not_one_after_the_other(stack: ExitStack) -> None:
    async with blob_machine(FakeDisplay(outputs=2)) as guest:
        vm = guest.vm
        await shown(guest, stack, heads=2)

        async def seconds(*heads: int) -> float:
            start = trio.current_time()
            for head in heads:
                vm.submit(vm.flush_command(head + 1, FRAME.rect, fence=head + 1))
            await vm.reap(len(heads))
            return trio.current_time() - start

        singles, pairs, late = [], [], vm.session.stats.late_flushes
        for _ in range(9):
            singles.append(await seconds(0))
            pairs.append(await seconds(0, 1))
        assert vm.session.stats.late_flushes == late + 9 + 18
        assert sorted(pairs)[4] < 1.5 * sorted(singles)[4]


async def test_the_cursor_waits_for_nothing(stack: ExitStack) -> None:
    async with blob_machine() as guest:
        vm = guest.vm
        await shown(guest, stack)
        vm.submit(vm.flush_command(1, FRAME.rect, fence=1))
        for x in range(5):
            position = CursorPos(0, x, 7)
            vm.submit(UpdateCursor(hdr(Ctrl.CMD_MOVE_CURSOR), position, 1, 0, 0), room=0, ring=1)
            await vm.reap(1, ring=1)
            await vm.until(
                lambda: vm.display.cursor.get(0, ("", ()))[1][1:3] == (x, 7),  # noqa: B023
                "QEMU heard of the pointer",
            )
            if x == 0:
                assert not vm.queues[0].used(), "the flush waits still"
        await vm.reap(1)


async def test_a_head_shown_as_pixels_goes_on(parameter: Parameter, stack: ExitStack) -> None:
    """It is flushed later, and answered first."""
    async with blob_machine(FakeDisplay(outputs=2)) as guest:
        vm = guest.vm
        await shown(guest, stack, room=2 * SIZE)
        gpa = guest.dimms[0].gpa + SIZE
        parameter("size_limit_mb", 0)  # from now on
        await guest.picture(9, FRAME, [(gpa, SIZE)], head=1)
        guest.write([(gpa, SIZE)], drawn := pattern(SIZE, 4))
        waits = vm.submit(vm.flush_command(1, FRAME.rect, fence=1))
        goes = vm.submit(vm.flush_command(9, FRAME.rect))
        assert [head for head, _ in await vm.reap(2)] == [goes, waits]
        await vm.shown(drawn, 1)
        assert vm.display.screens[1].buffer is None


async def test_what_was_shown_meanwhile_is_told_after_the_answer(stack: ExitStack) -> None:
    """The last picture only: QEMU would read nothing before it has answered."""
    async with blob_machine(FakeDisplay(outputs=2)) as guest:
        vm = guest.vm
        await shown(guest, stack, heads=2)
        (dimm,) = guest.dimms
        await vm.ok(vm.flush_command(1, FRAME.rect))
        said = len(vm.display.log)
        for number in (3, 4, 5):
            await guest.create(number, [(dimm.gpa + SIZE, SIZE)], SIZE)
            for head in (0, 1):
                await guest.show(number, FRAME, head=head)
                await vm.ok(vm.flush_command(number, FRAME.rect))
        assert len(vm.display.log) == said
        vm.display.silent = set()
        assert vm.display._sock is not None
        await vm.display._reply(vm.display._sock, DMABUF_UPDATE, b"")
        await vm.until(lambda: len(vm.display.log) == said + 4, "QEMU is told of both heads")
        assert sorted(vm.display.names()[said:]) == ["DMABUF_SCANOUT2"] * 2 + ["DMABUF_UPDATE"] * 2
        for head in (0, 1):
            await vm.shown(guest.read([(dimm.gpa + SIZE, SIZE)]), head)
