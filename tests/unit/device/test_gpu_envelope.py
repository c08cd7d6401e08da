"""Table E: the envelope of commands. What the ring decides (E08 to E14) is not here."""

from __future__ import annotations

import struct

import pytest

from tests.unit.device.driver import (
    BAD_PARAMETER,
    BAD_RESOURCE,
    FENCE,
    GOOD,
    NO_MEMORY,
    OK,
    RING_IDX,
    UNSPEC,
    Driver,
    command,
    create_2d,
    flush,
    furnished,
    get_display_info,
    set_scanout,
    transfer,
    unref,
)
from vgpud.device.gpu import FEATURES
from vgpud.device.outcome import DEVICE_TIMELINE, Ask, Silence

CONTEXT_INIT = 1 << 4
BIG = (1 << 64) - 2

THREE_D = [*range(0x0200, 0x0208), 0x0209]


def header(request: bytes, flags: int, fence: int = 0, context: int = 0, ring: int = 0) -> bytes:
    """The same command with another header."""
    (kind,) = struct.unpack_from("<I", request)
    return command(kind, request[24:], flags=flags, fence=fence, context=context, ring=ring)


@pytest.mark.parametrize("length", range(24))
def test_E01_less_than_a_header_is_an_error_without_a_fence(length: int) -> None:
    request = create_2d(99, flags=FENCE, fence=7, context=3)[:length]
    driver = furnished()
    driver.refused(request, BAD_PARAMETER)
    answer = driver.run(request)
    assert (answer.flags, answer.fence, answer.context, answer.ring) == (0, 0, 0, 0)
    assert answer.timeline is None


@pytest.mark.parametrize("name", sorted(GOOD.keys() - {"GET_DISPLAY_INFO"}))
def test_E02_a_command_cut_anywhere_is_an_error_with_its_fence(name: str) -> None:
    whole = header(GOOD[name], FENCE, fence=BIG, context=5)
    driver = furnished()
    records = {"RESOURCE_ATTACH_BACKING": 32, "RESOURCE_CREATE_BLOB": 56}  # without the entries
    for length in range(24, records.get(name, len(whole))):
        driver.refused(whole[:length], BAD_PARAMETER)
        answer = driver.run(whole[:length])
        assert (answer.flags, answer.fence, answer.context) == (FENCE, BIG, 5)


@pytest.mark.parametrize("name", sorted(GOOD))
@pytest.mark.parametrize("extra", [b"\0", b"\xff" * 7, bytes(4096)])
def test_E03_bytes_behind_a_command_are_ignored(name: str, extra: bytes) -> None:
    driver = furnished()
    outcome = driver.device.execute(GOOD[name] + extra)
    if isinstance(outcome, Ask):
        outcome = driver.device.answer(outcome, Silence.LATE)
    assert outcome.response[1] == 0x11


@pytest.mark.parametrize("kind", [0x0000, 0x0001, 0x00FF, 0x0199, 0x0302, 0x0400, 0x1100, 1 << 31])
@pytest.mark.parametrize("size", [0, 72])
def test_E04_an_unknown_command_is_unspecified(kind: int, size: int) -> None:
    furnished().refused(command(kind, bytes(size)), UNSPEC)


@pytest.mark.parametrize("kind", THREE_D)
def test_E05_a_3d_command_is_unknown_to_a_2d_device(kind: int) -> None:
    furnished().refused(command(kind, bytes(256)), UNSPEC)


@pytest.mark.parametrize("kind", [0x0300, 0x0301])
def test_E06_cursor_commands_are_unknown_on_the_control_queue(kind: int) -> None:
    furnished().refused(command(kind, struct.pack("<8I", 0, 1, 2, 0, 1, 0, 0, 0)), UNSPEC)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_E07_control_commands_are_ignored_on_the_cursor_queue(name: str) -> None:
    driver = furnished()
    assert driver.device.execute_cursor(GOOD[name].ljust(72, b"\0")) is None
    assert driver.device.execute_cursor(GOOD[name]) is None


@pytest.mark.parametrize("fence", [0, 1, (1 << 32) - 1, 1 << 32, (1 << 64) - 1])
@pytest.mark.parametrize("context", [0, 1, (1 << 32) - 1])
def test_E15_a_fence_comes_back_with_its_id_and_context(fence: int, context: int) -> None:
    answer = Driver().run(create_2d(1, flags=FENCE, fence=fence, context=context, ring=9))
    assert (answer.kind, answer.flags) == (OK, FENCE)
    assert (answer.fence, answer.context, answer.ring) == (fence, context, 0)
    assert answer.timeline == DEVICE_TIMELINE


def test_E15_nothing_comes_back_where_there_is_no_fence() -> None:
    answer = Driver().run(create_2d(1, flags=RING_IDX, fence=9, context=8, ring=7))
    assert (answer.kind, answer.flags) == (OK, 0)
    assert (answer.fence, answer.context, answer.ring) == (0, 0, 0)
    assert answer.timeline is None


@pytest.mark.parametrize("ring", [0, 1, 63, 255])
def test_E15_the_ring_comes_back_too_with_context_init(ring: int) -> None:
    driver = Driver()
    driver.device.set_features(CONTEXT_INIT)
    request = create_2d(1, flags=FENCE | RING_IDX, fence=4, context=3, ring=ring)
    answer = driver.run(request)
    assert (answer.flags, answer.ring) == (FENCE | RING_IDX, ring)
    assert answer.timeline == (3, ring)
    assert driver.run(request).ring == ring, "on an error as well: the id is taken now"


def test_E15_ring_idx_without_a_fence_is_no_fence() -> None:
    driver = Driver()
    driver.device.set_features(CONTEXT_INIT)
    answer = driver.run(create_2d(1, flags=RING_IDX, fence=4, context=3, ring=2))
    assert (answer.flags, answer.ring, answer.timeline) == (0, 0, None)


def test_a_fence_without_ring_idx_is_of_the_device_also_with_context_init() -> None:
    driver = Driver()
    driver.device.set_features(CONTEXT_INIT)
    answer = driver.run(create_2d(1, flags=FENCE, fence=4, context=3, ring=2))
    assert (answer.flags, answer.ring, answer.timeline) == (FENCE, 0, DEVICE_TIMELINE)


@pytest.mark.parametrize("ring", [0, 1])
def test_E16_ring_idx_that_was_not_negotiated_is_not_echoed(ring: int) -> None:
    driver = Driver()
    driver.device.set_features(int(FEATURES))
    answer = driver.run(create_2d(1, flags=FENCE | RING_IDX, fence=4, ring=ring))
    assert (answer.kind, answer.flags, answer.ring) == (OK, FENCE, 0)
    assert answer.timeline == DEVICE_TIMELINE


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (command(0x0400), UNSPEC),
        (create_2d(0), BAD_RESOURCE),
        (create_2d(9, 1 << 16, 1 << 16), NO_MEMORY),
        (create_2d(9, pixel_format=5), BAD_PARAMETER),
        (unref(77), BAD_RESOURCE),
        (set_scanout(16, 1), 0x1202),
        (transfer(2), BAD_RESOURCE),
        (flush(1, (0, 0, 65, 64)), BAD_PARAMETER),
        (command(0x010C), BAD_PARAMETER),
    ],
)
def test_E17_an_error_brings_its_fence_back(request_: bytes, kind: int) -> None:
    answer = furnished().run(header(request_, FENCE, fence=BIG, context=6))
    assert (answer.kind, answer.flags) == (kind, FENCE)
    assert (answer.fence, answer.context) == (BIG, 6)
    assert answer.timeline == DEVICE_TIMELINE


@pytest.mark.parametrize("flags", [4, 1 << 31, 0xFFFF_FFFC])
def test_E18_unknown_flags_are_ignored_and_not_echoed(flags: int) -> None:
    driver = furnished()
    assert driver.run(header(create_2d(9), flags)).flags == 0
    assert driver.run(header(unref(9), flags | FENCE)).flags == FENCE


def test_errors_are_counted_by_code_for_the_operator() -> None:
    driver = Driver()
    for request in (command(0x0400), unref(1), unref(2), b""):
        driver.run(request)
    assert driver.device.guest_errors == {UNSPEC: 1, BAD_RESOURCE: 2, BAD_PARAMETER: 1}


def test_a_question_carries_the_fence_of_its_command() -> None:
    driver = Driver()
    ask = driver.ask(get_display_info(flags=FENCE, fence=BIG, context=2))
    assert ask.timeline == DEVICE_TIMELINE
    answer = driver.answer(ask)
    assert (answer.flags, answer.fence, answer.context) == (FENCE, BIG, 2)
    assert answer.timeline == DEVICE_TIMELINE
