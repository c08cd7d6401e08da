"""Table D: GET_DISPLAY_INFO and GET_EDID, which QEMU's display answers."""

from __future__ import annotations

import struct

import pytest

from tests.unit.device.driver import (
    BAD_PARAMETER,
    BAD_SCANOUT,
    FENCE,
    OK_DISPLAY_INFO,
    OK_EDID,
    Driver,
    get_display_info,
    get_edid,
    set_scanout,
)
from tests.unit.device.test_edid import detailed_timing
from vgpud.device.envelope import Envelope
from vgpud.device.outcome import Question, Silence
from vgpud.device.outputs import Outputs

Mode = tuple[int, int, int, int, int, int]
OFF: Mode = (0, 0, 0, 0, 0, 0)
HEADER = struct.pack("<IIQIB3x", 0x1101, 0, 0, 0, 0)


def reply(*modes: Mode) -> bytes:
    """QEMU's answer to GET_DISPLAY_INFO: a whole response of 408 bytes."""
    return HEADER + b"".join(struct.pack("<6I", *mode) for mode in (*modes, *[OFF] * 16)[:16])


def edid_reply(edid: bytes, size: int | None = None) -> bytes:
    header = struct.pack("<IIQIB3xII", 0x1104, 0, 0, 0, 0, len(edid) if size is None else size, 0)
    return header + edid.ljust(1024, b"\0")


def modes(body: bytes) -> list[Mode]:
    assert len(body) == 384
    return list(struct.iter_unpack("<6I", body))


def test_D01_the_display_is_asked_and_its_answer_handed_on() -> None:
    driver = Driver()
    ask = driver.ask(get_display_info(flags=FENCE, fence=11))
    assert ask.question is Question.DISPLAY_INFO
    answer = driver.answer(ask, reply((0, 0, 1024, 768, 1, 0)))
    assert (answer.kind, answer.flags, answer.fence) == (OK_DISPLAY_INFO, FENCE, 11)
    assert modes(answer.body) == [(0, 0, 1024, 768, 1, 0), *[OFF] * 15]


def test_D01_without_an_answer_a_fresh_device_has_one_head() -> None:
    driver = Driver()
    answer = driver.answer(driver.ask(get_display_info()))
    assert modes(answer.body) == [(0, 0, 1280, 800, 1, 0), *[OFF] * 15]


def test_D01_without_an_answer_the_last_one_is_given_again() -> None:
    driver = Driver()
    last = reply((0, 0, 800, 600, 1, 0), (0, 0, 640, 480, 1, 0))
    first = driver.answer(driver.ask(get_display_info()), last)
    again = driver.answer(driver.ask(get_display_info(flags=FENCE, fence=3)))
    assert again.body == first.body
    assert again.fence == 3, "with a header of its own"


def test_D01_a_late_answer_is_the_last_one_for_whoever_asks_next() -> None:
    driver = Driver()
    slow = driver.ask(get_display_info())
    driver.answer(slow)
    driver.answer(slow, reply((0, 0, 320, 200, 1, 0)))
    assert modes(driver.answer(driver.ask(get_display_info())).body)[0][2:4] == (320, 200)


def test_D02_every_head_is_as_the_display_says() -> None:
    told = [(0, 0, 100 + n, 50 + n, n % 2, 0) for n in range(16)]
    driver = Driver()
    assert modes(driver.answer(driver.ask(get_display_info()), reply(*told)).body) == told


def test_D03_the_display_is_asked_each_time() -> None:
    driver = Driver()
    for width in (800, 1024, 640):
        ask = driver.ask(get_display_info())
        answer = driver.answer(ask, reply((0, 0, width, 600, 1, 0)))
        assert modes(answer.body)[0][2] == width


@pytest.mark.parametrize(("edid", "size"), [(bytes(range(256)), 1024), (b"\x55" * 128, 128)])
def test_D04_the_display_s_edid_is_handed_on_with_its_size(edid: bytes, size: int) -> None:
    driver = Driver()
    ask = driver.ask(get_edid(3, flags=FENCE, fence=5))
    assert (ask.question, ask.scanout_id) == (Question.EDID, 3)
    answer = driver.answer(ask, edid_reply(edid, size))
    assert (answer.kind, answer.fence) == (OK_EDID, 5)
    assert answer.body == struct.pack("<II", size, 0) + edid.ljust(1024, b"\0")


@pytest.mark.parametrize("heads", [1, 2, 4, 15, 16])
def test_D05_a_head_that_is_known_not_to_be_there_is_never_asked_for(heads: int) -> None:
    driver = Driver(heads=heads)
    for head in range(heads):
        driver.ask(get_edid(head))
    for head in (heads, 16, 17, 1 << 31, (1 << 32) - 1):
        driver.refused(get_edid(head), BAD_PARAMETER)


@pytest.mark.parametrize("head", [1, 2, 15])
def test_D05_a_head_that_the_display_does_not_answer_for_is_not_there(head: int) -> None:
    driver = Driver(heads=None)
    answer = driver.answer(driver.ask(get_edid(head, flags=FENCE, fence=8)), Silence.ABSENT)
    assert (answer.kind, answer.fence, answer.body) == (BAD_PARAMETER, 8, b"")
    assert answer.timeline is not None
    driver.refused(get_edid(head), BAD_PARAMETER)
    driver.refused(get_edid(15), BAD_PARAMETER)
    driver.ask(get_edid(head - 1))


def test_D05_a_head_whose_answer_is_late_is_taken_for_real_and_asked_for_again() -> None:
    driver = Driver(heads=None)
    assert driver.answer(driver.ask(get_edid(7))).kind == OK_EDID
    assert driver.answer(driver.ask(get_edid(7)), Silence.ABSENT).kind == BAD_PARAMETER


def test_D05_a_head_that_was_there_once_stays_there() -> None:
    driver = Driver(heads=None)
    driver.answer(driver.ask(get_edid(3)), edid_reply(b"", 0))
    for head in range(4):
        driver.answer(driver.ask(get_edid(head)), Silence.ABSENT)
        driver.ask(get_edid(3))
    driver.answer(driver.ask(get_display_info()), Silence.ABSENT)
    driver.ask(get_edid(3))


def test_D06_a_guest_that_did_not_ack_the_feature_is_answered() -> None:
    driver = Driver()
    driver.device.set_features(0)
    assert driver.answer(driver.ask(get_edid(0))).kind == OK_EDID


def test_D07_without_an_answer_our_own_edid_offers_the_head_s_size() -> None:
    driver = Driver()
    told = reply((0, 0, 1920, 1080, 1, 0), (0, 0, 3840, 2160, 1, 0))
    driver.answer(driver.ask(get_display_info()), told)
    for head, size in enumerate([(1920, 1080), (3840, 2160), (1280, 800)]):
        answer = driver.answer(driver.ask(get_edid(head)))
        assert answer.kind == OK_EDID
        assert answer.body[:8] == struct.pack("<II", 128, 0)
        edid = answer.body[8:136]
        timing = detailed_timing(edid)
        assert (timing.h_active, timing.v_active) == size
        assert sum(edid) & 0xFF == 0
        assert answer.body[136:] == bytes(896)


# -- heads of our own, where QEMU has no display


def test_D02_without_a_display_the_heads_are_those_of_the_operator() -> None:
    driver = Driver(heads=None)
    driver.device.outputs = Outputs(Envelope(), ((1920, 1080), (640, 480)))
    answer = driver.answer(driver.ask(get_display_info()), Silence.NOBODY)
    assert modes(answer.body) == [(0, 0, 1920, 1080, 1, 0), (0, 0, 640, 480, 1, 0), *[OFF] * 14]
    for head, size in enumerate(((1920, 1080), (640, 480))):
        edid = driver.answer(driver.ask(get_edid(head)), Silence.NOBODY)
        timing = detailed_timing(edid.body[8:136])
        assert (edid.kind, timing.h_active, timing.v_active) == (OK_EDID, *size)


@pytest.mark.parametrize("head", [2, 3, 15])
def test_S01_D05_without_a_display_there_is_no_head_beyond_them(head: int) -> None:
    driver = Driver(heads=None)
    driver.device.outputs = Outputs(Envelope(), ((1920, 1080), (640, 480)))
    answer = driver.answer(driver.ask(get_edid(head)), Silence.NOBODY)
    assert answer.kind == BAD_PARAMETER
    driver.refused(get_edid(head), BAD_PARAMETER)
    driver.refused(set_scanout(head, 0), BAD_SCANOUT)
