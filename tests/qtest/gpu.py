"""virtio-gpu commands as bytes, and a driver that sends them one at a time.

Written from the specification's structures (virtio 1.3, 5.7.6), with struct and not with vgpuwire:
a layout error there must not cancel out here.
"""

import functools
import random
import struct
from collections.abc import Sequence

from tests.qtest.machine import Vm
from tests.support.virtio_pci import Buffer, VirtioPci

GET_DISPLAY_INFO, CREATE_2D, UNREF, SET_SCANOUT, FLUSH, TRANSFER, ATTACH, DETACH = range(
    0x100, 0x108
)
GET_EDID, ASSIGN_UUID, CREATE_BLOB, SET_SCANOUT_BLOB = 0x10A, 0x10B, 0x10C, 0x10D
UPDATE_CURSOR, MOVE_CURSOR = 0x300, 0x301
OK, OK_DISPLAY_INFO, OK_EDID, OK_UUID = 0x1100, 0x1101, 0x1104, 0x1105
UNSPEC, OUT_OF_MEMORY, INVALID_SCANOUT, INVALID_RESOURCE, INVALID_CONTEXT, INVALID_PARAMETER = (
    range(0x1200, 0x1206)
)
FENCE, RING_IDX = 1, 2

CHANNELS = {1: "BGRA", 2: "BGRX", 3: "ARGB", 4: "XRGB", 67: "RGBA", 68: "XBGR", 121: "ABGR"}
CHANNELS[134] = "RGBX"
"""The four bytes of a pixel of each format, in the order of their addresses."""

RINGS, REQUESTS, RESPONSES, PIXELS = 0x10_0000, 0x20_0000, 0x30_0000, 0x40_0000
"""Where things lie in guest RAM (guest-physical)."""
ROOM = 2048
"""Bytes for a response: more than the largest, an EDID of 1056."""

Rect = tuple[int, int, int, int]
"""x, y, width, height."""


def hdr(kind: int, flags: int = 0, fence: int = 0, ctx: int = 0, ring: int = 0) -> bytes:
    return struct.pack("<IIQIB3x", kind, flags, fence, ctx, ring)


def create_2d(resource: int, pixel_format: int, width: int, height: int) -> bytes:
    return hdr(CREATE_2D) + struct.pack("<IIII", resource, pixel_format, width, height)


def unref(resource: int) -> bytes:
    return hdr(UNREF) + struct.pack("<II", resource, 0)


def attach(resource: int, entries: Sequence[tuple[int, int]], count: int | None = None) -> bytes:
    """`entries` are (address, length); `count` is what the command claims, if that differs."""
    array = b"".join(struct.pack("<QII", address, length, 0) for address, length in entries)
    claimed = len(entries) if count is None else count
    return hdr(ATTACH) + struct.pack("<II", resource, claimed) + array


def detach(resource: int) -> bytes:
    return hdr(DETACH) + struct.pack("<II", resource, 0)


def transfer(resource: int, rect: Rect, offset: int = 0) -> bytes:
    return hdr(TRANSFER) + struct.pack("<4IQII", *rect, offset, resource, 0)


def set_scanout(scanout: int, resource: int, rect: Rect) -> bytes:
    return hdr(SET_SCANOUT) + struct.pack("<4III", *rect, scanout, resource)


def flush(resource: int, rect: Rect) -> bytes:
    return hdr(FLUSH) + struct.pack("<4III", *rect, resource, 0)


def create_blob(
    resource: int, size: int, entries: Sequence[tuple[int, int]], count: int | None = None
) -> bytes:
    """A shareable blob of guest memory."""
    array = b"".join(struct.pack("<QII", address, length, 0) for address, length in entries)
    claimed = len(entries) if count is None else count
    return hdr(CREATE_BLOB) + struct.pack("<IIIIQQ", resource, 1, 2, claimed, 0, size) + array


def set_scanout_blob(
    scanout: int,
    resource: int,
    rect: Rect,
    size: tuple[int, int],
    pixel_format: int,
    stride: int,
    offset: int,
) -> bytes:
    head = struct.pack("<4III", *rect, scanout, resource)
    planes = struct.pack("<4I4I", stride, 0, 0, 0, offset, 0, 0, 0)
    return hdr(SET_SCANOUT_BLOB) + head + struct.pack("<4I", *size, pixel_format, 0) + planes


def get_edid(scanout: int) -> bytes:
    return hdr(GET_EDID) + struct.pack("<II", scanout, 0)


def assign_uuid(resource: int) -> bytes:
    return hdr(ASSIGN_UUID) + struct.pack("<II", resource, 0)


def cursor(
    kind: int, scanout: int, x: int, y: int, resource: int, hot_x: int = 0, hot_y: int = 0
) -> bytes:
    return hdr(kind) + struct.pack("<8I", scanout, x, y, 0, resource, hot_x, hot_y, 0)


def fenced(request: bytes, fence: int, ctx: int = 0, ring: int = 0, flags: int = FENCE) -> bytes:
    """The request with a fence in its header."""
    kind = struct.unpack_from("<I", request)[0]
    return hdr(kind, flags, fence, ctx, ring) + request[24:]


def kind_of(response: bytes) -> int:
    kind: int = struct.unpack_from("<I", response)[0]
    return kind


def modes(response: bytes) -> list[tuple[int, ...]]:
    """(x, y, width, height, enabled, flags) of each of the 16 heads of a display info."""
    return list(struct.iter_unpack("<6I", response[24:408]))


def rgb(pixels: bytes, pixel_format: int = 1) -> bytes:
    """Pixels of a format as the three bytes a pixel that a screendump has."""
    order, out = CHANNELS[pixel_format], bytearray(len(pixels) // 4 * 3)
    for number, channel in enumerate("RGB"):
        out[number::3] = pixels[order.index(channel) :: 4]
    return bytes(out)


@functools.lru_cache(maxsize=64)
def _period(seed: int) -> bytes:
    """Noise of a length that is no power of two, so that rows of pixels do not repeat."""
    return random.Random(seed).randbytes(65521 * 4)


def noise(size: int, seed: int = 0) -> bytes:
    """`size` bytes in which any two pixels nearby differ; the same for the same seed."""
    period = _period(seed)
    return (period * (size // len(period) + 1))[:size]


class Driver:
    """The guest's side of one started GPU: one request, one response."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.device: VirtioPci = vm.gpu
        self.indirect = False

    def send(self, request: bytes, room: int = ROOM, queue: int = 0, slot: int = 0) -> int:
        """Make a request available without a kick; returns the head. `slot` keeps the buffers of
        several requests apart."""
        ram = self.vm.ram
        at, back = REQUESTS + slot * 4096, RESPONSES + slot * 4096
        ram.write(at, request)
        ram.write(back, b"\xee" * min(room, 4096))
        buffers = [Buffer(at, len(request)), Buffer(back, room, True)]
        if not room:
            buffers.pop()
        table = REQUESTS + 0xF_0000 + slot * 64 if self.indirect else None
        return self.device.queues[queue].add(buffers, table)

    def response(self, slot: int = 0, length: int = ROOM) -> bytes:
        return self.vm.ram.read(RESPONSES + slot * 4096, length)

    def run(self, request: bytes, room: int = ROOM, queue: int = 0) -> bytes:
        """One request to its end: what the device wrote."""
        target = self.device.queues[queue]
        self.send(request, room, queue)
        self.device.kick(queue)
        with self.vm.explained():
            target.wait()
        ((_, length),) = target.take()
        return self.response(length=length)

    def ok(self, *requests: bytes) -> None:
        """Requests that must succeed without data, one after another."""
        for request in requests:
            got = kind_of(self.run(request))
            assert got == OK, f"{request[:64].hex()}: answer {got:#x}\n{self.vm.logs()}"

    def draw(
        self,
        width: int,
        height: int,
        *,
        resource: int = 1,
        scanout: int = 0,
        pixel_format: int = 1,
        seed: int = 1,
        at: int = PIXELS,
    ) -> bytes:
        """Create a resource, fill it with noise and show all of it; returns its RGB."""
        pixels = noise(width * height * 4, seed)
        self.vm.ram.write(at, pixels)
        whole = (0, 0, width, height)
        self.ok(
            create_2d(resource, pixel_format, width, height),
            attach(resource, [(at, len(pixels))]),
            transfer(resource, whole),
            set_scanout(scanout, resource, whole),
            flush(resource, whole),
        )
        return rgb(pixels, pixel_format)

    def settled(self) -> None:
        """Wait until QEMU's display has taken all that was flushed: it reads the GPU socket in
        order, so the answer to a question says that it has read what came before."""
        assert kind_of(self.run(hdr(GET_DISPLAY_INFO))) == OK_DISPLAY_INFO

    def expect(self, picture: bytes, head: int = 0) -> None:
        """The head shows exactly this RGB."""
        self.settled()
        with self.vm.explained():
            difference = self.vm.screendump(head).difference(picture)
        assert not difference, f"head {head}: {difference}\n{self.vm.logs()}"
