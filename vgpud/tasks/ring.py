"""One task a started ring: kick, serve, publish.

Serving is synchronous and cannot be cut off half way; its waits can be cancelled at any time.
An element that the display must answer is parked, the ring goes on, and every popped element is
given back: by its answer, at its deadline, or when the ring stops.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, Protocol

import trio

from vgpud import log
from vgpud.errors import RingBroken
from vgpud.host.fd import EventFd
from vgpud.host.guest_memory import Snapshot
from vgpud.host.virtqueue import Element, Virtqueue
from vgpud.tasks.stats import Stats

BATCH: Final = 64
TURN: Final = 0.002
"""Elements, and seconds, after which other tasks get a turn: a guest that never stops must not
starve the sockets, on which QEMU waits with its big lock held."""

SPIN: Final = 100e-6
"""Seconds that an empty ring is looked at before its kick is waited for, where the driver is known
to come back that fast: a wake-up costs it as much again."""

Push = Callable[[Element, bytes], None]


class Server(Protocol):
    """What is done with the elements of one ring."""

    def serve(self, element: Element, push: Push) -> None:
        """Execute one request; `push` gives the element back, now or later."""

    def flush(self) -> None:
        """The end of a batch."""

    def stop(self) -> None:
        """Give every element back that is still held."""

    @property
    def waits(self) -> bool:
        """Whether an answer depends on other tasks."""


class Gate(Protocol):
    """Holds a ring back while something must be asked before a request is executed. Those behind
    it wait as well, for a driver counts on their order."""

    def wants(self, request: bytes) -> bool:
        """Whether ask() is to be awaited before this one."""

    async def ask(self) -> None:
        """Takes a bounded time. Cancelled, the request is executed all the same."""


class RingTask:
    """Serves one virtqueue until it is stopped or broken."""

    def __init__(self, index: int, server: Server, stats: Stats, gate: Gate | None = None) -> None:
        self._index = index
        self._gate = gate
        self._held: Element | None = None
        self._admitted: Element | None = None
        self._call: EventFd | None = None
        self._err: EventFd | None = None
        self._server = server
        self._stats = stats
        self._enabled = False
        self._lost = False
        self._go = trio.Event()
        self._late: list[tuple[Element, bytes]] = []
        self._queue: Virtqueue | None = None
        self._kick: EventFd | None = None
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self._serving = False
        self._broken = False
        self._spin = 0.0

    @property
    def server(self) -> Server:
        """Who serves it: may be wrapped and unwrapped between two elements."""
        return self._server

    @server.setter
    def server(self, server: Server) -> None:
        self._server = server

    def set_call(self, call: EventFd | None) -> None:
        """Where to notify the driver from now on; None: it polls."""
        if self._call is not None:
            self._call.close()
        self._call = call

    def set_err(self, err: EventFd | None) -> None:
        """Where to tell QEMU that the ring is broken."""
        if self._err is not None:
            self._err.close()
        self._err = err

    def refuse(self, reason: str) -> None:
        """The ring cannot be started as it was set up."""
        log.warning("ring-refused", ring=self._index, reason=reason)
        if self._err is not None:
            self._err.signal()

    def close(self) -> None:
        """The session is over and run() with it: drop what is left."""
        self._queue = None
        if self._kick is not None:
            self._kick.close()
        self.set_call(None)
        self.set_err(None)

    def start(self, queue: Virtqueue, kick: EventFd) -> None:
        """The ring may be served; run() must be started next."""
        self._queue, self._kick = queue, kick
        self._scope, self._stopped = trio.CancelScope(), trio.Event()
        self._broken = self._lost = False
        self._held = self._admitted = None
        self._may_serve()

    def enable(self, enabled: bool) -> None:
        """SET_VRING_ENABLE: a disabled ring keeps its elements."""
        self._enabled = enabled
        self._may_serve()

    async def run(self) -> None:
        """Serve until stop(). A broken ring stays silent until then: QEMU must reset it."""
        queue, kick, stopped = self._queue, self._kick, self._stopped
        assert queue is not None
        assert kick is not None
        try:
            with self._scope:
                while True:
                    if not self._go.is_set():
                        await self._go.wait()
                    if self._held is not None:
                        assert self._gate is not None
                        await self._gate.ask()
                        self._admitted, self._held = self._held, None
                        continue  # the ring may rest by now
                    # Once without a kick: those of before the start were discarded by QEMU.
                    if self._serve(queue):
                        await trio.lowlevel.checkpoint()
                        continue
                    asleep = time.monotonic()
                    await trio.lowlevel.wait_readable(kick.fileno())
                    kick.drain()
                    # As KVM's halt polling: who came back soon is expected to do so again.
                    self._spin = SPIN if time.monotonic() - asleep < 2 * SPIN else 0.0
        except RingBroken as error:
            self._break(error)
        finally:
            stopped.set()

    async def stop(self) -> int | None:
        """Stop at once: parked elements are answered, all is published, nothing touches guest
        memory or signals afterwards. Returns the next available index, None if not started."""
        queue, kick = self._queue, self._kick
        if queue is None or kick is None:
            return None
        self._scope.cancel()
        await self._stopped.wait()
        try:
            self._serving = True
            for element in (self._held, self._admitted):
                if element is not None:
                    self._server.serve(element, self._push)
            self._held = self._admitted = None
            self._server.stop()
            if not self._broken and not self._lost:
                self._publish(queue)
        except RingBroken as error:
            self._break(error)
        self._serving = False
        self._late.clear()
        self._queue = self._kick = None
        kick.close()
        return queue.next_avail

    def rebind(self, memory: Snapshot) -> None:
        """Follow the memory table: QEMU does not send ring addresses again. Where they have gone
        the ring rests until they are back: with memory slots QEMU removes a region that changes
        its shape before it adds it."""
        queue = self._queue
        if queue is None or self._broken:
            return
        try:
            self._lost = not queue.rebind(memory)
            if not self._lost and self._late:
                late, self._late = self._late, []
                for element, response in late:
                    queue.push(element, response)
                self._publish(queue)
        except RingBroken as error:
            self._break(error)
        self._may_serve()

    def _may_serve(self) -> None:
        if self._enabled and not self._lost:
            self._go.set()
        elif self._go.is_set():
            self._go = trio.Event()

    def _serve(self, queue: Virtqueue) -> bool:
        """Batches until the ring is empty and armed, or others must have their turn: True if
        there may be more."""
        end = time.monotonic() + TURN
        arm = False
        while True:
            empty = self._batch(queue, end, arm)
            if self._broken or self._held is not None or time.monotonic() > end:
                return True
            if not empty:
                arm = False
            elif arm:
                return False
            else:
                spin = 0.0 if self._server.waits else self._spin
                arm = not (spin and queue.spin(spin))

    def _batch(self, queue: Virtqueue, end: float, arm: bool) -> bool:
        """Serve what is there, and publish the answers together; True if the ring was empty at
        the end."""
        self._serving = True
        serve, push = self._server.serve, self._push
        gate = self._gate
        count, empty = 0, False
        try:
            while count < BATCH:
                element, self._admitted = self._admitted, None
                if element is None:
                    element = queue.pop(arm)
                    if element is None:
                        empty = True
                        break
                    if gate is not None and gate.wants(element.request):
                        self._held = element
                        break
                count += 1
                serve(element, push)
                if time.monotonic() > end:
                    break
        finally:  # also where the ring broke half way: what came before it is shown
            self._stats.commands += count
            if count:
                self._server.flush()
            self._serving = False
        if count and not self._broken:
            self._publish(queue)
        return empty

    def _push(self, element: Element, response: bytes) -> None:
        queue = self._queue
        if queue is None or self._broken:
            return
        if self._lost:
            self._late.append((element, response))
            return
        try:
            queue.push(element, response)
            if not self._serving:  # an answer of the display, between batches
                self._publish(queue)
        except RingBroken as error:
            self._break(error)

    def _publish(self, queue: Virtqueue) -> None:
        if queue.publish() and self._call is not None:
            self._call.signal()

    def _break(self, error: RingBroken) -> None:
        """Nothing more is served until QEMU resets the device."""
        self._serving = False
        if self._broken:
            return
        self._broken = True
        self._scope.cancel()
        log.warning("ring-broken", ring=self._index, reason=error)
        if self._err is not None:
            self._err.signal()
