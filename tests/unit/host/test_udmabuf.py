"""Udmabuf: what is looked at before the kernel is asked, in which words it is refused, and what
is left behind. The device is a file and the ioctl a fake; real ones are in the lab."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.support.fake_udmabuf import ITEM, FakeUdmabuf
from tests.unit.host.memory import PAGE, SEALS, memfd, open_fds
from vgpud.host.dmabuf import CannotExport, Dmabuf, Quota
from vgpud.host.fd import Folder, OwnedFd
from vgpud.host.region_file import RegionFile, classify
from vgpud.host.udmabuf import DEVICE, Udmabuf

DEV = "/dev/null"


def runs(*items: tuple[int, int, int]) -> bytes:
    """Of (region, offset, length), as Backing.runs() returns them."""
    return b"".join(ITEM.pack(region, 0, offset, length) for region, offset, length in items)


def file_of(size: int, seals: int = SEALS) -> RegionFile:
    with memfd(size, seals) as fd:
        return classify(fd)


@pytest.fixture
def parameters(tmp_path: Path) -> Path:
    (tmp_path / "list_limit").write_text("4\n")
    (tmp_path / "size_limit_mb").write_text("1\n")
    return tmp_path


def device(
    parameters: Path, fake: FakeUdmabuf | None = None, quota: Quota | None = None
) -> Udmabuf:
    folder = Folder(str(parameters))
    folder.fileno()  # opened now: the tests count
    return Udmabuf(DEV, quota, folder, fake or FakeUdmabuf())


def refusal(
    udmabuf: Udmabuf, data: bytes, files: tuple[RegionFile, ...], size: int
) -> CannotExport:
    with pytest.raises(CannotExport) as error:
        udmabuf.export(data, files, size)
    assert udmabuf.quota.dmabufs == 0
    return error.value


def content(dmabuf: Dmabuf) -> bytes:
    return os.pread(dmabuf.fileno(), dmabuf.size + 1, 0)


# -- exports


def test_runs_of_two_memfds_in_their_order(parameters: Path) -> None:
    fake = FakeUdmabuf()
    udmabuf = device(parameters, fake)
    one, two = file_of(4 * PAGE), file_of(2 * PAGE)
    os.pwrite(one.fileno(), b"".join(bytes([n]) * PAGE for n in b"abcd"), 0)
    os.pwrite(two.fileno(), b"".join(bytes([n]) * PAGE for n in b"xy"), 0)
    data = runs((0, 2 * PAGE, PAGE), (1, PAGE, PAGE), (0, 0, 2 * PAGE))
    made = udmabuf.export(data, (one, two), 4 * PAGE - 3)
    assert made.size == 4 * PAGE
    assert content(made) == b"".join(bytes([n]) * PAGE for n in b"cyab")
    assert fake.calls == [
        [(one.fileno(), 2 * PAGE, PAGE), (two.fileno(), PAGE, PAGE), (one.fileno(), 0, 2 * PAGE)]
    ]


def test_pages_may_repeat_and_overlap(parameters: Path) -> None:
    file = file_of(2 * PAGE)
    data = runs((0, 0, 2 * PAGE), (0, PAGE, PAGE), (0, PAGE, PAGE))
    made = device(parameters).export(data, (file,), 4 * PAGE)
    assert made.size == 4 * PAGE


def test_the_device_is_opened_when_it_is_needed_and_once(parameters: Path) -> None:
    udmabuf = device(parameters)
    before = open_fds()
    file = file_of(PAGE)
    for _ in range(3):
        udmabuf.export(runs((0, 0, PAGE)), (file,), PAGE).close()
    assert open_fds() == before + 2, "the memfd and the device"
    udmabuf.close()
    assert open_fds() == before + 1
    udmabuf.export(runs((0, 0, PAGE)), (file,), PAGE).close()
    udmabuf.close()


def test_an_inherited_device_is_borrowed(parameters: Path) -> None:
    with OwnedFd(os.open(DEV, os.O_RDONLY)) as inherited:
        udmabuf = Udmabuf(inherited, None, str(parameters), FakeUdmabuf())
        udmabuf.export(runs((0, 0, PAGE)), (file_of(PAGE),), PAGE).close()
        udmabuf.close()
        assert inherited.fileno() >= 0
    assert refusal(udmabuf, runs((0, 0, PAGE)), (file_of(PAGE),), PAGE).reason == "EBADF"


def test_close_meanwhile_does_not_take_the_device_away(parameters: Path) -> None:
    """FakeUdmabuf looks at the device's descriptor first."""
    fake = FakeUdmabuf()
    udmabuf = device(parameters, fake)
    fake.during = udmabuf.close
    made = udmabuf.export(runs((0, 0, PAGE)), (file_of(PAGE),), PAGE)
    assert made.fileno() >= 0


# -- refusals before the kernel is asked


@pytest.mark.parametrize(
    ("items", "size", "reason", "what"),
    [
        ([(0, 100, PAGE)], PAGE, "alignment", "4096 bytes at 0x64 of region 0 are not whole pages"),
        ([(0, 0, 100)], PAGE, "alignment", "100 bytes at 0x0 of region 0 are not whole pages"),
        ([(0, 0, PAGE), (0, PAGE, 8)], 2 * PAGE, "alignment", "8 bytes at 0x1000 of region 0"),
        ([(0, 0, 9 * PAGE)], 9 * PAGE, "end-of-file", "guest memory ends at 0x8000, needed is 0x9"),
        ([(0, 8 * PAGE, PAGE)], PAGE, "end-of-file", "guest memory ends at 0x8000, needed is 0x9"),
        ([(0, 0, PAGE)], PAGE + 1, "short", "4096 bytes of guest memory, 8192 are to be shown"),
        ([(0, 0, PAGE), (0, 0, 0)], PAGE, "short", "an empty piece of region 0"),
        ([], PAGE, "short", "0 bytes of guest memory, 4096 are to be shown"),
        ([], 0, "short", "0 bytes of guest memory, 0 are to be shown"),
        ([(0, 0, PAGE)] * 5, 5 * PAGE, "list-limit", "guest memory in 5 pieces, udmabuf takes 4"),
        ([(0, 0, PAGE)], (1 << 20) + 1, "size-limit", "1 MiB of guest memory, udmabuf takes 1"),
    ],
)
def test_what_is_known_before_is_said_in_words(
    parameters: Path, items: list[tuple[int, int, int]], size: int, reason: str, what: str
) -> None:
    fake = FakeUdmabuf()
    error = refusal(device(parameters, fake), runs(*items), (file_of(8 * PAGE),), size)
    assert error.reason == reason
    assert str(error).startswith(what)
    assert not fake.calls


def test_the_remedy_for_many_pieces_is_a_modprobe_line(parameters: Path) -> None:
    error = refusal(device(parameters), runs(*[(0, 0, PAGE)] * 5), (file_of(PAGE),), 5 * PAGE)
    assert error.remedy == (
        "echo 16384 > /sys/module/udmabuf/parameters/list_limit, and for good 'options udmabuf "
        "list_limit=16384' in /etc/modprobe.d (built in: udmabuf.list_limit=16384 at boot)"
    )


def test_the_remedy_for_large_buffers(parameters: Path) -> None:
    error = refusal(device(parameters), runs((0, 0, PAGE)), (file_of(PAGE),), 2 << 30)
    assert "'options udmabuf size_limit_mb=2048' in /etc/modprobe.d" in error.remedy


def test_limits_are_read_each_time_and_need_not_be_told(parameters: Path) -> None:
    udmabuf = device(parameters)
    assert udmabuf.limits() == (4, 1)
    (parameters / "list_limit").write_text("9999")
    (parameters / "size_limit_mb").write_text("what")
    assert udmabuf.limits() == (9999, None)
    (parameters / "list_limit").unlink()
    assert udmabuf.limits() == (None, None)
    file = file_of(PAGE)
    udmabuf.export(runs(*[(0, 0, PAGE)] * 1025), (file,), 1025 * PAGE).close()


@pytest.mark.parametrize(
    ("seals", "reason"),
    [(0, "seal-off"), (SEALS | 0x8, "write-sealed"), (SEALS | 0x10, "write-sealed")],
)
def test_the_words_of_a_region_that_cannot_be_exported(
    parameters: Path, seals: int, reason: str
) -> None:
    good, bad = file_of(PAGE), file_of(PAGE, seals)
    data = runs((0, 0, PAGE), (1, 0, PAGE))
    error = refusal(device(parameters), data, (good, bad), 2 * PAGE)
    assert error.reason == reason
    assert bad.obstacle is not None
    assert str(error) == f"{bad.obstacle.what}; {bad.obstacle.remedy}"


def test_regions_that_are_not_used_do_not_matter(parameters: Path) -> None:
    good, bad = file_of(PAGE), file_of(PAGE, 0)
    assert device(parameters).export(runs((1, 0, PAGE)), (bad, good), PAGE).size == PAGE


def test_the_quota_is_asked_last_and_given_back(parameters: Path) -> None:
    udmabuf = device(parameters, quota=Quota(dmabufs=1))
    file = file_of(PAGE)
    one = udmabuf.export(runs((0, 0, PAGE)), (file,), PAGE)
    with pytest.raises(CannotExport, match="has 1 dma-bufs already"):
        udmabuf.export(runs((0, 0, PAGE)), (file,), PAGE)
    one.close()
    udmabuf.export(runs((0, 0, PAGE)), (file,), PAGE).close()


# -- refusals by the kernel


def test_no_device(parameters: Path) -> None:
    missing = str(parameters / "udmabuf")
    udmabuf = Udmabuf(missing, None, str(parameters), FakeUdmabuf())
    error = refusal(udmabuf, runs((0, 0, PAGE)), (file_of(PAGE),), PAGE)
    assert error.reason == "ENOENT"
    assert str(error) == (
        f"{missing}: No such file or directory (errno 2); "
        "load the module udmabuf (Linux 4.20 and later)"
    )
    Path(missing).touch()  # it appears late: no restart
    assert udmabuf.export(runs((0, 0, PAGE)), (file_of(PAGE),), PAGE).size == PAGE


def test_no_permission(parameters: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """root may open everything, so the kernel's answer is made up."""

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "no")

    udmabuf = device(parameters)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.raises(CannotExport) as error:
            udmabuf.export(b"", (), PAGE)
    assert error.value.reason == "EACCES"
    assert 'KERNEL=="udmabuf", GROUP="kvm", MODE="0660"' in error.value.remedy
    assert "--udmabuf=fd=N" in error.value.remedy


def test_another_device_and_the_real_ioctl(parameters: Path) -> None:
    udmabuf = Udmabuf(DEV, None, str(parameters))
    error = refusal(udmabuf, runs((0, 0, PAGE)), (file_of(PAGE),), PAGE)
    assert error.reason == "ENOTTY"
    assert str(error).startswith("UDMABUF_CREATE_LIST on /dev/null: Inappropriate ioctl for")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EINVAL, "Invalid argument (errno 22)"),
        (errno.ENOMEM, "too little memory that can be pinned"),
        (errno.ENOSPC, "vm.nr_hugepages"),
        (errno.EMFILE, "LimitNOFILE"),
        (errno.ENFILE, "fs.file-max"),
        (errno.EBADFD, "File descriptor in bad state"),
    ],
)
def test_the_kernel_s_errors(parameters: Path, number: int, words: str) -> None:
    fake = FakeUdmabuf()
    fake.errno = number
    udmabuf, file = device(parameters, fake), file_of(PAGE)
    before = open_fds()
    error = refusal(udmabuf, runs((0, 0, PAGE)), (file,), PAGE)
    assert (error.reason, error.errno) == (errno.errorcode[number], number)
    assert words in str(error)
    assert open_fds() == before + 1, "the device"


def test_the_default_is_the_kernel_s_node() -> None:
    udmabuf = Udmabuf()
    assert udmabuf.name == DEVICE == "/dev/udmabuf"
    if not os.path.exists(DEVICE):
        assert refusal(udmabuf, b"", (), PAGE).reason == "ENOENT"


def test_nothing_is_left_of_10_000_exports(parameters: Path) -> None:
    """Made, refused by us and refused by the kernel."""
    null = os.open(os.devnull, os.O_RDONLY)

    def create(device: int, data: bytes, fds: object) -> int:
        if len(data) > ITEM.size:
            raise OSError(errno.ENOMEM, "no")
        return os.dup(null)

    udmabuf = Udmabuf(DEV, None, str(parameters), create)
    file = file_of(4 * PAGE)
    one, two, bad = runs((0, 0, PAGE)), runs((0, 0, PAGE), (0, PAGE, PAGE)), runs((0, 1, PAGE))
    udmabuf.export(one, (file,), PAGE)
    before = open_fds()
    for round_ in range(10_000):
        if round_ % 3 == 0:
            assert udmabuf.export(one, (file,), PAGE).fileno() >= 0
        else:
            with pytest.raises(CannotExport):
                udmabuf.export(
                    two if round_ % 3 == 1 else bad, (file,), PAGE * (round_ % 3 * -1 % 3)
                )
    assert open_fds() == before
    assert (udmabuf.quota.dmabufs, udmabuf.quota.size) == (0, 0)
    os.close(null)
