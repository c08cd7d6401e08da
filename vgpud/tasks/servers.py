"""What the two rings do with an element: the control queue answers, the cursor queue does not."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from vgpud import log
from vgpud.device.gpu import GpuDevice
from vgpud.device.outcome import Ask, Outcome, Silence, Timeline
from vgpud.host.virtqueue import Element
from vgpud.tasks.display import DisplayLink
from vgpud.tasks.outgoing import Ticket
from vgpud.tasks.ring import Push
from vgpuwire import Ctrl


@dataclass(slots=True, eq=False)
class _Parked:
    """An element that was executed and waits for the display, or for an earlier fence."""

    element: Element
    push: Push
    timeline: Timeline | None
    due: Ask | Outcome
    response: bytes | None = None


class ControlServer:
    """The control queue.

    A fenced answer never overtakes an earlier fenced one of its timeline, because Linux then
    signals both; unfenced answers may (decision 8).
    """

    def __init__(self, device: GpuDevice, display: DisplayLink) -> None:
        self._device = device
        self._display = display
        self._parked: dict[_Parked, None] = {}  # in the order they came
        self._timelines: dict[Timeline, deque[_Parked]] = {}
        self._tickets: list[Ticket] = []
        self._warned = False

    def serve(self, element: Element, push: Push) -> None:
        due = self._device.execute(element.request)
        if isinstance(due, Ask):
            question = due
            parked = self._park(element, push, due)
            if question.done is not None:
                self._display.post(question.done.display)
            self._display.ask(question, lambda reply: self._answered(parked, question, reply))
            return
        if due.display:
            ticket = self._display.post(due.display)
            if not ticket.done:
                outcome = due
                parked = self._park(element, push, due)
                ticket.on_taken = lambda: self._settle(parked, outcome)
                self._tickets.append(ticket)
                return
        if due.timeline is None or due.timeline not in self._timelines:
            push(element, due.response)
        else:
            self._settle(self._park(element, push, due), due)

    def flush(self) -> None:
        if not self._warned and Ctrl.RESP_ERR_OUT_OF_MEMORY in self._device.guest_errors:
            self._warned = True
            log.warning("guest-out-of-memory", hint="its display may stay dark: --max-hostmem")
        self._display.flush()
        for ticket in self._tickets:
            if not ticket.done:
                self._display.limit(ticket)
        self._tickets.clear()

    @property
    def waits(self) -> bool:
        return bool(self._parked)

    def stop(self) -> None:
        """The GPU socket is at its end already: no answer will come."""
        self._tickets.clear()
        for parked in list(self._parked):
            if isinstance(parked.due, Ask):
                self._answered(parked, parked.due, Silence.LATE)
            else:
                self._settle(parked, parked.due)

    def _park(self, element: Element, push: Push, due: Ask | Outcome) -> _Parked:
        parked = _Parked(element, push, due.timeline, due)
        self._parked[parked] = None
        if due.timeline is not None:
            self._timelines.setdefault(due.timeline, deque()).append(parked)
        return parked

    def _answered(self, parked: _Parked, ask: Ask, reply: bytes | Silence) -> None:
        if parked.response is None:
            outcome = self._device.answer(ask, reply)
            if outcome.display:
                self._display.post(outcome.display)
                self._display.flush()
            self._settle(parked, outcome)
        elif isinstance(reply, bytes):
            self._device.answer(ask, reply)  # too late for this guest's question: remembered

    def _settle(self, parked: _Parked, outcome: Outcome) -> None:
        """The answer is due: now, or when the fences before it are."""
        if parked.response is not None:
            return
        parked.response = outcome.response
        if parked.timeline is None:
            self._give_back(parked, outcome.response)
            return
        line = self._timelines[parked.timeline]
        while line and (response := line[0].response) is not None:
            self._give_back(line.popleft(), response)
        if not line:
            del self._timelines[parked.timeline]

    def _give_back(self, parked: _Parked, response: bytes) -> None:
        self._parked.pop(parked, None)
        parked.push(parked.element, response)


class CursorServer:
    """The cursor queue: no command has an answer, and none ever waits (rows K01 to K16)."""

    def __init__(self, device: GpuDevice, display: DisplayLink) -> None:
        self._device = device
        self._display = display

    def serve(self, element: Element, push: Push) -> None:
        message = self._device.execute_cursor(element.request)
        if message is not None:
            self._display.post((message,))
        push(element, b"")

    def flush(self) -> None:
        self._display.flush()

    @property
    def waits(self) -> bool:
        return False

    def stop(self) -> None:
        pass
