"""QEMU's display, whichever socket it is on at the moment, or none.

Everything the device says changes a head's state at once, and is sent as the socket takes it: a
display that reads nothing stops neither the control socket nor the rings.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

import trio

from vgpud.config import DEFAULT_DEVICE_FPS
from vgpud.device.outcome import (
    Ask,
    CursorImage,
    CursorMove,
    Damage,
    DisplayMessage,
    Question,
    ShowSurface,
    Silence,
)
from vgpud.errors import PeerError
from vgpud.host.fd import hung_up, unread
from vgpud.tasks.deadlines import Deadlines
from vgpud.tasks.gpu_socket import MAX_OWED, QUEUED, GpuSocket, OnReply
from vgpud.tasks.heads import Head
from vgpud.tasks.mirror import MakeCanvas
from vgpud.tasks.outgoing import Outgoing, Terms, Ticket
from vgpud.tasks.reader import Reader
from vgpud.tasks.refresher import Refresher
from vgpud.tasks.stats import Stats
from vgpud.usage import Usage

FLUSH_DEADLINE: Final = 0.040
"""Seconds that a flush waits for the display at most: Linux gives up after 50 ms."""

MAX_KEPT: Final = 64
"""GPU sockets that QEMU has left and not closed. A driver that works brings none."""

NUDGE: Final = 0.001
"""Seconds between looks at whether QEMU has something to read, while it must not find nothing."""

ASK_DEADLINE: Final = 1.0
"""Seconds that a question waits: Linux gives up after 5 s, and an early guess at the modes would
be wrong for good, since QEMU does not say that its real answer differs."""


class DisplayLink:
    """Heads, and the socket that they are told on. With `make_canvas`, pictures go as dma-bufs
    where that is possible; without, as pixels. What is in device memory `reader` reads into what
    `make_copy` makes, `fps` times a second at most."""

    def __init__(
        self,
        stats: Stats,
        make_canvas: MakeCanvas | None = None,
        make_copy: MakeCanvas | None = None,
        reader: Reader | None = None,
        fps: float = DEFAULT_DEVICE_FPS,
    ) -> None:
        self._stats = stats
        self._make_canvas = make_canvas
        self._make_copy = make_copy
        self._refresher = Refresher(reader or Reader(), fps, self._flush_all)
        self._heads: dict[int, Head] = {}
        self._calling: dict[int, Head] = {}
        """Heads of which QEMU may not know all yet, in the order of their turns."""
        self._socket: GpuSocket | None = None
        self._had_socket = False
        self._idle: list[socket.socket] = []
        self._superseded = trio.Event()
        self._unmade = trio.Event()
        self._arrived = trio.Event()
        self._deadlines = Deadlines()

    # -- the device's side: synchronous, never waits

    def post(self, messages: Iterable[DisplayMessage]) -> Ticket:
        """Take messages of one outcome. The ticket says when their damage was shown; where
        nothing can be shown, or nothing was damaged, it is done at once."""
        damage: list[Damage] = []
        for message in messages:
            if isinstance(message, Damage):
                damage.append(message)
                continue
            head = self._head(message.scanout_id)
            if isinstance(message, CursorMove):
                head.pointer.move(message)
            elif isinstance(message, ShowSurface):
                head.show(message)
            else:
                assert isinstance(message, CursorImage)
                head.pointer.set_image(message)
        if not damage or self._socket is None or not self._socket.speaking:
            if damage and not self._had_socket:  # a QEMU without a display: nothing to wait for
                self._stats.flushed(0.0)
            return Ticket(0, self._stats)
        ticket = Ticket(len(damage), self._stats)
        for scanout_id, rect in damage:
            self._head(scanout_id).damage(rect, ticket)
        return ticket

    def flush(self) -> None:
        """Send what was posted, as far as the socket takes it: once a batch of commands."""
        if self._socket is not None:
            self._socket.pump()
            self._forget_if_gone()

    def limit(self, ticket: Ticket) -> None:
        """Bound the wait for a ticket that is not done."""
        self._deadlines.add(FLUSH_DEADLINE, ticket)

    def ask(self, ask: Ask, on_reply: OnReply) -> None:
        """Ask QEMU; `on_reply` gets the payload, or a Silence: at the deadline, at the end of the
        socket, or at once where there is nobody to ask."""
        if self._socket is None:
            on_reply(Silence.LATE if self._had_socket else Silence.NOBODY)
            return
        if ask.question is Question.DISPLAY_INFO:
            pending = self._socket.ask_display_info(on_reply)
        else:
            pending = self._socket.ask_edid(ask.scanout_id, on_reply)
        self._forget_if_gone()
        if not pending.done:
            self._deadlines.add(ASK_DEADLINE, pending)

    def reset(self) -> None:
        """The device was reset: nothing is shown any more. Its socket is at its end already, or,
        where only SET_VRING_BASE tells of the reset (decision 10), the next one is silent yet."""
        for head in self._heads.values():
            head.reset()
        self._calling.update(self._heads)

    def memory_changed(self) -> None:
        """The memory table is another one; returns when nothing here refers to the old."""
        for head in self._heads.values():
            head.memory_changed()
        self._unmade.set()  # and told by that task, after QEMU has its acknowledgement

    def heads(self) -> dict[int, Head]:
        """Those that were ever named, by their number."""
        return dict(self._heads)

    def usage(self) -> dict[str, Usage]:
        """What waits for QEMU. Beyond it questions have answers of our own, damage is merged."""
        gpu, stats = self._socket, self._stats
        owed, queued = (0, 0) if gpu is None else (gpu.owed, gpu.queued)
        return {
            "questions": Usage(owed, MAX_OWED, stats.unasked),
            "display_bytes": Usage(queued, QUEUED, stats.late_flushes),
        }

    # -- QEMU's side

    def attach(self, sock: socket.socket) -> None:
        """A new GPU socket (GPU_SET_SOCKET). The one before, if QEMU has not closed it, is kept
        open and left alone: QEMU's read handler may still be on its descriptor, and closing it
        first would hang QEMU (qemu-frontend, traps 6 and 10). Raises PeerError where too many are
        kept: a guest makes QEMU bring one with every write of its status, without end."""
        self._abandon()
        if len(self._idle) >= MAX_KEPT:
            sock.close()
            raise PeerError(
                f"the guest made QEMU bring {MAX_KEPT} display sockets without a reset; its GPU is"
                " given up"
            )
        self._socket = GpuSocket(sock, self._stats, self._next_message)
        self._had_socket = True
        self._arrived.set()

    def speak(self) -> None:
        """The rings' bases are known and no reset is due: show all that there is to show."""
        if self._socket is not None and not self._socket.speaking:
            self._socket.speaking = True
            for head in self._heads.values():
                head.replay()
            self._flush_all()

    def close(self) -> None:
        """The main connection has ended and run() with it: now every socket may go, and what heads
        show, since it pins memory."""
        self._abandon()
        self.reset()
        for sock in self._idle:
            sock.close()
        self._idle.clear()

    async def run(self) -> None:
        """Serve whichever socket is attached, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deadlines.run)
            nursery.start_soon(self._keep_qemu_reading)
            nursery.start_soon(self._make_dmabufs)
            nursery.start_soon(self._refresher.run)
            while True:
                await self._arrived.wait()
                self._arrived = trio.Event()
                gpu = self._socket
                if gpu is None:
                    continue
                try:
                    await gpu.run()
                finally:
                    self._retire(gpu.sock)
                if self._socket is gpu:
                    self._abandon()

    # -- inside

    def _flush_all(self) -> None:
        """After what may have changed for any head."""
        self._calling.update(self._heads)
        self.flush()

    async def _make_dmabufs(self) -> None:
        """In a thread, while rings and sockets go on; a flush meanwhile waits to its deadline."""
        while True:
            await self._unmade.wait()
            self._unmade = trio.Event()
            for head in list(self._heads.values()):
                picture = head.unmade
                if picture is not None:
                    await trio.to_thread.run_sync(picture.dmabuf)
                del picture  # a task that waits must not keep a dma-buf alive
            self._flush_all()

    async def _keep_qemu_reading(self) -> None:
        """A guest that rewrites its status with DRIVER_OK set makes QEMU bring a second socket but
        leave its read handler on the first. If that has bytes which nobody will ever read, the
        handler fires for ever and each time reads the second, blocking, with the big lock held:
        QEMU hangs for good on an empty one (trap 6). So it is not left empty: a message that
        QEMU ignores is in it whenever nothing else is."""
        while True:
            await self._superseded.wait()
            while any(map(unread, self._idle)):
                if self._socket is not None:
                    self._socket.nudge()
                await trio.sleep(NUDGE)
            self._superseded = trio.Event()

    def _head(self, scanout_id: int) -> Head:
        head = self._heads.get(scanout_id)
        if head is None:
            head = self._heads[scanout_id] = Head(scanout_id, self._make_canvas, self._make_copy)
        self._calling.setdefault(scanout_id, head)
        return head

    def _next_message(self, terms: Terms) -> Outgoing | None:
        """Pointers first, then pictures, each head in turn: a pointer waits for one message of
        pixels at most, and a busy head starves no other. One that has nothing to say is not asked
        again before something was posted for it, or may have changed for all."""
        for head in self._calling.values():
            message = head.pointer.next()
            if message is not None:
                return message
        for number, head in tuple(self._calling.items()):
            del self._calling[number]
            message = head.next_picture(terms)
            if message is not None or not terms.may_update:
                self._calling[number] = head  # last in turn
            if message is not None:
                return message
            if head.unmade is not None:
                self._unmade.set()
            if head.unread is not None:
                self._refresher.want(head)
        return None

    def _forget_if_gone(self) -> None:
        if self._socket is not None and self._socket.gone:
            self._abandon()

    def _abandon(self) -> None:
        """Nobody waits for anything on the present socket any more."""
        gpu, self._socket = self._socket, None
        if gpu is None:
            return
        gpu.abandon()
        for head in self._heads.values():
            head.release()
        if not gpu.served:  # else run() does
            self._retire(gpu.sock)

    def _retire(self, sock: socket.socket) -> None:
        """Keep a socket that nobody serves until QEMU's end is seen closed."""
        if sock.fileno() >= 0 and sock not in self._idle:
            self._idle.append(sock)
        for idle in [idle for idle in self._idle if hung_up(idle)]:
            self._idle.remove(idle)
            idle.close()
        if any(map(unread, self._idle)):
            self._superseded.set()
