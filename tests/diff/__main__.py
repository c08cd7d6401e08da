"""The differential oracle's command line.

python -m tests.diff --count 1000 --seed 1 [--qemu ROOT]    generated scripts
python -m tests.diff --script FILE                          one script's text
python -m tests.diff --print SEED                           the text of a generated one
"""

import argparse
import sys
import time
from pathlib import Path

from tests.diff.generate import generate
from tests.diff.live import live_rows
from tests.diff.oracle import Tally, compare_many, oracle
from tests.diff.quirks import reason
from tests.diff.script import parse
from tests.qemu.binaries import qemu
from tests.qemu.cache import CacheError


def _progress(tally: Tally) -> None:
    if tally.scripts % 100 == 0 and sys.stderr.isatty():
        print(f"\r{tally.scripts} scripts", end="", file=sys.stderr, flush=True)


def _many(name: str, count: int, seed: int) -> int:
    machine = qemu(name)
    begin = time.monotonic()
    tally = compare_many(machine, count, seed, progress=_progress)
    seconds = time.monotonic() - begin
    for failure in tally.failures:
        print(failure, "\n")
    print(
        f"QEMU {machine.version}: {tally.scripts} scripts (seeds {seed} to "
        f"{seed + tally.scripts - 1}), {tally.commands} commands, {tally.dumps} screendumps on "
        f"each device, {seconds:.1f} s, {tally.scripts / seconds:.0f} scripts/s"
    )
    for name, number in sorted(tally.fired.items()):
        print(f"  allowed difference {name}: in {number} scripts. {reason(name)}")
    print(f"unexplained differences: {len(tally.failures)}")
    return 1 if tally.failures else 0


def _one(name: str, file: Path) -> int:
    script = parse(file.read_text())
    with oracle(qemu(name)) as pair:
        verdict = pair.verdict(script)
    for fault in verdict.faults:
        print(fault)
    print(f"allowed differences: {', '.join(sorted(verdict.fired)) or 'none'}")
    return 1 if verdict.faults else 0


def _rows(name: str) -> int:
    machine = qemu(name)
    rows = live_rows(machine)
    print(f"| id | input | QEMU {machine.version} | vgpud | |\n|---|---|---|---|---|")
    for key, live in rows.items():
        verdict = "same" if live.same else f"different because {live.because or '?'}"
        print(f"| {key} | {live.row.what} | {live.qemu} | {live.vgpud} | {verdict} |")
    faults = [(key, fault) for key, live in rows.items() for fault in live.faults]
    for key, fault in faults:
        print(f"{key}: {fault}", file=sys.stderr)
    same = sum(live.same for live in rows.values())
    print(f"\n{len(rows)} rows: {same} same, {len(rows) - same} different, {len(faults)} faults")
    return 1 if faults else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.diff")
    parser.add_argument("--count", type=int, default=1000, help="how many generated scripts")
    parser.add_argument("--seed", type=int, default=1, help="the first one's seed")
    parser.add_argument("--qemu", default="", help="a root's name (tests/qemu/roots.py), or own")
    parser.add_argument("--script", type=Path, help="run the script in this file")
    parser.add_argument("--print", type=int, metavar="SEED", help="print a generated script")
    parser.add_argument("--rows", action="store_true", help="run the script of each row")
    options = parser.parse_args()
    try:
        if options.print is not None:
            print(generate(options.print))
            return 0
        if options.script is not None:
            return _one(options.qemu, options.script)
        if options.rows:
            return _rows(options.qemu)
        return _many(options.qemu, options.count, options.seed)
    except CacheError as error:
        print(f"tests.diff: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
