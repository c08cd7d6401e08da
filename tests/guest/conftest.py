"""What the guest layer shares: one QEMU, one guest image, and machines that run on them.

Nothing here skips: what is missing is fetched, and what cannot be fetched is a failure.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.qemu.binaries import Qemu, qemu
from tests.qemu.process import Child
from tests.support.guest_image import GuestImage, guest_image
from tests.support.qemu import Machine, backend, machine


@dataclass(frozen=True)
class Served:
    """A booted guest and the vgpud that serves its GPU."""

    vm: Machine
    vgpud: Child


@pytest.fixture(scope="session")
def the_qemu() -> Qemu:
    return qemu()


@pytest.fixture(scope="session")
def image() -> GuestImage:
    return guest_image()


@pytest.fixture(scope="module")
def served(the_qemu: Qemu, image: GuestImage) -> Iterator[Served]:
    """A booted guest with two heads, shared by a module's tests: each draws its own picture."""
    with backend() as (vgpud, gpu):
        with machine(the_qemu, image, gpu, device="max_outputs=2", children=[vgpud]) as vm:
            vm.wait_ready()
            yield Served(vm, vgpud)
            vm.quit()
        # What no test may cause: a bug (traceback) or an ugly end.
        assert vgpud.wait() == 0, vgpud.tail()
        assert "Traceback" not in vgpud.log(), vgpud.log()
