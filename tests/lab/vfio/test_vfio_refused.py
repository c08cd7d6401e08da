"""What the kernel refuses, each with its own words. (ENOTTY, EOPNOTSUPP and EIO need another
kernel, driver or device: tests/unit/host/test_vfio.py.)"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator

import pytest

from tests.lab.vfio.device import BAR, Device
from vgpud.host.dmabuf import CannotExport, Quota
from vgpud.host.fd import OwnedFd
from vgpud.host.vfio import PAGE, Bar, VfioDevice


@pytest.fixture
def opened(device: Device) -> Iterator[VfioDevice]:
    made = VfioDevice(OwnedFd(os.dup(device.fd)))
    yield made
    made.close()


TOO_MANY = 262_145
"""Ranges: 4 MiB of them and one more."""
HUGE = 1 << 66
CASES = [
    (Bar(0, PAGE, 0, 7, ()), [(0, PAGE)], errno.EINVAL, "smaller than a page"),
    (Bar(3, PAGE, 0, 7, ()), [(0, PAGE)], errno.ENODEV, "no such BAR"),
    (Bar(6, PAGE, 0, 7, ()), [(0, PAGE)], errno.ENODEV, "no such BAR"),
    (Bar(BAR, HUGE, 0, 7, ()), [((1 << 64) - PAGE, 2 * PAGE)], errno.EOVERFLOW, "firmware"),
    (Bar(BAR, HUGE, 0, 7, ()), [(0, PAGE)] * TOO_MANY, errno.ENOMEM, "too many pieces"),
]


@pytest.mark.parametrize(("bar", "ranges", "number", "remedy"), CASES, ids=lambda one: "")
def test_an_export(
    bar: Bar, ranges: list[tuple[int, int]], number: int, remedy: str, opened: VfioDevice
) -> None:
    quota = Quota()
    with pytest.raises(CannotExport, match=remedy) as error:
        opened.export(bar, ranges, sum(length for _, length in ranges), quota)
    assert error.value.errno == number
    assert f"a dma-buf of BAR {bar.number} of 0000:00:10.0" in str(error.value)
    assert quota.dmabufs == 0


def test_no_descriptor_left(opened: VfioDevice) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    bar = opened.bar(BAR)
    assert bar is not None
    opened.probe()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(CannotExport, match="raise LimitNOFILE") as error:
            opened.export(bar, [(0, PAGE)], PAGE, Quota())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert error.value.errno == errno.EMFILE


def test_a_closed_device(opened: VfioDevice) -> None:
    bar = opened.bar(BAR)
    assert bar is not None
    dmabuf = opened.export(bar, [(0, PAGE)], PAGE, Quota())
    opened.close()
    with pytest.raises(CannotExport, match="given up"):
        opened.export(bar, [(0, PAGE)], PAGE, Quota())
    assert os.lseek(dmabuf.fileno(), 0, os.SEEK_END) == PAGE
    dmabuf.close()
