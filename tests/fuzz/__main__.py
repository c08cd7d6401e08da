"""Coverage-guided fuzzing: python -m tests.fuzz [--seconds N] [--keep] [TARGET ...]

Each target runs for so many seconds from the corpus in the repository and what earlier runs found
(kept in the cache). `--keep` then adds to the repository what reaches anything new, smallest first.
An input that breaks something is kept in the cache, and its path printed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fuzz import native, python
from tests.qemu.cache import CacheError, cache_dir

CORPORA: Final = Path(__file__).parent / "corpus"
TARGETS: Final = (*python.TARGETS, *native.TARGETS)
MAX_INPUT: Final = 2048
"""Bytes: a hundred steps of any target."""
OPTIONS: Final = (
    f"-max_len={MAX_INPUT}",
    "-timeout=20",
    "-rss_limit_mb=2048",
    "-print_final_stats=1",
    "-handle_bus=0",  # a SIGBUS is the extension's
    "-detect_leaks=0",  # the interpreter's own at its end
)


@dataclass(frozen=True)
class Run:
    """What came of one target: `report` is the fuzzer's own text."""

    target: str
    status: int
    report: str

    @property
    def executions(self) -> int:
        return self._last(r"stat::number_of_executed_units:\s*(\d+)")

    @property
    def rate(self) -> int:
        """Executions a second."""
        return self._last(r"stat::average_exec_per_sec:\s*(\d+)")

    @property
    def coverage(self) -> int:
        """Edges of the measured code that were reached."""
        return self._last(r"\bcov: (\d+)")

    @property
    def features(self) -> int:
        """Edges by how often they were taken in one input."""
        return self._last(r"\bft: (\d+)")

    @property
    def finding(self) -> str | None:
        """Where the input is that broke something."""
        found = re.search(r"Test unit written to (\S+)", self.report)
        return found[1] if found else None

    def _last(self, pattern: str) -> int:
        found = re.findall(pattern, self.report)
        return int(found[-1]) if found else 0

    def __str__(self) -> str:
        return (
            f"{self.target:9} {self.executions:10} inputs {self.rate:6}/s"
            f" {self.coverage:5} edges {self.features:6} features"
            f"  {self.finding or 'no finding' if self.status else 'no finding'}"
        )


def corpus(target: str) -> Path:
    """What the repository has."""
    return CORPORA / target


def found(target: str) -> Path:
    """What earlier runs on this machine found."""
    path = cache_dir() / "fuzz" / "found" / target
    path.mkdir(parents=True, exist_ok=True)
    return path


def run(target: str, *arguments: str) -> Run:
    """One libFuzzer program with these options and corpora, until it ends."""
    if target in native.TARGETS:
        argv, environment = native.command(target, arguments)
    else:
        argv = [str(Path(__file__).with_name("python.py")), *arguments]
        environment = {
            **os.environ,
            "FUZZ_TARGET": target,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{native.ROOT}:{native.ROOT}/protocol",
        }
    done = subprocess.run(
        argv, env=environment, cwd=native.ROOT, capture_output=True, text=True, errors="replace"
    )
    return Run(target, done.returncode, done.stdout + done.stderr)


def fuzz(target: str, seconds: int, into: Path) -> Run:
    """Search for so long; what is new goes into the folder `into`, findings beside it."""
    prefix = f"-artifact_prefix={into.parent}/{target}-"
    return run(
        target, *OPTIONS, prefix, f"-max_total_time={seconds}", str(into), str(corpus(target))
    )


def replay(target: str) -> Run:
    """Each input of the repository's corpus once."""
    return run(target, *OPTIONS, "-runs=0", str(corpus(target)))


def keep(target: str) -> Run:
    """Add to the repository's corpus what reaches something that it does not reach."""
    return run(target, *OPTIONS, "-merge=1", str(corpus(target)), str(found(target)))


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz", description="Coverage-guided fuzzing.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--keep", action="store_true", help="add to the repository's corpus")
    parser.add_argument("targets", nargs="*", choices=[*TARGETS, []], metavar="TARGET")
    options = parser.parse_args()
    status = 0
    try:
        for target in options.targets or TARGETS:
            done = fuzz(target, options.seconds, found(target))
            print(done, flush=True)
            if done.status:
                print(done.report[-4000:], file=sys.stderr)
                status = 1
            elif options.keep:
                keep(target)
    except CacheError as error:
        print(f"tests.fuzz: {error}", file=sys.stderr)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main())
