"""vgpud.host.vfio on a fake device; the kernel's own is in tests/lab/inner/test_vfio.py."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from threading import Thread

import pytest

from tests.support.fake_vfio import SHIFT, FakeVfio
from tests.unit.host.memory import PAGE, memfd, open_fds
from vgpud.errors import HostError
from vgpud.host.dmabuf import CannotExport, Quota
from vgpud.host.fd import OwnedFd
from vgpud.host.vfio import Bar, VfioDevice, Window, syspath_of

MIB = 1 << 20


@pytest.fixture
def fake() -> Iterator[FakeVfio]:
    made = FakeVfio({0: 256, 2: MIB, 4: MIB})
    yield made
    made.close()


def test_bars(fake: FakeVfio) -> None:
    device = fake.device()
    assert [bar.number for bar in device.bars] == [0, 2, 4]
    assert device.bars[1] == Bar(2, MIB, 2 << SHIFT, 7, (Window(0, MIB),))
    assert device.bar(4) == device.bars[2]
    assert device.bar(1) is None


@pytest.mark.parametrize(
    ("offset", "bar"),
    [
        (0, 0),
        (255, 0),
        (256, None),
        (2 << SHIFT, 2),
        ((2 << SHIFT) + MIB, None),
        (7 << SHIFT, None),
    ],
)
def test_bar_at(fake: FakeVfio, offset: int, bar: int | None) -> None:
    found = fake.device().bar_at(offset)
    assert (None if found is None else found.number) == bar


@pytest.mark.parametrize(
    "areas", [[], [(0, PAGE)], [(0, 3 * PAGE), (5 * PAGE, MIB - 5 * PAGE)]], ids=len
)
def test_the_areas_of_a_sparse_bar(areas: list[tuple[int, int]]) -> None:
    fake = FakeVfio({2: MIB}, {2: areas})
    assert fake.device().bars[0].windows == tuple(areas)
    fake.close()


def test_what_is_no_pci_device(fake: FakeVfio) -> None:
    before = open_fds()
    fake.flags = 1
    with pytest.raises(HostError, match="no PCI device"):
        fake.device()
    fake.info_errno = errno.ENOTTY
    with pytest.raises(HostError, match="asking fake for its BARs: Inappropriate ioctl"):
        fake.device()
    with memfd(PAGE) as fd, pytest.raises(HostError, match="Inappropriate ioctl"):
        VfioDevice(OwnedFd(os.dup(fd.fileno())))
    assert open_fds() == before


def test_syspath_of_what_has_none() -> None:
    with memfd(PAGE) as fd:
        assert syspath_of(fd.fileno()) == ""
    assert syspath_of(1 << 20) == ""


EXPORTS = [
    ("contiguous", [(0, 4 * PAGE)], [(0, 4 * PAGE)]),
    ("page by page", [(n * PAGE, PAGE) for n in range(4)], [(0, 4 * PAGE)]),
    ("scattered", [(8 * PAGE, PAGE), (PAGE, 2 * PAGE), (0, PAGE)], None),
    ("reversed", [(n * PAGE, PAGE) for n in (3, 2, 1, 0)], None),
    ("the same page", [(PAGE, PAGE)] * 4, None),
    ("the last", [(MIB - 4 * PAGE, 4 * PAGE)], None),
]


@pytest.mark.parametrize(("name", "ranges", "asked"), EXPORTS, ids=[row[0] for row in EXPORTS])
def test_export(
    name: str, ranges: list[tuple[int, int]], asked: list[tuple[int, int]] | None, fake: FakeVfio
) -> None:
    for page in range(MIB // PAGE):
        fake.write(2, page * PAGE, page.to_bytes(4, "little"))
    device, quota = fake.device(), Quota()
    before = open_fds()
    dmabuf = device.export(device.bars[1], ranges, 4 * PAGE - 100, quota)
    assert fake.exports == [(2, asked or ranges)]
    assert (dmabuf.size, quota.dmabufs, quota.size) == (4 * PAGE, 1, 4 * PAGE)
    got = [int.from_bytes(os.pread(dmabuf.fileno(), 4, n * PAGE), "little") for n in range(4)]
    assert got == [
        at // PAGE for start, length in ranges for at in range(start, start + length, PAGE)
    ]
    dmabuf.close()
    assert (quota.dmabufs, open_fds()) == (0, before)


@pytest.mark.parametrize(
    ("ranges", "size", "reason"),
    [
        ([(16, PAGE)], PAGE, "vfio-alignment"),
        ([(0, 100)], 100, "vfio-alignment"),
        ([(0, PAGE), (0, 0)], PAGE, "vfio-alignment"),
        ([(MIB - PAGE, 2 * PAGE)], 2 * PAGE, "vfio-end"),
        ([((1 << 64) - PAGE, 2 * PAGE)], 2 * PAGE, "vfio-end"),
        ([(0, PAGE)], 2 * PAGE, "vfio-short"),
        ([], 0, "vfio-short"),
    ],
)
def test_what_the_kernel_is_not_asked(
    fake: FakeVfio, ranges: list[tuple[int, int]], size: int, reason: str
) -> None:
    device, quota = fake.device(), Quota()
    with pytest.raises(CannotExport) as error:
        device.export(device.bars[1], ranges, size, quota)
    assert (error.value.reason, fake.exports, quota.dmabufs) == (reason, [], 0)


REFUSED = [
    (errno.EINVAL, "smaller than a page"),
    (errno.ENODEV, "another driver"),
    (errno.EOVERFLOW, "firmware"),
    (errno.ENOMEM, "short of memory"),
    (errno.EMFILE, "LimitNOFILE"),
    (errno.EIO, "power/control"),
]


@pytest.mark.parametrize(("number", "remedy"), REFUSED)
def test_each_refusal_has_its_remedy(fake: FakeVfio, number: int, remedy: str) -> None:
    device, quota = fake.device(), Quota()
    fake.errno = number
    with pytest.raises(CannotExport, match=f"a dma-buf of BAR 2 of fake.*{remedy}") as error:
        device.export(device.bars[1], [(0, PAGE)], PAGE, quota)
    assert (error.value.errno, quota.dmabufs) == (number, 0)
    assert error.value.reason == f"vfio-{errno.errorcode[number]}"
    fake.errno = 0
    device.export(device.bars[1], [(0, PAGE)], PAGE, quota)


@pytest.mark.parametrize(
    ("number", "remedy", "final"),
    [
        (errno.ENOTTY, "Linux 6.19", True),
        (errno.EOPNOTSUPP, "driver_override", True),
        (errno.EIO, "power/control", False),
    ],
)
def test_the_probe_is_made_once(fake: FakeVfio, number: int, remedy: str, final: bool) -> None:
    device, quota = fake.device(), Quota()
    fake.probe_errno = number
    for _ in range(3):
        with pytest.raises(CannotExport, match=remedy):
            device.export(device.bars[1], [(0, PAGE)], PAGE, quota)
    assert fake.probes == (1 if final else 3)
    assert (fake.exports, quota.dmabufs) == ([], 0)
    fake.probe_errno = 0
    other = fake.device()
    for _ in range(3):
        other.probe()
        other.export(other.bars[1], [(0, PAGE)], PAGE, quota)
    assert fake.probes == (2 if final else 4)


def test_the_quota_is_the_guests(fake: FakeVfio) -> None:
    device, quota = fake.device(), Quota(1)
    kept = device.export(device.bars[1], [(0, PAGE)], PAGE, quota)
    with pytest.raises(CannotExport, match="1 dma-bufs already"):
        device.export(device.bars[1], [(0, PAGE)], PAGE, quota)
    kept.close()
    assert len(fake.exports) == 1


def test_decoding(fake: FakeVfio) -> None:
    device = fake.device()
    assert device.decoding()
    fake.decode(False)
    assert not device.decoding()
    fake.decode(True)
    device.close()
    assert not device.decoding()


def test_nothing_is_exported_while_decoding_is_off(fake: FakeVfio) -> None:
    """Linux makes a dma-buf that is revoked then."""
    device, quota = fake.device(), Quota()
    fake.decode(False)
    with pytest.raises(CannotExport, match="switched the memory of fake off") as error:
        device.export(device.bars[1], [(0, PAGE)], PAGE, quota)
    assert (error.value.reason, fake.exports, quota.dmabufs) == ("vfio-off", [], 0)
    fake.decode(True)
    device.export(device.bars[1], [(0, PAGE)], PAGE, quota).close()


def test_a_closed_device(fake: FakeVfio) -> None:
    before = open_fds()
    device, quota = fake.device(), Quota()
    kept = device.export(device.bars[1], [(0, PAGE)], PAGE, quota)
    device.close()
    device.close()
    assert (device.fileno(), open_fds()) == (-1, before + 1)
    os.fstat(kept.fileno())
    with pytest.raises(CannotExport, match="fake has been given up"):
        device.export(device.bars[1], [(0, PAGE)], PAGE, quota)
    assert quota.dmabufs == 1


@pytest.mark.parametrize("request_", ["vfio_probe_dma_buf", "vfio_get_dma_buf"])
def test_close_does_not_wait_for_the_kernel(
    request_: str, fake: FakeVfio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop calls it. The number must not be somebody else's all the same."""
    before = open_fds()
    device = fake.device()
    original = getattr(fake, request_)

    def slow(number: int, *arguments: object) -> object:
        closer = Thread(target=device.close, daemon=True)
        closer.start()
        closer.join(10)
        assert not closer.is_alive()
        assert device.fileno() == -1
        assert os.path.sameopenfile(number, fake.memory)
        return original(number, *arguments)

    monkeypatch.setattr(fake, request_, slow)
    device.export(device.bars[1], [(0, PAGE)], PAGE, Quota()).close()
    assert open_fds() == before


def test_no_descriptor_is_left_for_the_request(
    fake: FakeVfio, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, quota = fake.device(), Quota()

    def dup(number: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "dup", dup)
    with pytest.raises(CannotExport, match="LimitNOFILE"):
        device.export(device.bars[1], [(0, PAGE)], PAGE, quota)
    with pytest.raises(CannotExport, match="LimitNOFILE"):
        device.probe()
    assert quota.dmabufs == 0


def test_capabilities_that_are_not_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without them a BAR with holes would be one that can be mapped whole."""
    fake = FakeVfio({2: MIB}, {2: [(0, PAGE)]})
    whole = fake.vfio_region_info
    monkeypatch.setattr(fake, "vfio_region_info", lambda *of: whole(*of)[:32])
    with pytest.raises(
        HostError, match=r"region 2 of fake is described by 72 bytes, too many.*update it"
    ):
        fake.device()
    fake.close()
