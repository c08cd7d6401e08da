"""Who may import whom (docs/architecture.md): data goes one way, and so do imports."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A module's layer is its longest name here; it imports layers of its `sees` and itself.
LEAVES = {
    *("vgpud", "vgpud.errors", "vgpud.config", "vgpud.log", "vgpud.journal", "vgpud.usage"),
    "vgpud.arguments",
}
PURE = {"vgpuwire", "vgpud.errors", "vgpud.usage"}
BELOW = LEAVES | {"vgpuwire", "vgpud.device", "vgpud.backend", "vgpud.host"}
SEES: dict[str, set[str]] = {
    **{leaf: set() for leaf in LEAVES},
    "vgpud.log": {"vgpud.journal"},
    "vgpuwire": set(),
    "vgpud.device": PURE,
    "vgpud.backend": PURE,
    "vgpud._native": set(),
    "vgpud.host": LEAVES | {"vgpuwire", "vgpud._native"},
    "vgpud.tasks": BELOW,
    "vgpud.session": BELOW | {"vgpud.tasks"},
    "vgpud.confine": LEAVES | {"vgpud.host"},
    "vgpud.daemon": BELOW | {"vgpud.tasks", "vgpud.session", "vgpud.confine"},
    "vgpud.inspect": {"vgpud"},
    "vgpud.cli": BELOW | {"vgpud.tasks", "vgpud.session", "vgpud.daemon"},
    "vgpud.ctl": LEAVES | {"vgpud.host", "vgpud.inspect"},
    "vgpud.__main__": {"vgpud.cli"},
}
AWAITING = {"vgpud.tasks", "vgpud.session", "vgpud.daemon", "vgpud.cli"}
ONLY_IN = {
    "construct": {"vgpuwire"},
    "ioctl_opt": {"vgpuwire"},
    "pyroute2": {"vgpud.host"},
    "pyseccomp": {"vgpud.host"},
    "seccomp": {"vgpud.host"},
    "trio": AWAITING,
    "protocol": set(),  # a second copy of every class: import vgpuwire
    # No I/O, no threads and no clock where things are decided.
    **{
        name: set(SEES) - {"vgpud.device", "vgpud.backend", "vgpuwire"}
        for name in (
            "os", "socket", "subprocess", "threading", "select", "selectors", "mmap", "asyncio",
            "time", "signal", "fcntl",
        )
    },
}  # fmt: skip


def layer(module: str) -> str:
    parts = module.split(".")
    names = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((name for name in names if name in SEES), parts[0])


def imported(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *filter(None, [base])])
            # `from vgpud import log` means vgpud.log, `from vgpud.errors import X` not X.
            names = [f"{base}.{alias.name}" for alias in node.names]
            yield from ((node.lineno, name if name in SEES else base) for name in names)


def offences(module: str, source: str) -> list[str]:
    """Lines of a module that import what its layer may not."""
    own = layer(module)
    found = []
    for line, name in imported(ast.parse(source), module):
        target, top = layer(name), name.partition(".")[0]
        if target in SEES:
            allowed = target == own or target in SEES[own]
        else:
            allowed = top in ONLY_IN or top in sys.stdlib_module_names
        if not (allowed and own in ONLY_IN.get(top, {own})):
            found.append(f"{module}:{line}: {own} imports {name}")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for root, package in ((ROOT, "vgpud"), (ROOT / "protocol", "vgpuwire")):
        for path in sorted((root / package).rglob("*.py")):
            yield ".".join(path.relative_to(root).with_suffix("").parts), path


def test_every_import_goes_rightwards() -> None:
    everything = dict(modules())
    assert len(everything) > 20, "the tree has moved"
    lines = [line for name, path in everything.items() for line in offences(name, path.read_text())]
    assert not lines, "\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vgpud.device.gpu", "import trio"),
        ("vgpud.device.gpu", "from time import monotonic"),
        ("vgpud.device.gpu", "def f():\n    import os.path"),
        ("vgpud.device.gpu", "from vgpud import log"),
        ("vgpud.device.gpu", "from vgpud.host.fd import OwnedFd"),
        ("vgpud.device.gpu", "from ..backend import actions"),
        ("vgpud.backend.state", "from vgpud.device.gpu import FEATURES"),
        ("vgpud.backend.state", "import vgpud._native"),
        ("vgpud.backend.state", "import construct"),
        ("vgpud.host.fd", "import vgpud.device.pixels"),
        ("vgpud.host.fd", "import trio"),
        ("vgpud.tasks.ring", "from vgpud import _native"),
        ("vgpud.tasks.ring", "from vgpud.session import Session"),
        ("vgpud.tasks.ring", "import pyroute2"),
        ("vgpud.session", "from . import daemon"),
        ("vgpud.daemon", "from vgpud import cli"),
        ("vgpud.config", "import vgpud.errors"),
        ("vgpuwire.framing", "import socket"),
        ("vgpuwire.framing", "import vgpud"),
        ("vgpud.host.fd", "import numpy"),
        ("vgpud.cli", "from protocol.vgpuwire import Message"),
    ],
)
def test_the_test_finds(module: str, source: str) -> None:
    assert len(offences(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("vgpud.device.gpu", "from vgpuwire import Rect\nfrom .pixels import Surface\nimport enum"),
        ("vgpud.host.fd", "import os\nfrom vgpud import _native, log"),
        ("vgpud.tasks.ring", "import trio, socket\nfrom vgpud.host.fd import EventFd"),
        ("vgpud.cli", "from vgpud import __version__, log"),
        ("vgpuwire.record", "import construct, struct\nfrom vgpuwire.errors import WireError"),
    ],
)
def test_the_test_allows(module: str, source: str) -> None:
    assert offences(module, source) == []
