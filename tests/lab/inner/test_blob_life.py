"""A blob's dma-buf goes when its memory does: while it is shown, and before QEMU hears that the
memory may be unplugged."""

from __future__ import annotations

import gc
import os
from contextlib import ExitStack

import pytest

from tests.lab.inner.raw import memfd
from tests.support.blobs import BlobGuest, Dimm, Frame, blob_machine, dmabufs, pattern, uses
from tests.support.machine import hdr
from tests.support.mock_driver import mem_entries
from vgpuwire import Ctrl, Rect, ResourceAttachBacking, ResourceDetachBacking

FRAME = Frame(128, 96)
SIZE = FRAME.size


async def plugged(guest: BlobGuest, stack: ExitStack, size: int = SIZE) -> Dimm:
    file = memfd(size)
    stack.callback(os.close, file)
    return await guest.plug(file)


async def went_dark(guest: BlobGuest) -> None:
    screen = guest.vm.display.screens[0]
    await guest.vm.until(lambda: screen.buffer is None, "the head is off")
    assert guest.vm.display.log[-1] == ("DMABUF_SCANOUT", (0,) * 10)


async def test_unref_while_shown(stack: ExitStack) -> None:
    gc.collect()  # of the tests before
    async with blob_machine() as guest:
        dimm = await plugged(guest, stack)
        await guest.picture(1, FRAME, dimm.pages())
        assert dmabufs() == 2
        await guest.unref(1)
        await went_dark(guest)
        assert dmabufs() == 0


async def test_other_entries_while_shown(stack: ExitStack) -> None:
    """Detached, a blob has nothing to show; attached again, it is of the new pages only."""
    gc.collect()
    async with blob_machine() as guest:
        old, new = [(await plugged(guest, stack)).pages() for _ in range(2)]
        await guest.picture(1, FRAME, old)
        await guest.vm.ok(ResourceDetachBacking(hdr(Ctrl.CMD_RESOURCE_DETACH_BACKING), 1))
        await went_dark(guest)
        assert dmabufs() == 0
        drawn = pattern(SIZE, 2)
        guest.write(new[::-1], drawn)
        attach = ResourceAttachBacking(hdr(Ctrl.CMD_RESOURCE_ATTACH_BACKING), 1, len(new))
        await guest.vm.ok(attach, mem_entries(new[::-1]))
        await guest.show(1, FRAME)
        await guest.vm.shown(drawn)
        guest.write(old, pattern(SIZE, 3))
        await guest.vm.flush(1, FRAME.rect)
        await guest.vm.shown(drawn)


SHOWN = [FRAME.rect, Rect(16, 16, 64, 64)]


@pytest.mark.parametrize("rect", SHOWN, ids=["all of it", "a part"])
async def test_unplugged_memory_is_free_when_qemu_is_told(rect: Rect, stack: ExitStack) -> None:
    """No descriptor, no mapping, no pin of it is left; plugged in again, it is shown again."""
    gc.collect()
    async with blob_machine() as guest:
        dimm = await plugged(guest, stack)
        file = dimm.region.fd
        alone = uses(file)
        quota, screen = guest.vm.session._udmabuf.quota, guest.vm.display.screens[0]
        assert alone == (1 + 1 + 1, 1 + 1)  # ours, its mapping's; vgpud's
        data = await guest.picture(1, FRAME, dimm.pages(), rect)
        for _ in range(3):
            await guest.unplug(dimm)
            assert uses(file) == (1 + 1, 1)
            assert (quota.dmabufs, quota.size) == (0, 0)
            assert dmabufs() == (screen.buffer is not None)  # what QEMU shows still
            await went_dark(guest)
            await guest.replug(dimm)
            assert uses(file) == alone
            await guest.show(1, FRAME, rect)
            await guest.vm.flush(1, rect)
            await guest.vm.shown(FRAME.cut(data, rect))


async def test_other_memory_that_goes_leaves_the_picture(stack: ExitStack) -> None:
    """The dma-buf is made anew, since any region may have moved, and QEMU is told of it."""
    async with blob_machine() as guest:
        first, other = await plugged(guest, stack), await plugged(guest, stack)
        data = await guest.picture(1, FRAME, first.pages())
        screen = guest.vm.display.screens[0]
        before = screen.buffer
        assert before is not None
        inode = os.fstat(before.fd).st_ino
        await guest.unplug(other)
        await guest.vm.until(lambda: screen.buffer is not before, "QEMU has another buffer")
        assert screen.buffer is not None
        assert os.fstat(screen.buffer.fd).st_ino != inode
        await guest.vm.shown(data)


async def test_half_of_a_blob_that_goes_takes_all_of_it(stack: ExitStack) -> None:
    async with blob_machine() as guest:
        first, other = await plugged(guest, stack), await plugged(guest, stack)
        entries = first.pages(size=SIZE // 2) + other.pages(size=SIZE // 2)
        await guest.picture(1, FRAME, entries)
        await guest.unplug(other)
        assert uses(other.region.fd) == (2, 1)
        await went_dark(guest)
