"""What the qtest layer shares: each test runs on the oldest and the newest QEMU supported.

Nothing here skips: a root that is missing is made, and what cannot be made is a failure that says
which command makes it.
"""

from collections.abc import Iterator

import pytest

from tests.qemu.binaries import Qemu, qemu
from tests.qemu.cache import CacheError
from tests.qtest.gpu import Driver
from tests.qtest.machine import Served, served

ROOTS = ("bookworm-backports", "trixie-backports")


@pytest.fixture(scope="session", params=ROOTS)
def the_qemu(request: pytest.FixtureRequest) -> Qemu:
    try:
        return qemu(request.param)
    except CacheError as error:
        pytest.fail(f"{error}\nmake it with: python3 -m tests.qemu.roots {request.param}")


@pytest.fixture(scope="module")
def pair(the_qemu: Qemu) -> Iterator[Served]:
    """A machine with two heads for all tests of a module; each starts with a device reset."""
    with served(the_qemu, options="max_outputs=2") as found:
        yield found


@pytest.fixture
def driver(pair: Served) -> Iterator[Driver]:
    """A started device; afterwards both must be alive and have complained of nothing."""
    with pair.vm.explained():
        pair.vm.gpu.start()
    before = len(pair.warnings())
    yield Driver(pair.vm)
    pair.alive()
    assert not pair.warnings()[before:], pair.vm.logs()
