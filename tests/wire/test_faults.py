"""What goes wrong on either side of a session ends no more than it must."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress

import pytest
import trio
import trio.testing

from tests.support.fake_frontend import FrontendError
from tests.support.machine import PATIENCE, Machine, hdr, machine
from vgpud import log
from vgpud.config import Config
from vgpud.errors import PeerError
from vgpud.session import Session
from vgpuwire import Ctrl, CtrlHdr, Rect

W, H = 32, 32
BLUE = b"\xff\0\0\0" * (W * H)


async def end_of(vm: Machine) -> BaseException | None:
    with trio.fail_after(PATIENCE):
        await vm.ended.wait()
    return vm.error


async def test_a_broken_ring_is_told_and_a_reset_mends_it() -> None:
    async with machine() as vm:
        await vm.boot()
        queue = vm.queues[0]
        queue.write_descriptor(0, 0xDEAD0000, 24, 0, 0)
        queue.offer(0)
        queue.kick()
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(vm.err[0])
        os.eventfd_read(vm.err[0])
        await vm.frontend.read_config()  # QEMU is served on
        await vm.reboot()
        await vm.picture(W, H, BLUE)


async def test_the_other_ring_lives_on_beside_a_broken_one() -> None:
    async with machine() as vm:
        await vm.boot()
        vm.queues[1].set_avail_idx(30000)
        vm.queues[1].kick()
        with trio.fail_after(PATIENCE):
            await trio.lowlevel.wait_readable(vm.err[1])
        await vm.picture(W, H, BLUE)


async def test_no_guest_memory_breaks_the_rings_and_not_the_session() -> None:
    async with machine() as vm:
        await vm.frontend.realize(vm._masked, vm.err)
        vm.set_up_rings()
        await vm.start()
        await vm.frontend.sync()
        assert os.eventfd_read(vm.err[0]) == 1


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (struct.pack("<III", 1, 2, 0), "flags"),
        (struct.pack("<III", 1, 1, 1 << 20), "bytes"),
        (struct.pack("<III", 2, 1, 4) + bytes(4), "SET_FEATURES"),
        (struct.pack("<III", 33, 1, 0), "GPU_SET_SOCKET"),
        (struct.pack("<III", 5, 1, 8) + struct.pack("<II", 9, 0), "SET_MEM_TABLE"),
    ],
)
async def test_a_bad_message_ends_the_session_with_a_reason(message: bytes, why: str) -> None:
    vm = Machine()
    async with trio.open_nursery() as nursery:
        vm.attach(nursery)
        await vm.frontend._sock.send(message)
        error = await end_of(vm)
        assert isinstance(error, PeerError)
        assert why in str(error)
        with pytest.raises(FrontendError, match="hung up"):
            await vm.frontend.recv_reply(1)
    vm.close()


async def test_qemu_leaving_in_the_middle_of_a_message_is_an_error() -> None:
    vm = Machine()
    async with trio.open_nursery() as nursery:
        vm.attach(nursery)
        await vm.frontend._sock.send(struct.pack("<II", 1, 1))
        vm.frontend.close()
        assert isinstance(await end_of(vm), PeerError)
    vm.close()


async def test_qemu_leaving_between_messages_is_the_end() -> None:
    vm = Machine()
    async with trio.open_nursery() as nursery:
        vm.attach(nursery)
        await vm.boot()
        vm.frontend.close()
        assert await end_of(vm) is None
    vm.close()


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def record_session() -> list[tuple[bytes, list[int]]]:
    """What QEMU sends from realize to a drawn picture and a reset, message by message."""
    sent: list[tuple[bytes, list[int]]] = []
    async with machine() as vm:
        original = vm.frontend._sock.sendmsg

        async def spy(buffers: list[bytes], ancillary: object = ()) -> int:
            fds = [fd for _, _, array in ancillary for fd in array]
            sent.append((b"".join(buffers), fds))
            return await original(buffers, ancillary)

        vm.frontend._sock.sendmsg = spy
        await vm.boot()
        await vm.picture(W, H, BLUE)
        await vm.reboot()
    return sent


async def test_a_disconnect_at_every_byte_leaves_nothing_behind() -> None:
    sent = await record_session()
    total = sum(len(data) for data, _ in sent)
    assert total > 800
    memfd = os.memfd_create("ram")
    os.ftruncate(memfd, 16 << 20)
    before = open_fds()
    cuts = 0
    for index, (data, fds) in enumerate(sent):
        for cut in range(0, len(data), 1):
            ours, theirs = socket.socketpair()
            session = Session(theirs, Config())
            kind = data[0]
            with ours:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(run_quietly, session)
                    await replay(ours, sent[:index], memfd)
                    if cut:
                        handles = [handle_for(kind, memfd) for _ in fds]
                        socket.send_fds(ours, [data[:cut]], [h.fileno() for h in handles])
                        for h in handles:
                            h.close()
                    ours.shutdown(socket.SHUT_RDWR)
            cuts += 1
    os.close(memfd)
    assert cuts == total
    assert open_fds() == before - 1


class Handle:
    """Some descriptor of the kind that a request carries."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


def handle_for(request: int, memfd: int) -> Handle:
    if request == 33:
        a, b = socket.socketpair()
        a.close()
        return Handle(b.detach())
    if request in (5, 37):
        return Handle(os.dup(memfd))
    return Handle(os.eventfd(0, os.EFD_NONBLOCK))


async def replay(sock: socket.socket, messages: list[tuple[bytes, list[int]]], memfd: int) -> None:
    for data, fds in messages:
        handles = [handle_for(data[0], memfd) for _ in fds]
        socket.send_fds(sock, [data], [h.fileno() for h in handles])
        for h in handles:
            h.close()
    await trio.testing.wait_all_tasks_blocked()


async def run_quietly(session: Session) -> None:
    with suppress(PeerError):
        await session.run()


async def test_resets_in_mid_flight_leak_nothing() -> None:
    size, cycles = 128, 60
    whole = Rect(0, 0, size, size)
    async with machine(ram_size=64 << 20) as vm:
        await vm.boot()
        for cycle in range(cycles):
            await vm.picture(size, size, bytes(size * size * 4))
            for _ in range(8):
                vm.submit(vm.flush_command(1, whole))
            await vm.reboot()
            if cycle == 9:
                await trio.testing.wait_all_tasks_blocked()
                before = open_fds()
        await trio.testing.wait_all_tasks_blocked()
        assert open_fds() == before


async def test_garbage_commands_are_answered_and_change_nothing() -> None:
    async with machine() as vm:
        await vm.boot()
        for size in (0, 1, 23):
            answer = await vm.control(bytes(size) or b"\0", room=24)
            assert CtrlHdr.decode(answer).type == Ctrl.RESP_ERR_INVALID_PARAMETER
        answer = await vm.control(hdr(0x199, fence=7))
        got = CtrlHdr.decode(answer)
        assert (got.type, got.fence_id) == (Ctrl.RESP_ERR_UNSPEC, 7)
        await vm.picture(W, H, BLUE)


async def test_memory_that_nobody_writes_is_pointed_out(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """share=off on QEMU 7 to 10: the driver's rings never reach the memfd."""
    log.configure("info")
    private = os.memfd_create("private", os.MFD_ALLOW_SEALING)
    os.ftruncate(private, 16 << 20)
    fcntl.fcntl(private, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    for memfd, told in ((private, 1), (None, 0)):
        async with machine() as vm:
            await vm.boot(memfd=memfd)
            await vm.frontend.sync()
        assert capfd.readouterr().err.count("share=on") == told
    os.close(private)
