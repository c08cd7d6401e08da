"""The guest's kernel: Debian's newest, downloaded and unpacked, and the modules it needs.

python3 -m tests.qemu.kernel      make it if it is not there yet, print its image's path
"""

import lzma
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.qemu.cache import CacheError, made
from tests.qemu.debian import Archive, mirror

# The first that has a kernel wins; backports' kernel is newer than trixie's own, and both are
# signed with keys that bookworm knows.
SUITES = ("trixie-backports", "sid", "trixie")
META = "linux-image-amd64"


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel: its boot image and the folder of its (compressed) modules."""

    version: str
    image: Path
    modules: Path


def download(work: Path) -> None:
    """Fill `work` with the newest kernel's boot/ and lib/modules/."""
    for suite in SUITES:
        archive = Archive(suite)
        version = archive.newest(META)
        if version:
            break
    else:
        raise CacheError(f"{mirror()} has no {META} in any of {', '.join(SUITES)}")
    named = re.compile(r"linux-image-\d.*")
    (image,) = [name for name in archive.depends(META, version) if named.fullmatch(name)]
    # Newer Debian kernels are split: the image package holds nothing but dependencies.
    parts = {image: version}
    for part in ("linux-binary-", "linux-modules-"):
        name = image.replace("linux-image-", part)
        if archive.newest(name):
            parts[name] = version
    archive.unpack(parts, work)
    found(work)


def found(top: Path) -> Kernel:
    """The kernel unpacked below `top`, wherever this generation of Debian's packages puts it."""
    for modules in [*top.glob("usr/lib/modules/*"), *top.glob("lib/modules/*")]:
        for image in (modules / "vmlinuz", top / "boot" / f"vmlinuz-{modules.name}"):
            if image.exists():
                return Kernel(modules.name, image, modules)
    raise CacheError(f"{META} of {mirror()}: no kernel and modules where this looks for them")


def kernel() -> Kernel:
    """The newest kernel, downloaded if needed (120 MB, once)."""
    return found(made("kernel", download))


def module_bytes(path: Path) -> bytes:
    """A module, decompressed."""
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".ko":
        return data
    raise CacheError(f"{path.name}: this compression is not known here; add it to module_bytes()")


def modules_for(kernel: Kernel, names: Iterable[str]) -> list[tuple[str, bytes]]:
    """These modules and all that they depend on, as (file name, contents) in loading order.

    Dependencies are read from the modules themselves, so no depmod is needed. A module that does
    not exist is built into the kernel, or was left out of it: the guest will tell.
    """
    files = {
        path.name.split(".")[0].replace("-", "_"): path for path in kernel.modules.rglob("*.ko*")
    }
    order: dict[str, bytes] = {}

    def add(name: str) -> None:
        path = files.get(name.replace("-", "_"))
        if path is None or name in order:
            return
        data = module_bytes(path)
        found = re.search(rb"\0depends=([^\0]*)\0", data)
        for dependency in filter(None, (found[1] if found else b"").decode().split(",")):
            add(dependency)
        order[name] = data

    for name in names:
        add(name)
    return [(f"{name}.ko", data) for name, data in order.items()]


if __name__ == "__main__":
    try:
        print(kernel().image)
    except CacheError as error:
        sys.exit(f"tests.qemu.kernel: {error}")
