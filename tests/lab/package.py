"""The Debian package of the checkout, built in the lab's service root as `make deb` does it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lab.image import CHECKOUT, GENERATED, copy_if_there, inside, part, service_root
from tests.qemu.cache import run, step

# The root has no network: what is vendored is fetched out here.
OFFLINE = "--no-index --no-build-isolation --find-links=wheels"
SOURCES = ("Makefile", "pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("docs", "native", "protocol", "systemd", "vgpud")


def files() -> list[Path]:
    found = [CHECKOUT / name for name in SOURCES]
    for folder in FOLDERS:
        found += [
            path
            for path in sorted((CHECKOUT / folder).rglob("*"))
            if path.is_file() and path.suffix not in (".so", ".pyc", ".png")
        ]
    return found


def package() -> Path:
    """The folder that holds vgpud_*.deb."""
    root = service_root() / "root"

    def make(work: Path) -> None:
        tree = root / f"tmp/package-{os.getpid()}"
        try:
            with step("building vgpud's Debian package"):
                ignore = shutil.ignore_patterns(*GENERATED)
                shutil.copytree(CHECKOUT, tree, ignore=ignore, copy_function=copy_if_there)
                wanted = subprocess.check_output(
                    [CHECKOUT / "systemd/package/vendored.sh"], text=True
                )
                pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download"]
                wheels = ["--quiet", "--retries=10", "--no-deps", "--dest", str(tree / "wheels")]
                run([*pip, *wheels, *wanted.split()])
                script = f"cd /tmp/{tree.name} && PIP_OPTIONS='{OFFLINE}' systemd/package/deb.sh"
                run([*inside(root), "sh", "-c", script])
                for deb in (tree / "dist").glob("*.deb"):
                    shutil.move(deb, work)
        finally:
            shutil.rmtree(tree, ignore_errors=True)

    inputs: list[bytes | str] = [root.parent.name]
    for path in files():
        inputs += [str(path.relative_to(CHECKOUT)), path.read_bytes()]
    return part("package", inputs, make)
