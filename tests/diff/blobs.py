"""Blobs on both devices: scripts from a seed, with the answers and pictures that they must give.

QEMU's own device shows a blob's memory as it is at each moment, vgpud as it was flushed (quirk
F00): so each script flushes all that is shown before it looks, and then both must show the same.
What QEMU up to 11.1 does not survive (SET_SCANOUT of a blob, a stride below a row: rows S05, B05)
is left out; what it refuses, vgpud must refuse with the same code.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.diff.memory import DIMMS, PIXELS, Contents
from tests.diff.runner import Result
from tests.diff.script import HEADS, Script, Step
from tests.qtest import gpu
from tests.qtest.gpu import Rect
from tests.support.png import parse_ppm
from tests.support.virtio_pci import GPU_EDID, GPU_RESOURCE_BLOB, INDIRECT_DESC

PAGE = 4096
FORMATS = tuple(gpu.CHANNELS)
SIZES = ((64, 48), (16, 16), (100, 75), (256, 33), (17, 120))


@dataclass(frozen=True)
class Blob:
    """What the guest described: its bytes are those of its pages, in their order."""

    size: int
    entries: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Picture:
    """What a head shows of a blob."""

    blob: int
    rect: Rect
    width: int
    form: int
    stride: int
    offset: int


@dataclass
class Case:
    """A script, the code that answers each step, and by dump and head what is shown."""

    script: Script
    codes: dict[int, int] = field(default_factory=dict)
    shown: dict[int, dict[int, tuple[int, int, bytes]]] = field(default_factory=dict)


class Generator:
    """One script's worth of random decisions."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.blobs: dict[int, Blob] = {}
        self.heads: dict[int, Picture] = {}
        self.steps: list[Step] = []
        self.case = Case(Script(()))
        self.memory = Contents()
        self.seed = seed

    def make(self) -> Case:
        for _ in range(self.rng.randrange(1, 4)):
            for _ in range(self.rng.randrange(2, 9)):
                choice = self.rng.choice((self._show, self._show, self._poke, self._other))
                choice() if self.blobs else self._create()
            self._look()
        features = GPU_EDID | GPU_RESOURCE_BLOB | INDIRECT_DESC * self.rng.randrange(2)
        self.case.script = Script(tuple(self.steps), f"blob seed {self.seed}", 64, features)
        return self.case

    def _say(self, step: Step, code: int = gpu.OK) -> None:
        self.case.codes[len(self.steps)] = code
        self.steps.append(step)

    # -- what goes well

    def _pages(self, size: int) -> tuple[tuple[int, int], ...]:
        """One piece, pages in any order, or both memory modules."""
        count, rng = -(-size // PAGE), self.rng
        match rng.randrange(4):
            case 0:
                return ((PIXELS + PAGE * rng.randrange(64), count * PAGE),)
            case 1:
                return ((DIMMS[1] - PAGE * rng.randrange(1, count + 1), count * PAGE),)
            case _:
                base = rng.choice((PIXELS, DIMMS[0]))
                pages = rng.sample(range(256), count)
                return tuple((base + PAGE * page, PAGE) for page in pages)

    def _create(self) -> None:
        number = self.rng.choice([n for n in range(1, 6) if n not in self.blobs])
        blob = Blob(size := PAGE * self.rng.randrange(8, 40), self._pages(size))
        self._say(Step("create_blob", (number, size), blob.entries))
        self.blobs[number] = blob

    def _show(self) -> None:
        number, rng = self.rng.choice(list(self.blobs)), self.rng
        width, height = rng.choice(SIZES)
        stride = 4 * width + rng.choice((0, 0, 4, 64, 256))
        room = self.blobs[number].size - stride * height
        if room < 0:
            return
        offset = min(room, rng.choice((0, 0, 0, PAGE, 4, 1 << 12)))
        w, h = rng.randrange(16, width + 1), rng.randrange(16, height + 1)
        rect = (rng.randrange(width - w + 1), rng.randrange(height - h + 1), w, h)
        rect = rng.choice((rect, (0, 0, width, height)))
        form, head = rng.choice(FORMATS), rng.randrange(HEADS)
        self._say(
            Step("set_scanout_blob", (head, number, *rect, width, height, form, stride, offset))
        )
        self.heads[head] = Picture(number, rect, width, form, stride, offset)

    def _poke(self) -> None:
        number = self.rng.choice(list(self.blobs))
        address, length = self.rng.choice(self.blobs[number].entries)
        length = min(length, PAGE)
        seed = self.rng.randrange(1, 1000)
        self.steps.append(Step("poke", (address, length, seed)))
        self.memory.poke(address, gpu.noise(length, seed))

    # -- and what does not

    def _other(self) -> None:
        number, rng = self.rng.choice(list(self.blobs)), self.rng
        blob = self.blobs[number]
        gone = Step("set_scanout_blob", (0, 99, 0, 0, 64, 48, 64, 48, 1, 256, 0))
        match rng.randrange(9):
            case 0:
                self._say(Step("unref", (number,)))
                del self.blobs[number]
                self.heads = {h: p for h, p in self.heads.items() if p.blob != number}
            case 1 if len(self.blobs) < 5:
                self._create()
            case 2:
                self._say(Step("create_blob", (number, blob.size), blob.entries), 0x1203)
            case 3:
                self._say(Step("create_blob", (0, PAGE), ((PIXELS, PAGE),)), 0x1203)
            case 4:
                self._say(gone, 0x1203)
            case 5:
                args = (0, number, 0, 0, 15, 48, 64, 48, 1, 256, 0)
                self._say(Step("set_scanout_blob", args), 0x1205)
            case 6:
                args = (HEADS, number, 0, 0, 64, 48, 64, 48, 1, 256, 0)
                self._say(Step("set_scanout_blob", args), 0x1202)
            case 7:
                args = (0, number, 0, 0, 64, 48, 64, 48, 1, 256, blob.size)
                self._say(Step("set_scanout_blob", args), 0x1205)
            case _:
                head = rng.randrange(HEADS)
                self._say(Step("set_scanout_blob", (head, 0, *[0] * 9)))
                self.heads.pop(head, None)

    # -- the screen

    def _look(self) -> None:
        for number in sorted({picture.blob for picture in self.heads.values()}):
            big = max(
                (p.rect[0] + p.rect[2], p.rect[1] + p.rect[3])
                for p in self.heads.values()
                if p.blob == number
            )
            self._say(Step("flush", (number, 0, 0, max(big[0], 512), max(big[1], 512))))
        self.case.shown[len(self.steps)] = {
            head: (picture.rect[2], picture.rect[3], self._rgb(picture))
            for head, picture in self.heads.items()
        }
        self.steps.append(Step("dump"))

    def _rgb(self, picture: Picture) -> bytes:
        pages = b"".join(self.memory.read(*entry) for entry in self.blobs[picture.blob].entries)
        x, y, width, height = picture.rect
        data = b""
        for line in range(y, y + height):
            at = picture.offset + line * picture.stride + 4 * x
            data += pages[at : at + 4 * width]
        return gpu.rgb(data, picture.form)


def generate(seed: int) -> Case:
    """The case of a seed; the same for the same seed."""
    return Generator(seed).make()


def faults(case: Case, name: str, result: Result) -> Iterator[str]:
    """What one device did that it must not, a line each."""
    for number, code in case.codes.items():
        answer = result.answers.get(number)
        got = None if answer is None else int.from_bytes(answer.data[:4], "little")
        if answer is None or got != code or answer.used != 24:
            step = case.script.steps[number]
            yield f"{name}: step {number} ({step}): {got and hex(got)}, expected {code:#x}"
    for number, heads in case.shown.items():
        for head, (width, height, rgb) in heads.items():
            picture = parse_ppm(result.dumps[number][head])
            if (picture.width, picture.height) != (width, height):
                size = f"{picture.width}x{picture.height}"
                yield f"{name}: dump {number}, head {head}: {size}, expected {width}x{height}"
            elif fault := picture.difference(rgb):
                yield f"{name}: dump {number}, head {head}: {fault}"
