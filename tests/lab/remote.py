"""A pytest in the lab, whose reports are told by a pytest out here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.qemu.cache import CacheError
from tests.support.lab import Lab, LabError, LabOptions

REPORTS = "VGPUD_LAB_REPORTS"
"""In the lab, names the file that receives the reports: a JSON object a line."""
# Seconds for all the tests of a run together. Each test's own limit is pytest-timeout's, inside.
DEADLINE = 1800.0


class Reporter:
    """The plug-in of the pytest in the lab: sends its reports out, a test's at once, since each
    write is a round trip to this machine."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        self._config = config
        self._file = file.open("ab", buffering=0)
        self._lines = b""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._lines += json.dumps(data).encode() + b"\n"
        if report.when == "teardown":
            self._file.write(self._lines)
            self._lines = b""

    def pytest_unconfigure(self) -> None:
        self._file.close()


class RemoteRun:
    """One machine that runs these tests (node ids), booted when the first report is wanted.
    `options` gives those of the Lab."""

    def __init__(
        self,
        config: pytest.Config,
        tests: list[str],
        options: Callable[[], LabOptions] = LabOptions,
    ) -> None:
        self._config = config
        self._options = options
        self._tests = tests
        self._arrived: dict[str, list[pytest.TestReport]] = {}
        self._lab: Lab | None = None
        self._read = 0
        self._over = False

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Wait for the reports of a test; a report of our own says why there are none."""
        call = pytest.CallInfo.from_call(
            lambda: self._wait(item.nodeid), "call", reraise=(KeyboardInterrupt,)
        )
        if call.excinfo is not None:
            return [pytest.TestReport.from_item_and_call(item, call)]
        return self._arrived[item.nodeid]

    def close(self) -> None:
        """End the machine, if it is running."""
        if self._lab is not None:
            self._lab.close()

    def _wait(self, nodeid: str) -> None:
        error = ""
        while not self._complete(nodeid):
            if self._over:
                error = error or "the lab had ended before: see the first failure"
                pytest.fail(error, pytrace=False)
            try:
                self._step()
            except (CacheError, LabError) as caught:
                error = str(caught)

    def _complete(self, nodeid: str) -> bool:
        return any(report.when == "teardown" for report in self._arrived.get(nodeid, []))

    def _step(self) -> None:
        """Boot it, or wait a moment and take the reports that have come."""
        self._over = True  # and it stays so if anything here raises
        if self._lab is None:
            self._lab = Lab(self._command(), timeout=DEADLINE, **self._options())
        running = self._lab.pump(0.05)
        self._take()
        if not running:
            result = self._lab.wait()
            lost = [test for test in self._tests if not self._complete(test)]
            if lost:
                raise LabError(
                    f"pytest in the lab ended (exit code {result.returncode}) without a report of "
                    f"{lost[0]} and {len(lost) - 1} more; it wrote:\n{result.output}"
                )
        self._over = not running

    def _command(self) -> list[str]:
        option = self._config.option
        options = ["-p", "no:cacheprovider", "--no-header", f"--tb={option.tbstyle}"]
        options += ["--verbose"] * max(0, option.verbose)
        options += ["--showlocals"] if option.showlocals else []
        return ["env", f"{REPORTS}=/job/reports", "python3", "-m", "pytest", *options, *self._tests]

    def _take(self) -> None:
        assert self._lab is not None
        try:
            data = (self._lab.job / "reports").read_bytes()[self._read :]
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            report = self._config.hook.pytest_report_from_serializable(
                config=self._config, data=json.loads(line)
            )
            # JSON has no tuples.
            report.location = tuple(report.location)
            if isinstance(report.longrepr, list):
                report.longrepr = tuple(report.longrepr)
            self._arrived.setdefault(report.nodeid, []).append(report)
