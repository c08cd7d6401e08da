"""A third opinion: virtio-gpu's 2D commands in plain Python, from the specification's words.

It shares no line with vgpud. With `quirks` it is QEMU's own device, without it is what vgpud has
to be (tests/diff/quirks.py says why they differ). `fired` names the quirks that made a difference
in the present script.
"""

import struct
from collections.abc import Collection
from dataclasses import dataclass

from tests.diff.memory import BOUNCE, Contents, bounced, is_ram
from tests.diff.screen import Head, Resource, Shown
from tests.diff.script import CURSOR, HEADS, Step, kind_of
from tests.qtest import gpu
from tests.support.virtio_pci import GPU_RESOURCE_UUID

MAX_HOSTMEM = 256 << 20
SIZES = {
    gpu.GET_DISPLAY_INFO: 24,
    gpu.CREATE_2D: 40,
    gpu.UNREF: 32,
    gpu.SET_SCANOUT: 48,
    gpu.FLUSH: 48,
    gpu.TRANSFER: 56,
    gpu.ATTACH: 32,
    gpu.DETACH: 32,
    gpu.GET_EDID: 32,
    gpu.ASSIGN_UUID: 32,
    gpu.CREATE_BLOB: 24,
    gpu.SET_SCANOUT_BLOB: 24,
}


@dataclass(frozen=True)
class Expected:
    """An answer: its header and its length. A body (modes, EDID) is compared between the two
    devices. `loose`: only the type is certain. None as header: no answer is written."""

    header: bytes | None
    length: int = 24
    loose: bool = False


class Refused(Exception):
    """The command is answered with this error."""

    def __init__(self, code: int) -> None:
        self.code = code


class Model:
    """One device. `quirks`: the names of the differences that it has."""

    def __init__(self, memory: Contents, features: int = 0, quirks: Collection[str] = ()) -> None:
        """A device after its reset, with the features that its driver accepted."""
        self.memory = memory
        self.features = features
        self.quirks = frozenset(quirks)
        self.fired: set[str] = set()
        self.resources: dict[int, Resource] = {}
        self.heads = [Head() for _ in range(HEADS)]
        if "R04" in self.quirks:
            for head in self.heads:
                head.shown = Shown(0, 0, None, "off")

    def quirk(self, name: str) -> bool:
        """Whether this device has the quirk; to be asked only where it matters."""
        self.fired.add(name)
        return name in self.quirks

    # -- the envelope

    def run(self, step: Step) -> Expected:
        """The answer to a command."""
        if step.on == CURSOR:
            return Expected(None, 0)
        request = step.request()
        flags, fence, ctx, ring = 0, 0, 0, 0
        length = 24
        if len(request) >= 24:
            flags, fence, ctx, ring = struct.unpack_from("<IQIB", request, 4)
        try:
            kind = kind_of(request)
            if kind == gpu.ASSIGN_UUID and self.quirk("N01"):
                raise Refused(gpu.UNSPEC if len(request) >= 24 else gpu.INVALID_PARAMETER)
            if len(request) < 24 or len(request) < SIZES.get(kind or 0, 0):
                short = len(request) >= 24 and self.quirk("E02.old")
                raise Refused(gpu.OK if short else gpu.INVALID_PARAMETER)
            code, length = self._execute(kind or 0, request)
        except Refused as refused:
            code = refused.code
        del ring  # echoed only where CONTEXT_INIT was negotiated, which a 2D device has not
        echo = (gpu.FENCE, fence, ctx) if flags & gpu.FENCE else (0, 0, 0)
        loose = len(request) < 24 and self.quirk("E01")
        return Expected(gpu.hdr(code, *echo), length, loose)

    def _execute(self, kind: int, request: bytes) -> tuple[int, int]:
        """(type, length) of the answer; Refused for an error."""
        if kind in (gpu.CREATE_BLOB, gpu.SET_SCANOUT_BLOB):
            raise Refused(gpu.INVALID_PARAMETER)  # L01, B01: blob is off
        if kind == gpu.GET_DISPLAY_INFO:
            return gpu.OK_DISPLAY_INFO, 408
        body = request[24:]
        if kind == gpu.GET_EDID:
            if struct.unpack_from("<I", body)[0] >= HEADS:
                raise Refused(gpu.INVALID_PARAMETER)
            return gpu.OK_EDID, 1056
        if kind == gpu.ASSIGN_UUID and self.features & GPU_RESOURCE_UUID:
            self._find(struct.unpack_from("<I", body)[0])
            return gpu.OK_UUID, 40
        if kind == gpu.CREATE_2D:
            self._create(*struct.unpack_from("<IIII", body))
        elif kind == gpu.UNREF:
            self._unref(*struct.unpack_from("<I", body))
        elif kind == gpu.ATTACH:
            number, count = struct.unpack_from("<II", body)
            self._attach(number, count, body[8:])
        elif kind == gpu.DETACH:
            self._detach(*struct.unpack_from("<I", body))
        elif kind == gpu.TRANSFER:
            *rect, offset, number = struct.unpack_from("<4IQI", body)
            self._transfer(number, rect, offset)
        elif kind == gpu.SET_SCANOUT:
            *rect, head, number = struct.unpack_from("<4III", body)
            self._set_scanout(head, number, rect)
        elif kind == gpu.FLUSH:
            *rect, number = struct.unpack_from("<4II", body)
            self._flush(number, rect)
        else:
            raise Refused(gpu.UNSPEC)
        return gpu.OK, 24

    def _find(self, number: int) -> Resource:
        if number not in self.resources:
            raise Refused(gpu.INVALID_RESOURCE)
        return self.resources[number]

    @staticmethod
    def _inside(resource: Resource, rect: list[int]) -> None:
        x, y, width, height = rect
        if x + width > resource.width or y + height > resource.height:
            raise Refused(gpu.INVALID_PARAMETER)

    # -- the commands

    def _create(self, number: int, pixel_format: int, width: int, height: int) -> None:
        if number == 0 or number in self.resources:
            raise Refused(gpu.INVALID_RESOURCE)
        if pixel_format not in gpu.CHANNELS:
            raise Refused(gpu.INVALID_PARAMETER)
        resource = Resource(width, height, pixel_format)
        used = sum(other.size for other in self.resources.values())
        if not resource.size or resource.size >= 1 << 32 or used + resource.size >= MAX_HOSTMEM:
            raise Refused(gpu.OUT_OF_MEMORY)
        self.resources[number] = resource

    def _unref(self, number: int) -> None:
        resource = self._find(number)
        for head in sorted(resource.scanouts):
            self._disable(self.heads[head])
        del self.resources[number]

    def _attach(self, number: int, count: int, array: bytes) -> None:
        resource = self._find(number)
        if resource.entries is not None or count > 16384 or len(array) < 16 * count:
            raise Refused(gpu.UNSPEC)
        entries = [(a, n) for a, n, _ in struct.iter_unpack("<QII", array[: 16 * count])]
        room = BOUNCE - sum(other.bounced for other in self.resources.values())
        before = room
        for address, length in entries:
            if not is_ram(address, length):
                room -= bounced(address, length)
                name = "A13" if room == before else "A09"
                if not length or room < 0 or not self.quirk(name):
                    raise Refused(gpu.UNSPEC)
        if entries:
            resource.entries, resource.bounced = entries, before - room

    def _detach(self, number: int) -> None:
        resource = self._find(number)
        if resource.entries is None and self.quirk("A19"):
            raise Refused(gpu.UNSPEC)
        resource.entries, resource.bounced = None, 0

    def _transfer(self, number: int, rect: list[int], offset: int) -> None:
        resource = self._find(number)
        if resource.entries is None:
            raise Refused(gpu.UNSPEC if self.quirk("T02") else gpu.INVALID_RESOURCE)
        self._inside(resource, rect)
        x, y, width, height = rect
        stride = resource.width * 4
        if offset >= 1 << 32 and width and height and self.quirk("T14"):
            offset &= 0xFFFF_FFFF
        whole = x == 0 and width == resource.width
        size = sum(length for _, length in resource.entries)
        for line in range(height if width else 0):
            source = offset + line * stride
            if offset < 1 << 32 <= source and not whole and self.quirk("T15"):
                source &= 0xFFFF_FFFF
            if source >= size:
                continue
            data = self._gather(resource.entries, source, width * 4)
            if len(data) % 4 and not self.quirk("T13"):
                data = data[: len(data) // 4 * 4]
            resource.row(y + line)[x * 4 : x * 4 + len(data)] = data
        self._changed(resource, rect)

    def _gather(self, entries: list[tuple[int, int]], offset: int, length: int) -> bytes:
        """At most `length` bytes from `offset` of a backing on."""
        out = b""
        for address, size in entries:
            if offset < size:
                step = min(size - offset, length - len(out))
                out += self.memory.read(address + offset, step)
                offset = 0
                if len(out) == length:
                    break
            else:
                offset -= size
        return out

    def _set_scanout(self, number: int, resource_id: int, rect: list[int]) -> None:
        if number >= HEADS:
            raise Refused(gpu.INVALID_SCANOUT)
        head = self.heads[number]
        if resource_id == 0:
            self._disable(head)
            return
        resource = self._find(resource_id)
        if resource.entries is None and self.quirk("S04"):
            raise Refused(gpu.UNSPEC)
        if rect[2] < 16 or rect[3] < 16:
            raise Refused(gpu.INVALID_PARAMETER)
        self._inside(resource, rect)
        if head.resource is not None:
            head.resource.scanouts.discard(number)
        resource.scanouts.add(number)
        x, y, width, height = rect
        head.resource, head.rect = resource, (x, y, width, height)
        head.damage, head.loose = [(0, 0, width, height)], False

    def _disable(self, head: Head) -> None:
        if head.resource is None:
            return
        head.resource.scanouts.discard(self.heads.index(head))
        head.resource, head.damage, head.loose = None, [], False
        # Nothing may have been shown of it yet: then nothing is said of its end either.
        head.shown = Shown(0, 0, None, "off" if head.shown.why != "old" else "old")

    def _flush(self, number: int, rect: list[int]) -> None:
        resource = self._find(number)
        self._inside(resource, rect)
        x, y, width, height = rect
        for index in resource.scanouts:
            head = self.heads[index]
            sx, sy, sw, sh = head.rect
            left, top = max(x, sx), max(y, sy)
            right, bottom = min(x + width, sx + sw), min(y + height, sy + sh)
            if left < right and top < bottom:
                head.damage.append((left - sx, top - sy, right - left, bottom - top))
                if (right - left, bottom - top) == (sw, sh):
                    head.loose = False

    # -- the screen

    def _changed(self, resource: Resource, rect: list[int]) -> None:
        """Pixels changed: where damage waits to be sent, old or new ones may be."""
        for index in resource.scanouts:
            if self.heads[index].damage and rect[2] and rect[3]:
                self.heads[index].loose = True

    def settle(self) -> None:
        """All answers are there and the display has read everything."""
        for head in self.heads:
            if head.resource is None:
                continue
            _, _, width, height = head.rect
            now = head.resource.rgb(head.rect)
            before = head.shown
            if "F00" in self.quirks:
                head.shown = Shown(width, height, now)
            elif head.loose:
                head.shown = Shown(width, height, None, "loose")
            elif (0, 0, width, height) in head.damage:
                head.shown = Shown(width, height, now)
            elif before.rgb is not None:
                picture = bytearray(before.rgb)
                for x, y, w, h in head.damage:
                    for line in range(y, y + h):
                        at = slice((line * width + x) * 3, (line * width + x + w) * 3)
                        picture[at] = now[at]
                head.shown = Shown(width, height, bytes(picture))
            if head.shown.rgb != now:
                self.fired.add("F00")
            head.damage, head.loose = [], False
