"""How the cost of one command grows with what is there: linear in what must be touched, flat in
the rest. CPU time of the back-end, microseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from tests.bench.machine import PAGE, Backend, BenchError, Machine, entries, machine
from tests.bench.workloads import damage, picture
from tests.unit.device import driver as guest


@dataclass(frozen=True)
class Curve:
    """A name for `x`, its values, what is measured there, and whether that touches all of x."""

    name: str
    x: str
    what: str
    linear: bool
    points: Sequence[int]
    measure: Callable[[Machine, int], float]


def cpu(machine: Machine, requests: list[bytes], count: int) -> float:
    """Microseconds of CPU for all of the requests once."""
    commands = machine.commands(requests)
    machine.run(commands, 5)
    return machine.run(commands, count).cpu * 1e6


def beside_resources(machine: Machine, resources: int) -> float:
    """A transfer and a flush while so many others exist."""
    table = entries(PAGE)
    made = [guest.create_2d(n, 16, 16) for n in range(1, resources + 1)]
    machine.execute(made + [guest.attach(n, table) for n in range(1, resources + 1)])
    box = (0, 0, 16, 16)
    return cpu(machine, [guest.transfer(resources, box), guest.flush(resources, box)] * 32, 40) / 32


def among_entries(machine: Machine, count: int) -> float:
    """A transfer of one page in the middle of a backing of so many entries."""
    height = max(16, count * PAGE // 4096)
    machine.execute([guest.create_2d(1, 1024, height)])
    machine.execute([guest.attach(1, entries(count * PAGE, scattered=True))])
    middle = count // 2
    request = guest.transfer(1, (0, middle, 1024, 1), middle * PAGE)
    return cpu(machine, [request] * 32, 40) / 32


def attach_entries(machine: Machine, count: int) -> float:
    """ATTACH_BACKING of so many entries, and DETACH."""
    machine.execute([guest.create_2d(1, 64, 64)])
    table = entries(count * PAGE, scattered=True)
    return cpu(machine, [guest.attach(1, table), guest.detach(1)], 100)


def beside_heads(machine: Machine, heads: int) -> float:
    """A flush of 64 x 64 pixels on one head while so many show something else."""
    table = entries(64 * 64 * 4)
    whole = (0, 0, 64, 64)
    for n in range(heads):
        machine.execute(
            [guest.create_2d(n + 1), guest.attach(n + 1, table), guest.set_scanout(n, n + 1, whole)]
        )
    return cpu(machine, [guest.flush(heads, whole)], 400)


def all_heads(machine: Machine, heads: int) -> float:
    """A flush of 64 x 64 pixels that so many heads show."""
    picture(machine, 64, 64, False)
    machine.execute([guest.set_scanout(n, 1, (0, 0, 64, 64)) for n in range(heads)])
    return cpu(machine, [guest.flush(1)], 400)


def rectangles(machine: Machine, count: int) -> float:
    """So many rectangles of 64 x 64, transferred and flushed."""
    return damage(count, True, max(5, 2000 // count))(machine).cpu * 1e6


CURVES = [
    Curve(
        "resources",
        "resources that exist",
        "transfer and flush of one",
        False,
        (1, 10, 100, 1000, 10000),
        beside_resources,
    ),
    Curve(
        "entries",
        "entries of the backing",
        "transfer of one page in the middle",
        False,
        (16, 128, 1024, 4096, 16384),
        among_entries,
    ),
    Curve(
        "attach",
        "entries of the backing",
        "attach and detach",
        True,
        (16, 128, 1024, 4096, 16384),
        attach_entries,
    ),
    Curve(
        "heads",
        "heads that show something",
        "flush on one of them",
        False,
        (1, 2, 4, 8, 16),
        beside_heads,
    ),
    Curve(
        "mirrors",
        "heads that show the same",
        "flush on all of them",
        True,
        (1, 2, 4, 8, 16),
        all_heads,
    ),
    Curve(
        "rectangles",
        "damaged rectangles",
        "transfer and flush of each",
        True,
        (1, 4, 16, 64, 256, 1024),
        rectangles,
    ),
]
VMS = (1, 2, 4, 8, 16, 32)


async def machines(backend: Backend, counts: Sequence[int] = VMS) -> dict[int, float]:
    """CPU microseconds of a 720p frame, each of so many machines drawing in turn."""
    found = {}
    async with AsyncExitStack() as stack:
        running: list[tuple[Machine, object]] = []
        for count in counts:
            while len(running) < count:
                one = await stack.enter_async_context(machine(backend))
                picture(one, 1280, 720, False)
                whole = (0, 0, 1280, 720)
                frame = one.commands([guest.transfer(1, whole), guest.flush(1, whole)])
                one.run(frame, 3)
                running.append((one, frame))
            spent = 0.0
            for _ in range(10):
                for one, frame in running:
                    spent += one.run(frame).cpu
            found[count] = spent / (10 * count) * 1e6
    return found


async def curve(backend: Backend, wanted: Curve) -> dict[int, float]:
    """The curve's values; without those that this back-end refuses."""
    found = {}
    for point in wanted.points:
        try:
            async with machine(backend) as made:
                found[point] = wanted.measure(made, point)
        except BenchError:
            continue
    return found
