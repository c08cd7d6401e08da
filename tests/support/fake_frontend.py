"""QEMU's end of the vhost-user socket: the sequences of 7.2, 10.0 and 11.1 as observed.

Written with struct, on purpose not with vgpuwire. Every reply is checked the way QEMU does:
flags exactly 5, the request echoed, the size right.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import trio

HEADER = struct.Struct("<III")
REGION = struct.Struct("<QQQQ")
NEED_REPLY = 8
MQ, REPLY_ACK, CONFIG, RESET_DEVICE, MEM_SLOTS = (1 << n for n in (0, 3, 9, 13, 15))
INDIRECT, EVENT_IDX, PROTOCOL, VERSION_1 = (1 << n for n in (28, 29, 30, 32))


@dataclass(frozen=True)
class Version:
    """What differs between the QEMUs that people have."""

    name: str
    protocol_mask: int
    config_size: int
    acks_vring_fds: bool
    sends_reset: bool
    syncs_enable: bool


QEMU_7_2 = Version("7.2", 0x1FFFF, 16, False, False, False)
QEMU_10_0 = Version("10.0", 0xFFFFF, 16, False, True, True)
QEMU_11_1 = Version("11.1", 0x6FFFFF, 20, True, True, True)
VERSIONS = (QEMU_7_2, QEMU_10_0, QEMU_11_1)


@dataclass(frozen=True)
class Region:
    """One row of the memory table."""

    gpa: int
    size: int
    uva: int
    offset: int
    fd: int


@dataclass(frozen=True)
class Ring:
    """A queue as the guest's driver set it up; addresses are those of `Region.uva`."""

    size: int
    desc: int
    used: int
    avail: int
    kick: int
    call: int
    err: int


class FrontendError(AssertionError):
    """The back-end did something that QEMU could not live with."""


class FakeFrontend:
    """One connection. Its methods are QEMU's phases (realize, start, stop, reset)."""

    def __init__(self, sock: socket.socket, version: Version = QEMU_11_1) -> None:
        self._sock = trio.socket.from_stdlib_socket(sock)
        self.version = version
        self.protocol = 0
        self.offered = 0
        self.regions: list[Region] = []
        self.rings: list[Ring | None] = [None, None]
        self.bases = [0, 0]
        self._told: list[Region] = []

    # -- messages

    async def send(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 1
    ) -> None:
        data = HEADER.pack(request, flags, len(payload)) + payload
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = await self._sock.sendmsg([data], ancillary)
        while sent < len(data):
            sent += await self._sock.send(data[sent:])

    async def recv_reply(self, request: int) -> bytes:
        head = await self._exactly(HEADER.size)
        got, flags, size = HEADER.unpack(head)
        if flags != 5:
            raise FrontendError(f"reply to {request}: flags {flags:#x} desynchronise QEMU")
        if got != request:
            raise FrontendError(f"reply to {request} says {got}")
        return await self._exactly(size)

    async def ask(self, request: int, payload: bytes = b"") -> bytes:
        await self.send(request, payload)
        return await self.recv_reply(request)

    async def ask_u64(self, request: int) -> int:
        payload = await self.ask(request)
        if len(payload) != 8:
            raise FrontendError(f"reply to {request} has {len(payload)} bytes")
        return int(struct.unpack("<Q", payload)[0])

    async def command(
        self, request: int, payload: bytes = b"", fds: Sequence[int] = (), ack: bool = True
    ) -> int:
        """Send, and take the acknowledgement where it was negotiated; returns its value."""
        if not (ack and self.protocol & REPLY_ACK):
            await self.send(request, payload, fds)
            return 0
        await self.send(request, payload, fds, flags=1 | NEED_REPLY)
        reply = await self.recv_reply(request)
        if len(reply) != 8:
            raise FrontendError(f"acknowledgement of {request} has {len(reply)} bytes")
        return int(struct.unpack("<Q", reply)[0])

    async def set_u64(self, request: int, value: int) -> None:
        await self.send(request, struct.pack("<Q", value))

    async def sync(self) -> None:
        """Everything sent before has been handled."""
        await self.ask_u64(1)

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = await self._sock.recv(size - len(data))
            if not part:
                raise FrontendError("the back-end hung up")
            data += part
        return data

    def close(self) -> None:
        self._sock.close()

    # -- phases

    async def realize(self, masked: Sequence[int], err: Sequence[int]) -> None:
        """Phase A: before the guest runs."""
        await self.ask_u64(1)
        offered = await self.ask_u64(15)
        self.protocol = offered & self.version.protocol_mask
        await self.set_u64(16, self.protocol)
        if self.protocol & MQ:
            await self.ask_u64(17)
        if self.protocol & MEM_SLOTS:
            await self.ask_u64(36)
        await self.send(3)
        self.offered = await self.ask_u64(1)
        for n in range(2):
            await self._ring_fd(13, n, masked[n])
            await self._ring_fd(14, n, err[n])
        await self.reset()

    async def reset(self) -> None:
        if self.version.sends_reset and self.protocol & RESET_DEVICE:
            await self.send(34)

    async def read_config(self) -> bytes:
        size = self.version.config_size
        reply = await self.ask(24, struct.pack("<III", 0, size, 0) + bytes(size))
        if len(reply) != 12 + size:
            raise FrontendError(f"GET_CONFIG of {size} bytes: {len(reply)}")
        return reply[12:]

    async def start(self, gpu: socket.socket | None, features: int | None = None) -> None:
        """Phase C: the guest wrote DRIVER_OK, or `cont`."""
        if gpu is not None:
            await self.send(33, b"", [gpu.fileno()])
            gpu.close()
        wanted = VERSION_1 | PROTOCOL | 0x7 if features is None else features | PROTOCOL
        await self.set_u64(2, wanted)
        await self.share_memory()
        for n, ring in enumerate(self.rings):
            if ring is None:
                continue
            await self.send(8, struct.pack("<II", n, ring.size))
            await self.send(10, struct.pack("<II", n, self.bases[n]))
            await self.send(9, struct.pack("<IIQQQQ", n, 0, ring.desc, ring.used, ring.avail, 0))
            await self._ring_fd(12, n, ring.kick)
            os.eventfd_write(ring.kick, 1)
        for n in range(2):
            await self.enable(n, True)
        for n, ring in enumerate(self.rings):
            if ring is not None:
                await self._ring_fd(13, n, ring.call)

    async def share_memory(self) -> int:
        if not self.protocol & MEM_SLOTS:
            table = struct.pack("<II", len(self.regions), 0) + b"".join(
                REGION.pack(r.gpa, r.size, r.uva, r.offset) for r in self.regions
            )
            return await self.command(5, table, [r.fd for r in self.regions])
        result = 0
        for region in [r for r in self._told if r not in self.regions]:
            result |= await self.command(
                38, struct.pack("<Q", 0) + REGION.pack(region.gpa, region.size, region.uva, 0)
            )
        for region in [r for r in self.regions if r not in self._told]:
            body = REGION.pack(region.gpa, region.size, region.uva, region.offset)
            result |= await self.command(37, struct.pack("<Q", 0) + body, [region.fd])
        self._told = list(self.regions)
        return result

    async def stop(self) -> None:
        """Phase D, after the GPU socket was closed: rings end, their bases come back."""
        for n in range(2):
            await self.enable(n, False)
        for n, ring in enumerate(self.rings):
            if ring is not None:
                reply = await self.ask(11, struct.pack("<II", n, 0))
                if len(reply) != 8:
                    raise FrontendError(f"GET_VRING_BASE: {len(reply)} bytes")
                index, self.bases[n] = struct.unpack("<II", reply)
                if index != n:
                    raise FrontendError(f"GET_VRING_BASE of {n} says {index}")

    async def enable(self, index: int, enabled: bool) -> None:
        await self.command(18, struct.pack("<II", index, int(enabled)))
        if self.version.syncs_enable and not self.protocol & REPLY_ACK:
            await self.sync()

    async def _ring_fd(self, request: int, index: int, fd: int) -> None:
        await self.command(request, struct.pack("<Q", index), [fd], ack=self.version.acks_vring_fds)
