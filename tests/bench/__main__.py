"""make bench: vgpud and QEMU's C back-end in turn on the same work, pixels compared.

    python -m tests.bench [--pairs N] [--only NAME] [--no-growth] [--pin CPU] [--write]

`--write` writes docs/performance.md and its plots; without it the table is only printed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import trio

from tests.bench import growth
from tests.bench.machine import Backend, machine
from tests.bench.plot import chart
from tests.bench.workloads import WORKLOADS, Result, Workload
from tests.qemu.roots import root

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
C_ROOT = "trixie"
C, OURS = "C back-end", "vgpud"
SIZES = {"720p": 1280 * 720, "1080p": 1920 * 1080, "4K": 3840 * 2160}

Pair = tuple[Result, Result]
"""The C back-end's and ours, one after the other."""


def backends() -> tuple[Backend, Backend]:
    c = ("chroot", str(root(C_ROOT)), "/usr/lib/qemu/vhost-user-gpu", "--fd={fd}")
    ours = (sys.executable, "-m", "vgpud", "--log-level=error", "--fd={fd}")
    return Backend(C, c), Backend(OURS, ours)


async def measure(backend: Backend, workload: Workload) -> Result:
    async with machine(backend) as made:
        return workload.run(made)


async def pairs(workload: Workload, count: int) -> list[Pair]:
    """In turn, and the first of each pair in turn as well: what else the machine does changes."""
    both, found = backends(), []
    for number in range(count):
        order = both if number % 2 == 0 else both[::-1]
        results = {backend.name: await measure(backend, workload) for backend in order}
        found.append((results[C], results[OURS]))
    return found


def ratio(found: list[Pair], field: str) -> float:
    return statistics.median(getattr(b, field) / getattr(a, field) for a, b in found)


def median(found: list[Pair], side: int, field: str) -> float:
    return statistics.median(getattr(pair[side], field) for pair in found)


def row(workload: Workload, found: list[Pair]) -> str:
    rates = [median(found, side, "rate") for side in (0, 1)]
    cpus = [median(found, side, "cpu") * 1e6 for side in (0, 1)]
    return (
        f"| {workload.name} | {rates[0]:,.0f} | {rates[1]:,.0f} | **{ratio(found, 'rate'):.2f}** "
        f"| {cpus[0]:,.1f} | {cpus[1]:,.1f} | **{ratio(found, 'cpu'):.2f}** |"
    )


HEAD = """| workload | C, ops/s | vgpud, ops/s | ratio | C, CPU µs | vgpud, CPU µs | ratio |
|---|---|---|---|---|---|---|"""


def import_trio() -> tuple[float, int]:
    """Seconds and bytes of memory of a program that imports trio and ends."""
    start = time.monotonic()
    program = "import trio; print(open('/proc/self/smaps_rollup').read())"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    seconds = time.monotonic() - start
    line = next(x for x in done.stdout.splitlines() if x.startswith(b"Anonymous:"))
    return seconds, int(line.split()[1]) << 10


async def starting(count: int) -> tuple[float, float, float, float]:
    """Seconds from exec to a served device and to `import trio`, and bytes of memory of each."""
    served, imported, ours, memory = [], [], 0, 0
    for _ in range(count):
        start = time.monotonic()
        async with machine(backends()[1]) as made:
            served.append(time.monotonic() - start)
            ours = made.own_memory()
        seconds, memory = import_trio()
        imported.append(seconds)
    return statistics.median(served), statistics.median(imported), ours, memory


def this_machine() -> str:
    model = "an unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    release = platform.release().partition("-")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 30
    return (
        f"{os.cpu_count()} processors ({model}), {memory} GiB, Linux {release}, "
        f"Python {platform.python_version()}; the C back-end is that of QEMU in Debian {C_ROOT}, "
        "pixman, without 3D."
    )


def plots(results: Mapping[str, list[Pair]], curves: Mapping[str, Mapping[str, object]]) -> None:
    folder = DOCS / "performance"
    folder.mkdir(exist_ok=True)
    for field, name, y, scale in (
        ("median", "latency", "milliseconds until the fence", 1e3),
        ("cpu", "cpu", "milliseconds of CPU for a frame", 1e3),
    ):
        lines = {
            f"{who} {kind[:4]}.": {
                SIZES[size] / 1e6: median(results[f"frame {size} {kind}"], side, field) * scale
                for size in SIZES
            }
            for side, who in ((0, "C"), (1, "vgpud"))
            for kind in ("contiguous",)
            if f"frame 4K {kind}" in results
        }
        if lines:
            title = "A frame's latency" if name == "latency" else "CPU for a frame"
            (folder / f"{name}.svg").write_text(chart(title, "megapixels", y, lines))
    for name, lines in curves.items():
        wanted = next((one for one in growth.CURVES if one.name == name), None)
        title = wanted.what if wanted else "a 720p frame"
        x = wanted.x if wanted else "machines on this host"
        drawn = {who: line for who, line in lines.items() if line}
        (folder / f"{name}.svg").write_text(chart(title, x, "CPU µs", drawn))


def curve_table(curves: Mapping[str, Mapping[str, Mapping[int, float]]]) -> list[str]:
    out = []
    for name, lines in curves.items():
        wanted = next((one for one in growth.CURVES if one.name == name), None)
        points = wanted.points if wanted else growth.VMS
        what = f"{wanted.what}, by {wanted.x}" if wanted else "a 720p frame, by machines"
        out += [f"### {what[0].upper()}{what[1:]}", "", f"![{what}](performance/{name}.svg)", ""]
        out.append(f"| CPU µs | {' | '.join(f'{p:,}' for p in points)} |")
        out.append("|---" * (len(points) + 1) + "|")
        for who, line in lines.items():
            cells = [f"{line[p]:,.1f}" if p in line else "refused" for p in points]
            out.append(f"| {who} | {' | '.join(cells)} |")
        out.append("")
    return out


async def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", default="", help="workloads and curves with this in their names")
    parser.add_argument("--no-growth", action="store_true")
    parser.add_argument("--pin", type=int, help="this processor for both sides")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md")
    options = parser.parse_args()
    if options.pin is not None:
        os.sched_setaffinity(0, {options.pin})
    results: dict[str, list[Pair]] = {}
    table = [HEAD]
    print(HEAD, flush=True)
    for workload in WORKLOADS:
        if options.only in workload.name:
            results[workload.name] = await pairs(workload, options.pairs)
            table.append(row(workload, results[workload.name]))
            print(table[-1], flush=True)
    served, imported, ours, theirs = await starting(max(3, options.pairs))
    start = (
        f"From exec to a device that is set up: {served * 1e3:.0f} ms, {served / imported:.2f} of "
        f"`python -c 'import trio'` ({imported * 1e3:.0f} ms). Own memory then: {ours / 2**20:.1f} "
        f"MiB, {ours / theirs:.2f} of such a process."
    )
    print(f"\n{start}\n", flush=True)
    curves: dict[str, dict[str, dict[int, float]]] = {}
    if not options.no_growth:
        for wanted in growth.CURVES:
            if options.only in wanted.name:
                curves[wanted.name] = {b.name: await growth.curve(b, wanted) for b in backends()}
                print(wanted.name, curves[wanted.name], flush=True)
        if options.only in "machines":
            curves["machines"] = {b.name: await growth.machines(b) for b in backends()}
            print("machines", curves["machines"], flush=True)
    if options.write:
        plots(results, curves)
        text = (Path(__file__).parent / "performance.md.in").read_text()
        for key, value in (
            ("MACHINE", f"{this_machine()} Measured on {date.today():%d %B %Y}."),
            ("TABLE", "\n".join(table)),
            ("START", start),
            ("CURVES", "\n".join(curve_table(curves))),
        ):
            text = text.replace(f"@{key}@", value)
        (DOCS / "performance.md").write_text(text.rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(trio.run(main))
