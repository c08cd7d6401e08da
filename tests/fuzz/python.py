#!/usr/bin/env python
"""The fuzzers of the Python code: the target that $FUZZ_TARGET names under atheris, in a process
of its own. libFuzzer starts it again with the same arguments to merge corpora: hence a program, and
a target that is none of them.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Final

TARGETS: Final = ("frontend", "device")
MEASURED: Final = ["vgpud", "vgpuwire"]
"""Only what is tested guides the search, not construct, nor the harness."""


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=MEASURED):
        target = importlib.import_module(f"tests.fuzz.{os.environ['FUZZ_TARGET']}")
    atheris.Setup(sys.argv, target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
