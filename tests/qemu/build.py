"""QEMU 10.0 of Debian's trixie source package with our edit (patches/), built in a private root.

    python3 -m tests.qemu.build      make it if it is not there yet, print its root's path

Parts, each cached under what it is made of: the source package, a root with the compilers, and the
result: a small root with the built QEMU, its libraries and a Mesa that can import a dma-buf
without a GPU, also as an image that the lab mounts. The machine's own packages are not touched.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.qemu.binaries import PROGRAM, Qemu
from tests.qemu.cache import CacheError, cache_dir, lock, made, run, say, step
from tests.qemu.debian import KEYRING, Archive, mirror, sources

NAME = "patched"
RELEASE = "trixie"
MESA = "trixie-backports"  # trixie's own Mesa 25.0 crashes when it imports a udmabuf on vgem
SERIES = "10.0."
PATCHES = Path(__file__).parent / "patches"

BUILD_PACKAGES = (
    *("gcc", "libc6-dev", "make", "ninja-build", "meson", "pkgconf", "patch", "dpkg-dev"),
    *("python3-venv", "bison", "flex"),
    *("libglib2.0-dev", "libpixman-1-dev", "libfdt-dev", "zlib1g-dev"),
    *("libepoxy-dev", "libgbm-dev", "libdrm-dev", "libegl-dev"),
)
RUN_PACKAGES = (
    *(
        "libglib2.0-0t64",
        "libpixman-1-0",
        "libfdt1",
        "zlib1g",
        "libepoxy0",
        "libegl1",
        "libopengl0",
    ),
    *(f"{name}/{MESA}" for name in ("libegl-mesa0", "libgbm1", "libgl1-mesa-dri")),
    f"mesa-libgallium/{MESA}",
    *("qemu-system-data", "seabios"),  # the firmware; no program
)
CONFIGURE = (
    *("--prefix=/usr", "--sysconfdir=/etc", "--localstatedir=/var"),
    "--firmwarepath=/usr/share/qemu:/usr/share/seabios",
    *("--target-list=x86_64-softmmu", "--without-default-features", "--disable-download"),
    *("--enable-system", "--enable-tcg", "--enable-kvm", "--enable-fdt=system"),
    *("--enable-pixman", "--enable-opengl", "--enable-gio", "--enable-dbus-display"),
    *("--enable-vhost-user", "--enable-vhost-kernel"),
    *("--disable-tools", "--disable-docs", "--disable-install-blobs", "--disable-debug-info"),
)


def patches() -> list[Path]:
    """Our edit, in the order it is applied."""
    return sorted(PATCHES.glob("*.patch"))


def key_of(*inputs: str | bytes) -> str:
    """A name for what is made of these inputs."""
    key = hashlib.sha256()
    for one in inputs:
        data = one.encode() if isinstance(one, str) else one
        key.update(len(data).to_bytes(8, "little") + data)
    return key.hexdigest()[:16]


class SourceArchive(Archive):
    """The source packages of a suite, through lists of their own."""

    def __init__(self, suite: str) -> None:
        self.name = f"{suite}-source"
        self.dir = cache_dir() / "apt" / self.name
        (self.dir / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (self.dir / "status").touch()
        line = f"deb-src [signed-by={KEYRING}] {mirror()} {suite} main\n"
        (self.dir / "sources.list").write_text(line)
        with lock(f"apt-{self.name}"), step(f"reading Debian's source lists of {suite}"):
            hint = f"is {mirror()} reachable? VGPUD_DEBIAN_MIRROR=http://HOST/debian names another"
            self._apt("apt-get", "update", hint=hint)

    def download(self, package: str, target: Path) -> None:
        """Fetch the files of a source package, packed as they are."""
        with step(f"downloading the source of {package} (40 MB)"):
            self._apt("apt-get", "source", "--download-only", package, cwd=target)


def source() -> Path:
    """The folder with Debian's source package: one .dsc and what it names. Fetched once."""

    def make(work: Path) -> None:
        SourceArchive(RELEASE).download("qemu", work)
        version = dsc(work).name.removeprefix("qemu_")
        if not version.startswith(SERIES):
            raise CacheError(f"{RELEASE} has QEMU {version}, and our edit is for {SERIES}x")

    return made(f"qemu/source-{RELEASE}", make)


def dsc(folder: Path) -> Path:
    (found,) = folder.glob("*.dsc")
    return found


def debian(work: Path, packages: Sequence[str], suites: Sequence[str], why: str) -> Path:
    """A Debian root with these packages, in work/root."""
    if os.geteuid() != 0:
        raise CacheError("making a Debian root needs root: run this as root")
    source_list = work / "sources.list"
    source_list.write_text(sources(*suites))
    with step(f"making a Debian root {why} (about 40 s)"):
        run(
            [
                "mmdebstrap",
                "--variant=minbase",
                "--aptopt=APT::Install-Recommends false",
                "--aptopt=Acquire::Retries 5",
                f'--aptopt=APT::Default-Release "{RELEASE}"',
                "--dpkgopt=path-exclude=/usr/share/doc/*",
                "--dpkgopt=path-exclude=/usr/share/man/*",
                f"--include={','.join(packages)}",
                RELEASE,
                str(work / "root"),
                str(source_list),
            ],
            tries=2,
            show="I: ",
        )
    return work / "root"


def build_root() -> Path:
    """A root that can compile QEMU."""

    def make(work: Path) -> None:
        debian(work, BUILD_PACKAGES, [RELEASE], "to build QEMU in")

    return made(f"qemu/tools-{key_of(RELEASE, *BUILD_PACKAGES)}", make) / "root"


def run_root() -> Path:
    """A root that has all that our QEMU needs but itself."""

    def make(work: Path) -> None:
        debian(work, RUN_PACKAGES, [RELEASE, MESA], "to run our QEMU in")

    return made(f"qemu/libraries-{key_of(RELEASE, MESA, *RUN_PACKAGES)}", make) / "root"


def inside(root: Path, script: str) -> list[str]:
    """A command: a shell script with `root` as its /, and none of our environment."""
    setting = ["env", "-i", "PATH=/usr/sbin:/usr/bin", "HOME=/root", "LC_ALL=C.UTF-8"]
    return ["nice", "-n", "10", *setting, "chroot", str(root), "sh", "-euc", script]


def compile_qemu(target: Path) -> None:
    """Unpack, patch, configure and compile; the program goes to `target`."""
    packed, tools = source(), build_root()
    tree = tools / "build"
    with lock("qemu-build"):
        shutil.rmtree(tree, ignore_errors=True)  # of a run that was killed
        shutil.copytree(packed, tree)
        try:
            shutil.copytree(PATCHES, tree / "patches")
            with step("unpacking QEMU's source and applying our edit"):
                # Debian's patches are applied by dpkg-source; nothing of quilt is needed later.
                run(inside(tools, f"cd /build && dpkg-source --no-check -x {dsc(packed).name} src"))
                for patch in patches():
                    # --fuzz=0: what moved must be looked at, not guessed.
                    script = f"cd /build/src && patch -p1 --fuzz=0 -i /build/patches/{patch.name}"
                    run(inside(tools, script), hint=f"{patch.name} does not fit this source")
            with step("configuring QEMU"):
                options = " ".join(CONFIGURE)
                script = f"mkdir /build/obj && cd /build/obj && ../src/configure {options}"
                run(inside(tools, script))
            with step("compiling QEMU (3 minutes on two idle processors)"):
                run(inside(tools, f"cd /build/obj && ninja {PROGRAM} && strip {PROGRAM}"))
            shutil.copyfile(tree / "obj" / PROGRAM, target)
            target.chmod(0o755)
        finally:
            shutil.rmtree(tree, ignore_errors=True)


def built() -> Path:
    """The folder of the result: root/ has our QEMU in /usr/bin."""
    texts = [path.name for path in patches()]
    bodies = [path.read_bytes() for path in patches()]
    tools = [dsc(source()).name, *BUILD_PACKAGES]

    def make_program(work: Path) -> None:
        compile_qemu(work / PROGRAM)

    program = made(f"qemu/program-{key_of(*texts, *bodies, *tools, *CONFIGURE)}", make_program)

    libraries = run_root()

    def make(work: Path) -> None:
        root = work / "root"
        run(["cp", "-al", str(libraries), str(root)])
        shutil.copy2(program / PROGRAM, root / "usr/bin" / PROGRAM)
        version = run(inside(root, f"{PROGRAM} --version"), hint="a library is missing")
        say(version.splitlines()[0])

    return made(f"qemu/root-{key_of(program.name, libraries.parent.name)}", make)


def lab_image() -> Path:
    """The same root as an image that the lab maps (erofs)."""
    from tests.lab.image import debian_root, image_of

    folder = built()

    def make(work: Path) -> None:
        with step("packing the root of our QEMU for the lab"):
            image_of(debian_root() / "root", folder / "root", work / "root.img")

    return made(f"qemu/image-{folder.name.removeprefix('root-')}", make) / "root.img"


def patched_qemu() -> Qemu:
    """Our QEMU as this machine runs it, by chroot."""
    folder = built() / "root"
    argv = ("chroot", str(folder), f"/usr/bin/{PROGRAM}")
    version = dsc(source()).name.removeprefix("qemu_").partition("+")[0]
    return Qemu(NAME, argv, version, folder)


def main() -> int:
    try:
        found = patched_qemu()
    except CacheError as error:
        print(f"tests.qemu.build: {error}", file=sys.stderr)
        return 1
    say(f"QEMU {found.version} with {', '.join(path.name for path in patches())}")
    print(found.root)
    return 0


if __name__ == "__main__":
    sys.exit(main())
