"""Command scripts: what the oracle runs on both devices, as values and as text.

One step a line, numbers in order, then what is unusual about it:

    create_2d 1 1 64 48                 resource, format, width, height
    attach 1 0x400000:4096 0x402000:3   resource, then address:length of each entry
    transfer 1 0 0 64 48 0              resource, x, y, width, height, offset
    set_scanout 0 1 0 0 64 48           scanout, resource, x, y, width, height
    create_blob 1 12288 0x400000:12288  resource, size, then its entries
    set_scanout_blob 0 1 0 0 64 48 64 48 1 256 0
                                        scanout, resource, x, y, width, height of the rectangle,
                                        then width, height, format, stride, offset of the buffer
    flush 1 0 0 64 48                   resource, x, y, width, height
    dump                                wait for all answers, then a screendump of each head

A reproduction that the oracle prints is such a text; `python -m tests.diff --script FILE` runs it.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from tests.qtest import gpu

CONTROL, CURSOR = 0, 1
HEADS = 3
"""Scanouts of both devices (max_outputs)."""

Fence = tuple[int, int, int, int]
"""flags, fence_id, ctx_id, ring_idx of the request's header."""


def _raw(kind: int, body: int) -> bytes:
    return gpu.hdr(kind) + bytes(body)


def _cursor(*args: int) -> bytes:
    return gpu.cursor(gpu.UPDATE_CURSOR, *args)


def _move(*args: int) -> bytes:
    return gpu.cursor(gpu.MOVE_CURSOR, *args)


_ENCODERS: dict[str, Callable[..., bytes]] = {
    "display_info": lambda: gpu.hdr(gpu.GET_DISPLAY_INFO),
    "create_2d": gpu.create_2d,
    "unref": gpu.unref,
    "detach": gpu.detach,
    "transfer": lambda res, x, y, w, h, offset: gpu.transfer(res, (x, y, w, h), offset),
    "set_scanout": lambda head, res, x, y, w, h: gpu.set_scanout(head, res, (x, y, w, h)),
    "set_scanout_blob": lambda head, res, x, y, w, h, width, height, form, stride, offset: (
        gpu.set_scanout_blob(head, res, (x, y, w, h), (width, height), form, stride, offset)
    ),
    "flush": lambda res, x, y, w, h: gpu.flush(res, (x, y, w, h)),
    "get_edid": gpu.get_edid,
    "assign_uuid": gpu.assign_uuid,
    "raw": _raw,
    "update_cursor": _cursor,
    "move_cursor": _move,
}

BROKEN = ("loop", "far", "order", "index", "nested", "odd_table")
"""Chains that no driver makes (rows E11 to E13). Always a script's last step."""


@dataclass(frozen=True)
class Step:
    """One command, or one of the words that are none: dump, poke, broken."""

    op: str
    args: tuple[int, ...] = ()
    entries: tuple[tuple[int, int], ...] = ()
    count: int | None = None
    """nr_entries as claimed, where it is not the number of entries."""
    fence: Fence | None = None
    room: tuple[int, ...] = (gpu.ROOM,)
    """Bytes of each writable descriptor; () for none."""
    cut: int | None = None
    """The request's length, where it is not whole."""
    extra: int = 0
    """Bytes behind the request."""
    split: tuple[int, ...] = ()
    """Where the request is divided over descriptors."""
    indirect: bool = False
    queue: int | None = None
    """CONTROL or CURSOR, where it is not the command's own."""

    @property
    def is_command(self) -> bool:
        return self.op not in ("dump", "poke", "broken")

    @property
    def on(self) -> int:
        """The queue it is sent on."""
        if self.queue is not None:
            return self.queue
        return CURSOR if self.op in ("update_cursor", "move_cursor") else CONTROL

    def request(self) -> bytes:
        """The bytes that the device reads."""
        if self.op == "attach":
            data = gpu.attach(self.args[0], self.entries, self.count)
        elif self.op == "create_blob":
            data = gpu.create_blob(*self.args, self.entries, self.count)
        else:
            data = _ENCODERS[self.op](*self.args)
        if self.fence is not None:
            flags, fence, ctx, ring = self.fence
            data = gpu.fenced(data, fence, ctx, ring, flags)
        if self.cut is not None:
            data = data[: self.cut]
        return data + b"\xa5" * self.extra

    def pieces(self) -> list[bytes]:
        """The request as the descriptors carry it, none empty."""
        data = self.request()
        edges = [0, *sorted({at for at in self.split if 0 < at < len(data)}), len(data)]
        return [data[a:b] for a, b in pairwise(edges) if b > a]

    @property
    def descriptors(self) -> int:
        """How many descriptors the command has."""
        return len(self.pieces()) + len(self.room)

    def can_be_sent(self, queue_size: int) -> bool:
        """Whether a queue of this size takes the command; 2.7.5.3.1: an indirect table must not
        be longer than the queue either."""
        return 0 < self.descriptors <= queue_size

    def __str__(self) -> str:
        words = [self.op, *(f"{n:#x}" if n > 0xFFFF else str(n) for n in self.args)]
        words += [f"{address:#x}:{length}" for address, length in self.entries]
        if self.count is not None:
            words.append(f"count={self.count}")
        if self.fence is not None:
            words.append("fence=" + ",".join(f"{n:#x}" for n in self.fence))
        if self.room != (gpu.ROOM,):
            words.append("room=" + ",".join(str(n) for n in self.room))
        if self.cut is not None:
            words.append(f"cut={self.cut}")
        if self.extra:
            words.append(f"extra={self.extra}")
        if self.split:
            words.append("split=" + ",".join(str(n) for n in self.split))
        if self.indirect:
            words.append("indirect")
        if self.queue is not None:
            words.append(f"queue={self.queue}")
        return " ".join(words)


@dataclass(frozen=True)
class Script:
    """Steps that run on a fresh device (after a reset)."""

    steps: tuple[Step, ...]
    name: str = ""
    queue_size: int = 64
    """Entries of the control queue; QEMU 11.1 has 64 at most. The cursor queue has 16."""
    features: int = 0
    """Feature bits beside VERSION_1 that the driver accepts."""

    def __str__(self) -> str:
        head = f"# {self.name}\nqueue_size={self.queue_size} features={self.features:#x}\n"
        return head + "\n".join(str(step) for step in self.steps) + "\n"

    @property
    def heads(self) -> list[int]:
        """The scanouts that the script shows something on: those worth a screendump."""
        used = {step.args[0] for step in self.steps if step.op[:11] == "set_scanout"}
        return sorted(head for head in used if head < HEADS)


def parse_step(line: str) -> Step:
    """A step of a script's text."""
    op, *words = line.split()
    args: list[int] = []
    entries: list[tuple[int, int]] = []
    more: dict[str, object] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if word == "indirect":
            more["indirect"] = True
        elif equals and name in ("fence", "room", "split"):
            more[name] = tuple(int(n, 0) for n in value.split(",") if n)
        elif equals:
            more[name] = int(value, 0)
        elif ":" in word:
            address, length = word.split(":")
            entries.append((int(address, 0), int(length, 0)))
        elif op == "broken":
            args.append(BROKEN.index(word) if word in BROKEN else int(word, 0))
        else:
            args.append(int(word, 0))
    return Step(op, tuple(args), tuple(entries), **more)


def parse(text: str) -> Script:
    """A script's text, as str() gives it; "#" starts a comment, and ";" is a line's end too."""
    steps: list[Step] = []
    options: dict[str, int] = {}
    for line in text.replace(";", "\n").splitlines():
        line = line.split("#")[0].strip()
        if line.startswith(("queue_size=", "features=")):
            options.update((k, int(v, 0)) for k, _, v in (w.partition("=") for w in line.split()))
        elif line:
            steps.append(parse_step(line))
    return Script(tuple(steps), **options)


def kind_of(request: bytes) -> int | None:
    """The command's type, None where the request is too short to have one."""
    return struct.unpack_from("<I", request)[0] if len(request) >= 4 else None
