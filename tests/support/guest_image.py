"""The guest: Debian's newest kernel, and an initramfs with busybox, virtio-gpu and drmdraw.

Rebuilt whenever one of its inputs changes; otherwise found in the cache at once.
"""

import hashlib
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.qemu.cache import made, run, step
from tests.qemu.debian import unpacked
from tests.qemu.kernel import kernel, modules_for

GUEST = Path(__file__).parent.parent / "guest"
MODULES = ("virtio_pci", "virtio_gpu")
SOURCES = (GUEST / "drmdraw.c", GUEST / "card.c")
PARTS = (GUEST / "init", GUEST / "card.h", *SOURCES, Path(__file__))
# console=ttyS0 comes last: it is /dev/console, and tests read it. A blinking cursor would make the
# console's picture depend on when it was taken.
APPEND = "console=tty0 console=ttyS0 loglevel=6 vt.global_cursor_default=0 mitigations=off panic=5"
FILE, FOLDER = 0o100755, 0o040755


@dataclass(frozen=True)
class GuestImage:
    """What QEMU boots."""

    kernel: Path
    initrd: Path
    append: str = APPEND


def cpio_entry(number: int, name: str, mode: int, data: bytes = b"") -> bytes:
    """One entry of a "newc" archive (Documentation/driver-api/early-userspace/buffer-format)."""
    encoded = name.encode() + b"\0"
    links = 2 if mode == FOLDER else 1
    fields = (number, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
    entry = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    entry += bytes(-len(entry) % 4)
    return entry + data + bytes(-len(data) % 4)


def cpio(files: Iterable[tuple[str, bytes]]) -> bytes:
    """An archive of these executables (name, contents) and the folders they lie in, one deep."""
    files = list(files)
    folders = sorted({name.split("/")[0] for name, _ in files if "/" in name})
    entries = [(folder, FOLDER, b"") for folder in folders]
    entries += [(name, FILE, data) for name, data in files]
    archive = b"".join(cpio_entry(i + 1, *entry) for i, entry in enumerate(entries))
    return archive + cpio_entry(0, "TRAILER!!!", 0)


def guest_image() -> GuestImage:
    """The guest's kernel and initramfs, made if needed (the first time: 130 MB of downloads)."""
    linux = kernel()
    busybox = unpacked("busybox-static", "trixie")
    # Debian ships the DRM headers of the kernel's user interface in libdrm's package; the library
    # itself is not used.
    headers = unpacked("libdrm-dev", "trixie") / "usr/include/libdrm"
    key = hashlib.sha256(linux.version.encode())
    for part in PARTS:
        key.update(part.read_bytes())

    def make(work: Path) -> None:
        program = work / "drmdraw"
        flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-static"]
        with step("building the guest's initramfs"):
            run(["gcc", *flags, "-isystem", str(headers), "-o", str(program), *map(str, SOURCES)])
            files = [
                ("init", (GUEST / "init").read_bytes()),
                ("bin/busybox", next(busybox.glob("**/bin/busybox")).read_bytes()),
                ("bin/drmdraw", program.read_bytes()),
            ]
            for i, (name, data) in enumerate(modules_for(linux, MODULES)):
                files.append((f"modules/{i:02}-{name}", data))
            (work / "initrd").write_bytes(cpio(files))
        program.unlink()
        # Images of older states, unless another checkout may be about to boot one.
        for old in work.parent.glob("[!.]*"):
            if time.time() - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)

    return GuestImage(linux.image, made(f"guest/{key.hexdigest()[:16]}", make) / "initrd")
