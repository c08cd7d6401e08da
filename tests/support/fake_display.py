"""The display's end of the GPU socket, as QEMU plays it (hw/display/vhost-user-gpu.c).

Its layouts are written out with struct, on purpose not with vgpuwire: a second opinion on the
wire. What would crash QEMU is a failed assertion here.
"""

from __future__ import annotations

import array
import mmap
import os
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

HEADER = struct.Struct("<III")
NAMES = {
    1: "GET_PROTOCOL_FEATURES",
    2: "SET_PROTOCOL_FEATURES",
    3: "GET_DISPLAY_INFO",
    4: "CURSOR_POS",
    5: "CURSOR_POS_HIDE",
    6: "CURSOR_UPDATE",
    7: "SCANOUT",
    8: "UPDATE",
    9: "DMABUF_SCANOUT",
    10: "DMABUF_UPDATE",
    11: "GET_EDID",
    12: "DMABUF_SCANOUT2",
}
EDID = bytes.fromhex("00ffffffffffff00") + bytes(120)


@dataclass
class Buffer:
    """A dma-buf that QEMU was given: fields of DMABUF_SCANOUT, and the modifier if any."""

    fd: int
    width: int
    height: int
    stride: int
    fourcc: int
    modifier: int | None

    def read(self) -> bytes:
        """Its pixels, tightly packed."""
        with mmap.mmap(self.fd, self.stride * self.height, prot=mmap.PROT_READ) as view:
            rows = range(0, self.stride * self.height, self.stride)
            return b"".join(view[at : at + self.width * 4] for at in rows)

    def exporter(self) -> str:
        """Who made it, as the kernel says."""
        with open(f"/proc/self/fdinfo/{self.fd}") as info:
            lines = dict(line.split(":", 1) for line in info)
        return lines["exp_name"].strip()

    def size(self) -> int:
        return os.lseek(self.fd, 0, os.SEEK_END)


@dataclass
class Screen:
    """One head: what QEMU would show. `pixels` is None while the head is off or shows a buffer."""

    width: int = 0
    height: int = 0
    pixels: bytearray | None = None
    buffer: Buffer | None = None
    updates: list[tuple[int, int, int, int]] = field(default_factory=list)

    def drop_buffer(self) -> None:
        if self.buffer is not None:
            os.close(self.buffer.fd)
            self.buffer = None

    def shown_nothing(self) -> bool:
        return self.buffer is None and self.pixels is None

    def shown(self) -> bytes | None:
        """Width x height pixels, whatever way they came; None while it is off."""
        if self.buffer is not None:
            return self.buffer.read()
        return None if self.pixels is None else bytes(self.pixels)

    def rows(self, x: int, y: int, width: int, height: int) -> list[bytes]:
        assert self.pixels is not None
        stride = self.width * 4
        return [bytes(self.pixels[(y + r) * stride + x * 4 :][: width * 4]) for r in range(height)]


class FakeDisplay:
    """Serves one GPU socket after another. `log` has every message as (name, fields)."""

    def __init__(self, outputs: int = 1, features: int = 3, width: int = 1280, height: int = 800):
        self.outputs = outputs
        self.features = features
        self.size = (width, height)
        self.screens = [Screen() for _ in range(outputs)]
        self.log: list[tuple[str, tuple[int, ...]]] = []
        self.cursor: dict[int, tuple[str, tuple[int, ...], bytes]] = {}
        self.silent: set[str] = set()
        """Requests that are read and never answered."""
        self.paused: trio.Event | None = None
        """Set to an Event: nothing is read before it is set."""
        self.on_message: Callable[[str], None] = lambda name: None
        self.hung_up = False
        """Whether the back-end closed a socket first, which would hang QEMU."""
        self._sock: trio.socket.SocketType | None = None
        self._handled = trio.Event()
        self._arrived: list[int] = []

    async def next_message(self) -> None:
        """Wait until one more message has been dealt with."""
        await self._handled.wait()

    def names(self) -> list[str]:
        return [name for name, _ in self.log]

    def count(self, name: str) -> int:
        return self.names().count(name)

    def new_socket(self) -> socket.socket:
        """A fresh pair, as at each DRIVER_OK; the other end goes to the back-end."""
        ours, theirs = socket.socketpair()
        self._sock = trio.socket.from_stdlib_socket(ours)
        for screen in self.screens:  # s->ds is not valid on a new socket
            screen.pixels = None
        return theirs

    def forget(self) -> None:
        """Close what is still shown: the end of this display."""
        for screen in self.screens:
            screen.drop_buffer()

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    async def serve(self) -> None:
        """Serve the newest socket until it ends."""
        sock = self._sock
        assert sock is not None
        try:
            while True:
                if self.paused is not None:
                    await self.paused.wait()
                head = await self._read(sock, HEADER.size)
                if head is None:
                    self.hung_up = True
                    return
                request, flags, size = HEADER.unpack(head)
                assert request in NAMES, f"QEMU does not know request {request}"
                assert flags == 0, f"{NAMES[request]}: flags {flags:#x}"
                assert size <= 64 << 20, f"{NAMES[request]}: {size} bytes"
                payload = await self._read(sock, size)
                assert payload is not None, f"{NAMES[request]} was cut off"
                fds, self._arrived = self._arrived, []
                assert len(fds) <= NAMES[request].startswith("DMABUF_SCANOUT"), "a stray fd"
                await self._handle(sock, NAMES[request], request, payload, fds)
                self._handled.set()
                self._handled = trio.Event()
        except (trio.ClosedResourceError, OSError):
            return
        finally:
            for fd in self._arrived:  # of a message of which no more was read
                os.close(fd)
            self._arrived = []

    async def _read(self, sock: trio.socket.SocketType, size: int) -> bytes | None:
        data, fds = bytearray(), array.array("i")
        while len(data) < size:
            part, anc, _, _ = await sock.recvmsg(size - len(data), socket.CMSG_SPACE(64))
            for _, _, raw in anc:
                fds.frombytes(raw[: len(raw) - len(raw) % 4])
            self._arrived += fds
            del fds[:]
            if not part:
                return None
            data += part
        return bytes(data)

    async def _reply(self, sock: trio.socket.SocketType, request: int, payload: bytes) -> None:
        data = HEADER.pack(request, 4, len(payload)) + payload
        while data:
            data = data[await sock.send(data) :]

    async def _handle(
        self,
        sock: trio.socket.SocketType,
        name: str,
        request: int,
        payload: bytes,
        fds: list[int],
    ) -> None:
        reply = self.take(name, payload, fds)
        if reply is not None:
            await self._reply(sock, request, reply)

    def take(self, name: str, payload: bytes, fds: list[int]) -> bytes | None:
        """Do what one message says; the payload of QEMU's answer, if it has one."""
        count = {"UPDATE": 5, "CURSOR_UPDATE": 5}.get(name, len(payload) // 4)
        fields = struct.unpack_from(f"<{count}I", payload)
        self.log.append((name, fields))
        self.on_message(name)
        if name in self.silent:
            return None
        if name == "GET_PROTOCOL_FEATURES":
            return struct.pack("<Q", self.features)
        if name == "GET_DISPLAY_INFO":
            modes = [(0, 0, 0, 0, 0, 0)] * 16
            modes[0] = (0, 0, *self.size, 1, 0)
            body = struct.pack("<IIQII", 0x1101, 0, 0, 0, 0)
            return body + b"".join(struct.pack("<6I", *mode) for mode in modes)
        if name == "GET_EDID":
            if fields[0] >= self.outputs:
                return None  # QEMU does not answer for a head that it lacks
            body = struct.pack("<IIQIIII", 0x1104, 0, 0, 0, 0, 1024, 0)
            return body + EDID.ljust(1024, b"\0")
        if name == "DMABUF_UPDATE":
            if fields[0] < self.outputs:
                self.screens[fields[0]].updates.append(fields[1:5])
            return b""  # QEMU logs one of a head that it lacks, and answers it
        if name.startswith("DMABUF_SCANOUT"):
            self._dmabuf_scanout(fields, fds)
        elif name == "SCANOUT":
            scanout, width, height = fields
            if scanout < self.outputs:
                assert width * height * 4 <= 1 << 30, f"SCANOUT of {width}x{height} aborts QEMU"
                screen = self.screens[scanout]
                screen.drop_buffer()
                screen.width, screen.height = width, height
                screen.pixels = bytearray(width * height * 4) if width else None
        elif name == "UPDATE":
            self._update(fields, payload)
        elif name.startswith("CURSOR"):
            self.cursor[fields[0]] = (name, fields, payload[20:])
        return None

    def _dmabuf_scanout(self, fields: tuple[int, ...], fds: list[int]) -> None:
        scanout, x, y, width, height, fd_width, fd_height, stride, flags, fourcc = fields[:10]
        if scanout >= self.outputs:
            for fd in fds:
                os.close(fd)
            return
        screen = self.screens[scanout]
        screen.drop_buffer()
        screen.pixels = None  # an UPDATE with the old surface would abort QEMU
        if fds:
            assert (x, y, flags) == (0, 0, 0), "QEMU ignores x and y"
            assert (fd_width, fd_height) == (width, height), "QEMU ignores the cropping"
            modifier = fields[10] | fields[11] << 32 if len(fields) > 10 else None
            screen.width, screen.height = width, height
            screen.buffer = Buffer(fds[0], width, height, stride, fourcc, modifier)

    def _update(self, fields: tuple[int, ...], payload: bytes) -> None:
        scanout, x, y, width, height = fields
        assert len(payload) == 20 + width * height * 4, "UPDATE: size and rectangle differ"
        if scanout >= self.outputs:
            return
        screen = self.screens[scanout]
        assert screen.pixels is not None, "UPDATE without SCANOUT kills QEMU"
        assert width * height > 0, "an empty UPDATE"
        assert x + width <= screen.width, "UPDATE beyond the scanout's right edge"
        assert y + height <= screen.height, "UPDATE beyond the scanout's lower edge"
        screen.updates.append((x, y, width, height))
        for row in range(height):
            at = ((y + row) * screen.width + x) * 4
            screen.pixels[at : at + width * 4] = payload[20 + row * width * 4 :][: width * 4]
