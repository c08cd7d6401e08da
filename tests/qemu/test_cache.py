"""A thing in the cache is whole or not there."""

import sys
from pathlib import Path

import pytest

from tests.qemu.cache import CacheError, cache_dir, made, run


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGPUD_CACHE", str(tmp_path))


def test_made_once() -> None:
    calls = []

    def make(work: Path) -> None:
        calls.append(work)
        (work / "file").write_text("whole")

    assert made("some/thing", make) == made("some/thing", make) == cache_dir() / "some/thing"
    assert (cache_dir() / "some/thing/file").read_text() == "whole"
    assert len(calls) == 1


def test_failure_leaves_nothing() -> None:
    def make(work: Path) -> None:
        (work / "half").touch()
        raise CacheError("no")

    with pytest.raises(CacheError):
        made("thing", make)
    assert [path.name for path in cache_dir().iterdir()] == ["locks"]


def test_leftovers_of_a_killed_run_go() -> None:
    (cache_dir() / ".thing.killed").mkdir()
    made("thing", lambda work: None)
    assert not (cache_dir() / ".thing.killed").exists()


def test_run_shows_the_end_of_the_output() -> None:
    assert run([sys.executable, "-c", "print('fine')"]) == "fine\n"
    with pytest.raises(CacheError, match=r"(?s)exit 3.*try another.*the reason"):
        run([sys.executable, "-c", "print('the reason'); exit(3)"], hint="try another")
    with pytest.raises(CacheError, match="not installed"):
        run(["no-such-program-at-all"])
