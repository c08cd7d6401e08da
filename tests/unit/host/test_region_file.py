"""What is behind a region: every kind of file, and the words for why it cannot be exported."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.fake_vfio import FakeVfio
from tests.unit.host.memory import PAGE, SEALS, memfd
from vgpud.errors import HostError
from vgpud.host import region_file
from vgpud.host.fd import EventFd, OwnedFd
from vgpud.host.region_file import RegionFile, classify
from vgpud.host.vfio import VfioDevice

SHRINK, WRITE, FUTURE_WRITE = fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_WRITE, 0x10
SEALABLE = os.MFD_ALLOW_SEALING
HUGE = 2 << 20


def told(file: RegionFile) -> str:
    """The operator's line, as CannotExport has it."""
    return "" if file.obstacle is None else f"{file.obstacle.what}; {file.obstacle.remedy}"


# -- VFIO devices


@pytest.fixture
def fake() -> Iterator[FakeVfio]:
    made = FakeVfio({2: PAGE})
    yield made
    made.close()


def linked(monkeypatch: pytest.MonkeyPatch, link: str) -> None:
    monkeypatch.setattr(region_file, "_link", lambda fd: link)


@pytest.mark.parametrize(
    ("link", "anonymous"),
    [("anon_inode:[vfio-device]", True), ("/dev/vfio/devices/vfio0", False)],
    ids=["of its group", "of its own node"],
)
def test_regions_of_one_device_share_it(
    link: str, anonymous: bool, fake: FakeVfio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All anonymous inodes look alike: its folder under /sys tells."""
    linked(monkeypatch, link)
    folders = iter(["/sys/one", "/sys/two", "/sys/one", "", ""])
    monkeypatch.setattr(region_file, "syspath_of", lambda fd: next(folders))
    made: list[OwnedFd] = []

    def device(fd: OwnedFd) -> VfioDevice:
        made.append(fd)
        return fake.device(["/sys/one", "/sys/two", "", ""][len(made) - 1])

    monkeypatch.setattr(region_file, "VfioDevice", device)
    known: list[RegionFile] = []
    for path in ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"):
        with OwnedFd(os.eventfd(0) if anonymous else os.open(path, os.O_RDWR)) as fd:
            known.append(classify(fd, known))
    one, two, again, unknown, other = known
    assert again is one
    assert len({id(file) for file in (one, two, unknown, other)}) == 4
    assert len(made) == 4
    for file in known:
        assert (file.kind, file.mappable, file.obstacle) == ("vfio", False, None)
        assert file.device is not None
        assert file.fileno() == file.device.fileno()
    for file in known:
        assert file.device is not None
        file.device.close()


@pytest.mark.parametrize(
    ("link", "anonymous"),
    [("anon_inode:[vfio-device]", True), ("/dev/vfio/devices/vfio0", False)],
    ids=["of its group", "of its own node"],
)
def test_regions_of_one_device_share_it_where_no_folder_is_told(
    link: str, anonymous: bool, fake: FakeVfio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Linux 7: QEMU sends the same opening of the device with each region."""
    linked(monkeypatch, link)
    monkeypatch.setattr(region_file, "VfioDevice", lambda fd: VfioDevice(fd, "fake", fake))
    known: list[RegionFile] = []
    for path in ("/dev/null", "/dev/zero"):
        with OwnedFd(os.eventfd(0) if anonymous else os.open(path, os.O_RDWR)) as fd:
            known += [classify(fd, known)]
            with OwnedFd(os.dup(fd.fileno())) as again:
                known += [classify(again, known)]
    one, same, two, too = known
    assert one is same
    assert two is too
    assert one is not two
    for file in (one, two):
        assert file.device is not None
        file.device.close()


def test_a_device_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The region is taken all the same: QEMU would not understand a refusal."""
    linked(monkeypatch, "anon_inode:[vfio-device]")
    with OwnedFd(os.eventfd(0)) as fd:
        file = classify(fd)
    assert (file.kind, file.mappable, file.device, file.fileno()) == ("vfio", False, None, -1)
    assert "device memory cannot be used: asking a VFIO device for its BARs" in told(file)


# -- memfds


@pytest.mark.parametrize("seals", [SHRINK, SEALS, SHRINK | fcntl.F_SEAL_GROW])
def test_a_sealed_memfd_can_be_exported(seals: int) -> None:
    with memfd(PAGE, seals) as fd:
        file = classify(fd)
        assert (file.kind, file.obstacle, file.page_size) == ("memfd", None, PAGE)
        assert file.fileno() not in (-1, fd.fileno()), "borrowed, so what is kept is its own"
        assert os.path.sameopenfile(file.fileno(), fd.fileno())
        assert not os.get_inheritable(file.fileno())


@pytest.mark.parametrize(
    ("seals", "flags"),
    [
        pytest.param(0, 0, id="seal=off"),
        pytest.param(0, SEALABLE, id="not sealed yet"),
        pytest.param(fcntl.F_SEAL_GROW, SEALABLE, id="sealed against growing only"),
        pytest.param(fcntl.F_SEAL_SEAL, SEALABLE, id="sealed against seals only"),
    ],
)
def test_a_memfd_that_may_shrink_says_seal_off(seals: int, flags: int) -> None:
    with memfd(PAGE, seals, flags) as fd:
        file = classify(fd)
    assert (file.kind, file.fileno()) == ("memfd", -1), "no descriptor that nobody needs"
    assert told(file) == "memory-backend-memfd has seal=off; leave it at seal=on"


@pytest.mark.parametrize("seal", [WRITE, FUTURE_WRITE])
def test_a_memfd_sealed_against_writing_says_so(seal: int) -> None:
    with memfd(PAGE, SHRINK | seal) as fd:
        file = classify(fd)
    assert (file.kind, file.fileno()) == ("memfd", -1)
    assert told(file).startswith("the memfd is sealed against writing; use -object memory-backend-")


def test_a_memfd_of_huge_pages(huge_page: None) -> None:
    with memfd(HUGE, flags=SEALABLE | os.MFD_HUGETLB) as fd:
        file = classify(fd)
        assert (file.kind, file.obstacle, file.page_size) == ("memfd", None, HUGE)
    with memfd(HUGE, 0, SEALABLE | os.MFD_HUGETLB) as fd:
        assert "seal=off" in told(classify(fd))


def test_a_name_that_looks_like_a_memfd_is_none(tmp_path: Path) -> None:
    """A file's name is the front-end's to choose; what decides is the file system."""
    path = tmp_path / "memfd:ram"
    path.write_bytes(bytes(PAGE))
    with OwnedFd(os.open(path, os.O_RDWR)) as fd:
        assert classify(fd).kind == "file"


# -- other files


def test_a_file_on_tmpfs() -> None:
    """memory-backend-file and -shm on /dev/shm: shmem, but with F_SEAL_SEAL for ever."""
    with tempfile.TemporaryFile(dir="/dev/shm") as made:
        file = classify(OwnedFd(os.dup(made.fileno())))
    assert (file.kind, file.fileno()) == ("file", -1)
    assert told(file) == (
        "guest memory is a file on tmpfs, which cannot be sealed; "
        "use -object memory-backend-memfd,share=on"
    )


def test_a_file_on_a_disk() -> None:
    with tempfile.TemporaryFile(dir=Path.home()) as made:
        file = classify(OwnedFd(os.dup(made.fileno())))
    assert (file.kind, file.fileno()) == ("file", -1)
    assert "use -object memory-backend-memfd,share=on" in told(file)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: os.open("/dev/zero", os.O_RDWR), "/dev/zero"),
        (lambda: os.eventfd(0), "anon_inode:[eventfd]"),
        (lambda: socket.socket().detach(), "socket:"),
        (lambda: os.open("/proc/self/maps", os.O_RDONLY), ""),
        (lambda: os.open("/dev/shm", os.O_RDONLY), "/dev/shm"),
    ],
)
def test_what_else_a_front_end_might_send(make: Callable[[], int], name: str) -> None:
    with OwnedFd(make()) as fd:
        file = classify(fd)
    assert file.kind in ("other", "file")
    assert file.fileno() == -1
    assert name in told(file)


@pytest.mark.parametrize(
    ("file_system", "kind"),
    [(region_file.DMA_BUF_MAGIC, "dma-buf"), (0x474D454D, "other")],
)
def test_what_this_machine_has_no_file_of(file_system: int, kind: str) -> None:
    """A dma-buf and a guest_memfd, by their file systems; real ones are in the lab."""
    with EventFd(os.eventfd(0)) as fd:
        file = region_file._classify(fd.fileno(), file_system, PAGE)
        assert file.kind == kind
        assert file.obstacle is not None
        assert (file.fileno() >= 0) == (kind == "dma-buf")


# -- identity and lifetime


def test_one_descriptor_a_memfd_however_often_it_comes() -> None:
    with memfd(4 * PAGE) as one, memfd(4 * PAGE) as two:
        first = classify(one)
        with OwnedFd(os.open(f"/proc/self/fd/{one.fileno()}", os.O_RDWR)) as again:
            assert classify(again, [first]) is first
        other = classify(two, [first])
        assert other is not first
        assert classify(two, iter([first, other])) is other


def test_anonymous_inodes_are_never_the_same() -> None:
    """All VFIO devices share one inode."""
    with EventFd(os.eventfd(0)) as one, EventFd(os.eventfd(0)) as two:
        known = classify(one)
        assert known.identity is None
        assert classify(two, [known]) is not known


def test_the_descriptor_goes_with_the_last_reference() -> None:
    with memfd(PAGE) as fd:
        file = classify(fd)
        kept = file.fileno()
        del file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(kept)


def test_a_closed_descriptor_is_an_error() -> None:
    with memfd(PAGE) as fd:
        pass
    with pytest.raises((HostError, ValueError)):
        classify(fd)
