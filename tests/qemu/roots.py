"""Debian roots with a QEMU in each, made on demand and run by chroot.

    python3 -m tests.qemu.roots NAME     make it if it is not there yet, print its path
    python3 -m tests.qemu.roots          print the names

A private root keeps the machine's own packages as they are, and the same few lines give every QEMU
that matters: the oldest one supported, the current one, and the newest.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.qemu.cache import CacheError, made, run, step
from tests.qemu.debian import sources


@dataclass(frozen=True)
class Root:
    """What a root is made of: a release, and the suite its QEMU is taken from."""

    release: str
    suite: str
    why: str


ROOTS = {
    "bookworm-backports": Root("bookworm", "bookworm-backports", "QEMU 10.0, the default"),
    "trixie": Root("trixie", "trixie", "QEMU 10.0 with the current stable release's fixes"),
    "trixie-backports": Root("trixie", "trixie-backports", "QEMU 11, -accel qtest"),
}
# The second also brings QEMU's own C back-end, which vgpud is compared with.
PACKAGES = ("qemu-system-x86", "qemu-system-gui")


def root(name: str) -> Path:
    """The path of the root `name` (a key of ROOTS), made if needed: 35 s and 700 MB."""
    wanted = ROOTS.get(name)
    if wanted is None:
        raise CacheError(f"no root is called {name!r}; choose one of: {', '.join(ROOTS)}")

    def make(work: Path) -> None:
        if os.geteuid() != 0:
            raise CacheError("making a Debian root needs root: run this as root")
        suites = dict.fromkeys((wanted.release, wanted.suite))
        source_list = work / "sources.list"
        source_list.write_text(sources(*suites))
        with step(f"making a Debian root for {wanted.why} ({name}, about 40 s)"):
            run(
                [
                    "mmdebstrap",
                    "--variant=minbase",
                    "--aptopt=APT::Install-Recommends false",
                    "--aptopt=Acquire::Retries 5",
                    f'--aptopt=APT::Default-Release "{wanted.suite}"',
                    "--dpkgopt=path-exclude=/usr/share/doc/*",
                    "--dpkgopt=path-exclude=/usr/share/man/*",
                    f"--include={','.join(PACKAGES)}",
                    wanted.release,
                    str(work / "root"),
                    str(source_list),
                ],
                tries=2,
                show="I: ",
            )

    return made(f"roots/{name}", make) / "root"


def main() -> int:
    if len(sys.argv) != 2:
        for name, wanted in ROOTS.items():
            print(f"{name:20} {wanted.why}")
        return 0
    try:
        print(root(sys.argv[1]))
    except CacheError as error:
        print(f"tests.qemu.roots: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
