"""One GPU socket: messages out, answers in, in order.

Sending never waits and is never cancelled: `pump` sends what the socket takes, keeps the rest of
the message, and goes on when there is room. So a message once begun is finished, or its socket is
dead, because QEMU reads each whole while it holds its big lock.
"""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NoReturn

import trio

from vgpud import log
from vgpud.device.outcome import Silence
from vgpud.host.fd import unread
from vgpud.tasks.outgoing import Outgoing, Terms, small
from vgpud.tasks.stats import Stats
from vgpuwire import Framer, GpuProtocolFeature, GpuRequest, WireError, vhost_user_gpu

TURN_BYTES: Final = 8 << 20
"""Pixel bytes sent in one go where the display keeps up: then the control socket has its turn."""

STARVED: Final = 0.005
"""Seconds to wait where the kernel has no memory for a message, which must not be cut off."""

MAX_OWED: Final = 64
"""Answers that QEMU owes before it is asked nothing more: a guest goes on asking where a display
reads nothing."""

QUEUED: Final = 3 << 20
"""Bytes that wait for a display which reads nothing, at most: the message begun, of a tile and of
what the heads glue to it, and the questions. All else is a rectangle to be drawn later."""

PARTS: Final = 64
"""Pieces a sendmsg is given: more rows than the socket's buffer holds only cost time."""

SOCKET_BUFFER: Final = 1 << 20
"""Bytes asked of the kernel, which gives what net.core.wmem_max allows: fewer wake-ups a frame."""

_WANTED: Final = GpuProtocolFeature.EDID | GpuProtocolFeature.DMABUF2

OnReply = Callable[[Any], None]
"""Called with the parsed payload (vgpuwire says which), or a Silence."""


def _nobody(_: object) -> None:
    """Who asked has had the answer."""


@dataclass(slots=True, eq=False)
class PendingReply:
    """A request with an answer. QEMU answers in order, but some it never answers. An answer that
    is late is still handed on: it may be good for the next time."""

    request: GpuRequest
    on_reply: OnReply
    stats: Stats
    done: bool = False

    def answer(self, payload: object) -> None:
        """The last word. Whoever asked is let go of: the deadline keeps this until it comes, and a
        guest may ask ten thousand times a second, each time with a request of 256 KiB."""
        self.done = True
        on_reply, self.on_reply = self.on_reply, _nobody
        on_reply(payload)

    def give_up(self) -> None:
        """Nobody will answer."""
        if not self.done:
            self.answer(Silence.LATE)

    def expire(self) -> None:
        if not self.done:
            self.done = True
            self.stats.unanswered += 1
            self.on_reply(Silence.LATE)


class GpuSocket:
    """What was said on one socket and what QEMU owes on it.

    `next_message` is asked for more whenever there is room and no question is waiting to go out.
    """

    def __init__(
        self, sock: socket.socket, stats: Stats, next_message: Callable[[Terms], Outgoing | None]
    ) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        self.sock = sock
        self.speaking = False
        self.served = False
        self.gone = False
        self._stats = stats
        self._next_message = next_message
        self._scope = trio.CancelScope()
        self._out: Outgoing | None = None
        self._questions: deque[bytes] = deque()
        self._owed: deque[PendingReply] = deque()
        self._early: list[tuple[int, PendingReply]] = []
        self._features: GpuProtocolFeature | None = None
        self._updating = False
        self._full = trio.Event()
        self._starved = False
        self._ask(
            vhost_user_gpu.get_protocol_features(),
            PendingReply(GpuRequest.GET_PROTOCOL_FEATURES, self._negotiate, stats),
        )

    def ask_display_info(self, on_reply: OnReply) -> PendingReply:
        """The heads' modes: 408 bytes."""
        question = PendingReply(GpuRequest.GET_DISPLAY_INFO, on_reply, self._stats)
        self._ask(vhost_user_gpu.get_display_info(), question)
        return question

    def ask_edid(self, scanout_id: int, on_reply: OnReply) -> PendingReply:
        """A head's EDID: 1056 bytes; Silence.LATE at once where this QEMU has none (7.2)."""
        pending = PendingReply(GpuRequest.GET_EDID, on_reply, self._stats)
        if self._features is None:
            if len(self._early) < MAX_OWED:
                self._early.append((scanout_id, pending))
            else:
                self._stats.unasked += 1
                pending.give_up()
        else:
            self._ask_edid(scanout_id, pending)
        return pending

    @property
    def owed(self) -> int:
        """Questions that QEMU has not answered."""
        return len(self._owed)

    @property
    def queued(self) -> int:
        """Bytes that wait for room in the socket."""
        begun = () if self._out is None else self._out.parts
        return sum(map(len, self._questions)) + sum(map(len, begun))

    def pump(self) -> None:
        """Send until nothing is left, the socket is full, or others must have their turn."""
        budget = TURN_BYTES
        try:
            while not self.gone:
                if self._out is None:
                    self._out = self._next()
                    if self._out is None:
                        return
                if budget <= 0 or not self._send(self._out):
                    self._full.set()
                    return
                budget -= self._out.pixels
                sent, self._out = self._out, None
                self._stats.sent(sent.updates, sent.pixels, sent.answered)
                if sent.answered:
                    self._await_update(sent)
                else:
                    sent.take()
        except OSError as error:
            # EPIPE and ECONNRESET: QEMU closed it, as at every stop.
            report = log.debug if error.errno in (errno.EPIPE, errno.ECONNRESET) else log.error
            report("display-gone", error=error)
            self.abandon()

    def nudge(self) -> None:
        """Leave QEMU something to read that it ignores, if there is nothing else."""
        if not self.gone and self._out is None and not self._questions and not unread(self.sock):
            features = self._features or GpuProtocolFeature(0)
            self._questions.append(vhost_user_gpu.set_protocol_features(features))
            self.pump()

    def abandon(self) -> None:
        """Nobody speaks on it or waits for it any more; run() ends. The socket stays open."""
        if self.gone:
            return
        self.gone = True
        self._scope.cancel()
        out, self._out = self._out, None  # with its dma-buf
        if out is not None:
            out.take()
        for question in (*self._owed, *(question for _, question in self._early)):
            question.give_up()

    async def run(self) -> None:
        """Read answers and send what did not fit, until QEMU closes its end."""
        self.served = True
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                await self._read()
                nursery.cancel_scope.cancel()
        self.abandon()

    # -- inside

    def _send(self, out: Outgoing) -> bool:
        """Send without waiting; False where some of it is left. A dma-buf goes with the first
        byte, where QEMU looks for it."""
        self._starved = False
        parts = out.parts
        while parts:
            pieces = parts if len(parts) <= PARTS else islice(parts, PARTS)
            try:
                # Its pages may have left the memory table meanwhile: then the head goes dark until
                # it is told of the next.
                if out.dmabuf is None or out.dmabuf.fileno() < 0:
                    sent = self.sock.sendmsg(pieces)
                else:
                    sent = socket.send_fds(self.sock, [*pieces], [out.dmabuf.fileno()])
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in (errno.ENOBUFS, errno.ENOMEM):
                    raise
                self._starved = True
                return False
            out.dmabuf = None
            while parts and sent >= len(parts[0]):
                sent -= len(parts.popleft())
            if sent:
                parts[0] = memoryview(parts[0])[sent:]
        return True

    def _ask(self, message: bytes, question: PendingReply) -> None:
        if len(self._owed) >= MAX_OWED:
            self._stats.unasked += 1
            question.give_up()
            return
        self._owed.append(question)
        self._questions.append(message)
        if self._out is None:
            self.pump()

    def _ask_edid(self, scanout_id: int, question: PendingReply) -> None:
        if self._features and self._features & GpuProtocolFeature.EDID:
            self._ask(vhost_user_gpu.get_edid(scanout_id), question)
            # QEMU says nothing for a head that it lacks, but it answers in order: an answer to
            # this one first tells.
            self.ask_display_info(lambda _: None)
        else:
            question.give_up()

    def _negotiate(self, offered: int | Silence) -> None:
        if isinstance(offered, Silence):
            return
        self._features = GpuProtocolFeature(offered) & _WANTED
        self._questions.append(vhost_user_gpu.set_protocol_features(self._features))
        early, self._early = self._early, []
        for scanout_id, question in early:
            self._ask_edid(scanout_id, question)
        if self._out is None:
            self.pump()

    def _next(self) -> Outgoing | None:
        if self._questions:
            return small(self._questions.popleft())
        if not self.speaking:
            return None
        modifiers = bool(self._features and self._features & GpuProtocolFeature.DMABUF2)
        return self._next_message(Terms(not self._updating, modifiers))

    def _await_update(self, sent: Outgoing) -> None:
        """DMABUF_UPDATE was sent: QEMU's answer is the credit for the next, and ends the flush."""

        def taken(_: object) -> None:
            self._updating = False
            sent.take()
            if self._out is None:
                self.pump()

        self._updating = True
        self._owed.append(PendingReply(GpuRequest.DMABUF_UPDATE, taken, self._stats))

    async def _write(self) -> None:
        while True:
            await self._full.wait()
            if self._starved:
                await trio.sleep(STARVED)
            await trio.lowlevel.wait_writable(self.sock)
            self._full = trio.Event()
            self.pump()

    async def _read(self) -> None:
        """QEMU's answers go through a non-blocking write whose result it ignores, so they are
        drained whether or not anybody waits."""
        framer: Framer[NoReturn] = Framer(vhost_user_gpu.REPLIES)
        while True:
            await trio.lowlevel.wait_readable(self.sock)
            try:
                data = self.sock.recv(framer.wanted)
                if not data:
                    return
                reply = framer.feed(data)
            except BlockingIOError:
                continue
            except OSError as error:  # ECONNRESET: QEMU closed it with pixels unread, as at a stop
                log.debug("display-gone", error=error)
                return
            except WireError as error:
                log.warning("display-lost", error=error)
                return
            if reply is not None:
                self._receive(reply.request, reply.payload)

    def _receive(self, request: int, payload: object) -> None:
        if not self._is_owed(request):
            # A stale "blocked" of QEMU answers a DMABUF_UPDATE of the socket before (trap 24).
            log.debug("display-unasked", request=request)
            return
        while (question := self._owed.popleft()).request != request:
            question.answer(Silence.ABSENT)  # QEMU answers in order: it never will
        question.answer(payload)

    def _is_owed(self, request: int) -> bool:
        """QEMU leaves no question unanswered but a GET_EDID, so that an answer to DMABUF_UPDATE
        while another question before it is open can only be a stale one: taken for ours, it would
        settle those questions without their answers."""
        for question in self._owed:
            if question.request == request:
                return True
            if request == GpuRequest.DMABUF_UPDATE and question.request != GpuRequest.GET_EDID:
                return False
        return False
