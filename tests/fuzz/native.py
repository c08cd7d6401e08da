"""The fuzzers of the C extension: built by Debian's clang in a private root, with libFuzzer,
AddressSanitizer and UndefinedBehaviorSanitizer, around a CPython of the same root.

CPython itself is not instrumented, so that coverage is the extension's own. The machine's packages
are not touched: a program runs with the root's loader and libraries.

    python -m tests.fuzz.native     build them if they are not there yet, print their folder
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.qemu.build import debian, inside, key_of
from tests.qemu.cache import made, run, step

ROOT: Final = Path(__file__).parents[2]
RELEASE: Final = "trixie"
LLVM: Final = "19"
PYTHON: Final = "3.13"
PACKAGES: Final = (
    *(f"clang-{LLVM}", f"libclang-rt-{LLVM}-dev", f"llvm-{LLVM}"),
    *("libc6-dev", "linux-libc-dev", f"libpython{PYTHON}-dev"),
)
TARGETS: Final = ("ring", "pixels")
FLAGS: Final = (
    *("-std=c11", "-O1", "-g", "-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror"),
    *("-Wno-missing-field-initializers", "-Wno-deprecated-declarations"),
    *("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined"),
)
# SIGBUS is the extension's to handle. Leaks are the interpreter's at its end; the harness counts
# the extension's own instead.
SANITIZERS: Final = {
    "ASAN_OPTIONS": "detect_leaks=0:handle_sigbus=0:detect_stack_use_after_return=0"
    ":allocator_may_return_null=1:quarantine_size_mb=16",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "PYTHONMALLOC": "malloc",
}


def tools() -> Path:
    """A root with clang, its sanitizers and a CPython to embed."""

    def make(work: Path) -> None:
        debian(work, PACKAGES, [RELEASE], "with clang and libFuzzer")

    return made(f"fuzz/tools-{key_of(RELEASE, *PACKAGES)}", make) / "root"


def sources() -> list[Path]:
    """The extension and the harness; layout_check.c has no code."""
    native = [path for path in ROOT.glob("native/*.c") if path.name != "layout_check.c"]
    return sorted([*native, *Path(__file__).parent.glob("*.c")])


def fuzzers() -> Path:
    """The folder of the built programs, one a target: `fuzz-ring`, `fuzz-pixels`."""
    root = tools()
    headers = sorted([*ROOT.glob("native/*.h"), *Path(__file__).parent.glob("*.h")])
    texts = [path.read_bytes() for path in (*sources(), *headers)]

    def make(work: Path) -> None:
        # By its own name in the root: other checkouts may build at the same time.
        tree = root / "tmp" / work.name.lstrip(".")
        tree.mkdir()
        try:
            for path in (*sources(), *headers):
                (tree / path.name).write_bytes(path.read_bytes())
            shared = [path.name for path in sources() if not path.name.startswith("fuzz_")]
            with step("building the fuzzers of the C extension"):
                for target in TARGETS:
                    files = " ".join([*shared, f"fuzz_{target}.c"])
                    script = (
                        f"cd /tmp/{tree.name} && clang-{LLVM} {' '.join(FLAGS)}"
                        f" -isystem /usr/include/python{PYTHON} {files}"
                        f" -lpython{PYTHON} {' '.join(link(root))} -o fuzz-{target}"
                    )
                    run(inside(root, script))
                    (tree / f"fuzz-{target}").rename(work / f"fuzz-{target}")
            symbolizer = work / "llvm-symbolizer"  # the sanitizers insist on the name
            symbolizer.write_text(
                f"#!/bin/sh\nexec {root}/usr/lib64/ld-linux-x86-64.so.2 --library-path"
                f" {root}/usr/lib/x86_64-linux-gnu:{root}/usr/lib/llvm-{LLVM}/lib"
                f' {root}/usr/lib/llvm-{LLVM}/bin/llvm-symbolizer "$@"\n'
            )
            symbolizer.chmod(0o755)
        finally:
            run(["rm", "-rf", str(tree)])

    return made(f"fuzz/native-{key_of(root.parent.name, *FLAGS, *link(root), *texts)}", make)


def link(root: Path) -> list[str]:
    """Flags by which a program finds the root's loader and libraries without entering it: the
    sanitizers want /proc, which a bare root has not."""
    return [
        f"-Wl,--dynamic-linker={root}/usr/lib64/ld-linux-x86-64.so.2",
        f"-Wl,--disable-new-dtags,-rpath,{root}/usr/lib/x86_64-linux-gnu",
    ]


def command(target: str, arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of one fuzzer."""
    root, programs = tools(), fuzzers()
    environment = {
        **SANITIZERS,
        "PATH": "/usr/bin:/bin",
        "PYTHONHOME": str(root / "usr"),
        "ASAN_SYMBOLIZER_PATH": str(programs / "llvm-symbolizer"),
    }
    return [str(programs / f"fuzz-{target}"), *arguments], environment


if __name__ == "__main__":
    print(fuzzers())
