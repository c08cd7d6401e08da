"""The tests in inner/ run in the lab. They are collected on this machine like any others (so that
node ids, -k and -x work); when the first of them is due, one virtual machine is booted that runs
all that were chosen, and each test's reports (outcome, traceback, output) are told out here.

In the lab VGPUD_LAB is set, and this file leaves the tests alone. Set it to run them out here, on a
machine that has the devices.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.lab.remote import REPORTS, RemoteRun, Reporter

INNER = Path(__file__).parent / "inner"
RUN = pytest.StashKey[RemoteRun]()


def is_remote(item: pytest.Item) -> bool:
    return "VGPUD_LAB" not in os.environ and item.path.is_relative_to(INNER)


def pytest_configure(config: pytest.Config) -> None:
    if file := os.environ.get(REPORTS):
        config.pluginmanager.register(Reporter(config, Path(file)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if is_remote(item):
            # The limit holds in the lab: out here it would include the boot, and interrupt us.
            item.add_marker(pytest.mark.timeout(0))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Take a test over from pytest's own runner, which would run its fixtures here."""
    if not is_remote(item):
        return None
    run = item.config.stash.get(RUN, None)
    if run is None:
        tests = [one.nodeid for one in item.session.items if is_remote(one)]
        run = item.config.stash[RUN] = RemoteRun(item.config, tests)
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in run.reports(item):
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (run := session.config.stash.get(RUN, None)) is not None:
        run.close()
