"""Page flips of blobs: a frame costs two small messages, whatever its size."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

import pytest

from tests.lab.inner.conftest import Parameter
from tests.lab.inner.raw import memfd
from tests.support.blobs import BlobGuest, CountingDisplay, Entries, Frame, blob_machine, dmabufs
from tests.support.mock_driver import mem_entries

SMALL, LARGE = Frame(1280, 720), Frame(3840, 2160)
BUFFERS = 3
ROUNDS, FLIPS = 15, 12
"""Both sizes in each round, so that what else the machine does meets both."""

FRAME_BYTES = 150
"""DMABUF_SCANOUT2 has 60 bytes, DMABUF_UPDATE 32."""


async def create(
    guest: BlobGuest, frame: Frame, first: int, scattered: bool, stack: ExitStack
) -> None:
    for number in range(first, first + BUFFERS):
        file = memfd(frame.size)
        entries: Entries = [((await guest.plug(file)).gpa, frame.size)]
        stack.callback(os.close, file)
        if scattered:
            entries = guest.dimms[-1].pages()
            random.Random(number).shuffle(entries)
        command = guest.create_command(number, len(entries), frame.size)
        await guest.vm.ok(command, mem_entries(entries))


async def show_first(guest: BlobGuest, numbers: Sequence[int], frame: Frame) -> None:
    """Wait until the dma-buf of each has been made."""
    for number in numbers:
        await guest.show(number, frame)
        await guest.vm.until(
            lambda: guest.vm.display.count("DMABUF_SCANOUT2") == number,  # noqa: B023
            "its dma-buf is shown",
        )


async def flip(guest: BlobGuest, number: int, frame: Frame) -> float:
    """Show a buffer as a compositor does; the seconds until its fence comes back."""
    vm = guest.vm
    start = time.perf_counter()
    vm.submit(guest.show_command(number, frame))
    vm.submit(vm.flush_command(number, frame.rect, fence=number))
    await vm.reap(2)
    return time.perf_counter() - start


async def flips(guest: BlobGuest, numbers: Sequence[int], frame: Frame) -> float:
    """The median of a round."""
    return median([await flip(guest, numbers[n % BUFFERS], frame) for n in range(FLIPS)])


@pytest.mark.parametrize("scattered", [False, True], ids=["one piece", "8100 pieces"])
async def test_a_flip_costs_the_same_at_720p_and_at_4k(
    scattered: bool, parameter: Parameter, stack: ExitStack
) -> None:
    parameter("list_limit", 16384)
    display = CountingDisplay()
    async with blob_machine(display) as guest:
        stats = guest.vm.session.stats
        small, large = (1, 2, 3), (4, 5, 6)
        for numbers, frame in ((small, SMALL), (large, LARGE)):
            await create(guest, frame, numbers[0], scattered, stack)
        for numbers, frame in ((small, SMALL), (large, LARGE)):
            await show_first(guest, numbers, frame)
        assert dmabufs() == 2 * BUFFERS + 1
        received, scanouts, updates = (
            display.received,
            display.count("DMABUF_SCANOUT2"),
            stats.dmabuf_updates,
        )
        ratios, times = [], []
        for _ in range(ROUNDS):
            one, other = await flips(guest, small, SMALL), await flips(guest, large, LARGE)
            ratios.append(other / one)
            times.append((one, other))
        frames = 2 * ROUNDS * FLIPS
        bytes_a_frame = (display.received - received) / frames
        assert display.count("DMABUF_SCANOUT2") - scanouts == frames
        assert frames <= stats.dmabuf_updates - updates <= 2 * frames  # of the show, of the flush
        assert dmabufs() == 2 * BUFFERS + 1  # made once, shown often
        assert stats.pixel_bytes == 0
        assert {"SCANOUT", "UPDATE"}.isdisjoint(display.names())
        assert bytes_a_frame < FRAME_BYTES
        assert median(ratios) < 1.2
        p50 = [median(column) * 1e3 for column in zip(*times, strict=True)]
        print(
            f"flip p50: 720p {p50[0]:.2f} ms, 4K {p50[1]:.2f} ms, median ratio "
            f"{median(ratios):.3f}; {bytes_a_frame:g} bytes a frame"
        )
