"""What the lab boots, made once and kept in the cache: a Debian root with Python, the project's
dependencies and its extension for that Python, the kernel and an initramfs.

    python3 -m tests.lab.image      make it if it is not there yet

Each part is a folder named after what it is made of, so a changed input makes a new one. The root's
layers are erofs images: QEMU maps them, the lab's kernel reads them in place (DAX), and no file
access waits for anything. Over 9p, importing trio alone took 10 s on a busy machine.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.qemu.cache import CacheError, cache_dir, lock, made, run, step
from tests.qemu.debian import sources, unpacked
from tests.qemu.kernel import Kernel, kernel, modules_for
from tests.qemu.roots import root as root_of
from tests.support.guest_image import cpio

CHECKOUT = Path(__file__).parents[2]
INIT = Path(__file__).parent / "init"
RELEASE = "trixie"
# python3-dev, gcc: build the extension. zstd: unpacks the kernel. erofs-utils: makes the images.
# The others are for those who look around in the lab.
PACKAGES = ("python3-dev", "gcc", "libc6-dev", "zstd", "erofs-utils", "kmod", "procps")
# The service kind boots systemd, with what a host of virtual machines has: libvirt, Debian's QEMU,
# and what the package of vgpud depends on and is built with.
SERVICE = (
    *("systemd-sysv", "udev", "dbus", "apparmor", "libvirt-daemon-system", "libvirt-clients"),
    *("qemu-system-x86", "python3-trio", "python3-construct", "python3-pyroute2"),
    *("python3-seccomp", "python3-setuptools", "python3-pip", "lowdown", "iproute2"),
)
# virtio_pci, virtio_console and udmabuf are built into Debian's kernel.
MODULES = ("virtio_pmem", "nd_pmem", "erofs", "overlay", "9pnet_virtio", "9p")
# Tools that the lab never runs, out of the project's dependencies.
OUTSIDE = ("ruff", "mypy")
# What a snapshot of the checkout leaves out.
GENERATED = (".*", "__pycache__", "*.egg-info", "*.so", "build", "dist")
DAY = 86400


@dataclass(frozen=True)
class LabImage:
    """What QEMU boots, and the images that make up the root file system."""

    kernel: Path
    initrd: Path
    layers: tuple[Path, ...]


def part(name: str, inputs: Sequence[bytes | str], make: Callable[[Path], None]) -> Path:
    """The folder of a part of the lab, made by `make` unless these inputs were seen before."""
    key = hashlib.sha256()
    for one in inputs:
        data = one.encode() if isinstance(one, str) else one
        key.update(len(data).to_bytes(8) + data)

    def make_and_tidy(work: Path) -> None:
        make(work)
        # Parts of older states, unless another checkout may be about to boot one.
        for old in work.parent.glob(f"{name}-*"):
            if time.time() - old.stat().st_mtime > DAY:
                shutil.rmtree(old, ignore_errors=True)

    return made(f"lab/{name}-{key.hexdigest()[:16]}", make_and_tidy)


def foreign(root: Path, program: str) -> list[str]:
    """The start of a command: a program of a Debian root that sees this machine's files.

    It runs with the root's own loader and libraries, where chroot would hide our folders.
    """
    (loader,) = root.glob("lib64/ld-linux-*.so.2")
    (libraries,) = root.glob("usr/lib/*-linux-gnu")
    paths = f"{libraries}:{root}/usr/lib"
    return [str(loader), "--inhibit-cache", "--library-path", paths, f"{root}{program}"]


def inside(root: Path) -> list[str]:
    """The start of a command that runs with a root as its /, and none of our environment."""
    return ["env", "-i", "PATH=/usr/sbin:/usr/bin", "chroot", str(root)]


def image_of(root: Path, folder: Path, image: Path, *options: str) -> None:
    """Pack a folder into an erofs image that can be used in place: not compressed, in blocks of a
    page, and as large as virtio-pmem wants it (a multiple of 2 MiB)."""
    mkfs = [*foreign(root, "/usr/bin/mkfs.erofs"), "-b4096", "--quiet", *options]
    run([*mkfs, str(image), str(folder)])
    os.truncate(image, -(-image.stat().st_size // (2 << 20)) * (2 << 20))


def compile_all(root: Path, folder: Path, target: str) -> None:
    """Compile the Python files of a folder in the root, which will lie at `target` in the lab.

    Not by time stamp: an image is a snapshot. In the lab it would take ten times as long.
    """
    place = f"/{folder.relative_to(root)}"
    command = ["python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    run([*inside(root), *command, "-s", place, "-p", target, place])


def debian_root(name: str = "root", packages: Sequence[str] = PACKAGES) -> Path:
    """Debian's files (root/) and their image (root.img): 25 s, 800 MB; the service kind 60 s."""

    def make(work: Path) -> None:
        if os.geteuid() != 0:
            raise CacheError("making the lab's Debian root needs root: run this as root")
        source_list = work / "sources.list"
        source_list.write_text(sources(RELEASE))
        with step(f"making the lab's Debian {name} (about a minute)"):
            options = ["--variant=minbase", f"--include={','.join(packages)}"]
            options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man")]
            for line in ("APT::Install-Recommends false", "Acquire::Retries 5"):
                options.append(f"--aptopt={line}")
            target = [RELEASE, str(work / "root"), str(source_list)]
            run(["mmdebstrap", *options, *target], tries=2, show="I: ")
            image_of(work / "root", work / "root", work / "root.img")

    return part(name, [RELEASE, *packages], make)


def service_root() -> Path:
    """As debian_root(), of the service kind."""
    return debian_root("service", (*PACKAGES, *SERVICE))


@dataclass(frozen=True)
class Python:
    """The root's interpreter: "3.13", its headers, and how an extension built for it is named."""

    version: str
    include: str
    suffix: str


def python_of(root: Path) -> Python:
    code = (
        "import sys, sysconfig as s; print('%d.%d' % sys.version_info[:2],"
        " s.get_path('include'), s.get_config_var('EXT_SUFFIX'))"
    )
    return Python(*run([*inside(root), "python3", "-c", code]).split())


def project() -> dict[str, Any]:
    return tomllib.loads((CHECKOUT / "pyproject.toml").read_text())


def requirements() -> list[str]:
    """What the project and its tests need, in the versions that run out here: both ends of the
    test layer speak pytest's report format, and a failure in the lab is one that can be repeated.
    """
    table = project()["project"]
    wanted = []
    for requirement in [*table["dependencies"], *table["optional-dependencies"]["dev"]]:
        found = re.match(r"[\w.-]+", requirement)
        assert found is not None, requirement
        name = found[0]
        if name in OUTSIDE:
            continue
        try:
            wanted.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            wanted.append(requirement)
    return wanted


def site(root: Path, python: Python) -> Path:
    """A layer: the packages that the project needs, fetched by this machine's pip (which knows its
    mirror and its proxies) for the root's Python."""
    wanted = requirements()
    target = f"usr/local/lib/python{python.version}/dist-packages"

    def make(work: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        options = ["--no-compile", "--only-binary=:all:", f"--python-version={python.version}"]
        for platform in ("manylinux_2_28_x86_64", "manylinux2014_x86_64"):
            options += ["--platform", platform]
        layer = work / "layer"
        (layer / target).parent.mkdir(parents=True)
        with step("fetching the lab's Python packages"), lock("lab-site"):
            # In their place in the root, to be compiled under their final names.
            shutil.rmtree(root / target, ignore_errors=True)
            run([*pip, *options, "--retries=10", f"--target={root / target}", *wanted])
            compile_all(root, root / target, f"/{target}")
            # pytest rewrites its plug-ins' asserts (all of hypothesis) and keeps the result. An
            # empty folder has no tests: that is its exit code 5.
            warm_up = "cd /mnt && python3 -m pytest -p no:cacheprovider || [ $? = 5 ]"
            run([*inside(root), "sh", "-c", warm_up])
            (root / target).rename(layer / target)
        image_of(root, layer, work / "site.img", "--all-root")
        shutil.rmtree(layer)

    return part("site", [root.parent.name, *wanted], make) / "site.img"


def native(root: Path, python: Python) -> Path:
    """The folder with the extension, built as pyproject.toml says, for the root's Python."""
    (table,) = project()["tool"]["setuptools"]["ext-modules"]
    files = sorted((CHECKOUT / "native").glob("*.[ch]"))
    target = f"{table['name'].replace('.', '/')}{python.suffix}"

    def make(work: Path) -> None:
        build = root / f"tmp/native-{os.getpid()}"
        shutil.copytree(CHECKOUT / "native", build / "native")
        try:
            script = ["cd", f"/tmp/{build.name}", "&&", "gcc", "-shared", "-fPIC", "-isystem"]
            script += [python.include, *(f"-I{path}" for path in table["include-dirs"])]
            script += [*table["extra-compile-args"], *table["sources"], "-o", "module.so"]
            with step("building the extension for the lab"):
                run([*inside(root), "sh", "-c", " ".join(script)])
            (work / target).parent.mkdir()
            shutil.move(build / "module.so", work / target)
        finally:
            shutil.rmtree(build)

    inputs = [target, repr(table), *(file.name for file in files)]
    return part("native", [*inputs, *(file.read_bytes() for file in files)], make)


def copy_if_there(source: str, target: str) -> None:
    """Copy a file, unless somebody just removed it: a checkout is worked on while tests run."""
    with contextlib.suppress(FileNotFoundError):
        shutil.copy2(source, target)


def snapshot(root: Path, python: Python, image: Path) -> Path:
    """A layer: the checkout as it is now, at its own path, with the extension for the lab."""
    tree = root / f"tmp/checkout-{os.getpid()}"
    place = tree / str(CHECKOUT).lstrip("/")
    try:
        ignore = shutil.ignore_patterns(*GENERATED)
        shutil.copytree(CHECKOUT, place, ignore=ignore, copy_function=copy_if_there, symlinks=True)
        shutil.copytree(native(root, python), place, dirs_exist_ok=True)
        compile_all(root, place, str(CHECKOUT))
        image_of(root, tree, image, "--all-root")
    finally:
        shutil.rmtree(tree, ignore_errors=True)
    return image


def vmlinux(linux: Kernel, root: Path) -> Path:
    """The kernel unpacked on this machine: QEMU's emulated one would need 1.5 s for it."""
    image = linux.image.read_bytes()
    # Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length.
    start = ((image[0x1F1] or 4) + 1) * 512 + int.from_bytes(image[0x248:0x24C], "little")
    payload = image[start : start + int.from_bytes(image[0x24C:0x250], "little")]
    if payload[:4] != bytes.fromhex("28b52ffd"):
        return linux.image  # not zstd: it unpacks itself

    def make(work: Path) -> None:
        packed = work / "vmlinux.zst"
        packed.write_bytes(payload[:-4])  # the kernel's build appends the unpacked size
        run([*foreign(root, "/usr/bin/zstd"), "-qd", "--rm", str(packed)])

    return part("vmlinux", [linux.version, payload[:64]], make) / "vmlinux"


def initrd(linux: Kernel, modules: Sequence[str]) -> Path:
    """An initramfs that loads the modules the root needs, and `modules`."""
    busybox = unpacked("busybox-static", RELEASE)
    wanted = (*MODULES, *modules)

    def make(work: Path) -> None:
        files = [
            ("init", INIT.read_bytes()),
            ("bin/busybox", next(busybox.glob("**/bin/busybox")).read_bytes()),
        ]
        for i, (name, data) in enumerate(modules_for(linux, wanted)):
            files.append((f"modules/{i:02}-{name}", data))
        (work / "initrd").write_bytes(cpio(files))

    return part("initrd", [linux.version, INIT.read_bytes(), *wanted], make) / "initrd"


def qemu_image(name: str) -> Path:
    """A root of tests/qemu/roots.py as an image that the lab maps."""
    folder = root_of(name)

    def make(work: Path) -> None:
        with step(f"packing the root of {name}'s QEMU for the lab"):
            image_of(debian_root() / "root", folder, work / "root.img")

    return part("qemu", [name, str(folder.stat().st_mtime_ns)], make) / "root.img"


def lab_image(
    checkout: Path | None = None, modules: Sequence[str] = (), *, service: bool = False
) -> LabImage:
    """Everything, made if needed; the checkout's layer only if its path is given, each time anew.

    `modules` (vgem, vfio_pci ...) are loaded before the lab's command. `service` chooses the root
    that boots systemd.
    """
    linux = kernel()
    debian = service_root() if service else debian_root()
    root = debian / "root"
    python = python_of(root)
    layers = [debian / "root.img", site(root, python)]
    if checkout is not None:
        layers.append(snapshot(root, python, checkout))
    return LabImage(vmlinux(linux, root), initrd(linux, modules), tuple(layers))


def main() -> int:
    try:
        lab_image()
        lab_image(service=True)
    except CacheError as error:
        print(f"tests.lab.image: {error}", file=sys.stderr)
        return 1
    print(cache_dir() / "lab")
    return 0


if __name__ == "__main__":
    sys.exit(main())
