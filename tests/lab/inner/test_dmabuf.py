"""What the dma-bufs of /dev/udmabuf are like, whoever made them."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from errno import EBUSY, EINVAL, EPERM

import pytest

from tests.lab.inner.cases import FILES
from tests.lab.inner.conftest import Export, File
from tests.lab.inner.raw import HUGE_PAGE, PAGE, fdinfo, sync
from tests.lab.inner.test_udmabuf import refused
from vgpuwire.ioctls import (
    DMA_BUF_SYNC_END,
    DMA_BUF_SYNC_READ,
    DMA_BUF_SYNC_START,
    DMA_BUF_SYNC_WRITE,
)

READ_WRITE = DMA_BUF_SYNC_READ | DMA_BUF_SYNC_WRITE
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2


def mapped(fd: int, size: int, offset: int = 0) -> mmap.mmap:
    return mmap.mmap(fd, size, mmap.MAP_SHARED, offset=offset)


def number_pages(fd: int, first: int, pages: int = 64) -> None:
    """Each page of a file begins with a number of its own."""
    for i in range(pages):
        os.pwrite(fd, (first + i).to_bytes(8, "little"), i * PAGE)


def numbers(dmabuf: int, pages: int) -> list[int]:
    with mapped(dmabuf, pages * PAGE) as memory:
        return [int.from_bytes(memory[i * PAGE : i * PAGE + 8], "little") for i in range(pages)]


def test_identity(export: Export, file: File) -> None:
    """How a front-end or a test can tell it from other files."""
    fd = export([(file("ram"), 0, 64 * PAGE)])
    assert os.readlink(f"/proc/self/fd/{fd}") == "/dmabuf:"
    info = fdinfo(fd)
    assert (info["exp_name"], info["size"]) == ("udmabuf", str(64 * PAGE))
    assert not os.get_inheritable(fd)
    assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR


def test_memory_is_shared(export: Export, file: File) -> None:
    ram = file("ram")
    with mapped(ram, 64 * PAGE) as guest, mapped(export([(ram, PAGE, PAGE)]), PAGE) as memory:
        memory[8:12] = b"DMAB"
        assert guest[PAGE + 8 : PAGE + 12] == os.pread(ram, 4, PAGE + 8) == b"DMAB"
        guest[PAGE + 16 : PAGE + 20] = b"MEMF"
        assert memory[16:20] == b"MEMF"


def test_order(export: Export, file: File) -> None:
    """The items one after the other, of several files; a page may be there twice."""
    ram, other = file("ram"), file("ram2")
    number_pages(ram, 100)
    number_pages(other, 200)
    items = [(ram, 5 * PAGE, PAGE), (other, 2 * PAGE, 2 * PAGE), (ram, 0, PAGE), (ram, PAGE, PAGE)]
    fd = export([*items, items[0]])
    assert numbers(fd, 6) == [105, 202, 203, 100, 101, 105]
    with mapped(fd, 6 * PAGE) as memory:
        memory[16:20] = b"dup!"
        assert memory[5 * PAGE + 16 : 5 * PAGE + 20] == os.pread(ram, 4, 5 * PAGE + 16) == b"dup!"


def test_shuffled(export: Export, file: File) -> None:
    ram = file("ram")
    number_pages(ram, 0)
    order = [i * 27 % 64 for i in range(64)]
    assert numbers(export([(ram, i * PAGE, PAGE) for i in order]), 64) == order


def test_huge_pages(export: Export, file: File) -> None:
    huge = file("huge")
    with mapped(huge, 2 * HUGE_PAGE) as guest:
        for i in range(1024):
            guest[i * PAGE : i * PAGE + 8] = i.to_bytes(8, "little")
    assert numbers(export([(huge, 0, 2 * HUGE_PAGE)]), 1024) == list(range(1024))
    pieces = [(huge, HUGE_PAGE - PAGE, 2 * PAGE), (huge, 3 * PAGE, PAGE)]
    assert numbers(export(pieces), 3) == [511, 512, 3]


def test_outlives_the_file(export: Export) -> None:
    ram = FILES["ram"]()
    number_pages(ram, 300)
    fd = export([(ram, 2 * PAGE, 2 * PAGE)])
    os.close(ram)
    assert numbers(fd, 2) == [302, 303]


def test_a_hole_parts_them(export: Export, file: File) -> None:
    """F_SEAL_SHRINK does not stop a hole from being punched (a balloon does it): the guest gets a
    new page, the dma-buf keeps the old one, and nobody is told."""
    ram = file("ram")
    number_pages(ram, 1)
    fd = export([(ram, 0, 4 * PAGE)])
    libc = ctypes.CDLL(None)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
    assert libc.fallocate(ram, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, PAGE, PAGE) == 0
    os.pwrite(ram, (99).to_bytes(8, "little"), PAGE)
    assert numbers(fd, 4) == [1, 2, 3, 4]
    assert numbers(ram, 4) == [1, 99, 3, 4]


def test_file_is_held(export: Export, file: File) -> None:
    ram = file("only SHRINK")
    export([(ram, 0, PAGE)])
    with refused(EPERM):
        os.ftruncate(ram, 0)
    with refused(EBUSY):
        fcntl.fcntl(ram, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


def test_only_mapped(export: Export, file: File) -> None:
    """It can be mapped, shared, within its size. It can neither be read nor written nor cut."""
    fd = export([(file("ram"), 0, 8 * PAGE)])
    mapped(fd, PAGE, 7 * PAGE).close()
    for call in (
        lambda: mapped(fd, PAGE, 8 * PAGE),
        lambda: mapped(fd, 9 * PAGE),
        lambda: mmap.mmap(fd, PAGE, mmap.MAP_PRIVATE),
        lambda: os.read(fd, 4),
        lambda: os.write(fd, b"four"),
        lambda: os.ftruncate(fd, PAGE),
    ):
        with refused(EINVAL):
            call()


@pytest.mark.parametrize("how", [DMA_BUF_SYNC_READ, DMA_BUF_SYNC_WRITE, READ_WRITE])
def test_sync(how: int, export: Export, file: File) -> None:
    """CPU access is bracketed; an end needs a start, both need a direction."""
    fd = export([(file("ram"), 0, 64 * PAGE)])
    with refused(EINVAL):
        sync(fd, DMA_BUF_SYNC_END | how)
    for _ in range(2):
        sync(fd, DMA_BUF_SYNC_START | how)
        sync(fd, DMA_BUF_SYNC_END | how)
    for flags in (0, DMA_BUF_SYNC_END, 1 << 3 | how):
        with refused(EINVAL):
            sync(fd, flags)
