"""Which daemon is meant, and what /proc says of it."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from vgpud.inspect.client import Daemon, Failed, ask, folders, resolve, running, usage


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(tmp_path / name / "control"))
    (tmp_path / "one.sock").touch()
    return [tmp_path, tmp_path / "nowhere"]


def test_all_are_found_by_name(two: list[Path]) -> None:
    assert [one.name for one in running(two)] == ["one", "two"]


def test_the_one_that_is_meant(two: list[Path]) -> None:
    assert resolve("one", two) == Daemon("one", str(two[0] / "one/control"))
    assert resolve("/some/vm/control", two) == Daemon("vm", "/some/vm/control")
    for control, reason in ((None, "is needed"), ("three", "no machine three")):
        with pytest.raises(Failed, match=f"{reason}; .*one, two"):
            resolve(control, two)
    (two[0] / "one/control").unlink()
    assert resolve(None, two).name == "two"


def test_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(socket, "socket", Refusing)
    with pytest.raises(Failed, match="Permission denied: be vgpud's user, or root"):
        ask("/some/vm/control", {"command": "status"})


def test_a_user_has_a_folder_too() -> None:
    assert folders({}) == [Path("/run/vgpud")]
    assert folders({"XDG_RUNTIME_DIR": "/run/user/1"})[1] == Path("/run/user/1/vgpud")


def test_usage() -> None:
    found = usage(os.getpid())
    assert found is not None
    assert found.fds >= 3
    assert found.memory > 1 << 20
    assert found.cpu > 0
    assert usage(0) is None
