"""A Machine whose guest has blobs, in memory of files that a test chooses.

async with blob_machine() as guest:
    dimm = await guest.plug(memfd(1 << 20))
    await guest.create(1, [(dimm.gpa, frame.size)], frame.size)
    await guest.show(1, frame)
"""

from __future__ import annotations

import mmap
import os
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import trio

from tests.support.fake_display import FakeDisplay
from tests.support.fake_frontend import EVENT_IDX, INDIRECT, VERSION_1, Region
from tests.support.machine import EDID_AND_UUID, Machine, hdr, machine
from tests.support.mock_driver import mem_entries
from vgpud.config import DEFAULT_DEVICE_FPS, Config
from vgpud.host.fd import OwnedFd
from vgpud.host.udmabuf import DEVICE
from vgpud.session import Session
from vgpuwire import (
    BLOB_MEM_GUEST,
    Ctrl,
    Feature,
    Format,
    Record,
    Rect,
    ResourceCreateBlob,
    ResourceUnref,
    SetScanoutBlob,
)

FEATURES = VERSION_1 | INDIRECT | EVENT_IDX | EDID_AND_UUID | Feature.RESOURCE_BLOB
PAGE = 4096

DIMM_GPA, DIMM_UVA, APART = 0x1_0000_0000, 0x7E00_0000_0000, 1 << 33
"""Where the first DIMM is; the others follow at this distance, never touching."""

Entries = list[tuple[int, int]]
"""(guest-physical address, length) as the guest's entries have them."""


class Frame(NamedTuple):
    """A frame buffer in a blob. Stride 0: rows without slack."""

    width: int
    height: int
    stride: int = 0
    offset: int = 0
    format: int = Format.B8G8R8X8_UNORM

    @property
    def pitch(self) -> int:
        return self.stride or self.width * 4

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return self.offset + self.pitch * self.height

    @property
    def rect(self) -> Rect:
        return Rect(0, 0, self.width, self.height)

    def cut(self, memory: bytes, rect: Rect | None = None) -> bytes:
        """What a head shows of the blob's bytes: the rows of `rect`, tightly packed."""
        r = rect or self.rect
        starts = (self.offset + y * self.pitch + r.x * 4 for y in range(r.y, r.y + r.height))
        return b"".join(memory[at : at + r.width * 4] for at in starts)


class Dimm:
    """One region of guest memory: `size` bytes of a file from `offset` on."""

    def __init__(self, gpa: int, uva: int, fd: int, size: int, offset: int = 0) -> None:
        self.gpa, self.size = gpa, size
        self.map = mmap.mmap(fd, size, offset=offset)
        self.region = Region(gpa, size, uva, offset, fd)

    def pages(self, step: int = PAGE, size: int | None = None) -> Entries:
        """An entry a page, in order."""
        end = self.gpa + (self.size if size is None else size)
        return [(gpa, step) for gpa in range(self.gpa, end, step)]


class CountingDisplay(FakeDisplay):
    """Counts the bytes that came over the GPU sockets, as they were read."""

    received = 0

    async def _read(self, sock: trio.socket.SocketType, size: int) -> bytes | None:
        data = await super()._read(sock, size)
        self.received += len(data or b"")
        return data


class BlobGuest:
    """The guest of a Machine, with DIMMs of its own. The files are the test's to close."""

    def __init__(self, vm: Machine) -> None:
        self.vm = vm
        self.dimms: list[Dimm] = []
        self._plugged = 0

    # -- memory

    async def plug(self, fd: int, size: int | None = None, offset: int = 0) -> Dimm:
        """Plug `size` bytes (all) of a file; returns when the back-end has acknowledged."""
        if size is None:
            size = os.fstat(fd).st_size - offset
        away = APART * self._plugged
        self._plugged += 1
        dimm = Dimm(DIMM_GPA + away, DIMM_UVA + away, fd, size, offset)
        await self.replug(dimm)
        return dimm

    async def replug(self, dimm: Dimm) -> None:
        self.dimms.append(dimm)
        await self._share()

    async def unplug(self, dimm: Dimm) -> None:
        """Returns when the back-end has acknowledged: it may have nothing of it any more."""
        self.dimms.remove(dimm)
        await self._share()

    async def _share(self) -> None:
        vm = self.vm
        own = [Region(*row, vm.ram.memfd) for row in vm.ram.regions]
        vm.frontend.regions = own + [dimm.region for dimm in self.dimms]
        assert await vm.frontend.share_memory() == 0

    def write(self, entries: Iterable[tuple[int, int]], data: bytes) -> None:
        """Spread `data` over the entries, in their order."""
        for view, at, length in self._places(entries):
            piece, data = data[:length], data[length:]
            view[at : at + len(piece)] = piece
        assert not data, "the entries are too short"

    def read(self, entries: Iterable[tuple[int, int]]) -> bytes:
        return b"".join(view[at : at + length] for view, at, length in self._places(entries))

    def _places(self, entries: Iterable[tuple[int, int]]) -> Iterable[tuple[mmap.mmap, int, int]]:
        for gpa, length in entries:
            dimm = next(d for d in self.dimms if d.gpa <= gpa < d.gpa + d.size)
            yield dimm.map, gpa - dimm.gpa, length

    # -- commands

    def create_command(self, resource_id: int, entries: int, size: int) -> Record:
        create = hdr(Ctrl.CMD_RESOURCE_CREATE_BLOB)
        return ResourceCreateBlob(create, resource_id, BLOB_MEM_GUEST, 0, entries, 0, size)

    def show_command(
        self, resource_id: int, frame: Frame, rect: Rect | None = None, head: int = 0
    ) -> Record:
        return SetScanoutBlob(
            hdr(Ctrl.CMD_SET_SCANOUT_BLOB),
            rect or frame.rect,
            head,
            resource_id,
            frame.width,
            frame.height,
            frame.format,
            (frame.pitch, 0, 0, 0),
            (frame.offset, 0, 0, 0),
        )

    async def create(self, resource_id: int, entries: Sequence[tuple[int, int]], size: int) -> None:
        command = self.create_command(resource_id, len(entries), size)
        await self.vm.ok(command, mem_entries(entries))

    async def show(
        self, resource_id: int, frame: Frame, rect: Rect | None = None, head: int = 0
    ) -> None:
        await self.vm.ok(self.show_command(resource_id, frame, rect, head))

    async def unref(self, resource_id: int) -> None:
        await self.vm.ok(ResourceUnref(hdr(Ctrl.CMD_RESOURCE_UNREF), resource_id))

    async def picture(
        self,
        resource_id: int,
        frame: Frame,
        entries: Sequence[tuple[int, int]],
        rect: Rect | None = None,
        head: int = 0,
    ) -> bytes:
        """A new blob with pixels of its own, shown and flushed, and seen by the display as
        such. Returns the blob's bytes."""
        data = pattern(frame.size, resource_id)
        self.write(entries, data)
        await self.create(resource_id, entries, frame.size)
        await self.show(resource_id, frame, rect, head)
        await self.vm.flush(resource_id, rect or frame.rect)
        await self.vm.shown(frame.cut(data, rect), head)
        return data


@asynccontextmanager
async def blob_machine(
    display: FakeDisplay | None = None,
    *,
    udmabuf: OwnedFd | str = DEVICE,
    scanout: str = "dmabuf",
    ram_size: int = 16 << 20,
    device_fps: float = DEFAULT_DEVICE_FPS,
    **options: object,
) -> AsyncIterator[BlobGuest]:
    """A booted machine whose session makes dma-bufs with this device."""
    config = Config(scanout=scanout, device_fps=device_fps)
    async with machine(
        display=display,
        features=FEATURES,
        ram_size=ram_size,
        make_session=lambda sock: Session(sock, config, udmabuf),
        **options,
    ) as vm:
        await vm.boot()
        yield BlobGuest(vm)


def pattern(size: int, seed: int) -> bytes:
    """Bytes of which no two quarters of a page, and no two seeds, are alike."""
    pieces = ((seed << 32 | n).to_bytes(8, "little") * 128 for n in range(-(-size // 1024)))
    return b"".join(pieces)[:size]


# -- what this process, which is vgpud and QEMU at once, has open


def dmabufs() -> int:
    """Descriptors of udmabufs: vgpud's, and one for each head of the display that shows one."""
    return sum(
        "exp_name:\tudmabuf" in _text(f"/proc/self/fdinfo/{fd}")
        for fd in os.listdir("/proc/self/fd")
    )


def uses(file: int) -> tuple[int, int]:
    """(descriptors, mappings) of a file."""
    wanted = os.fstat(file)
    descriptors = 0
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the listing's own
            found = os.stat(int(fd))
            descriptors += (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)
    lines = (line.split() for line in _text("/proc/self/maps").splitlines())
    mappings = sum(line[4] == str(wanted.st_ino) and "memfd" in line[5] for line in lines)
    return descriptors, mappings


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
