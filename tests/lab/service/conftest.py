"""What the tests of the service share: the package is installed once, units come and go."""

from __future__ import annotations

import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PACKAGE = Path("/package")
PATIENCE = 60.0
"""Seconds for anything: the machine is emulated."""


def run(*command: str, check: bool = True) -> str:
    """What a command says."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0 or not check, f"{command}: {done.stdout}"
    return done.stdout


def show(unit: str, name: str) -> str:
    """A property of a unit."""
    return run("systemctl", "show", "--value", f"--property={name}", unit).strip()


def wait_for(what: Callable[[], object]) -> None:
    """Until it is true; what systemd does is told by nothing that a test could wait on."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def journal(unit: str) -> str:
    return run("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")


@pytest.fixture(scope="session")
def installed() -> str:
    """The package's version, installed with what it depends on already there."""
    (package,) = PACKAGE.glob("*.deb")
    # The root leaves manual pages out, to be small.
    Path("/etc/dpkg/dpkg.cfg.d/99mmdebstrap").unlink()
    run("dpkg", "--install", str(package))
    return run("dpkg-query", "--show", "--showformat=${Version}", "vgpud")


@pytest.fixture
def instance(installed: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """A machine of the test's own whose socket listens; its name."""
    name = f"m{zlib.crc32(request.node.name.encode()):08x}"
    run("systemctl", "start", f"vgpud@{name}.socket")
    yield name
    run("systemctl", "stop", f"vgpud@{name}.socket", f"vgpud@{name}.service")
