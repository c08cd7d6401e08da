"""One back-end program under load: a driver and a display in C, memory and set-up from here."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.qemu.cache import made, run
from tests.support.fake_frontend import EVENT_IDX, QEMU_10_0, VERSION_1, FakeFrontend, Region, Ring

SOURCE = Path(__file__).with_name("load.c")
RAM = 1 << 29
GPA, UVA = 1 << 30, 0x7F00_0000_0000
QUEUE = 1024
RINGS, REQUESTS, PIXELS = 0, 1 << 17, 16 << 20
"""Where things are in the guest's memory."""
PAGE = 4096
TIMEOUT = 10_000
"""Milliseconds that a command may take."""


class BenchError(Exception):
    """The back-end failed, or was wrong."""


class Command(ctypes.Structure):
    """`struct command` of load.c."""

    _fields_ = [
        ("request", ctypes.c_uint64),
        ("response", ctypes.c_uint64),
        ("length", ctypes.c_uint32),
        ("room", ctypes.c_uint32),
    ]


class RingState(ctypes.Structure):
    """`struct ring` of load.c."""

    _fields_ = [
        ("desc", ctypes.c_void_p),
        ("avail", ctypes.c_void_p),
        ("used", ctypes.c_void_p),
        ("size", ctypes.c_uint32),
        ("kick", ctypes.c_int),
        ("call", ctypes.c_int),
        ("offered", ctypes.c_uint16),
        ("seen", ctypes.c_uint16),
    ]


@cache
def library() -> ctypes.CDLL:
    """load.c, built once a version."""

    def make(work: Path) -> None:
        flags = ["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
        run(["gcc", *flags, str(SOURCE), "-o", str(work / "load.so")])

    source = SOURCE.read_bytes()
    digest = f"{hash_of(source):016x}"
    built = ctypes.CDLL(str(made(f"bench/load-{digest}", make) / "load.so"))
    built.display_start.restype = ctypes.c_void_p
    built.display_updates.restype = ctypes.c_uint64
    built.display_pixels.restype = ctypes.c_void_p
    for name in ("display_settle", "display_updates", "display_stop"):
        getattr(built, name).argtypes = [ctypes.c_void_p]
    built.display_pixels.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
    return built


def hash_of(data: bytes) -> int:
    import hashlib

    return int.from_bytes(hashlib.sha256(data).digest()[:8])


@dataclass(frozen=True)
class Backend:
    """A program; `{fd}` in its arguments is the vhost-user socket."""

    name: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Timing:
    """One run: seconds an operation took, each, and CPU seconds of the back-end for one."""

    seconds: list[float]
    cpu: float

    @property
    def median(self) -> float:
        return sorted(self.seconds)[len(self.seconds) // 2]

    @property
    def rate(self) -> float:
        return len(self.seconds) / sum(self.seconds)


class Machine:
    """A started device. Requests are prepared once and run many times."""

    def __init__(self, process: subprocess.Popen[bytes], display: int, rings: list[RingState]):
        self._process = process
        self._display = display
        self._rings = rings
        self._clock = (~process.pid << 3) | 2  # CPUCLOCK_SCHED of a process (clock_getcpuclockid)
        self._next = REQUESTS
        self.memory: mmap.mmap

    def commands(self, requests: Sequence[bytes], answered: bool = True) -> ctypes.Array[Command]:
        """Put requests into guest memory, each with room for an answer of 24 bytes."""
        table = (Command * len(requests))()
        for command, request in zip(table, requests, strict=True):
            at = self._next
            if at + len(request) + 64 > PIXELS:
                raise BenchError("too many requests for the guest's memory")
            self.memory[at : at + len(request)] = request
            answer = at + -(-len(request) // 32) * 32
            self._next = answer + 32
            command.request, command.length = GPA + at, len(request)
            command.response, command.room = GPA + answer, 24 if answered else 0
        return table

    def forget(self) -> None:
        """The room of all requests is free again."""
        self._next = REQUESTS

    def execute(self, requests: Sequence[bytes]) -> None:
        """Run requests that must all be accepted."""
        for start in range(0, len(requests), 256):
            self.forget()
            table = self.commands(requests[start : start + 256])
            self.run(table)
            for command in table:
                at = command.response - GPA
                (kind,) = struct.unpack_from("<I", self.memory, at)
                if kind & 0xFF00 != 0x1100:
                    raise BenchError(f"a command was answered {kind:#x}")
        self.forget()

    def run(
        self, table: ctypes.Array[Command], operations: int = 1, window: int = 0, ring: int = 0
    ) -> Timing:
        """All of the table so many times, `window` commands to a kick (0: as many as fit)."""
        times = (ctypes.c_uint64 * operations)()
        before = time.clock_gettime(self._clock)
        error = library().run(
            ctypes.byref(self._rings[ring]), table, len(table), window, operations, times, TIMEOUT
        )
        if error:
            raise BenchError(f"{self._process.args!r}: {os.strerror(-error)}")
        cpu = time.clock_gettime(self._clock) - before
        return Timing([t / 1e9 for t in times], cpu / operations)

    def shown(self, head: int = 0) -> tuple[int, int, bytes]:
        """Width, height and pixels of a head, when all that was sent has arrived."""
        if library().display_settle(self._display):
            raise BenchError("the back-end left the display")
        size = (ctypes.c_uint32 * 2)()
        at = library().display_pixels(self._display, head, size)
        return size[0], size[1], ctypes.string_at(at, 4 * size[0] * size[1])

    def own_memory(self) -> int:
        """Bytes of its anonymous memory."""
        with open(f"/proc/{self._process.pid}/smaps_rollup") as rollup:
            for line in rollup:
                if line.startswith("Anonymous:"):
                    return int(line.split()[1]) << 10
        raise BenchError("smaps_rollup has no Anonymous line")


@asynccontextmanager
async def machine(backend: Backend) -> AsyncIterator[Machine]:
    """A back-end, started and set up as QEMU 10.0 does it."""
    ours, theirs = socket.socketpair()
    command = [word.format(fd=theirs.fileno()) for word in backend.command]
    process = subprocess.Popen(  # noqa: ASYNC220  # nothing else runs here
        command, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    theirs.close()
    memfd = os.memfd_create("bench-guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memfd, RAM)
    memory = mmap.mmap(memfd, RAM)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    frontend = FakeFrontend(ours, QEMU_10_0)
    frontend.regions = [Region(GPA, RAM, UVA, 0, memfd)]
    fds = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(10)]
    states = []
    for n in range(2):
        at = RINGS + n * (1 << 16)
        desc, avail, used = at, at + 16 * QUEUE, at + 20 * QUEUE
        kick, call, err = fds[2 + 4 * n : 5 + 4 * n]
        frontend.rings[n] = Ring(QUEUE, UVA + desc, UVA + used, UVA + avail, kick, call, err)
        states.append(RingState(base + desc, base + avail, base + used, QUEUE, kick, call, 0, 0))
    display_ours, display_theirs = socket.socketpair()
    display = library().display_start(display_ours.detach())
    try:
        await frontend.realize([fds[0], fds[1]], [fds[4], fds[8]])
        await frontend.start(display_theirs, VERSION_1 | EVENT_IDX)
        await frontend.sync()  # else an interrupt may still go to the eventfd of before
        found = Machine(process, display, states)
        found.memory = memory
        yield found
        library().display_stop(display)
        display = None
        await frontend.stop()
    finally:
        if display is not None:
            library().display_stop(display)
        frontend.close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for fd in (*fds, memfd):
            os.close(fd)


def entries(size: int, scattered: bool = False, at: int = PIXELS, seed: int = 1) -> bytes:
    """virtio_gpu_mem_entry of `size` bytes from `at`: one, or a shuffled one for each page."""
    if not scattered:
        return struct.pack("<QII", GPA + at, size, 0)
    pages = list(range(-(-size // PAGE)))
    random.Random(seed).shuffle(pages)
    return b"".join(struct.pack("<QII", GPA + at + page * PAGE, PAGE, 0) for page in pages)


def gathered(memory: mmap.mmap, table: bytes, size: int) -> bytes:
    """The bytes that such entries describe."""
    pieces = struct.iter_unpack("<QII", table)
    return b"".join(memory[a - GPA : a - GPA + n] for a, n, _ in pieces)[:size]
