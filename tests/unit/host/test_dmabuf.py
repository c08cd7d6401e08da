"""Dma-bufs: owned, counted, made once, dropped under whoever makes them."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

import pytest

from tests.unit.host.memory import PAGE, memfd, open_fds
from vgpud.errors import HostError
from vgpud.host import dmabuf
from vgpud.host.dmabuf import CannotExport, Dmabuf, LazyDmabuf, Quota


def make(quota: Quota, size: int = PAGE, items: int = 1) -> Dmabuf:
    return Dmabuf(memfd(size), size, quota, quota.take(size, items))


# -- one


def test_it_owns_its_descriptor() -> None:
    quota = Quota()
    one = make(quota)
    fd = one.fileno()
    os.fstat(fd)
    one.close()
    one.close()
    assert one.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_it_goes_with_its_last_reference() -> None:
    quota, before = Quota(), open_fds()
    one = make(quota)
    two = one
    del one
    assert (quota.dmabufs, open_fds()) == (1, before + 1)
    del two
    assert (quota.dmabufs, quota.size, open_fds()) == (0, 0, before)


# -- quotas


def test_a_quota_of_dmabufs() -> None:
    quota = Quota(dmabufs=2)
    kept = [make(quota), make(quota)]
    with pytest.raises(CannotExport, match="the guest has 2 dma-bufs already") as error:
        quota.take(PAGE, 1)
    assert error.value.reason == "quota-dmabufs"
    kept.pop()
    assert make(quota).size == PAGE


def test_a_quota_of_bytes() -> None:
    quota = Quota(size=4 << 20)
    kept = make(quota, 3 << 20)
    with pytest.raises(CannotExport, match="pin more than 4 MiB") as error:
        quota.take((1 << 20) + PAGE, 1)
    assert error.value.reason == "quota-bytes"
    assert quota.size == 3 << 20
    quota.take(1 << 20, 1)
    kept.close()
    assert quota.size == 1 << 20


def test_a_quota_of_pieces() -> None:
    """One page named in every piece of every dma-buf: its reference count must not overflow."""
    quota = Quota(items=100)
    quota.take(PAGE, 60)
    with pytest.raises(CannotExport, match="more than 100 pieces") as error:
        quota.take(PAGE, 41)
    assert error.value.reason == "quota-items"
    quota.take(PAGE, 40)


def test_usage_tells_what_is_left_and_what_was_refused() -> None:
    quota = Quota(dmabufs=3, size=4 * PAGE, items=10)
    kept = [quota.take(PAGE, 4), quota.take(2 * PAGE, 5)]
    for size, items in ((2 * PAGE, 1), (PAGE, 2), (PAGE, 3), (PAGE, 1)):
        with suppress(CannotExport):
            kept.append(quota.take(size, items))
    for _ in range(3):
        with pytest.raises(CannotExport):
            quota.take(0, 0)
    assert quota.usage() == {
        "dmabufs": (3, 3, 3),
        "pinned_bytes": (4 * PAGE, 4 * PAGE, 1),
        "pieces": (10, 10, 2),
    }


def test_the_limits_keep_a_page_s_count_below_its_overflow() -> None:
    bias, overflow = 1024, 1 << 31
    assert dmabuf.MAX_ITEMS * bias <= overflow // 2
    assert dmabuf.MAX_DMABUFS + 2 * 128 <= 1024 // 2, "the rest is for rings, regions, sockets"


def test_a_share_is_given_back_once() -> None:
    quota = Quota(dmabufs=2)
    one, two = quota.take(PAGE, 1), quota.take(PAGE, 1)
    quota.give(one)
    quota.give(one)
    assert quota.dmabufs == 1
    quota.give(two)
    assert quota.dmabufs == 0


# -- made when first asked for


class Lazy:
    """A LazyDmabuf with everything that it said."""

    def __init__(self) -> None:
        self.quota = Quota()
        self.said: list[str] = []
        self.made = 0
        self.lazy = LazyDmabuf(lambda error: self.said.append(error.reason))

    def make(self) -> Dmabuf:
        self.made += 1
        return make(self.quota)

    def refuse(self) -> Dmabuf:
        self.made += 1
        raise CannotExport("why", "what")

    def get(self) -> Dmabuf | None:
        return self.lazy.get(self.make)


def test_it_is_made_once_and_kept() -> None:
    all_ = Lazy()
    one = all_.get()
    assert one is not None
    assert (all_.get(), all_.made, all_.said) == (one, 1, [])


def test_drop_closes_it_under_whoever_refers_to_it() -> None:
    all_ = Lazy()
    one = all_.get()
    assert one is not None
    all_.lazy.drop()
    assert (one.fileno(), all_.quota.dmabufs) == (-1, 0)
    two = all_.get()
    assert two is not None
    assert two.fileno() >= 0


def test_a_refusal_is_remembered_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that flips 60 times a second must not ask the kernel 60 times a second."""
    now = 100.0
    monkeypatch.setattr("vgpud.host.dmabuf.time.monotonic", lambda: now)
    all_ = Lazy()
    for _ in range(3):
        assert all_.lazy.get(all_.refuse) is None
    assert (all_.made, all_.said) == (1, ["why"])
    now += dmabuf.RETRY - 0.1
    assert all_.get() is None
    now += 0.2
    assert all_.get() is not None


def test_a_change_lets_it_be_tried_at_once() -> None:
    all_ = Lazy()
    assert all_.lazy.get(all_.refuse) is None
    all_.lazy.drop()
    assert all_.get() is not None


def test_what_is_made_while_it_is_dropped_is_closed() -> None:
    """The memory table changes while a thread waits for the kernel: drop() does not wait, and
    the late dma-buf of old pages is seen by nobody."""
    all_ = Lazy()
    started, dropped = threading.Event(), threading.Event()
    got: list[Dmabuf | None] = []

    def slowly() -> Dmabuf:
        started.set()
        assert dropped.wait(10)
        return all_.make()

    thread = threading.Thread(target=lambda: got.append(all_.lazy.get(slowly)))
    thread.start()
    assert started.wait(10)
    all_.lazy.drop()
    dropped.set()
    thread.join(10)
    assert (got, all_.made, all_.quota.dmabufs) == ([None], 1, 0)


def test_two_threads_get_the_same_one() -> None:
    all_ = Lazy()
    barrier = threading.Barrier(4)
    got: list[Dmabuf | None] = []

    def slowly() -> Dmabuf:
        barrier.wait(10)
        return all_.make()

    threads = [threading.Thread(target=lambda: got.append(all_.lazy.get(slowly))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert all_.made == 4
    assert all_.quota.dmabufs == 1
    assert got == [got[0]] * 4
    assert got[0] is not None
    assert got[0].fileno() >= 0


def test_cannot_export_is_a_host_error_with_its_remedy() -> None:
    error = CannotExport("list-limit", "too many pieces", 22, "raise it")
    assert isinstance(error, HostError)
    assert str(error) == "too many pieces: Invalid argument (errno 22); raise it"
