"""What is timed: the yardsticks' names, each a way to prepare a machine and one operation of it."""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.bench.machine import PIXELS, BenchError, Machine, entries, gathered
from tests.unit.device import driver as guest

Box = guest.Box


class Result(NamedTuple):
    """Operations a second, the median of an operation's seconds, CPU seconds of one."""

    rate: float
    median: float
    cpu: float


@dataclass(frozen=True)
class Workload:
    """A name, what one operation is, and how it is run."""

    name: str
    operation: str
    run: Callable[[Machine], Result]


Start = Callable[[], Awaitable[float]]


def picture(machine: Machine, width: int, height: int, scattered: bool) -> bytes:
    """Resource 1, backed by random pixels, on head 0. Returns its entries."""
    size = width * height * 4
    table = entries(size, scattered)
    machine.memory[PIXELS : PIXELS + size] = os.urandom(1 << 16) * (size >> 16) + bytes(
        size & 0xFFFF
    )
    whole = (0, 0, width, height)
    machine.execute(
        [guest.create_2d(1, width, height), guest.attach(1, table), guest.set_scanout(0, 1, whole)]
    )
    return table


def frame(width: int, height: int, scattered: bool, count: int) -> Callable[[Machine], Result]:
    """TRANSFER_TO_HOST_2D and a fenced RESOURCE_FLUSH of all of it, in one kick."""

    def measure(machine: Machine) -> Result:
        table = picture(machine, width, height, scattered)
        whole = (0, 0, width, height)
        commands = machine.commands(
            [guest.transfer(1, whole), guest.flush(1, whole, flags=guest.FENCE, fence=1)]
        )
        machine.run(commands, 5)
        timing = machine.run(commands, count)
        expect(machine, gathered(machine.memory, table, width * height * 4))
        return Result(timing.rate, timing.median, timing.cpu)

    return measure


def boxes(count: int, width: int, height: int, side: int = 64) -> Iterator[Box]:
    place = random.Random(count)
    for _ in range(count):
        yield place.randrange(width - side), place.randrange(height - side), side, side


def damage(rectangles: int, scattered: bool, count: int) -> Callable[[Machine], Result]:
    """Transfer and flush of 64 x 64 pixels, so many times, the last flush with a fence."""

    def measure(machine: Machine) -> Result:
        width, height = 1920, 1080
        table = picture(machine, width, height, scattered)
        machine.execute([guest.transfer(1, (0, 0, width, height))])
        machine.execute([guest.flush(1, (0, 0, width, height))])
        machine.shown()
        machine.memory[PIXELS : PIXELS + (1 << 20)] = os.urandom(1 << 20)
        chosen = list(boxes(rectangles, width, height))
        requests = []
        for x, y, w, h in chosen:
            offset = (y * width + x) * 4
            requests += [guest.transfer(1, (x, y, w, h), offset), guest.flush(1, (x, y, w, h))]
        x, y, w, h = chosen[-1]
        requests[-1] = guest.flush(1, (x, y, w, h), flags=guest.FENCE, fence=1)
        commands = machine.commands(requests)
        machine.run(commands, 2)
        timing = machine.run(commands, count)
        source = gathered(machine.memory, table, width * height * 4)
        _, _, shown = machine.shown()
        for x, y, w, h in chosen:
            for row in range(y, y + h):
                at = (row * width + x) * 4
                if shown[at : at + 4 * w] != source[at : at + 4 * w]:
                    raise BenchError(f"wrong pixels in row {row} from {x}")
        return Result(timing.rate, timing.median, timing.cpu)

    return measure


def repeated(
    prepare: list[bytes], requests: list[bytes], count: int, ring: int = 0, each: int = 1
) -> Callable[[Machine], Result]:
    """Requests in one kick; a result is for one of `each` parts of them."""

    def measure(machine: Machine) -> Result:
        machine.execute(prepare)
        commands = machine.commands(requests, answered=ring == 0)
        machine.run(commands, max(2, count // 20), ring=ring)
        timing = machine.run(commands, count, ring=ring)
        return Result(timing.rate * each, timing.median / each, timing.cpu / each)

    return measure


def expect(machine: Machine, pixels: bytes) -> None:
    _, _, shown = machine.shown()
    if shown != pixels:
        raise BenchError("the screen is not what was drawn")


CHURN = [
    guest.create_2d(7),
    guest.attach(7, entries(64 * 64 * 4)),
    guest.detach(7),
    guest.unref(7),
]
POINTER = [guest.create_2d(3), guest.attach(3, entries(64 * 64 * 4)), guest.transfer(3)]
SIZES = {"720p": (1280, 720), "1080p": (1920, 1080), "4K": (3840, 2160)}

WORKLOADS = [
    *(
        Workload(
            f"frame {name} {'scattered' if scattered else 'contiguous'}",
            "transfer and flush of the whole screen",
            frame(*size, scattered, max(20, 100_000_000 // (size[0] * size[1]))),
        )
        for name, size in SIZES.items()
        for scattered in (False, True)
    ),
    Workload("damage scattered", "32 rectangles of 64 x 64", damage(32, True, 200)),
    Workload("damage contiguous", "32 rectangles of 64 x 64", damage(32, False, 200)),
    Workload(
        "nop latency",
        "a flush that is on no head, alone",
        repeated([guest.create_2d(1)], [guest.flush(1)], 5000),
    ),
    Workload(
        "nop throughput",
        "the same, 64 to a kick",
        repeated([guest.create_2d(1)], [guest.flush(1)] * 64, 1500, each=64),
    ),
    Workload("resource churn", "create, attach, detach, unref", repeated([], CHURN, 3000)),
    Workload(
        "cursor move",
        "16 moves to a kick",
        repeated([], [guest.move_cursor(0, 1, (n, n)) for n in range(16)], 2000, ring=1, each=16),
    ),
    Workload(
        "cursor update",
        "4 images to a kick",
        repeated(POINTER, [guest.update_cursor(0, 3, (n, n)) for n in range(4)], 2000, 1, 4),
    ),
]
