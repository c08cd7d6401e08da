"""A guest's driver for the synchronous device: commands as bytes, answers as values.

The layouts are written out with struct, on purpose not with vgpuwire: a second opinion on what
a guest sends and reads.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple
from uuid import UUID

from tests.support.fake_pixels import (
    PAGE,
    FakeBacking,
    FakeGuest,
    FakePixelStore,
    FakeSurface,
    entries,
)
from vgpud.config import DEFAULT_HOSTMEM
from vgpud.device.gpu import GpuDevice
from vgpud.device.outcome import Ask, DisplayMessage, Outcome, Silence, Timeline
from vgpud.device.resource import Blob, Image

OK, OK_DISPLAY_INFO, OK_EDID, OK_UUID = 0x1100, 0x1101, 0x1104, 0x1105
UNSPEC, NO_MEMORY, BAD_SCANOUT, BAD_RESOURCE, BAD_CONTEXT, BAD_PARAMETER = range(0x1200, 0x1206)

FENCE, RING_IDX = 1, 2
U32 = (1 << 32) - 1

FORMATS = {
    "B8G8R8A8": 1,
    "B8G8R8X8": 2,
    "A8R8G8B8": 3,
    "X8R8G8B8": 4,
    "R8G8B8A8": 67,
    "X8B8G8R8": 68,
    "A8B8G8R8": 121,
    "R8G8B8X8": 134,
}
BGRX = FORMATS["B8G8R8X8"]

Box = tuple[int, int, int, int]
"""x, y, width, height."""


def command(kind: int, body: bytes = b"", /, **header: int) -> bytes:
    flags, fence = header.get("flags", 0), header.get("fence", 0)
    context, ring = header.get("context", 0), header.get("ring", 0)
    return struct.pack("<IIQIB3x", kind, flags, fence, context, ring) + body


def get_display_info(**header: int) -> bytes:
    return command(0x0100, **header)


def create_2d(
    resource: int, width: int = 64, height: int = 64, pixel_format: int = BGRX, **header: int
) -> bytes:
    return command(0x0101, struct.pack("<4I", resource, pixel_format, width, height), **header)


def unref(resource: int, **header: int) -> bytes:
    return command(0x0102, struct.pack("<II", resource, 0), **header)


def set_scanout(scanout: int, resource: int, box: Box = (0, 0, 64, 64), **header: int) -> bytes:
    return command(0x0103, struct.pack("<6I", *box, scanout, resource), **header)


def flush(resource: int, box: Box = (0, 0, 64, 64), **header: int) -> bytes:
    return command(0x0104, struct.pack("<6I", *box, resource, 0), **header)


def transfer(resource: int, box: Box = (0, 0, 64, 64), offset: int = 0, **header: int) -> bytes:
    return command(0x0105, struct.pack("<4IQII", *box, offset, resource, 0), **header)


def attach(resource: int, pieces: bytes = b"", count: int | None = None, **header: int) -> bytes:
    if count is None:
        count = len(pieces) // 16
    return command(0x0106, struct.pack("<II", resource, count) + pieces, **header)


def detach(resource: int, **header: int) -> bytes:
    return command(0x0107, struct.pack("<II", resource, 0), **header)


def get_edid(scanout: int, **header: int) -> bytes:
    return command(0x010A, struct.pack("<II", scanout, 0), **header)


def assign_uuid(resource: int, **header: int) -> bytes:
    return command(0x010B, struct.pack("<II", resource, 0), **header)


def create_blob(
    resource: int, size: int = 4 * PAGE, pieces: bytes = b"", count: int | None = None, **rest: int
) -> bytes:
    """`rest`: mem, blob_flags, blob, and the header's fields."""
    if count is None:
        count = len(pieces) // 16
    fields = (resource, rest.pop("mem", 1), rest.pop("blob_flags", 0), count, rest.pop("blob", 0))
    return command(0x010C, struct.pack("<4IQQ", *fields, size) + pieces, **rest)


def set_scanout_blob(
    scanout: int,
    resource: int,
    box: Box = (0, 0, 64, 64),
    size: tuple[int, int] = (64, 64),
    pixel_format: int = BGRX,
    stride: int = 256,
    offset: int = 0,
    *,
    rest: bytes = bytes(24),
    padding: int = 0,
    **header: int,
) -> bytes:
    """`rest`: the strides and offsets of planes 1 to 3."""
    body = struct.pack("<6I", *box, scanout, resource)
    body += struct.pack("<5I", *size, pixel_format, padding, stride) + rest[:12]
    return command(0x010D, body + struct.pack("<I", offset) + rest[12:], **header)


def update_cursor(
    scanout: int,
    resource: int,
    at: tuple[int, int] = (0, 0),
    hot: tuple[int, int] = (0, 0),
    **header: int,
) -> bytes:
    return command(0x0300, struct.pack("<8I", scanout, *at, 0, resource, *hot, 0), **header)


def move_cursor(scanout: int, resource: int, at: tuple[int, int], **header: int) -> bytes:
    return command(0x0301, struct.pack("<8I", scanout, *at, 0, resource, 0, 0, 0), **header)


GOOD = {
    "GET_DISPLAY_INFO": get_display_info(),
    "RESOURCE_CREATE_2D": create_2d(99),
    "RESOURCE_UNREF": unref(1),
    "SET_SCANOUT": set_scanout(1, 1),
    "RESOURCE_FLUSH": flush(1),
    "TRANSFER_TO_HOST_2D": transfer(1),
    "RESOURCE_ATTACH_BACKING": attach(2, entries((0, PAGE))),
    "RESOURCE_DETACH_BACKING": detach(1),
    "GET_EDID": get_edid(0),
    "RESOURCE_ASSIGN_UUID": assign_uuid(1),
    "RESOURCE_CREATE_BLOB": create_blob(99, PAGE, entries((0, PAGE))),
    "SET_SCANOUT_BLOB": set_scanout_blob(1, 4),
}
"""A command of each kind that furnished() accepts, as short as it can be."""


class Answer(NamedTuple):
    """What the guest reads, and what goes to the display."""

    kind: int
    flags: int
    fence: int
    context: int
    ring: int
    body: bytes
    display: tuple[DisplayMessage, ...]
    timeline: Timeline | None


def answer_of(outcome: Outcome) -> Answer:
    kind, flags, fence, context, ring = struct.unpack_from("<IIQIB", outcome.response)
    assert outcome.response[21:24] == bytes(3), "the padding leaks something"
    body = outcome.response[24:]
    return Answer(kind, flags, fence, context, ring, body, outcome.display, outcome.timeline)


class Driver:
    """One guest, its memory, and the device. QEMU is known to have `heads` heads; with
    `heads=None` it is not known yet."""

    def __init__(
        self,
        store: FakePixelStore | None = None,
        max_hostmem: int = DEFAULT_HOSTMEM,
        heads: int | None = 16,
    ) -> None:
        self.store = store or FakePixelStore(FakeGuest((0, 64 * PAGE)))
        self.device = GpuDevice(self.store, max_hostmem)
        if heads is not None:
            self.device.outputs.known = self.device.outputs.limit = heads

    @property
    def guest(self) -> FakeGuest:
        return self.store.guest

    def run(self, request: bytes) -> Answer:
        """A command that is answered without asking the display."""
        outcome = self.device.execute(request)
        assert isinstance(outcome, Outcome)
        return answer_of(outcome)

    def ask(self, request: bytes) -> Ask:
        question = self.device.execute(request)
        assert isinstance(question, Ask)
        return question

    def answer(self, question: Ask, reply: bytes | Silence = Silence.LATE) -> Answer:
        return answer_of(self.device.answer(question, reply))

    def ok(self, *requests: bytes) -> Answer:
        """Commands that must all be accepted; the last one's answer."""
        for request in requests:
            answer = self.run(request)
            assert answer.kind == OK, hex(answer.kind)
        return answer

    def refused(self, request: bytes, kind: int) -> None:
        """The command gets this error and changes nothing at all."""
        before = snapshot(self.device)
        answer = self.run(request)
        assert hex(answer.kind) == hex(kind)
        assert answer.display == ()
        assert answer.body == b""
        assert snapshot(self.device) == before

    def resource(self, number: int) -> Image | Blob:
        resource = self.device.resources.get(number)
        assert resource is not None
        return resource

    def surface(self, number: int) -> FakeSurface:
        resource = self.resource(number)
        assert isinstance(resource, Image)
        assert isinstance(resource.surface, FakeSurface)
        return resource.surface

    def pieces(self, number: int) -> list[tuple[int, int]]:
        """What the resource is backed with: (address, length)."""
        backing = self.resource(number).backing
        assert isinstance(backing, FakeBacking)
        return backing.pieces


def furnished(heads: int | None = 16) -> Driver:
    """A guest in the middle of its life: resource 1 is 64 x 64, backed and on heads 0 and 1,
    resource 2 is 32 x 16 with no backing and nowhere shown. Resource 4 is a blob of 64 x 64, backed
    and, where there is one, on head 2; 5 is a blob with no backing. All features are acked."""
    driver = Driver(heads=heads)
    driver.device.set_features(0x1F)
    driver.guest.write(0, bytes(range(256)) * 64)
    driver.ok(
        create_2d(1),
        attach(1, entries((0, 4 * PAGE))),
        transfer(1),
        create_2d(2, 32, 16),
        set_scanout(0, 1),
        set_scanout(1, 1, (16, 16, 32, 32)),
        create_blob(4, 4 * PAGE, entries((8 * PAGE, 2 * PAGE), (4 * PAGE, 2 * PAGE))),
        create_blob(5),
    )
    if heads == 16:
        driver.ok(set_scanout_blob(2, 4))
    driver.device.execute_cursor(update_cursor(0, 1, (5, 6), (1, 2)))
    return driver


COUNTERS = {"errors", "refused", "wrong_size"}
"""What may change on an error: it is for the operator, not for the guest."""
OUTSIDE = {"_store", "fills", "known", "limit"}
"""The port itself, the fake's own notes, and what QEMU told about its heads."""


def snapshot(value: Any) -> Any:
    """All that an object holds, deeply, as plain values that compare: a new attribute of the
    device is part of it without a change here."""
    match value:
        case None | int() | str() | bytes() | UUID():
            return value
        case bytearray() | memoryview():
            return bytes(value)
        case dict():
            return {key: snapshot(one) for key, one in value.items()}
        case set() | frozenset():
            return frozenset(value)
        case tuple() | list():
            return tuple(snapshot(one) for one in value)
    names = {name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())}
    names |= getattr(value, "__dict__", {}).keys()
    content = {name: snapshot(getattr(value, name)) for name in sorted(names - COUNTERS - OUTSIDE)}
    return type(value).__name__, content
