"""The whole way of a picture, in a lab of its own that has our QEMU and a GPU without hardware.

Runs the tests of the modules below in that lab, each as a test out here. In the lab:
real /dev/udmabuf, vgem with Mesa's software renderer, QEMU of tests/qemu/build.py with
-display dbus,gl=on, vgpud with --scanout=dmabuf, and a D-Bus listener that compares pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.lab.conftest import vfio as vfio_lab
from tests.lab.image import CHECKOUT, vmlinux
from tests.lab.inner import dbus_frames, dbus_guest, dbus_life, dbus_vfio, diff_blob
from tests.lab.inner.dbus import GUEST_MOUNT, KERNEL_MOUNT
from tests.lab.remote import DEADLINE, RemoteRun
from tests.qemu.build import lab_image
from tests.qemu.kernel import kernel
from tests.support.guest_image import guest_image
from tests.support.lab import Lab, layer_args

MODULES = (dbus_vfio, dbus_frames, dbus_life, dbus_guest, diff_blob)


def node(module: ModuleType, name: str) -> str:
    assert module.__file__ is not None
    return f"{Path(module.__file__).relative_to(CHECKOUT)}::{name}"


TESTS = [node(module, name) for module in MODULES for name in vars(module) if name[:5] == "test_"]


class ChainRun(RemoteRun):
    """The run of these tests in the lab, booted at once."""

    def __init__(self, config: pytest.Config, tests: list[str]) -> None:
        super().__init__(config, tests)
        image, vfio = guest_image(), vfio_lab()
        self._lab = Lab(
            self._command(),
            timeout=DEADLINE,
            memory="3G",
            # The root of our QEMU is one more memory device, the last one.
            qemu_args=[*vfio["qemu_args"], *layer_args(90, lab_image())],
            modules=["vgem", *vfio["modules"]],
            mounts={
                vmlinux_folder(): KERNEL_MOUNT,
                image.initrd.parent: GUEST_MOUNT,
            },
        )

    def failures(self, test: str) -> list[str]:
        """Wait until a test has ended; returns its tracebacks."""
        self._wait(test)
        return [report.longreprtext for report in self._arrived[test] if report.failed]


def vmlinux_folder() -> Path:
    """The guest's kernel unpacked: in the lab that alone would take a minute."""
    from tests.lab.image import debian_root

    return vmlinux(kernel(), debian_root() / "root").parent


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest) -> Iterator[ChainRun]:
    """One lab for all the tests of this file that were chosen."""
    chosen = [
        item.callspec.params["test"]
        for item in request.session.items
        if item.path == request.path and isinstance(item, pytest.Function)
    ]
    started = ChainRun(request.config, chosen)
    yield started
    started.close()


@pytest.mark.slow
@pytest.mark.timeout(0)  # each test's own limit holds in the lab
@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.partition("::test_")[2])
def test_chain(run: ChainRun, test: str) -> None:
    failures = run.failures(test)
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
