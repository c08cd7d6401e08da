"""A whole session against fakes of QEMU: what works, on each version's wire."""

from __future__ import annotations

import os

import pytest
import trio
import trio.testing

from tests.support.fake_display import FakeDisplay
from tests.support.fake_frontend import EVENT_IDX, INDIRECT, VERSION_1, VERSIONS, Version
from tests.support.machine import Machine, hdr, machine
from vgpuwire import (
    Ctrl,
    CtrlHdr,
    CursorPos,
    GetEdid,
    Rect,
    ResourceUnref,
    RespDisplayInfo,
    RespEdid,
    SetScanout,
    UpdateCursor,
)

W, H = 64, 48
FULL = Rect(0, 0, W, H)


def pattern(width: int, height: int, seed: int = 1) -> bytes:
    return bytes((i * 7 + seed * 31 + (i >> 8)) & 0xFF for i in range(width * height * 4))


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def version(request: pytest.FixtureRequest) -> Version:
    return request.param


@pytest.mark.parametrize("extra", [0, INDIRECT, EVENT_IDX, INDIRECT | EVENT_IDX])
async def test_a_picture_reaches_the_display(version: Version, extra: int) -> None:
    async with machine(version=version, features=VERSION_1 | extra) as vm:
        await vm.boot()
        await vm.picture(W, H, pattern(W, H))


async def test_config_has_the_size_that_was_asked_for(version: Version) -> None:
    async with machine(version=version) as vm:
        await vm.boot()
        assert len(await vm.frontend.read_config()) == version.config_size


async def test_display_info_and_edid_are_qemus() -> None:
    async with machine() as vm:
        await vm.boot()
        info = RespDisplayInfo.decode(
            await vm.control(hdr(Ctrl.CMD_GET_DISPLAY_INFO), room=RespDisplayInfo.SIZE)
        )
        assert info.hdr.type == Ctrl.RESP_OK_DISPLAY_INFO
        assert info.pmodes[0] == type(info.pmodes[0])(Rect(0, 0, 1280, 800), 1, 0)
        vm.display.size = (1600, 1000)  # the window was resized: asked again, never cached
        info = RespDisplayInfo.decode(
            await vm.control(hdr(Ctrl.CMD_GET_DISPLAY_INFO), room=RespDisplayInfo.SIZE)
        )
        assert info.pmodes[0].r == Rect(0, 0, 1600, 1000)
        edid = RespEdid.decode(
            await vm.control(GetEdid(hdr(Ctrl.CMD_GET_EDID), 0), room=RespEdid.SIZE)
        )
        assert edid.hdr.type == Ctrl.RESP_OK_EDID
        assert edid.edid[:8] == bytes.fromhex("00ffffffffffff00")


async def test_edid_is_our_own_where_qemu_has_none() -> None:
    async with machine(display=FakeDisplay(features=0)) as vm:
        await vm.boot()
        edid = RespEdid.decode(
            await vm.control(GetEdid(hdr(Ctrl.CMD_GET_EDID), 0), room=RespEdid.SIZE)
        )
        assert edid.hdr.type == Ctrl.RESP_OK_EDID
        assert sum(edid.edid[:128]) % 256 == 0
        assert "GET_EDID" not in vm.display.names()


@pytest.mark.parametrize("outputs", [1, 2, 16])
async def test_heads_that_qemu_lacks_are_refused(outputs: int) -> None:
    async with machine(display=FakeDisplay(outputs=outputs)) as vm:
        await vm.boot()
        await vm.resource(1, W, H)
        for head in range(17):
            command = SetScanout(hdr(Ctrl.CMD_SET_SCANOUT), FULL, head, 1)
            answer = CtrlHdr.decode(await vm.control(command)).type
            good = head < outputs
            assert answer == (Ctrl.RESP_OK_NODATA if good else Ctrl.RESP_ERR_INVALID_SCANOUT_ID)
            command = GetEdid(hdr(Ctrl.CMD_GET_EDID), head)
            answer = CtrlHdr.decode(await vm.control(command, room=RespEdid.SIZE)).type
            assert answer == (Ctrl.RESP_OK_EDID if good else Ctrl.RESP_ERR_INVALID_PARAMETER)


async def test_the_picture_comes_back_after_a_reboot(version: Version) -> None:
    async with machine(version=version) as vm:
        await vm.boot()
        for seed in range(3):
            await vm.picture(W, H, pattern(W, H, seed))
            await vm.reboot()


async def test_stop_and_cont_replay_the_picture_without_the_guest(version: Version) -> None:
    async with machine(version=version) as vm:
        await vm.boot()
        await vm.picture(W, H, pattern(W, H))
        for _ in range(3):
            await vm.stop()
            await vm.start()
            await vm.shown(pattern(W, H))
        await vm.transfer(1, FULL)  # and the ring goes on where it was


async def test_a_second_gpu_socket_without_a_restart_shows_the_picture() -> None:
    """The guest rewrites the status with DRIVER_OK set: only GPU_SET_SOCKET comes (trap 6)."""
    async with machine() as vm:
        await vm.boot()
        await vm.picture(W, H, pattern(W, H))
        old = vm.display
        vm.display = FakeDisplay()
        gpu = vm.display.new_socket()
        vm._nursery.start_soon(vm.display.serve)
        await vm.frontend.send(33, b"", [gpu.fileno()])
        gpu.close()
        await vm.shown(pattern(W, H))
        await trio.testing.wait_all_tasks_blocked()
        assert not old.hung_up
        old.close()


async def test_only_the_damage_is_sent() -> None:
    async with machine() as vm:
        await vm.boot()
        await vm.picture(W, H, pattern(W, H))
        vm.display.screens[0].updates.clear()
        await vm.flush(1, Rect(3, 5, 16, 8))
        await vm.flush(1, Rect(W - 1, H - 1, 1, 1))
        updates = vm.display.screens[0].updates
        await vm.until(lambda: len(updates) == 2, "two updates")
        assert updates == [(3, 5, 16, 8), (W - 1, H - 1, 1, 1)]


async def test_two_heads_on_one_resource_get_their_own_part() -> None:
    async with machine(display=FakeDisplay(outputs=2)) as vm:
        await vm.boot()
        data = pattern(2 * W, H)
        vm.ram.write(await vm.resource(1, 2 * W, H), data)
        await vm.scanout(1, Rect(0, 0, W, H), 0)
        await vm.scanout(1, Rect(W, 0, W, H), 1)
        await vm.transfer(1, Rect(0, 0, 2 * W, H))
        await vm.flush(1, Rect(0, 0, 2 * W, H))
        rows = [data[r * 8 * W : (r + 1) * 8 * W] for r in range(H)]
        await vm.shown(b"".join(row[: 4 * W] for row in rows), 0)
        await vm.shown(b"".join(row[4 * W :] for row in rows), 1)


async def test_the_pointer_arrives_and_hides() -> None:
    async with machine() as vm:
        await vm.boot()
        image = pattern(64, 64)
        vm.ram.write(await vm.resource(7, 64, 64), image)
        await vm.transfer(7, Rect(0, 0, 64, 64))
        at = CursorPos(0, 10, 20)
        vm.submit(UpdateCursor(hdr(Ctrl.CMD_UPDATE_CURSOR), at, 7, 3, 4), room=0, ring=1)
        await vm.reap(1, ring=1)
        vm.submit(UpdateCursor(hdr(Ctrl.CMD_MOVE_CURSOR), at, 0, 0, 0), room=0, ring=1)
        await vm.reap(1, ring=1)
        await vm.until(lambda: vm.display.count("CURSOR_POS_HIDE") == 1, "the pointer hides")
        name, fields, _ = vm.display.cursor[0]
        assert (name, fields) == ("CURSOR_POS_HIDE", (0, 10, 20))
        assert ("CURSOR_UPDATE", (0, 10, 20, 3, 4)) in vm.display.log


async def test_unref_of_the_shown_resource_blanks_the_head() -> None:
    async with machine() as vm:
        await vm.boot()
        await vm.picture(W, H, pattern(W, H))
        await vm.ok(ResourceUnref(hdr(Ctrl.CMD_RESOURCE_UNREF), 1))
        await vm.until(lambda: vm.display.screens[0].pixels is None, "the head goes off")


async def test_fences_come_back_in_order_while_the_display_stalls() -> None:
    async with machine() as vm:
        await vm.boot()
        size = 512
        await vm.picture(size, size, pattern(size, size))
        vm.display.paused = trio.Event()
        whole = Rect(0, 0, size, size)
        heads = [vm.submit(vm.flush_command(1, whole, fence)) for fence in range(1, 9)]
        answers = await vm.reap(8)  # the deadline answers them: nobody reads
        assert [head for head, _ in answers] == heads
        fences = [CtrlHdr.decode(answer).fence_id for _, answer in answers]
        assert fences == list(range(1, 9))
        vm.display.paused.set()


async def test_a_display_that_reads_nothing_stops_neither_qemu_nor_the_pointer() -> None:
    vm: Machine
    async with machine() as vm:
        await vm.boot()
        size = 512
        await vm.picture(size, size, pattern(size, size))
        vm.display.paused = trio.Event()
        for _ in range(4):
            vm.submit(vm.flush_command(1, Rect(0, 0, size, size)))
        move = UpdateCursor(hdr(Ctrl.CMD_MOVE_CURSOR), CursorPos(0, 1, 1), 1, 0, 0)
        for _ in range(40):
            vm.submit(move, room=0, ring=1)
            await vm.reap(1, ring=1)
        await vm.frontend.read_config()
        await vm.frontend.sync()
        await vm.reap(4)
        await vm.stop()  # with everything parked
        vm.display.paused.set()


async def test_a_screenshot_is_taken_in_turns_with_all_else() -> None:
    """A guest may show a gigabyte, while QEMU waits for an answer with its big lock held."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    width, height = 1024, 2048
    async with machine(ram_size=32 << 20) as vm:
        await vm.boot()
        pixels = bytes(range(256)) * (width * height * 4 // 256)
        await vm.picture(width, height, pixels)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(count)
            await trio.lowlevel.checkpoint()
            before = turns
            shot = await vm.session.view.screenshot(0)
            # One less where the first is taken before the other task's: trio's order is random.
            assert turns - before >= 7, "a turn for each MiB"
            nursery.cancel_scope.cancel()
        assert shot is not None
        assert shot[:2] == (width, height)
        assert os.pread(shot[2].fileno(), len(pixels) + 1, 0) == pixels
