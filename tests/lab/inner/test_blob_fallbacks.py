"""Where a blob's memory makes no dma-buf its pixels are copied instead: the same picture, one line
in the log with the reason and the remedy, and never a failed frame."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import pytest

from tests.lab.inner.cases import ordinary
from tests.lab.inner.conftest import Parameter
from tests.lab.inner.raw import MIB, memfd
from tests.support.blobs import PAGE, Frame, blob_machine, pattern
from tests.support.mock_driver import mem_entries
from vgpud.host.dmabuf import MAX_BYTES, MAX_DMABUFS
from vgpuwire import Rect

FRAME = Frame(128, 96)
LARGE = Frame(1280, 820)
"""1,025 pages, 4 MiB: a page more than list_limit is by itself."""
ROOM = 16 * MIB
NOBODY = 65534
UPDATE, CANVAS = "SCANOUT", "DMABUF_SCANOUT"
"""How QEMU is told: pixels through the socket, or a copy in memory of vgpud's own as a dma-buf."""


def in_a_file(path: str) -> Callable[[], int]:
    def make() -> int:
        fd = ordinary(path)
        os.ftruncate(fd, ROOM)
        return fd

    return make


@dataclass(frozen=True)
class Fallback:
    """Why there is no dma-buf: the memory, the entries (offset, length), the module's limits, the
    device, the user; what the log says, and how QEMU is told instead."""

    name: str
    said: tuple[str, ...]
    way: str = UPDATE
    memory: Callable[[], int] = lambda: memfd(ROOM)
    frame: Frame = FRAME
    entries: tuple[tuple[int, int], ...] = ((0, ROOM),)
    limits: dict[str, int] = field(default_factory=dict)
    device: str = "/dev/udmabuf"
    user: int = 0


SEALED = "memory-backend-memfd"
EVERY_OTHER_PAGE = tuple((2 * n * PAGE, PAGE) for n in range(1025))
FALLBACKS = [
    Fallback("no device", ("/dev/no-udmabuf", "load the module"), device="/dev/no-udmabuf"),
    Fallback("another device", ("CREATE_LIST on /dev/null", "another device"), device="/dev/null"),
    Fallback("no right to open it", ("/dev/udmabuf", "errno 13", "udev rule"), user=NOBODY),
    Fallback("seal=off", (SEALED, "seal=off"), CANVAS, lambda: memfd(ROOM, 0, 0)),
    Fallback("no seals", (SEALED, "seal=on"), CANVAS, lambda: memfd(ROOM, 0)),
    Fallback("a file", ("ordinary file", SEALED), CANVAS, in_a_file("/var/tmp/ram")),
    Fallback("a file on tmpfs", ("tmpfs", SEALED), CANVAS, in_a_file("/dev/shm/ram")),
    Fallback("odd addresses", ("not whole pages",), CANVAS, entries=((4, MIB),)),
    Fallback("odd lengths", ("not whole pages",), CANVAS, entries=((0, 5000), (8192, MIB))),
    Fallback(
        "too many pieces",
        ("1025 pieces, udmabuf takes 1024", "/etc/modprobe.d", "list_limit=16384"),
        CANVAS,
        frame=LARGE,
        entries=EVERY_OTHER_PAGE,
    ),
    Fallback(
        "too large",
        ("udmabuf takes 4;", "/etc/modprobe.d", "size_limit_mb=512"),
        frame=LARGE,
        limits={"size_limit_mb": 4},
    ),
]


@pytest.mark.parametrize("scanout", ["dmabuf", "shm"])
@pytest.mark.parametrize("case", FALLBACKS, ids=lambda case: case.name)
async def test_the_same_picture_and_one_line(
    case: Fallback,
    scanout: str,
    parameter: Parameter,
    stack: ExitStack,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In shm mode no dma-buf is wanted: nothing is missing, and nothing is said."""
    for name, value in case.limits.items():
        parameter(name, value)
    file = case.memory()
    stack.callback(os.close, file)
    frame, way = case.frame, case.way if scanout == "dmabuf" else UPDATE
    async with blob_machine(udmabuf=case.device, scanout=scanout) as guest:
        vm = guest.vm
        dimm = await guest.plug(file)
        entries = [(dimm.gpa + offset, length) for offset, length in case.entries]
        screen = vm.display.screens[0]
        os.seteuid(case.user)
        stack.callback(os.seteuid, 0)
        for number in (1, 2, 3):
            data = await guest.picture(number, frame, entries)
            assert vm.session.view.status()["heads"] == {
                0: {"size": f"{frame.width}x{frame.height}", "way": way}
            }
            assert (screen.buffer is not None) == (way is CANVAS)
        drawn = pattern(frame.size, 4)
        guest.write(entries, drawn)
        await vm.flush(3, Rect(0, 16, frame.width, 16))
        row = frame.pitch
        await vm.shown(data[: 16 * row] + drawn[16 * row : 32 * row] + data[32 * row :])
        assert screen.updates[-1] == (0, 16, frame.width, 16)
        assert (vm.session.stats.pixel_bytes > 0) == (way is UPDATE)
    lines = [record.getMessage() for record in caplog.records if "dmabuf" in record.getMessage()]
    assert len(lines) == (scanout == "dmabuf")
    for line in lines:
        assert line.startswith("event=no-dmabuf ")
        assert all(word in line for word in case.said), line
        assert line.endswith(' instead="the pixels are copied"')


async def test_a_2d_resource_without_the_device(caplog: pytest.LogCaptureFixture) -> None:
    pixels = pattern(136 * 128 * 4, 1)
    async with blob_machine(udmabuf="/dev/no-udmabuf") as guest:
        for number in (1, 2):
            await guest.vm.picture(136, 128, pixels, number)
            assert guest.vm.display.screens[0].buffer is None
    assert [r.getMessage().split()[0] for r in caplog.records] == ["event=no-dmabuf"]


QUARTER_GIB = 256 * MIB


@dataclass(frozen=True)
class Quota:
    """What a guest may have `most` times: blobs of `size` bytes, each of a MiB again and again."""

    name: str
    most: int
    size: int
    said: str


QUOTAS = [
    Quota("descriptors", MAX_DMABUFS, PAGE, "the guest has 256 dma-bufs already"),
    Quota("pinned bytes", MAX_BYTES // QUARTER_GIB, QUARTER_GIB, "more than 4096 MiB"),
]


@pytest.mark.parametrize("case", QUOTAS, ids=lambda case: case.name)
async def test_a_quota_bounds_dmabufs_not_blobs(
    case: Quota, parameter: Parameter, stack: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    """Those beyond it are shown as pixels; what is unreferenced makes room again."""
    parameter("size_limit_mb", case.size >> 20 or 1)
    file = memfd(MIB)
    stack.callback(os.close, file)
    async with blob_machine() as guest:
        vm = guest.vm
        quota, screen = vm.session._udmabuf.quota, vm.display.screens[0]
        dimm = await guest.plug(file)
        entries = [(dimm.gpa, min(MIB, case.size))] * -(-case.size // MIB)
        guest.write(entries[:1], pixels := pattern(entries[0][1], 1))

        async def show(number: int) -> bool:
            """Whether it is a dma-buf. By its height it is told from the one before."""
            frame = Frame(16, 16 + number % 2)
            vm.submit(guest.create_command(number, len(entries), case.size), mem_entries(entries))
            vm.submit(guest.show_command(number, frame))
            vm.submit(vm.flush_command(number, frame.rect))
            await vm.reap(3)
            await vm.until(lambda: screen.height == frame.height, "it is shown")
            await vm.shown(frame.cut(pixels))
            return screen.buffer is not None

        for number in range(1, case.most + 1):
            assert await show(number)
            assert (quota.dmabufs, quota.size) == (number, number * case.size)
        assert [await show(case.most + n) for n in (1, 2)] == [False, False]
        await guest.unref(1)
        assert await show(case.most + 3)
        assert not await show(case.most + 4)
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("event=no-dmabuf ")
    assert case.said in line
