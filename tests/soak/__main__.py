"""A soak: python -m tests.soak [--seconds N] [--seed N]."""

from __future__ import annotations

import argparse
import sys
import time

import trio

from tests.soak.load import Sample, growth, soak
from vgpud import log


def main() -> int:
    log.configure("error")
    parser = argparse.ArgumentParser(prog="tests.soak", description="Everything, in any order.")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()

    def tell(one: Sample) -> None:
        print(
            f"{time.monotonic() - began:7.0f} s  {one.lives:6} lives  {one.commands:9} commands"
            f"  {one.fds:4} fds  {one.rss:7} KiB  {one.tasks:3} tasks",
            flush=True,
        )

    found = growth(trio.run(soak, options.seconds, options.seed, tell))
    print("flat" if not found else "; ".join(["grows", *found]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
