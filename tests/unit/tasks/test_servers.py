"""The two rings' servers, on the real device, between a fake ring and a fake display."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.device.driver import (
    BAD_RESOURCE,
    BAD_SCANOUT,
    FENCE,
    OK,
    OK_DISPLAY_INFO,
    OK_EDID,
    RING_IDX,
    Driver,
    create_2d,
    flush,
    get_display_info,
    get_edid,
    move_cursor,
    set_scanout,
    snapshot,
    unref,
    update_cursor,
)
from vgpud.device.outcome import Ask, Damage, DisplayMessage, ShowSurface, Silence
from vgpud.tasks.outgoing import Ticket
from vgpud.tasks.servers import ControlServer, CursorServer
from vgpud.tasks.stats import Stats

CONTEXT_INIT = 1 << 4


class Element:
    """One request of the ring."""

    def __init__(self, request: bytes) -> None:
        self.request = request


class Display:
    """Shows a flush when it is told to, answers a question when it is told to."""

    def __init__(self) -> None:
        self.stats = Stats()
        self.listening = True
        self.posted: list[DisplayMessage] = []
        self.tickets: list[Ticket] = []
        self.questions: list[tuple[Ask, Callable[[Any], None]]] = []
        self.limited: list[Ticket] = []
        self.flushes = 0

    def post(self, messages: Iterable[DisplayMessage]) -> Ticket:
        messages = list(messages)
        self.posted += messages
        damaged = sum(isinstance(message, Damage) for message in messages)
        ticket = Ticket(damaged if self.listening else 0, self.stats)
        if not ticket.done:
            self.tickets.append(ticket)
        return ticket

    def flush(self) -> None:
        self.flushes += 1

    def limit(self, ticket: Ticket) -> None:
        self.limited.append(ticket)

    def ask(self, ask: Ask, on_reply: Callable[[Any], None]) -> None:
        if self.listening:
            self.questions.append((ask, on_reply))
        else:
            on_reply(Silence.LATE)

    def show(self) -> None:
        """The oldest flush that waits was shown."""
        self.tickets.pop(0).finish()

    def reply(self, payload: bytes | Silence) -> None:
        self.questions.pop(0)[1](payload)


class Rig:
    """A guest with resource 1 on head 0. `answers` are (name, response's type, fence)."""

    def __init__(self, heads: int | None = 16) -> None:
        self.driver = Driver(heads=heads)
        self.driver.device.set_features(CONTEXT_INIT)
        self.driver.ok(create_2d(1), set_scanout(0, 1))
        make_display: Any = Display
        self.display = make_display()
        self.control = ControlServer(self.driver.device, self.display)
        self.cursor = CursorServer(self.driver.device, self.display)
        self.answers: list[tuple[str, int, int]] = []
        self.given_back: set[Any] = set()

    def serve(self, name: str, request: bytes) -> None:
        element: Any = Element(request)

        def push(given: Any, response: bytes) -> None:
            assert given is element, "somebody else's element"
            assert given not in self.given_back, "an element is given back once"
            self.given_back.add(given)
            kind, _, fence = struct.unpack_from("<IIQ", response)
            self.answers.append((name, kind, fence))

        self.control.serve(element, push)

    def names(self) -> list[str]:
        return [name for name, _, _ in self.answers]


def fenced(fence: int, context: int = 0, ring: int | None = None) -> dict[str, Any]:
    flags = FENCE if ring is None else FENCE | RING_IDX
    return {"flags": flags, "fence": fence, "context": context, "ring": ring or 0}


def test_E19_commands_are_answered_one_by_one_in_order() -> None:
    rig = Rig()
    for n in range(2, 30):
        rig.serve(f"create {n}", create_2d(n, 1, 1, **fenced(n) if n % 3 else {}))
    assert rig.names() == [f"create {n}" for n in range(2, 30)]


@pytest.mark.parametrize("header", [{}, fenced(5)], ids=["unfenced", "fenced"])
def test_a_flush_is_answered_when_it_was_shown(header: dict[str, Any]) -> None:
    rig = Rig()
    rig.serve("flush", flush(1, **header))
    assert rig.answers == []
    rig.display.show()
    assert rig.answers == [("flush", OK, header.get("fence", 0))]


def test_F02_a_flush_that_damages_nothing_is_answered_at_once() -> None:
    rig = Rig()
    rig.serve("empty", flush(1, (0, 0, 0, 0)))
    rig.serve("fenced", flush(1, (0, 0, 0, 0), **fenced(1)))
    assert rig.names() == ["empty", "fenced"]


def test_a_flush_nobody_can_show_is_answered_at_once() -> None:
    rig = Rig()
    rig.display.listening = False
    rig.serve("flush", flush(1, **fenced(1)))
    rig.serve("next", unref(1, **fenced(2)))
    assert rig.names() == ["flush", "next"]


def test_E20_a_flush_that_waits_is_executed_once() -> None:
    rig = Rig()
    rig.serve("flush", flush(1))
    rig.control.flush()
    rig.serve("next", create_2d(2))
    rig.display.show()
    rig.control.flush()
    assert rig.names() == ["next", "flush"]
    assert sum(isinstance(message, Damage) for message in rig.display.posted) == 1


def test_E21_while_flushes_wait_the_ring_and_the_pointer_go_on() -> None:
    rig = Rig()
    for n in range(64):
        rig.serve(f"flush {n}", flush(1, **fenced(n)))
    rig.serve("unfenced", create_2d(2))
    rig.serve("other ring", create_2d(3, **fenced(1, ring=3)))
    pushed: list[bytes] = []
    element: Any = Element(move_cursor(0, 1, (1, 2)))
    rig.cursor.serve(element, lambda _, response: pushed.append(response))
    assert rig.names() == ["unfenced", "other ring"]
    assert pushed == [b""]
    for _ in range(64):
        rig.display.show()
    assert rig.names()[2:] == [f"flush {n}" for n in range(64)]


def test_E22_a_fenced_answer_waits_for_the_fences_before_it() -> None:
    rig = Rig()
    rig.serve("flush", flush(1, **fenced(1)))
    rig.serve("create", create_2d(2, **fenced(2)))
    rig.serve("unfenced", create_2d(3))
    rig.serve("error", unref(99, **fenced(3)))
    assert rig.names() == ["unfenced"]
    rig.display.show()
    assert rig.answers == [
        ("unfenced", OK, 0),
        ("flush", OK, 1),
        ("create", OK, 2),
        ("error", BAD_RESOURCE, 3),
    ]


def test_E22_flushes_shown_out_of_order_are_answered_in_order() -> None:
    rig = Rig()
    for name, fence in (("first", 1), ("second", 2), ("third", 3)):
        rig.serve(name, flush(1, **fenced(fence)))
    first, second, third = rig.display.tickets
    third.finish()
    second.finish()
    assert rig.answers == []
    first.finish()
    assert rig.names() == ["first", "second", "third"]


def test_E22_an_unfenced_flush_holds_nobody_back() -> None:
    rig = Rig()
    rig.serve("unfenced flush", flush(1))
    rig.serve("create", create_2d(2, **fenced(2)))
    assert rig.names() == ["create"]


def test_rings_of_contexts_are_timelines_of_their_own() -> None:
    rig = Rig()
    rig.serve("device", flush(1, **fenced(1)))
    rig.serve("1/0", flush(1, **fenced(2, context=1, ring=0)))
    rig.serve("1/1", create_2d(2, **fenced(3, context=1, ring=1)))
    rig.serve("2/0", create_2d(3, **fenced(4, context=2, ring=0)))
    rig.serve("1/0 again", create_2d(4, **fenced(5, context=1, ring=0)))
    rig.serve("device again", create_2d(5, **fenced(6, context=1)))
    assert rig.names() == ["1/1", "2/0"]
    device, one = rig.display.tickets
    one.finish()
    assert rig.names()[2:] == ["1/0", "1/0 again"]
    device.finish()
    assert rig.names()[4:] == ["device", "device again"]


def test_a_timeline_is_forgotten_with_its_last_fence() -> None:
    """There are 2**40 of them."""
    rig = Rig()
    for context in range(50):
        rig.serve("flush", flush(1, **fenced(context, context=context, ring=1)))
    for _ in range(50):
        rig.display.show()
    rig.serve("stopped", flush(1, **fenced(99)))
    rig.control.stop()
    assert len(rig.answers) == 51
    assert rig.control._timelines == {}


# -- questions


def test_D01_a_question_is_parked_and_the_ring_goes_on() -> None:
    rig = Rig()
    rig.serve("info", get_display_info(**fenced(1)))
    rig.serve("edid", get_edid(0))
    rig.serve("create", create_2d(2))
    assert rig.names() == ["create"]
    rig.display.reply(bytes(408))
    rig.display.reply(bytes(1056))
    assert rig.answers[1:] == [("info", OK_DISPLAY_INFO, 1), ("edid", OK_EDID, 0)]


def test_D07_a_question_that_nobody_can_answer_is_answered_at_once() -> None:
    rig = Rig()
    rig.display.listening = False
    rig.serve("info", get_display_info())
    rig.serve("edid", get_edid(0, **fenced(3)))
    assert rig.answers == [("info", OK_DISPLAY_INFO, 0), ("edid", OK_EDID, 3)]


def test_a_fenced_answer_waits_for_a_question_before_it() -> None:
    rig = Rig()
    rig.serve("info", get_display_info(**fenced(1)))
    rig.serve("create", create_2d(2, **fenced(2)))
    assert rig.names() == []
    rig.display.reply(Silence.LATE)
    assert rig.names() == ["info", "create"]


def test_D01_an_answer_that_comes_after_the_stop_is_for_the_next_question() -> None:
    rig = Rig()
    rig.serve("info", get_display_info())
    rig.control.stop()
    rig.display.reply(struct.pack("<24x6I", 0, 0, 1920, 1080, 1, 0).ljust(408, b"\0"))
    assert rig.names() == ["info"]
    ask = rig.driver.ask(get_display_info())
    assert rig.driver.answer(ask).body[:16] == struct.pack("<4I", 0, 0, 1920, 1080)


def test_a_silence_that_comes_after_the_stop_is_nothing() -> None:
    rig = Rig(heads=None)
    rig.serve("show", set_scanout(1, 1))
    rig.control.stop()
    before = snapshot(rig.driver.device)
    rig.display.reply(Silence.ABSENT)
    assert rig.names() == ["show"]
    assert snapshot(rig.driver.device) == before
    assert rig.driver.device.outputs.limit == 16


def test_S01_what_a_head_shows_is_told_before_it_is_known_to_be_there() -> None:
    rig = Rig(heads=None)
    rig.serve("show", set_scanout(1, 1))
    rig.serve("flush", flush(1))
    assert [type(message) for message in rig.display.posted] == [ShowSurface, Damage, Damage]
    rig.display.reply(bytes(1056))
    rig.display.show()
    assert rig.answers == [("show", OK, 0), ("flush", OK, 0)]


def test_S01_a_head_that_is_not_there_is_taken_back() -> None:
    rig = Rig(heads=None)
    rig.serve("show", set_scanout(1, 1, **fenced(7)))
    rig.display.reply(Silence.ABSENT)
    assert rig.answers == [("show", BAD_SCANOUT, 7)]
    off = rig.display.posted[-1]
    assert isinstance(off, ShowSurface)
    assert (off.scanout_id, off.surface) == (1, None)


# -- deadlines and stop


def test_a_flush_that_waits_has_a_deadline_from_the_end_of_its_batch() -> None:
    rig = Rig()
    rig.serve("shown", flush(1))
    rig.serve("waits", flush(1))
    shown, waits = rig.display.tickets
    shown.finish()
    rig.control.flush()
    rig.control.flush()
    assert rig.display.limited == [waits]
    assert rig.display.flushes == 2
    waits.expire()
    assert rig.names() == ["shown", "waits"]
    assert rig.display.stats.late_flushes == 1


def test_R08_a_stop_gives_every_element_back_in_order() -> None:
    rig = Rig()
    rig.serve("flush", flush(1, **fenced(1)))
    rig.serve("info", get_display_info())
    rig.serve("create", create_2d(2, **fenced(2)))
    for n in range(20):
        rig.serve(f"unfenced {n}", flush(1))
    rig.serve("edid", get_edid(0, **fenced(3)))
    assert rig.answers == []
    rig.control.stop()
    unfenced = [f"unfenced {n}" for n in range(20)]
    assert rig.names() == ["flush", "create", "info", *unfenced, "edid"]
    assert [fence for _, _, fence in rig.answers if fence] == [1, 2, 3]


def test_R02_what_is_shown_after_the_stop_finds_nobody() -> None:
    rig = Rig()
    rig.serve("flush", flush(1))
    rig.serve("unflushed", flush(1, **fenced(2)))
    rig.control.stop()
    rig.control.stop()
    rig.control.flush()
    for ticket in rig.display.tickets:
        ticket.finish()
    rig.control.flush()
    assert rig.names() == ["flush", "unflushed"]
    assert rig.display.limited == []


def test_R06_after_a_stop_the_ring_is_served_as_before() -> None:
    rig = Rig()
    rig.serve("flush", flush(1, **fenced(1)))
    rig.control.stop()
    rig.serve("create", create_2d(2, **fenced(2)))
    rig.serve("flush again", flush(1, **fenced(3)))
    assert rig.names() == ["flush", "create"]
    rig.display.tickets[1].finish()
    assert rig.names() == ["flush", "create", "flush again"]


# -- pointers


@pytest.mark.parametrize(
    "request_",
    [b"", move_cursor(0, 1, (1, 2))[:55], move_cursor(16, 1, (1, 2)), create_2d(9), bytes(56)],
    ids=["nothing", "cut", "no such head", "control command", "zeros"],
)
def test_E07_K01_K02_a_wrong_pointer_command_comes_back_empty(request_: bytes) -> None:
    rig, pushed = Rig(), []
    element: Any = Element(request_)
    rig.cursor.serve(element, lambda given, response: pushed.append((given, response)))
    assert pushed == [(element, b"")]
    assert rig.display.posted == []


@pytest.mark.parametrize(
    "request_",
    [
        update_cursor(0, 1, (1, 2)),
        move_cursor(0, 0, (3, 4)),
        update_cursor(0, 77, (0, 0), **fenced(9)),
    ],
)
def test_K14_K15_no_pointer_command_has_an_answer(request_: bytes) -> None:
    rig, pushed = Rig(), []
    element: Any = Element(request_)
    rig.cursor.serve(element, lambda given, response: pushed.append((given, response)))
    assert pushed == [(element, b"")]
    assert len(rig.display.posted) == 1
    rig.cursor.flush()
    rig.cursor.stop()
    assert rig.display.flushes == 1


# -- any order

headers = st.sampled_from(
    [{}, {}, fenced(0), fenced(0), fenced(0, context=1, ring=0), fenced(0, context=1, ring=1)]
)
requests = st.sampled_from(["flush", "flush", "info", "edid", "create", "error", "show"])
events = st.tuples(st.sampled_from(["shown", "reply", "late", "batch"]), st.integers(0, 5))


def request_of(step: str, number: int, header: dict[str, Any]) -> bytes:
    match step:
        case "flush":
            return flush(1, **header)
        case "info":
            return get_display_info(**header)
        case "edid":
            return get_edid(0, **header)
        case "create":
            return create_2d(number + 10, 1, 1, **header)
        case "error":
            return unref(9, **header)
        case _:
            return set_scanout(1, 1, **header)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(requests, headers) | events, max_size=30))
def test_fences_keep_their_order_and_every_element_comes_back(steps: list[Any]) -> None:
    rig = Rig(heads=None)
    sent: list[tuple[str, Any]] = []
    for step, argument in steps:
        display = rig.display
        if step == "shown":
            if display.tickets:
                display.tickets.pop(argument % len(display.tickets)).finish()
        elif step in ("reply", "late"):
            if display.questions:
                ask, on_reply = display.questions.pop(0)
                size = 408 if "info" in ask.question.value else 1056
                on_reply(bytes(size) if step == "reply" else Silence.LATE)
        elif step == "batch":
            rig.control.flush()
        else:
            name = f"{step} {len(sent)}"
            header = {**argument, "fence": len(sent)} if argument else {}
            timeline = None
            if header:
                timeline = (
                    (header["context"], header["ring"]) if header["flags"] & RING_IDX else "device"
                )
            sent.append((name, timeline))
            rig.serve(name, request_of(step, len(sent), header))
            if not header and step in ("create", "error"):
                assert rig.names()[-1] == name, "nothing holds it back"
    rig.control.stop()
    assert sorted(rig.names()) == sorted(name for name, _ in sent)
    for line in {timeline for _, timeline in sent} - {None}:
        commands = [name for name, timeline in sent if timeline == line]
        assert [name for name in rig.names() if name in commands] == commands
