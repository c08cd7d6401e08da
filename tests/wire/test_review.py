"""Faults that only whole sessions show: deadlines, batches, memory that moves, odd descriptors."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

import pytest
import trio

from tests.support.fake_frontend import QEMU_7_2, QEMU_11_1, Region
from tests.support.machine import PATIENCE, hdr, machine
from vgpud.errors import PeerError
from vgpuwire import (
    Ctrl,
    CtrlHdr,
    Rect,
    ResourceAssignUuid,
    RespDisplayInfo,
    RespResourceUuid,
    TransferToHost2D,
)

SIDE = 256
WHOLE = Rect(0, 0, SIDE, SIDE)
PICTURE = bytes(range(256)) * (SIDE * SIDE * 4 // 256)


async def test_a_flush_is_late_by_its_own_bound_whatever_was_asked_before() -> None:
    """An answered question leaves a deadline of a second behind: it must not hide a nearer one."""
    async with machine() as vm:
        await vm.boot()
        await vm.picture(SIDE, SIDE, PICTURE)
        await vm.control(hdr(Ctrl.CMD_GET_DISPLAY_INFO), room=RespDisplayInfo.SIZE)
        vm.display.paused = trio.Event()
        for _ in range(8):  # until the socket is full
            vm.submit(vm.flush_command(1, WHOLE))
        start = trio.current_time()
        await vm.reap(8)
        assert trio.current_time() - start < 0.5
        vm.display.paused.set()


@pytest.mark.parametrize("version", [QEMU_7_2, QEMU_11_1], ids=lambda v: v.name)
async def test_the_features_of_a_reboot_hold(version: object) -> None:
    """QEMU 7.2 tells a reset by SET_VRING_BASE only, after the features of the new start."""
    async with machine(version=version) as vm:
        await vm.boot()
        for _ in range(2):
            await vm.resource(1, 16, 16)
            command = ResourceAssignUuid(hdr(Ctrl.CMD_RESOURCE_ASSIGN_UUID), 1)
            answer = await vm.control(command, room=RespResourceUuid.SIZE)
            assert CtrlHdr.decode(answer).type == Ctrl.RESP_OK_RESOURCE_UUID
            await vm.reboot()


async def test_a_region_that_changes_its_shape_takes_no_ring_with_it() -> None:
    """With memory slots QEMU sends every REM_MEM_REG before the first ADD_MEM_REG."""
    async with machine() as vm:
        await vm.boot()
        await vm.picture(SIDE, SIDE, PICTURE)
        (whole,) = vm.frontend.regions
        half = whole.size // 2
        vm.frontend.regions = [
            Region(whole.gpa, half, whole.uva, whole.offset, whole.fd),
            Region(whole.gpa + half, half, whole.uva + half, whole.offset + half, whole.fd),
        ]
        assert await vm.frontend.share_memory() == 0
        await vm.transfer(1, WHOLE)
        await vm.flush(1, WHOLE)
        vm.frontend.regions = [whole]
        assert await vm.frontend.share_memory() == 0
        await vm.transfer(1, WHOLE)
        assert not any(map(readable, vm.err))


def readable(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False


async def test_answers_wait_for_a_ring_whose_memory_is_away() -> None:
    async with machine() as vm:
        await vm.boot()
        await vm.picture(SIDE, SIDE, PICTURE)
        vm.display.silent.add("GET_DISPLAY_INFO")
        head = vm.submit(hdr(Ctrl.CMD_GET_DISPLAY_INFO), room=RespDisplayInfo.SIZE)
        await vm.until(lambda: vm.display.count("GET_DISPLAY_INFO") == 1, "QEMU is asked")
        regions, vm.frontend.regions = vm.frontend.regions, []
        await vm.frontend.share_memory()
        await trio.sleep(1.2)  # the answer falls due meanwhile
        assert vm.queues[0].used() == []
        vm.frontend.regions = regions
        await vm.frontend.share_memory()
        ((got, answer),) = await vm.reap(1)
        assert got == head
        assert CtrlHdr.decode(answer).type == Ctrl.RESP_OK_DISPLAY_INFO


async def test_a_flood_of_transfers_keeps_qemu_served() -> None:
    """QEMU waits for each answer with its big lock: a batch is bounded in time."""
    side = 2048
    whole = Rect(0, 0, side, side)
    async with machine(ram_size=64 << 20) as vm:
        await vm.boot(sizes=(256, 16))
        await vm.resource(1, side, side)
        command = TransferToHost2D(hdr(Ctrl.CMD_TRANSFER_TO_HOST_2D), whole, 0, 1)
        before = vm.session.stats.commands
        for _ in range(64):
            vm.submit(command)
        await vm.frontend.read_config()
        # A transfer of 16 MiB is a turn of its own, and an answer takes a few turns.
        assert vm.session.stats.commands - before < 48
        await vm.reap(64)


class Starving(socket.socket):
    """A socket of a kernel that is short of memory now and then."""

    refused = 0

    def sendmsg(self, buffers: Sequence[memoryview], *rest: object) -> int:
        Starving.refused += 1
        if Starving.refused % 3 == 0:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        return super().sendmsg(buffers, *rest)


async def test_a_message_is_finished_though_the_kernel_is_short_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vgpud.session._socket", lambda fd: Starving(fileno=fd.steal()))
    async with machine() as vm:
        await vm.boot()
        await vm.picture(SIDE, SIDE, PICTURE)
        assert Starving.refused > 3


@pytest.mark.parametrize("request_", [13, 14], ids=["call", "err"])
async def test_a_descriptor_that_is_no_eventfd_ends_the_session_only(request_: int) -> None:
    memfd = os.memfd_create("no eventfd")
    async with machine(fails=True) as vm:
        await vm.boot()
        await vm.frontend.send(request_, bytes(8), [memfd])
        with trio.fail_after(PATIENCE):
            await vm.ended.wait()
        assert isinstance(vm.error, PeerError)
        assert "no eventfd" in str(vm.error)
    os.close(memfd)


async def test_no_gpu_socket_is_closed_before_the_main_one() -> None:
    """Trap 10: QEMU would spin on the dead descriptor."""
    order: list[int] = []
    async with machine(fails=True) as vm:
        await vm.boot()
        await vm.picture(16, 16, bytes(16 * 16 * 4))
        main, close_display = vm.session._sock, vm.session._display.close

        def spy() -> None:
            order.append(main.fileno())
            close_display()

        vm.session._display.close = spy
        await vm.frontend.send(1, flags=2)
        with trio.fail_after(PATIENCE):
            await vm.ended.wait()
        assert isinstance(vm.error, PeerError)
    assert order == [-1]
