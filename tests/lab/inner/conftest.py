"""What the tests in the lab share: files by name, and two ways to make a dma-buf of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.inner.cases import FILES, NOT_OPEN
from tests.lab.inner.raw import DEVICE, Item, create, create_list
from vgpud.host.fd import OwnedFd
from vgpud.host.region_file import RegionFile, classify
from vgpud.host.udmabuf import Udmabuf
from vgpuwire.ioctls import UdmabufCreateItem

PARAMETERS = Path("/sys/module/udmabuf/parameters")
HUGE_PAGES = Path("/proc/sys/vm/nr_hugepages")

File = Callable[[str], int]
Parameter = Callable[[str, int], object]
Export = Callable[[Sequence[Item]], int]
"""Make a dma-buf of these items; returns its fd, which is closed after the test."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def file(stack: ExitStack) -> Callable[[str], int]:
    """The fd of a file of FILES, made at its first use and closed after the test."""
    made: dict[str, int] = {}

    def get(name: str) -> int:
        if name not in made:
            fd = made[name] = FILES[name]()
            if fd != NOT_OPEN:
                stack.callback(os.close, fd)
        return made[name]

    return get


@pytest.fixture
def device(stack: ExitStack) -> int:
    fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return fd


@pytest.fixture
def parameter() -> Iterator[Callable[[str, int], object]]:
    """Sets a parameter of the module; all are put back after the test."""
    before = {path: path.read_text() for path in PARAMETERS.iterdir()}
    yield lambda name, value: (PARAMETERS / name).write_text(str(value))
    for path, text in before.items():
        path.write_text(text)


@pytest.fixture(scope="session", autouse=True)
def huge_pages() -> Iterator[None]:
    """Some for the whole run, reserved while memory is not yet in pieces."""
    HUGE_PAGES.write_text("8")
    assert int(HUGE_PAGES.read_text()) == 8
    yield
    HUGE_PAGES.write_text("0")


def by_kernel(device: int, items: Sequence[Item]) -> int:
    return create(device, items[0]) if len(items) == 1 else create_list(device, items)


def by_wrapper(device: int, items: Sequence[Item]) -> int:
    """vgpud's way: each file a region of guest memory, looked at when it arrives."""
    numbers: dict[int, int] = {}
    files: list[RegionFile] = []
    runs = bytearray()
    for fd, offset, size in items:
        if fd not in numbers:
            numbers[fd] = len(files)
            with OwnedFd(os.dup(fd)) as borrowed:
                files.append(classify(borrowed))
        runs += UdmabufCreateItem(numbers[fd], offset, size).encode()
    with OwnedFd(os.dup(device)) as borrowed:
        size = sum(item[2] for item in items)
        dmabuf = Udmabuf(borrowed).export(bytes(runs), files, size)
        return os.dup(dmabuf.fileno())


@pytest.fixture(params=[by_kernel, by_wrapper])
def export(request: pytest.FixtureRequest, device: int, stack: ExitStack) -> Export:
    """Makes dma-bufs, by the kernel's ioctls and by vgpud."""

    def call(items: Sequence[Item]) -> int:
        fd: int = request.param(device, items)
        stack.callback(os.close, fd)
        return fd

    return call
