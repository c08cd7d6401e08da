"""What a pytest out here tells of one in the lab: with a fake of the machine, no boot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.lab import remote
from tests.lab.remote import RemoteRun
from tests.qemu.cache import CacheError
from tests.support.lab import LabError, LabResult


class FakeLab:
    """Writes the next piece of its reports at each step, then ends."""

    def __init__(self, job: Path, pieces: list[bytes]) -> None:
        self.job = job
        self.steps = iter(pieces)
        self.closed = False

    def pump(self, patience: float) -> bool:
        piece = next(self.steps, None)
        with (self.job / "reports").open("ab") as file:
            file.write(piece or b"")
        return piece is not None

    def wait(self) -> LabResult:
        return LabResult("pytest", 2, "import of something failed\n", "", 1.0)

    def close(self) -> None:
        self.closed = True


def report(item: pytest.Item, when: Any, **changes: Any) -> bytes:
    """A line as the lab sends it."""
    made = pytest.TestReport(
        item.nodeid, item.location, {}, changes.pop("outcome", "passed"), None, when, **changes
    )
    hook = item.config.hook
    data = hook.pytest_report_to_serializable(config=item.config, report=made)
    return json.dumps(data).encode() + b"\n"


@pytest.fixture
def item(request: pytest.FixtureRequest) -> pytest.Item:
    """Some test: this one."""
    node = request.node
    assert isinstance(node, pytest.Item)
    return node


def start(
    monkeypatch: pytest.MonkeyPatch, item: pytest.Item, lab: FakeLab | Exception, *more: str
) -> RemoteRun:
    def boot(command: list[str], timeout: float) -> FakeLab:
        assert command[-1 - len(more) :] == [item.nodeid, *more]
        if isinstance(lab, Exception):
            raise lab
        return lab

    monkeypatch.setattr(remote, "Lab", boot)
    return RemoteRun(item.config, [item.nodeid, *more])


def test_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, item: pytest.Item) -> None:
    """Lines come in pieces, and what JSON cannot say is put right."""
    lines = report(item, "setup") + report(item, "call", outcome="skipped", sections=[("a", "b")])
    lines = lines.replace(b'"longrepr": null', b'"longrepr": ["file", 1, "why"]')
    lines += report(item, "teardown")
    lab = FakeLab(tmp_path, [lines[i : i + 100] for i in range(0, len(lines), 100)])
    setup, call, teardown = start(monkeypatch, item, lab).reports(item)
    assert [one.when for one in (setup, call, teardown)] == ["setup", "call", "teardown"]
    assert (call.outcome, call.longrepr) == ("skipped", ("file", 1, "why"))
    assert setup.location == item.location


def test_early_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, item: pytest.Item) -> None:
    """The first test that is missed shows everything, those after it say where to look."""
    run = start(monkeypatch, item, FakeLab(tmp_path, [report(item, "setup")]), "another")
    first, second = run.reports(item)[0], run.reports(item)[0]
    assert first.outcome == second.outcome == "failed"
    assert "without a report of" in str(first.longrepr)
    assert "import of something failed" in str(first.longrepr)
    assert "see the first failure" in str(second.longrepr)


@pytest.mark.parametrize("error", [CacheError("no mirror"), LabError("no machine")])
def test_no_lab(error: Exception, monkeypatch: pytest.MonkeyPatch, item: pytest.Item) -> None:
    run = start(monkeypatch, item, error)
    assert str(error) in str(run.reports(item)[0].longrepr)
    assert "see the first failure" in str(run.reports(item)[0].longrepr)


def test_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, item: pytest.Item) -> None:
    """A session that stops early ends the machine."""
    lines = b"".join(report(item, when) for when in ("setup", "call", "teardown"))
    lab = FakeLab(tmp_path, [lines, b""])
    run = start(monkeypatch, item, lab)
    run.close()
    run.reports(item)
    run.close()
    assert lab.closed
