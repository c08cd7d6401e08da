"""The GPU socket: messages out to QEMU's display, answers in.

One writer owns a socket. Sending never waits and is never cancelled: `_pump` sends what the
socket takes, keeps the rest of the message, and the writer goes on when there is room. So a
message once begun is finished, or its socket is dead, because QEMU reads each whole while it
holds its big lock. Everything the device says changes a head's state at once; a display that
reads nothing stops neither the control socket nor the rings.
"""

from __future__ import annotations

import heapq
import select
import socket
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import trio

from vgpud import log
from vgpud.device.outcome import (
    Ask,
    CursorImage,
    CursorMove,
    Damage,
    DisplayMessage,
    Question,
    ShowSurface,
)
from vgpud.tasks.heads import Head, Outgoing, Ticket, small
from vgpud.tasks.stats import Stats
from vgpuwire import GpuProtocolFeature, GpuRequest, WireError, vhost_user_gpu

FLUSH_DEADLINE: Final = 0.040
"""Seconds that a flush waits for the display at most: Linux gives up after 50 ms."""

ASK_DEADLINE: Final = 1.0
"""Seconds that a question waits: Linux gives up after 5 s, and an early guess at the modes would
be wrong for good, since QEMU does not say that its real answer differs."""

PARTS: Final = 64
"""Pieces a sendmsg is given: more rows than the socket's buffer holds only cost time."""

SOCKET_BUFFER: Final = 1 << 20
"""Bytes asked of the kernel, which gives what net.core.wmem_max allows: fewer wake-ups a frame."""

OnReply = Callable[[bytes | None], None]


@dataclass(slots=True)
class _Pending:
    """A question on the wire. QEMU answers in order, but some it never answers."""

    request: GpuRequest
    on_reply: OnReply | None
    stats: Stats

    @property
    def done(self) -> bool:
        return self.on_reply is None

    def answer(self, payload: bytes | None) -> None:
        """Call back once; later calls find nobody."""
        on_reply, self.on_reply = self.on_reply, None
        if on_reply is not None:
            on_reply(payload)

    def expire(self) -> None:
        if not self.done:
            self.stats.unanswered += 1
            self.answer(None)


@dataclass(slots=True, eq=False)
class _Socket:
    """One GPU socket and what was said on it."""

    sock: socket.socket
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    out: Outgoing | None = None
    control: deque[Outgoing] = field(default_factory=deque)
    pending: deque[_Pending] = field(default_factory=deque)
    unasked: list[tuple[bytes, _Pending]] = field(default_factory=list)
    features: GpuProtocolFeature | None = None
    speaking: bool = False
    served: bool = False
    blocked: trio.Event = field(default_factory=trio.Event)


class DisplayLink:
    """QEMU's display, whichever socket it is on at the moment, or none."""

    def __init__(self, stats: Stats) -> None:
        self._stats = stats
        self._heads: dict[int, Head] = {}
        self._turns: deque[int] = deque()
        self._link: _Socket | None = None
        self._idle: list[socket.socket] = []
        self._arrived = trio.Event()
        self._timers: list[tuple[float, int, Ticket | _Pending]] = []
        self._timer_set = trio.Event()

    # -- the device's side: synchronous, never waits

    def post(self, messages: Iterable[DisplayMessage]) -> Ticket:
        """Take messages of one outcome. The ticket says when their damage was shown; where
        nothing can be shown, or nothing was damaged, it is done at once."""
        damage: list[Damage] = []
        for message in messages:
            head = self._head(message.scanout_id)
            if isinstance(message, Damage):
                damage.append(message)
            elif isinstance(message, ShowSurface):
                head.show(message)
            elif isinstance(message, CursorImage):
                head.cursor_image(message)
            else:
                assert isinstance(message, CursorMove)
                head.cursor_move(message)
        link = self._link
        if not damage or link is None or not link.speaking:
            return Ticket(0, self._stats)
        ticket = Ticket(len(damage), self._stats)
        for part in damage:
            self._heads[part.scanout_id].damage(part.rect, ticket)
        return ticket

    def flush(self) -> None:
        """Send what was posted, as far as the socket takes it: once a batch of commands."""
        if self._link is not None and self._link.out is None:
            self._pump(self._link)

    def limit(self, ticket: Ticket) -> None:
        """Bound the wait for a ticket that is not done."""
        self._later(FLUSH_DEADLINE, ticket)

    def ask(self, ask: Ask, on_reply: OnReply) -> None:
        """Ask QEMU; `on_reply` gets the payload, or None at the deadline, at the end of the
        socket, or at once where there is nobody to ask."""
        link = self._link
        if link is None:
            on_reply(None)
            return
        if ask.question is Question.DISPLAY_INFO:
            request, message = GpuRequest.GET_DISPLAY_INFO, vhost_user_gpu.get_display_info()
        else:
            request, message = GpuRequest.GET_EDID, vhost_user_gpu.get_edid(ask.scanout_id)
        pending = _Pending(request, on_reply, self._stats)
        if request is GpuRequest.GET_EDID and link.features is None:
            link.unasked.append((message, pending))  # QEMU 7.2 would never answer
        elif request is GpuRequest.GET_EDID and not link.features & GpuProtocolFeature.EDID:
            pending.answer(None)
        else:
            self._send(link, message, pending)
        if not pending.done:
            self._later(ASK_DEADLINE, pending)

    def reset(self) -> None:
        """The device was reset: nothing is shown any more. The socket is at its end already."""
        for head in self._heads.values():
            head.release()
        self._heads.clear()
        self._turns.clear()

    # -- QEMU's side

    def attach(self, sock: socket.socket) -> None:
        """A new GPU socket (GPU_SET_SOCKET). The one before, if QEMU has not closed it, is kept
        open and left alone: QEMU's read handler may still be on its descriptor, and closing it
        first would hang QEMU (qemu-frontend, traps 6 and 10)."""
        self._detach()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        self._link = link = _Socket(sock)
        pending = _Pending(GpuRequest.GET_PROTOCOL_FEATURES, lambda _: None, self._stats)
        self._send(link, vhost_user_gpu.get_protocol_features(), pending)
        self._arrived.set()

    def speak(self) -> None:
        """The rings' bases are known and no reset is due: show all that there is to show."""
        link = self._link
        if link is not None and not link.speaking:
            link.speaking = True
            for head in self._heads.values():
                head.replay()
            self.flush()

    def close(self) -> None:
        """The main connection has ended and run() with it: now every socket may go."""
        link = self._link
        self._detach()
        if link is not None and link.served:
            link.sock.close()
        for sock in self._idle:
            sock.close()
        self._idle.clear()

    async def run(self) -> None:
        """Serve whichever socket is attached, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_timers)
            while True:
                await self._arrived.wait()
                self._arrived = trio.Event()
                link = self._link
                if link is None:
                    continue
                link.served = True
                with link.scope:
                    async with trio.open_nursery() as serving:
                        serving.start_soon(self._write, link)
                        await self._read(link)
                        serving.cancel_scope.cancel()
                self._retire(link.sock)

    # -- inside

    def _head(self, scanout_id: int) -> Head:
        head = self._heads.get(scanout_id)
        if head is None:
            head = self._heads[scanout_id] = Head(scanout_id)
            self._turns.append(scanout_id)
        return head

    def _detach(self) -> None:
        """The socket is no longer ours to speak on: nobody waits for anything on it."""
        link, self._link = self._link, None
        if link is None:
            return
        link.scope.cancel()
        if not link.served:
            self._retire(link.sock)
        if link.out is not None:
            for ticket in link.out.tickets:
                ticket.taken()
        for pending in (*link.pending, *(pending for _, pending in link.unasked)):
            pending.answer(None)
        for head in self._heads.values():
            head.release()

    def _retire(self, sock: socket.socket) -> None:
        """Keep a socket that nobody serves until QEMU's end is seen closed."""
        self._idle.append(sock)
        poll = select.poll()
        for idle in self._idle:
            poll.register(idle, 0)
        closed = {fd for fd, event in poll.poll(0) if event & select.POLLHUP}
        for idle in [idle for idle in self._idle if idle.fileno() in closed]:
            self._idle.remove(idle)
            idle.close()

    def _send(self, link: _Socket, message: bytes, pending: _Pending | None = None) -> None:
        link.control.append(small(message))
        if pending is not None:
            link.pending.append(pending)
        if link.out is None:
            self._pump(link)

    def _next(self, link: _Socket) -> Outgoing | None:
        """Questions first, then pointers, then pictures, each head in turn: a pointer waits for
        one message of pixels at most."""
        if link.control:
            return link.control.popleft()
        if not link.speaking:
            return None
        for head in self._heads.values():
            message = head.next_cursor()
            if message is not None:
                return message
        for _ in self._turns:
            number = self._turns[0]
            self._turns.rotate(-1)
            message = self._heads[number].next_picture()
            if message is not None:
                return message
        return None

    def _pump(self, link: _Socket) -> None:
        """Send until nothing is left or the socket is full."""
        try:
            while True:
                out = link.out
                if out is None:
                    out = link.out = self._next(link)
                    if out is None:
                        return
                if not _send_parts(link.sock, out.parts):
                    link.blocked.set()
                    return
                link.out = None
                self._stats.sent(out.pixels)
                for ticket in out.tickets:
                    ticket.taken()
        except OSError as error:  # EPIPE, ECONNRESET: QEMU closed it, as at every stop
            log.debug("display-gone", error=error)
            if self._link is link:
                self._detach()

    async def _write(self, link: _Socket) -> None:
        while True:
            await link.blocked.wait()
            await trio.lowlevel.wait_writable(link.sock)
            link.blocked = trio.Event()
            self._pump(link)

    async def _read(self, link: _Socket) -> None:
        """Answers, until QEMU closes its end. Its answers go through a non-blocking write whose
        result it ignores, so they are drained whether or not anybody waits."""
        framer = vhost_user_gpu.reply_framer()
        while True:
            await trio.lowlevel.wait_readable(link.sock)
            try:
                data = link.sock.recv(framer.wanted)
                reply = framer.feed(data) if data else None
            except BlockingIOError:
                continue
            except (OSError, WireError) as error:
                log.warning("display-lost", error=error)
                data, reply = b"", None
            if not data:
                if self._link is link:
                    self._detach()
                return
            if reply is not None:
                self._receive(link, reply.request, reply.payload)

    def _receive(self, link: _Socket, request: int, payload: bytes) -> None:
        if not any(pending.request == request for pending in link.pending):
            # A stale "blocked" of QEMU answers a DMABUF_UPDATE of the socket before (trap 24).
            log.debug("display-unasked", request=request)
            return
        while (pending := link.pending.popleft()).request != request:
            pending.expire()  # QEMU answers in order: it never will
        if request == GpuRequest.GET_PROTOCOL_FEATURES:
            offered = GpuProtocolFeature(int.from_bytes(payload, "little"))
            link.features = offered & GpuProtocolFeature.EDID
            self._send(link, vhost_user_gpu.set_protocol_features(link.features))
            unasked, link.unasked = link.unasked, []
            for message, question in unasked:
                if link.features & GpuProtocolFeature.EDID:
                    self._send(link, message, question)
                else:
                    question.answer(None)
        pending.answer(payload)

    # -- deadlines

    def _later(self, seconds: float, waiter: Ticket | _Pending) -> None:
        heapq.heappush(self._timers, (trio.current_time() + seconds, id(waiter), waiter))
        self._timer_set.set()

    async def _run_timers(self) -> None:
        """Sleeps to the first deadline that still matters: not a wake-up a flush."""
        while True:
            while self._timers and self._timers[0][2].done:
                heapq.heappop(self._timers)
            if not self._timers:
                self._timer_set = trio.Event()
                await self._timer_set.wait()
                continue
            await trio.sleep_until(self._timers[0][0])
            while self._timers and self._timers[0][0] <= trio.current_time():
                heapq.heappop(self._timers)[2].expire()


def _send_parts(sock: socket.socket, parts: deque[memoryview]) -> bool:
    """Send pieces without waiting; False where the socket is full and some are left."""
    while parts:
        try:
            sent = sock.sendmsg([parts[i] for i in range(min(len(parts), PARTS))])
        except BlockingIOError:
            return False
        while parts and sent >= len(parts[0]):
            sent -= len(parts.popleft())
        if sent:
            parts[0] = parts[0][sent:]
    return True
