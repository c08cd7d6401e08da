"""The tests in inner/ run in the lab, those in service/ in one whose first program is systemd, with
our package at hand, those in vfio/ in one with an IOMMU and devices for VFIO, those in handover/ in
such a one that has QEMU 11.1 as well. They are collected on this machine like any others (so that
node ids, -k and -x work); when the first of them is due, one virtual machine is booted that runs
all that were chosen, and each test's reports (outcome, traceback, output) are told out here.

In the lab VGPUD_LAB is set, and this file leaves the tests alone. Set it to run them out here, on a
machine that has the devices.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lab.remote import REPORTS, RemoteRun, Reporter
from tests.support.lab import LabOptions, layer_args

RUNS = pytest.StashKey[dict[str, RemoteRun]]()

PACKAGE, KERNEL, GUEST = "/package", "/guest-kernel", "/guest"
"""Where the service lab finds them."""


def service() -> LabOptions:
    from tests.lab.image import debian_root, vmlinux
    from tests.lab.package import package
    from tests.qemu.kernel import kernel
    from tests.support.guest_image import guest_image

    linux = vmlinux(kernel(), debian_root() / "root").parent
    mounts = {package(): PACKAGE, linux: KERNEL, guest_image().initrd.parent: GUEST}
    # kvm-amd: QEMU emulates SVM, so that a guest in the lab is emulated once, not twice: it boots
    # in 10 s instead of minutes. libvirt's AppArmor profiles need a host that was set up for them.
    options: LabOptions = {"service": True, "memory": "3G", "mounts": mounts}
    return {**options, "modules": ["kvm-amd"], "kernel_args": "apparmor=0"}


def vfio() -> LabOptions:
    return {
        "modules": ["vfio-pci", "vfio_iommu_type1"],
        "qemu_args": [
            *("-device", "intel-iommu,intremap=on"),  # before those whose memory it translates
            *("-object", "memory-backend-memfd,id=bar,size=16M,share=on"),
            *("-device", "ivshmem-plain,memdev=bar,addr=0x10"),
            *("-object", "memory-backend-memfd,id=bar2,size=4M,share=on"),
            *("-device", "ivshmem-plain,memdev=bar2,addr=0x11"),
            *("-drive", "if=none,id=disk,driver=null-co,size=1M"),
            *("-device", "nvme,drive=disk,serial=1,cmb_size_mb=16,addr=0x12"),
        ],
    }


def handover() -> LabOptions:
    from tests.lab.image import qemu_image

    layers = layer_args(90, qemu_image("trixie-backports"))
    base = vfio()
    return {**base, "memory": "3G", "qemu_args": [*base["qemu_args"], *layers]}


FOLDERS: dict[str, Callable[[], LabOptions]] = {
    "inner": LabOptions,
    "service": service,
    "vfio": vfio,
    "handover": handover,
}


def remote(item: pytest.Item) -> str | None:
    """The folder of the lab that a test runs in; None for one that runs out here."""
    if "VGPUD_LAB" in os.environ or item.path.parent.parent != Path(__file__).parent:
        return None
    return item.path.parent.name if item.path.parent.name in FOLDERS else None


def pytest_configure(config: pytest.Config) -> None:
    if file := os.environ.get(REPORTS):
        config.pluginmanager.register(Reporter(config, Path(file)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if remote(item):
            # The limit holds in the lab: out here it would include the boot, and interrupt us.
            item.add_marker(pytest.mark.timeout(0))
    # Before the tests of this folder that run out here: what pytest keeps of a test for one that it
    # thinks is next, it would keep while it is told of those in the lab, and then stumble over.
    here = Path(__file__).parent
    places = [n for n, item in enumerate(items) if item.path.is_relative_to(here)]
    ordered = sorted((items[n] for n in places), key=lambda item: remote(item) is None)
    for n, item in zip(places, ordered, strict=True):
        items[n] = item


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    """Take a test over from pytest's own runner, which would run its fixtures here."""
    folder = remote(item)
    if folder is None:
        return None
    runs = item.config.stash.setdefault(RUNS, {})
    if folder not in runs:
        for other in runs.values():
            other.close()
        tests = [one.nodeid for one in item.session.items if remote(one) == folder]
        runs[folder] = RemoteRun(item.config, tests, FOLDERS[folder])
    run = runs[folder]
    hook = item.ihook
    hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in run.reports(item):
        hook.pytest_runtest_logreport(report=report)
    hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    for run in session.config.stash.get(RUNS, {}).values():
        run.close()
