"""What /dev/udmabuf takes, what it refuses and why: facts about the kernel, and vgpud's wrapper
held to them."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EACCES, EINVAL, EMFILE, ENOENT, ENOMEM, ENOSPC, ENOTTY, errorcode

import pytest

from tests.lab.inner.cases import CASES, Case
from tests.lab.inner.conftest import HUGE_PAGES, File, Parameter, by_kernel, by_wrapper
from tests.lab.inner.raw import DEVICE, HUGE_PAGE, MIB, PAGE, Item, create, create_list, ioctl
from vgpud.host.dmabuf import CannotExport
from vgpud.host.udmabuf import Udmabuf
from vgpuwire.ioctls import UDMABUF_CREATE

NOBODY = 65534


@contextmanager
def refused(*errors: int) -> Iterator[None]:
    """The block must fail with one of these errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 (the number is looked at)
        yield
    got = caught.value.errno
    assert got in errors, f"{errorcode.get(got or 0)}, not {[errorcode[one] for one in errors]}"


@contextmanager
def reasoned(reason: str, errno: int) -> Iterator[None]:
    """The block must be refused by vgpud, for this reason; errno is 0 if it did not ask."""
    with pytest.raises(CannotExport) as caught:
        yield
    assert (caught.value.reason, caught.value.errno) == (reason, errno)
    assert not errno or caught.value.remedy


def check(fd: int, items: list[Item]) -> None:
    """The dma-buf is the items one after the other; it is closed."""
    assert os.lseek(fd, 0, os.SEEK_END) == sum(size for _, _, size in items)
    os.close(fd)


def prepare(case: Case, file: File, parameter: Parameter) -> list[Item]:
    for name, value in case.limits.items():
        parameter(name, value)
    return [(file(name), offset, size) for name, offset, size in case.items]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_kernel(case: Case, device: int, file: File, parameter: Parameter) -> None:
    items = prepare(case, file, parameter)
    calls: list[Callable[[], int]] = [lambda: create_list(device, items)]
    if len(items) == 1:
        calls.append(lambda: create(device, items[0]))
    for call in calls:
        if case.errno:
            with refused(case.errno):
                call()
        else:
            check(call(), items)


ASKED = [case for case in CASES if case.reason is not None]


@pytest.mark.parametrize("case", ASKED, ids=lambda case: case.name)
def test_wrapper(case: Case, device: int, file: File, parameter: Parameter) -> None:
    """Whatever the kernel would refuse has a reason, known before the kernel is asked."""
    items = prepare(case, file, parameter)
    if case.reason:
        with reasoned(case.reason, 0):
            by_wrapper(device, items)
    else:
        check(by_wrapper(device, items), items)


# -- what no table says


@pytest.mark.parametrize(("flags", "inheritable"), [(0, True), (1, False), (2, True), (255, False)])
def test_flags(flags: int, inheritable: bool, device: int, file: File) -> None:
    """Only CLOEXEC is looked at; unknown flags are no error."""
    items = [(file("ram"), 0, PAGE)]
    for fd in (create(device, items[0], flags), create_list(device, items, flags)):
        assert os.get_inheritable(fd) == inheritable
        os.close(fd)


def test_a_count_that_lies(device: int, file: File) -> None:
    """It is compared with the limit before the items are read."""
    with refused(EINVAL):
        create_list(device, [(file("ram"), 0, PAGE)], count=0xFFFFFFFF)


def test_another_ioctl(device: int) -> None:
    with refused(ENOTTY):
        ioctl(device, UDMABUF_CREATE + 2, bytes(24))


@pytest.mark.parametrize("make", [by_kernel, by_wrapper])
def test_a_device_that_cannot_be_written(make: Callable[..., int], file: File) -> None:
    device = os.open(DEVICE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        check(make(device, [(file("ram"), 0, PAGE)]), [(0, 0, PAGE)])
    finally:
        os.close(device)


def test_limits(parameter: Parameter) -> None:
    """They are read at each call, for an operator may change them at any time."""
    udmabuf = Udmabuf()
    items, mib = udmabuf.limits()
    assert items == 1024
    assert mib is not None
    assert mib >= 64  # all that kernels before 7.3 allow
    parameter("list_limit", 5)
    parameter("size_limit_mb", 7)
    assert udmabuf.limits() == (5, 7)


def test_absent() -> None:
    with reasoned("ENOENT", ENOENT):
        Udmabuf("/dev/no-udmabuf").export(b"", [], PAGE)


def test_not_allowed() -> None:
    os.seteuid(NOBODY)
    try:
        with refused(EACCES):
            os.open(DEVICE, os.O_RDONLY)
        with reasoned("EACCES", EACCES):
            Udmabuf().export(b"", [], PAGE)
    finally:
        os.seteuid(0)


def test_no_descriptor_left(device: int, file: File) -> None:
    """The pages are let go again; so is the quota."""
    items = [(file("ram"), 0, PAGE)]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.open("/dev/null", os.O_RDONLY)
    os.close(spare)  # the lowest number that is free
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, before[1]))
    try:
        with refused(EMFILE):
            create_list(device, items)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_no_huge_page_left(device: int, file: File) -> None:
    """The call takes pages that nobody touched yet from the pool, which may be empty."""
    huge = file("huge")
    pages = HUGE_PAGES.read_text()
    HUGE_PAGES.write_text("0")
    try:
        with refused(ENOMEM, ENOSPC):
            create(device, (huge, 0, HUGE_PAGE))
    finally:
        HUGE_PAGES.write_text(pages)


def test_pages_that_nobody_touched(device: int, file: File) -> None:
    """They are allocated by the call: an export costs memory."""
    big = file("big")
    assert os.fstat(big).st_blocks == 0
    check(by_wrapper(device, [(big, 0, 4 * MIB)]), [(big, 0, 4 * MIB)])
    assert os.fstat(big).st_blocks * 512 == 4 * MIB


def test_nothing_is_left_behind(device: int, file: File) -> None:
    """Neither by exports nor by refusals."""
    good, bad = (file("ram"), 0, 64 * PAGE), (file("unsealed"), 0, PAGE)
    gc.collect()  # what pytest's look at earlier errors held
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(100):
        os.close(by_kernel(device, [good, good]))
        os.close(by_wrapper(device, [good, good]))
        with refused(EINVAL):
            create_list(device, [good, bad])
        with reasoned("seal-off", 0):
            by_wrapper(device, [good, bad])
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before
