"""Which QEMU runs: this machine's own where it is new enough, else one in a Debian root."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.qemu.cache import CacheError, run
from tests.qemu.roots import root

OLDEST = 10  # 7.2 refuses vhost-user-gpu-pci without KVM
DEFAULT_ROOT = "bookworm-backports"
PROGRAM = "qemu-system-x86_64"


@dataclass(frozen=True)
class Qemu:
    """A QEMU that can be run: `argv` starts it, `root` is the folder it sees as / (None: /)."""

    name: str
    argv: tuple[str, ...]
    version: str
    root: Path | None

    @property
    def c_backend(self) -> tuple[str, ...]:
        """The command of QEMU's own C back-end, beside this QEMU; takes --fd=N like vgpud."""
        prefix = ("chroot", str(self.root)) if self.root else ()
        return (*prefix, "/usr/lib/qemu/vhost-user-gpu")

    def place(self, file: Path) -> str:
        """The path by which this QEMU sees a file of the machine's (a link or copy in its root)."""
        if self.root is None:
            return str(file)
        inside = self.root / "vgpud" / f"{file.stat().st_ino:x}-{file.name}"
        inside.parent.mkdir(exist_ok=True)
        if not inside.exists():
            try:
                inside.hardlink_to(file)
            except FileExistsError:
                pass  # a parallel test was first
            except OSError:  # another file system: copy, and never show half a copy
                part = inside.with_suffix(f".{os.getpid()}")
                shutil.copyfile(file, part)
                part.rename(inside)
        return f"/{inside.relative_to(self.root)}"


def _version(argv: tuple[str, ...]) -> str:
    """The version a QEMU says it has, e.g. "10.0.2"."""
    text = run([*argv, "--version"])
    found = re.search(r"version (\d+(?:\.\d+)*)", text)
    if found is None:
        raise CacheError(f"{argv[-1]} --version says no version: {text[:200]}")
    return found[1]


def _own() -> Qemu | None:
    """This machine's QEMU, if it has one that is new enough and has the device."""
    path = shutil.which(PROGRAM)
    if path is None:
        return None
    version = _version((path,))
    if int(version.split(".")[0]) < OLDEST:
        return None
    device = subprocess.run(
        [path, "-device", "vhost-user-gpu-pci,help"], capture_output=True, check=False
    )
    return Qemu("own", (path,), version, None) if device.returncode == 0 else None


def qemu(name: str = "") -> Qemu:
    """The QEMU called `name`: "own", or a root's name; "" means $VGPUD_QEMU, else the best one."""
    name = name or os.environ.get("VGPUD_QEMU", "")
    if name in ("", "own"):
        own = _own()
        if own is not None:
            return own
        if name == "own":
            raise CacheError(f"this machine has no {PROGRAM} >= {OLDEST} with vhost-user-gpu-pci")
        name = DEFAULT_ROOT
    folder = root(name)
    argv = ("chroot", str(folder), f"/usr/bin/{PROGRAM}")
    return Qemu(name, argv, _version(argv), folder)
