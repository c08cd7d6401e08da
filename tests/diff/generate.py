"""Scripts from a seed: mostly a driver that works, and then what lies at the edges.

The generator keeps a rough idea of the device's state so that most commands get past the first
check; the model, not the generator, knows what the answer is.
"""

import random
from dataclasses import replace

from tests.diff.memory import DIMMS, HOLE, LOW, LOW_SIZE, PIXELS, SHADOW
from tests.diff.script import CONTROL, CURSOR, HEADS, Script, Step
from tests.diff.shapes import MAX, entries, rectangle
from tests.qtest import gpu
from tests.support.virtio_pci import EVENT_IDX, GPU_EDID, GPU_RESOURCE_UUID, INDIRECT_DESC

FORMATS = tuple(gpu.CHANNELS)
SIZES = ((64, 48), (16, 16), (17, 33), (100, 75), (64, 64), (256, 3), (1, 1), (15, 64), (31, 200))
ODD_SIZES = (
    *((0, 5), (5, 0), (65536, 65536), (0x4000_0001, 1), (8192, 8191), (8192, 8192)),
    *((MAX, 1), (1, MAX), (MAX, MAX), (16, 4_000_000), (0x8000_0000, 2)),
)
UNKNOWN = (
    0,
    1,
    0x104 + 0x95,
    0x1FF,
    0x108,
    0x109,
    0x200,
    0x207,
    0x20A,
    0x300,
    0x301,
    0x400,
    0x1100,
)


class Generator:
    """One script's worth of random decisions."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.sizes: dict[int, tuple[int, int]] = {}
        self.backed: dict[int, int] = {}
        self.shown: dict[int, tuple[int, gpu.Rect]] = {}
        self.steps: list[Step] = []

    def chance(self, of_hundred: int) -> bool:
        return self.rng.randrange(100) < of_hundred

    def script(self, name: str) -> Script:
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            for _ in range(self.rng.randrange(2, 14)):
                self.steps.append(self._command())
            self._finish()
            if self.chance(25):
                self._exact_damage()
            if self.chance(25):
                self._replace()
        features = GPU_EDID * self.chance(80) | INDIRECT_DESC * self.chance(80)
        features |= EVENT_IDX * self.chance(50) | GPU_RESOURCE_UUID * self.chance(50)
        steps = tuple(
            step if features & INDIRECT_DESC or not step.indirect else replace(step, indirect=False)
            for step in self.steps
        )
        return Script(steps, name, self.rng.choice((64, 64, 64, 16, 32)), features)

    # -- the flow

    def _command(self) -> Step:
        """The next command: what a driver would do now, or anything."""
        if not self.sizes or self.chance(12):
            return self._unusual(self._create())
        unbacked = [number for number in self.sizes if number not in self.backed]
        if unbacked and self.chance(60):
            return self._unusual(self._attach(self.rng.choice(unbacked)))
        draw = (self._transfer, self._transfer, self._set_scanout, self._flush)
        rare = (self._unref, self._detach, self._question, self._unknown, self._pointer)
        choice = self.rng.choice(draw if self.chance(70) else (*rare, self._again, self._poke))
        return self._unusual(choice())

    def _finish(self) -> None:
        """Flush all that may be shown, and look."""
        for number, (width, height) in self.sizes.items():
            if any(shown == number for shown, _ in self.shown.values()):
                self.steps.append(Step("flush", (number, 0, 0, width, height)))
        self.steps.append(Step("dump"))

    def _exact_damage(self) -> None:
        """Change a shown resource, flush a part of it, look: only that part may be new."""
        shown = [(n, rect) for n, rect in self.shown.values() if n in self.backed]
        if not shown:
            return
        number, _ = self.rng.choice(shown)
        width, height = self.sizes[number]
        whole = (0, 0, width, height)
        self.steps.append(Step("transfer", (number, *whole, self.rng.randrange(0, 4096) * 4)))
        for _ in range(self.rng.randrange(1, 4)):
            self.steps.append(Step("flush", (number, *rectangle(self.rng, width, height))))
        self.steps.append(Step("dump"))

    def _replace(self) -> None:
        """Show another resource on a head, then do something to the one before: the head must not
        mind."""
        if not self.shown or len(self.sizes) < 2:
            return
        head, (before, _) = self.rng.choice(list(self.shown.items()))
        others = [number for number in self.sizes if number != before]
        after = self.rng.choice(others)
        width, height = self.sizes[after]
        if before not in self.sizes or width * height > 100_000:
            return
        self.shown[head] = (after, (0, 0, width, height))
        self.steps.append(Step("set_scanout", (head, after, 0, 0, width, height)))
        if self.chance(50):
            self.steps.append(Step("dump"))
            self.steps.append(Step("transfer", (after, 0, 0, width, height, 4)))
            self.steps.append(Step("flush", (before, 0, 0, *self._size_of(before))))
        else:
            self.sizes.pop(before)
            self.backed.pop(before, None)
            self.steps.append(Step("unref", (before,)))
        self.steps.append(Step("dump"))

    # -- commands

    def _id(self) -> int:
        """A resource: mostly one that exists."""
        if self.sizes and self.chance(93):
            return self.rng.choice(list(self.sizes))
        return self.rng.choice((0, 1, 2, 3, 4, 99, 0x8000_0001, MAX))

    def _create(self) -> Step:
        number = self.rng.randrange(1, 6) if self.chance(93) else self._id()
        if self.chance(12):
            width, height = self.rng.choice(ODD_SIZES)
        elif self.chance(50):
            width, height = self.rng.choice(SIZES)
        else:
            width, height = self.rng.randrange(1, 160), self.rng.randrange(1, 120)
        pixel_format = self.rng.choice(FORMATS)
        if self.chance(5):
            pixel_format = self.rng.choice((0, 5, 66, 69, 120, 122, 133, 135, 200, MAX))
        fits = 0 < width * height * 4 < 256 << 20
        if number and number not in self.sizes and pixel_format in FORMATS and fits:
            self.sizes[number] = (width, height)
        return Step("create_2d", (number, pixel_format, width, height))

    def _unref(self) -> Step:
        number = self._id()
        self.sizes.pop(number, None)
        self.backed.pop(number, None)
        return Step("unref", (number,))

    def _detach(self) -> Step:
        number = self._id()
        self.backed.pop(number, None)
        return Step("detach", (number,))

    def _attach(self, number: int) -> Step:
        width, height = self.sizes[number]
        size = min(width * height * 4, 1 << 20)
        pieces = entries(self.rng, size)
        count = None
        if self.chance(4):
            count = self.rng.choice((len(pieces) + 1, 16385, MAX, 0, max(0, len(pieces) - 1)))
        if self.chance(6):
            bad = self.rng.choice(
                (
                    (PIXELS, 0),
                    (HOLE, 8192),
                    (HOLE, 100),
                    (SHADOW, 4000),
                    ((1 << 64) - 4096, 8192),
                    ((1 << 64) - 1, MAX),
                )
            )
            pieces.insert(self.rng.randrange(len(pieces) + 1), bad)
        else:
            self.backed[number] = sum(length for _, length in pieces)
        return Step("attach", (number,), tuple(pieces), count)

    def _size_of(self, number: int) -> tuple[int, int]:
        width, height = self.sizes.get(number, (64, 48))
        return width, min(height, 512)

    def _transfer(self) -> Step:
        number = self._id()
        width, height = self._size_of(number)
        if width > 8192:
            width = 8192
        x, y, w, h = rectangle(self.rng, width, height)
        if w <= width and h <= height and w * h > 400_000:
            h = 400_000 // w
        stride = self.sizes.get(number, (64, 48))[0] * 4
        size = self.backed.get(number, 4096)
        offset = y * stride + x * 4
        if not self.chance(60):
            offset = self.rng.choice(
                (
                    *(0, 0, 4, 1, 3, stride, stride + 1, size, size - 1, size - 3, size + 1),
                    *(size - stride, 1 << 32, (1 << 32) + 4, (1 << 32) - stride, (1 << 64) - 1),
                    *(self.rng.randrange(size + 1), (1 << 63), (1 << 64) - stride, MAX),
                )
            )
        return Step("transfer", (number, x, y, w, h, max(0, offset) & (1 << 64) - 1))

    def _set_scanout(self) -> Step:
        head = self.rng.randrange(HEADS)
        if self.chance(4):
            head = self.rng.choice((HEADS, 15, 16, MAX))
        number = 0 if self.chance(12) else self._id()
        width, height = self.sizes.get(number, (64, 48))
        rect = rectangle(self.rng, min(width, 4096), min(height, 4096))
        if width * height > 100_000:  # a small window, anywhere in it
            w, h = min(width, 40), min(height, 50)
            rect = (self.rng.randrange(width - w + 1), self.rng.randrange(height - h + 1), w, h)
        if self.chance(4):
            rect = (rect[0], rect[1], self.rng.choice((0, 15, 16)), self.rng.choice((0, 15, 16)))
        if number in self.sizes and head < HEADS:
            self.shown[head] = (number, rect)
        elif number == 0:
            self.shown.pop(head, None)
        return Step("set_scanout", (head, number, *rect))

    def _flush(self) -> Step:
        number = self._id()
        return Step("flush", (number, *rectangle(self.rng, *self._size_of(number))))

    def _question(self) -> Step:
        if self.chance(50):
            return Step("display_info")
        head = self.rng.randrange(HEADS) if self.chance(80) else self.rng.choice((HEADS, 16, MAX))
        return Step("get_edid", (head,))

    def _unknown(self) -> Step:
        if self.chance(20):
            return Step("assign_uuid", (self._id(),))
        return Step("raw", (self.rng.choice(UNKNOWN), self.rng.choice((0, 8, 32, 72))))

    def _pointer(self) -> Step:
        name = self.rng.choice(("update_cursor", "move_cursor"))
        head = self.rng.randrange(HEADS) if self.chance(90) else MAX
        x, y = self.rng.choice((0, 5, 63, 5000, MAX)), self.rng.randrange(100)
        return Step(name, (head, x, y, self._id(), self.rng.randrange(70), 3), room=())

    def _again(self) -> Step:
        """An attach where there is a backing already."""
        if self.sizes:
            number = self.rng.choice(list(self.sizes))
            backed = self.backed.get(number)
            step = self._attach(number)
            if backed is not None:
                self.backed[number] = backed
            return step
        return self._create()

    def _poke(self) -> Step:
        start, size = self.rng.choice(((PIXELS, 65536), (LOW, LOW_SIZE), (DIMMS[1], 65536)))
        length = self.rng.randrange(1, min(size, 32768))
        address = start + self.rng.randrange(size - length + 1)
        return Step("poke", (address, length, self.rng.randrange(1, 1000)))

    # -- the envelope

    def _unusual(self, step: Step) -> Step:
        """The same command in an unusual envelope, now and then."""
        if not step.is_command:
            return step
        rng = self.rng
        if self.chance(30):
            flags = rng.choice((1, 1, 1, 3, 2, 0x8000_0001, 0x8000_0000))
            fence = rng.choice((0, 1, rng.getrandbits(32), rng.getrandbits(64)))
            step = replace(
                step, fence=(flags, fence, rng.choice((0, 0, 7, MAX)), rng.choice((0, 5)))
            )
        size = len(step.request())
        if self.chance(20):
            step = replace(
                step,
                split=tuple(sorted({rng.randrange(1, size) for _ in range(rng.randrange(1, 5))})),
            )
        if self.chance(20):
            step = replace(step, indirect=True)
        if self.chance(6):
            step = replace(
                step, cut=rng.choice((0, 1, 4, 8, 23, 24, 25, size - 1, rng.randrange(size)))
            )
        elif self.chance(6):
            step = replace(step, extra=rng.choice((1, 8, 100)))
        if step.op not in ("update_cursor", "move_cursor"):
            if self.chance(8):
                rooms = ((), (1,), (23,), (24,), (25,), (8, 16), (1, 1, 22, 400), (100,), (408,))
                step = replace(
                    step, room=rng.choice((*rooms, (407,), (1055,), (500, 556), (3, 4000)))
                )
            if self.chance(2):
                step = replace(step, queue=CURSOR)
        elif self.chance(5):
            step = replace(step, queue=CONTROL, room=(gpu.ROOM,))
        return step


def generate(seed: int) -> Script:
    """The script of a seed; the same for the same seed."""
    return Generator(seed).script(f"seed {seed}")
