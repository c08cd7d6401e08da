"""One GPU socket, a real one, between heads that a test plays and a QEMU that it plays."""

from __future__ import annotations

import errno
import os
import socket
import struct
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from tests.support.fake_pixels import FakeDmabuf
from vgpud.device.outcome import Silence
from vgpud.tasks.gpu_socket import MAX_OWED, GpuSocket
from vgpud.tasks.outgoing import Outgoing, Terms, Ticket
from vgpud.tasks.stats import Stats

GET_FEATURES, SET_FEATURES, GET_INFO, SCANOUT, UPDATE = 1, 2, 3, 7, 8
BUFFER, BUFFER_UPDATE, GET_EDID = 9, 10, 11
INFO, EDID = bytes(408), bytes(1056)


def message(request: int, body: bytes = b"") -> bytes:
    return struct.pack("<III", request, 0, len(body)) + body


class RealDmabuf(FakeDmabuf):
    """One with a descriptor, which a test tells from others by the size of its file."""

    def __init__(self) -> None:
        super().__init__(4096, bytes, os.memfd_create("dma-buf"))
        self.file_size = 4096 * (self.fd + 1)
        os.ftruncate(self.fd, self.file_size)

    def close(self) -> None:
        """Also what the host does when the guest's memory changes."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


@pytest.fixture(autouse=True)
def _no_fd_is_left() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


class Reluctant(socket.socket):
    """Takes so many bytes at a time: `takes` has the next numbers, 0 is a full socket, -1 a
    kernel without memory; then it is as any other."""

    takes: deque[int]

    def sendmsg(self, buffers: Any, ancdata: Any = (), *rest: Any) -> int:
        if not self.takes:
            return super().sendmsg(buffers, ancdata, *rest)
        most = self.takes.popleft()
        if most == 0:
            raise BlockingIOError
        if most < 0:
            raise OSError(errno.ENOBUFS, "no buffer space")
        return super().sendmsg([b"".join(bytes(part) for part in buffers)[:most]], ancdata)


class Rig:
    """`gpu`, QEMU's end of its socket, and what is to be sent next."""

    def __init__(self, takes: list[int] | None = None) -> None:
        ours, self.qemu = socket.socketpair()
        self.qemu.setblocking(False)
        self.sock = Reluctant(fileno=ours.detach())
        self.sock.takes = deque(takes or [])
        self.stats = Stats()
        self.queue: deque[Outgoing] = deque()
        self.terms: list[Terms] = []
        self.gpu = GpuSocket(self.sock, self.stats, self._next)
        self.got: list[tuple[str, Any]] = []
        self._bytes = bytearray()
        self._fds: list[int] = []
        self.dmabufs: list[RealDmabuf] = []

    def _next(self, terms: Terms) -> Outgoing | None:
        self.terms.append(terms)
        if self.queue and self.queue[0].answered and not terms.may_update:
            return None
        return self.queue.popleft() if self.queue else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.gpu.abandon()
        self.sock.close()
        self.qemu.close()
        for one in self.dmabufs:
            one.close()

    def dmabuf(self) -> RealDmabuf:
        self.dmabufs.append(RealDmabuf())
        return self.dmabufs[-1]

    def put(self, data: bytes, **rest: Any) -> Ticket:
        ticket = Ticket(1, self.stats)
        self.queue.append(Outgoing(deque([memoryview(data)]), [ticket], **rest))
        return ticket

    def on_reply(self, name: str) -> Callable[[Any], None]:
        return lambda payload: self.got.append((name, payload))

    # -- QEMU's side

    def read(self) -> list[tuple[int, bytes, list[int]]]:
        """(request, body, sizes of what its descriptors are) of each message that is whole. As
        QEMU does, a header is read by itself: the kernel glues longer reads over descriptors."""
        found = []
        while True:
            wanted = 12 - len(self._bytes)
            if wanted <= 0:
                request, flags, size = struct.unpack_from("<III", self._bytes)
                assert flags == 0
                wanted += size
                if wanted == 0:
                    found.append((request, bytes(self._bytes[12:]), self._fds))
                    self._bytes, self._fds = bytearray(), []
                    continue
            try:
                data, ancillary, _, _ = self.qemu.recvmsg(wanted, socket.CMSG_SPACE(64))
            except BlockingIOError:
                return found
            for _, _, raw in ancillary:
                assert not self._bytes, "not with the first byte"
                for (fd,) in struct.iter_unpack("<i", raw):
                    self._fds.append(os.fstat(fd).st_size)
                    os.close(fd)
            if not data:
                return found
            self._bytes += data

    def requests(self) -> list[int]:
        return [request for request, _, _ in self.read()]

    async def reply(self, request: int, payload: bytes = b"") -> None:
        self.qemu.sendall(struct.pack("<III", request, 4, len(payload)) + payload)
        await wait_all_tasks_blocked()

    async def negotiate(self, features: int = 3) -> None:
        await self.reply(GET_FEATURES, struct.pack("<Q", features))


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as made:
        yield made


@asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.gpu.run)
        await wait_all_tasks_blocked()
        yield
        rig.gpu.abandon()


# -- what is said, and when


def test_V01_the_first_word_is_a_question_about_features(rig: Rig) -> None:
    assert rig.read() == [(GET_FEATURES, b"", [])]
    rig.gpu.pump()
    assert rig.terms == [], "nobody is asked for pictures before the rings are known"


@pytest.mark.parametrize(("offered", "acked"), [(0, 0), (1, 1), (2, 2), (3, 3), ((1 << 64) - 1, 3)])
async def test_V01_V09_features_are_acked_and_modifiers_are_told_only_then(
    rig: Rig, offered: int, acked: int
) -> None:
    rig.gpu.speaking = True
    rig.gpu.pump()
    async with running(rig):
        await rig.negotiate(offered)
        assert rig.read() == [
            (GET_FEATURES, b"", []),
            (SET_FEATURES, struct.pack("<Q", acked), []),
        ]
        assert rig.terms[0] == Terms(True, False)
        assert rig.terms[-1] == Terms(True, bool(acked & 2))


def test_questions_go_before_pictures_and_wait_for_the_message_that_is_begun(rig: Rig) -> None:
    rig.sock.takes = deque([20, 0])
    rig.gpu.speaking = True
    rig.put(message(UPDATE, bytes(40)), pixels=20, updates=1)
    rig.put(message(UPDATE, bytes(41)), pixels=21, updates=1)
    rig.gpu.pump()
    rig.gpu.ask_display_info(rig.on_reply("info"))
    assert rig.requests() == [GET_FEATURES]
    rig.gpu.pump()
    assert rig.requests() == [UPDATE, GET_INFO, UPDATE]
    assert (rig.stats.updates, rig.stats.pixel_bytes) == (2, 41)


# -- descriptors


def test_V14_a_descriptor_comes_with_the_first_byte_of_its_message(rig: Rig) -> None:
    rig.read()
    one = rig.dmabuf()
    rig.gpu.speaking = True
    ticket = rig.put(message(BUFFER, bytes(40)), dmabuf=one)
    rig.put(message(UPDATE, bytes(24)))
    rig.gpu.pump()
    assert ticket.done
    data, ancillary, _, _ = rig.qemu.recvmsg(1, socket.CMSG_SPACE(64))
    ((_, _, raw),) = ancillary
    (fd,) = struct.unpack("<i", raw)
    assert data == b"\x09"
    assert os.fstat(fd).st_size == one.file_size
    os.close(fd)
    rest, ancillary, _, _ = rig.qemu.recvmsg(1000, socket.CMSG_SPACE(64))
    assert (len(rest), ancillary) == (51 + 36, [])
    os.fstat(one.fd)  # ours is still open


@pytest.mark.parametrize("first", [1, 11, 12, 13, 51])
@pytest.mark.parametrize("blocked", [[], [0], [0, 0]])
def test_V14_one_descriptor_is_sent_once_however_the_message_is_cut(
    rig: Rig, first: int, blocked: list[int]
) -> None:
    one = rig.dmabuf()
    rig.sock.takes = deque([*blocked, first, 0, 3, 0, 1, 1])
    rig.gpu.speaking = True
    ticket = rig.put(message(BUFFER, bytes(range(40))), dmabuf=one)
    second = rig.put(message(BUFFER_UPDATE, bytes(20)), answered=True)
    for _ in range(6):
        rig.gpu.pump()
    assert rig.read() == [
        (GET_FEATURES, b"", []),
        (BUFFER, bytes(range(40)), [one.file_size]),
        (BUFFER_UPDATE, bytes(20), []),
    ]
    assert (ticket.done, second.done) == (True, False)


@pytest.mark.parametrize("waits", [True, False])
def test_R09_a_dmabuf_that_was_closed_before_it_was_sent_is_no_harm(rig: Rig, waits: bool) -> None:
    """The guest's memory changed while the socket was full. To QEMU a DMABUF_SCANOUT without a
    descriptor means off, and the head has another one to tell."""
    one = rig.dmabuf()
    rig.gpu.speaking = True
    if waits:
        rig.sock.takes = deque([0])
    else:
        one.close()
    ticket = rig.put(message(BUFFER, bytes(40)), dmabuf=one)
    rig.gpu.pump()
    one.close()
    rig.put(message(SCANOUT, bytes(12)))
    rig.gpu.pump()
    assert not rig.gpu.gone
    assert rig.read() == [
        (GET_FEATURES, b"", []),
        (BUFFER, bytes(40), []),
        (SCANOUT, bytes(12), []),
    ]
    assert ticket.done


def test_R09_a_message_that_is_begun_is_finished_though_its_dmabuf_was_closed(rig: Rig) -> None:
    one = rig.dmabuf()
    rig.gpu.speaking = True
    rig.sock.takes = deque([5, 0])
    rig.put(message(BUFFER, bytes(40)), dmabuf=one)
    rig.gpu.pump()
    one.close()
    rig.gpu.pump()
    assert rig.read()[1] == (BUFFER, bytes(40), [one.file_size])


# -- the credit


async def test_V07_the_answer_to_an_update_is_the_credit_for_the_next(rig: Rig) -> None:
    rig.gpu.speaking = True
    first = rig.put(message(BUFFER_UPDATE, bytes(20)), answered=True)
    second = rig.put(message(BUFFER_UPDATE, bytes(20)), answered=True)
    async with running(rig):
        rig.gpu.pump()
        assert rig.requests() == [GET_FEATURES, BUFFER_UPDATE]
        assert rig.terms[-1].may_update is False
        await rig.negotiate()
        assert rig.requests() == [SET_FEATURES]
        assert (first.done, second.done) == (False, False)
        await rig.reply(BUFFER_UPDATE)
        assert (first.done, second.done) == (True, False)
        assert rig.requests() == [BUFFER_UPDATE]
        await rig.reply(BUFFER_UPDATE)
        assert second.done
        assert rig.terms[-1].may_update is True
    assert rig.stats.dmabuf_updates == 2
    assert rig.stats.frames == 2


async def test_V07_pixels_of_other_heads_go_on_meanwhile(rig: Rig) -> None:
    rig.gpu.speaking = True
    rig.put(message(BUFFER_UPDATE, bytes(20)), answered=True)
    pixels = rig.put(message(UPDATE, bytes(24)))
    rig.gpu.pump()
    assert rig.requests() == [GET_FEATURES, BUFFER_UPDATE, UPDATE]
    assert pixels.done


@pytest.mark.parametrize("cut", [True, False])
def test_R02_a_socket_that_is_lost_takes_every_ticket_once(rig: Rig, cut: bool) -> None:
    rig.gpu.speaking = True
    taken: list[int] = []
    for number, answered in enumerate((False, True, False)):
        ticket = rig.put(message(BUFFER_UPDATE if answered else UPDATE, bytes(20)))
        rig.queue[-1].answered = answered
        ticket.on_taken = lambda number=number: taken.append(number)
    rig.sock.takes = deque([32, 32, *([10, 0] if cut else [0])])
    rig.gpu.pump()
    assert taken == [0]
    rig.gpu.abandon()
    rig.gpu.abandon()
    rig.gpu.pump()
    assert sorted(taken) == [0, 1, 2]
    assert rig.gpu.gone


async def test_R02_the_end_of_the_socket_is_the_end_of_every_wait(rig: Rig) -> None:
    rig.gpu.speaking = True
    ticket = rig.put(message(BUFFER_UPDATE, bytes(20)), answered=True)
    rig.gpu.ask_display_info(rig.on_reply("info"))
    rig.gpu.ask_edid(0, rig.on_reply("edid"))
    rig.gpu.pump()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.gpu.run)
            await wait_all_tasks_blocked()
            rig.read()
            rig.qemu.close()
    assert ticket.done
    assert sorted(rig.got) == [("edid", Silence.LATE), ("info", Silence.LATE)]


# -- answers that nobody waits for, or that come late


async def test_V07_an_unasked_answer_is_nothing(rig: Rig) -> None:
    """Trap 24: QEMU answers an update of the socket before."""
    rig.gpu.speaking = True
    async with running(rig):
        await rig.negotiate()
        await rig.reply(BUFFER_UPDATE)
        ticket = rig.put(message(BUFFER_UPDATE, bytes(20)), answered=True)
        rig.gpu.pump()
        assert not ticket.done
        assert not rig.gpu.gone
        await rig.reply(BUFFER_UPDATE)
        assert ticket.done


async def test_V07_an_unasked_answer_spoils_no_question_before_our_own_update(rig: Rig) -> None:
    """It comes first of all, while QEMU owes us everything; an answer to an update can only come
    after those to the questions before it."""
    rig.gpu.speaking = True
    rig.gpu.ask_display_info(rig.on_reply("info"))
    ticket = rig.put(message(BUFFER_UPDATE, bytes(20)), answered=True)
    rig.gpu.pump()
    async with running(rig):
        await rig.reply(BUFFER_UPDATE)
        assert rig.got == []
        await rig.negotiate()
        await rig.reply(GET_INFO, INFO)
        assert rig.got == [("info", INFO)]
        assert not ticket.done
        assert rig.terms[-1] == Terms(False, True)
        await rig.reply(BUFFER_UPDATE)
        assert ticket.done


async def test_D01_a_late_answer_is_handed_on_all_the_same(rig: Rig) -> None:
    pending = rig.gpu.ask_display_info(rig.on_reply("info"))
    async with running(rig):
        await rig.negotiate()
        pending.expire()
        pending.expire()
        assert rig.got == [("info", Silence.LATE)]
        assert rig.stats.unanswered == 1
        late = struct.pack("<24x6I", 0, 0, 1920, 1080, 1, 0).ljust(408, b"\0")
        await rig.reply(GET_INFO, late)
        assert rig.got[1:] == [("info", late)]
        pending.expire()
    assert len(rig.got) == 2
    assert rig.stats.unanswered == 1


async def test_V08_a_head_that_qemu_lacks_is_known_by_the_answer_that_comes_instead(
    rig: Rig,
) -> None:
    async with running(rig):
        await rig.negotiate()
        rig.gpu.ask_edid(0, rig.on_reply("edid 0"))
        rig.gpu.ask_edid(9, rig.on_reply("edid 9"))
        assert rig.read()[2:] == [
            (GET_EDID, struct.pack("<I", 0), []),
            (GET_INFO, b"", []),
            (GET_EDID, struct.pack("<I", 9), []),
            (GET_INFO, b"", []),
        ]
        await rig.reply(GET_EDID, EDID)
        await rig.reply(GET_INFO, INFO)
        assert rig.got == [("edid 0", EDID)]
        await rig.reply(GET_INFO, INFO)
        assert rig.got[1:] == [("edid 9", Silence.ABSENT)]


async def test_V08_an_update_that_is_shown_tells_as_well(rig: Rig) -> None:
    rig.gpu.speaking = True
    async with running(rig):
        await rig.negotiate()
        rig.gpu.ask_edid(9, rig.on_reply("edid"))
        ticket = rig.put(message(BUFFER_UPDATE, bytes(20)), answered=True)
        rig.gpu.pump()
        await rig.reply(GET_INFO, INFO)
        await rig.reply(BUFFER_UPDATE)
        assert rig.got == [("edid", Silence.ABSENT)]
        assert ticket.done


async def test_D07_an_edid_that_was_asked_for_early_is_asked_for_when_features_are_known(
    rig: Rig,
) -> None:
    rig.gpu.ask_edid(0, rig.on_reply("edid"))
    assert rig.requests() == [GET_FEATURES]
    async with running(rig):
        await rig.negotiate(3)
        assert rig.requests() == [SET_FEATURES, GET_EDID, GET_INFO]
        await rig.reply(GET_EDID, EDID)
    assert rig.got == [("edid", EDID)]


async def test_D07_a_qemu_without_edid_is_not_asked(rig: Rig) -> None:
    rig.gpu.ask_edid(0, rig.on_reply("early"))
    async with running(rig):
        await rig.negotiate(0)
        rig.gpu.ask_edid(0, rig.on_reply("late"))
        assert rig.requests() == [GET_FEATURES, SET_FEATURES]
    assert rig.got == [("early", Silence.LATE), ("late", Silence.LATE)]


# -- bounds


@pytest.mark.parametrize(
    ("kind", "negotiated"),
    [("info", True), ("info", False), ("edid", True), ("edid", False)],
)
async def test_V12_what_qemu_owes_is_bounded(rig: Rig, kind: str, negotiated: bool) -> None:
    """A guest goes on asking where a display answers nothing."""
    async with running(rig):
        if negotiated:
            await rig.negotiate()
        for _ in range(1000):
            if kind == "info":
                rig.gpu.ask_display_info(rig.on_reply(kind)).expire()
            else:
                rig.gpu.ask_edid(0, rig.on_reply(kind)).expire()
        assert len(rig.gpu._owed) <= MAX_OWED
        assert len(rig.gpu._early) <= MAX_OWED
        assert len(rig.gpu._questions) <= MAX_OWED
        assert rig.got == [(kind, Silence.LATE)] * 1000
        if not negotiated:
            await rig.negotiate()
        for request, _, _ in rig.read():
            if request in (GET_INFO, GET_EDID):
                await rig.reply(request, INFO if request == GET_INFO else EDID)
        assert not rig.gpu._owed
        rig.gpu.ask_display_info(rig.on_reply("again"))
        await rig.reply(GET_INFO, INFO)
        assert rig.got[-1] == ("again", INFO)


@pytest.mark.parametrize("kind", ["answered", "given up"])
async def test_whoever_asked_is_let_go_of_before_the_deadline(rig: Rig, kind: str) -> None:
    """The deadline keeps the question for a second; a guest may ask ten thousand meanwhile, each
    with a request of 256 KiB."""

    class Asker:
        def __call__(self, _: object) -> None:
            pass

    async with running(rig):
        await rig.negotiate()
        asker = Asker()
        alive = weakref.ref(asker)
        question = rig.gpu.ask_display_info(asker)
        del asker
        if kind == "answered":
            await rig.reply(GET_INFO, INFO)
        else:
            rig.gpu.abandon()
        assert question.done
        assert alive() is None


async def test_V12_what_waits_for_room_is_counted(rig: Rig) -> None:
    async with running(rig):
        await rig.negotiate()
        assert (rig.gpu.queued, rig.gpu.owed) == (0, 0)
        rig.sock.takes.extend([10, 0])
        rig.gpu.speaking = True
        rig.queue.append(Outgoing(deque([memoryview(bytes(100))])))
        rig.gpu.pump()
        assert rig.gpu.queued == 90
        rig.gpu.ask_display_info(lambda _: None)
        assert (rig.gpu.queued, rig.gpu.owed) == (102, 1)


async def test_V11_a_display_that_keeps_up_leaves_turns_to_others(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vgpud.tasks.gpu_socket.TURN_BYTES", 100)
    rig.gpu.speaking = True
    tickets = [rig.put(message(UPDATE, bytes(20)), pixels=40) for _ in range(7)]
    rig.gpu.pump()
    assert [ticket.done for ticket in tickets] == [True] * 3 + [False] * 4
    async with running(rig):
        assert all(ticket.done for ticket in tickets)
    assert rig.requests() == [GET_FEATURES, *[UPDATE] * 7]


async def test_V12_a_kernel_without_memory_is_waited_for(
    rig: Rig, autojump_clock: trio.testing.MockClock
) -> None:
    """A message that is begun is finished: QEMU waits for its end for ever."""
    rig.gpu.speaking = True
    rig.sock.takes = deque([9, -1, 1, -1])
    ticket = rig.put(message(UPDATE, bytes(20)))
    rig.gpu.pump()
    assert not rig.gpu.gone
    async with running(rig):
        await trio.sleep(0.1)
        assert ticket.done
        assert rig.requests() == [GET_FEATURES, UPDATE]


@pytest.mark.parametrize(
    "rubbish",
    [
        struct.pack("<III", 99, 4, 0),
        struct.pack("<III", GET_INFO, 0, 408),
        struct.pack("<III", GET_INFO, 4, 407) + bytes(407),
        struct.pack("<III", BUFFER_UPDATE, 4, 1) + b"1",
        struct.pack("<III", GET_EDID, 4, 1 << 31),
    ],
    ids=["unknown", "no answer", "a byte short", "a byte more", "2 GiB"],
)
async def test_a_qemu_that_breaks_the_protocol_is_left(rig: Rig, rubbish: bytes) -> None:
    rig.gpu.ask_display_info(rig.on_reply("info"))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.gpu.run)
            await wait_all_tasks_blocked()
            rig.qemu.sendall(rubbish)
    assert rig.got == [("info", Silence.LATE)]
    assert rig.gpu.gone
    assert rig.sock.fileno() >= 0, "closing it first would make QEMU spin (trap 10)"


# -- any order


piece = st.integers(0, 70)


@settings(max_examples=60, deadline=None)
@given(
    takes=st.lists(piece, max_size=40),
    kinds=st.lists(st.sampled_from(["buffer", "update", "pixels"]), min_size=1, max_size=6),
)
def test_every_message_arrives_whole_and_in_order_with_its_own_descriptor(
    takes: list[int], kinds: list[str]
) -> None:
    with Rig() as rig:
        rig.sock.takes = deque(takes)
        rig.gpu.speaking = True
        expected: list[tuple[int, bytes, list[int]]] = [(GET_FEATURES, b"", [])]
        for number, kind in enumerate(kinds):
            body = bytes([number]) * (20 + number)
            if kind == "buffer":
                one = rig.dmabuf()
                rig.put(message(BUFFER, body), dmabuf=one)
                expected.append((BUFFER, body, [one.file_size]))
            elif kind == "pixels":
                rig.put(message(UPDATE, body))
                expected.append((UPDATE, body, []))
            else:
                rig.put(message(BUFFER_UPDATE, body), answered=True)
                expected.append((BUFFER_UPDATE, body, []))
        for _ in range(len(takes) + 1):
            rig.gpu.pump()
        sent = rig.read()
        updates = [n for n, (request, _, _) in enumerate(expected) if request == BUFFER_UPDATE]
        end = updates[1] if len(updates) > 1 else len(expected)
        assert sent == expected[:end], "one update at a time"
