"""Table S: SET_SCANOUT."""

from __future__ import annotations

import pytest

from tests.support.fake_pixels import HollowStore
from tests.unit.device.driver import (
    BAD_PARAMETER,
    BAD_RESOURCE,
    BAD_SCANOUT,
    FENCE,
    OK,
    U32,
    Answer,
    Box,
    Driver,
    create_2d,
    flush,
    furnished,
    get_edid,
    set_scanout,
    unref,
)
from vgpud.device.outcome import (
    DEVICE_TIMELINE,
    Ask,
    Damage,
    Outcome,
    Question,
    ShowSurface,
    Silence,
)
from vgpud.device.scanout import MAX_SIDE, NOTHING
from vgpuwire import Rect


def shown(answer: Answer) -> ShowSurface:
    (message,) = answer.display
    assert isinstance(message, ShowSurface)
    return message


@pytest.mark.parametrize("heads", [1, 2, 15, 16])
def test_S01_a_head_that_is_not_there_is_refused_first_of_all(heads: int) -> None:
    driver = Driver(heads=heads)
    driver.ok(create_2d(1), set_scanout(heads - 1, 1))
    for head in (heads, 16, 17, 1 << 31, U32):
        for resource, box in ((1, (0, 0, 64, 64)), (0, (0, 0, 0, 0)), (77, (9, 9, 1, 1))):
            driver.refused(set_scanout(head, resource, box), BAD_SCANOUT)


def test_S02_a_head_is_switched_off_once() -> None:
    driver = furnished()
    assert shown(driver.ok(set_scanout(0, 0))) == (0, None, NOTHING)
    assert driver.ok(set_scanout(0, 0)).display == ()
    assert driver.ok(set_scanout(0, 0, (1, 2, 3, 4))).display == (), "the rectangle means nothing"
    assert driver.ok(set_scanout(5, 0)).display == (), "it was never on"
    assert [message.scanout_id for message in driver.ok(flush(1)).display] == [1]


@pytest.mark.parametrize("number", [3, U32])
def test_S03_an_unknown_resource_is_refused(number: int) -> None:
    furnished().refused(set_scanout(0, number), BAD_RESOURCE)


def test_S04_a_resource_without_backing_is_shown() -> None:
    driver = furnished()
    message = shown(driver.ok(set_scanout(0, 2, (0, 0, 32, 16))))
    assert message == (0, driver.surface(2), Rect(0, 0, 32, 16))


@pytest.mark.parametrize(
    "box",
    [(0, 0, 15, 16), (0, 0, 16, 15), (0, 0, 0, 0), (0, 0, 64, 0), (0, 0, 0, 64), (60, 60, 1, 1)],
)
def test_S06_less_than_16_pixels_a_side_is_refused(box: Box) -> None:
    furnished().refused(set_scanout(0, 1, box), BAD_PARAMETER)


def test_S06_16_pixels_are_enough() -> None:
    furnished().ok(set_scanout(0, 1, (48, 48, 16, 16)), set_scanout(0, 2, (16, 0, 16, 16)))


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 65, 64),
        (0, 0, 64, 65),
        (1, 0, 64, 64),
        (0, 1, 64, 64),
        (64, 64, 16, 16),
        (U32, 0, 17, 64),
        (0, U32, 64, 17),
        (U32 - 15, 0, 16, 64),
        (16, 0, U32 - 15, 64),
        (U32, U32, U32, U32),
        (1 << 31, 0, 1 << 31, 64),
    ],
)
def test_S07_a_rectangle_that_is_not_inside_is_refused_without_wrapping(box: Box) -> None:
    furnished().refused(set_scanout(0, 1, box), BAD_PARAMETER)


def test_S08_the_display_is_told_what_to_show() -> None:
    driver = Driver()
    driver.ok(create_2d(7, 128, 96))
    message = shown(driver.ok(set_scanout(0, 7, (16, 8, 64, 48))))
    assert message.surface is driver.surface(7)
    assert (message.scanout_id, message.rect) == (0, Rect(16, 8, 64, 48))
    assert driver.resource(7).scanouts == {0}


def test_S09_another_part_of_the_same_resource_is_one_message_and_no_new_surface() -> None:
    driver = furnished()
    made = driver.store.made
    message = shown(driver.ok(set_scanout(0, 1, (10, 20, 32, 32))))
    assert message == (0, driver.surface(1), Rect(10, 20, 32, 32))
    assert driver.store.made == made
    assert driver.ok(flush(1)).display[0] == Damage(0, Rect(0, 0, 32, 32))


def test_S10_one_resource_may_be_on_all_sixteen_heads() -> None:
    driver = Driver()
    driver.ok(create_2d(1), *(set_scanout(head, 1, (head, head, 16, 16)) for head in range(16)))
    assert driver.resource(1).scanouts == set(range(16))
    damage = driver.ok(flush(1, (15, 15, 1, 1))).display
    assert damage == tuple(Damage(n, Rect(15 - n, 15 - n, 1, 1)) for n in range(16))


def test_S11_a_head_goes_from_one_resource_to_the_next_without_going_dark() -> None:
    driver = Driver()
    driver.ok(create_2d(1), create_2d(2), set_scanout(0, 1))
    assert shown(driver.ok(set_scanout(0, 2))).surface is driver.surface(2)
    assert (driver.resource(1).scanouts, driver.resource(2).scanouts) == (set(), {0})
    assert driver.ok(flush(1)).display == ()
    assert driver.ok(unref(1)).display == (), "the head shows another one now"
    assert len(driver.ok(flush(2)).display) == 1


def test_S11_a_refused_switch_leaves_the_old_picture() -> None:
    driver = furnished()
    driver.refused(set_scanout(0, 2, (0, 0, 64, 64)), BAD_PARAMETER)
    assert [message.scanout_id for message in driver.ok(flush(1)).display] == [0, 1]


def test_V04_a_head_beyond_what_qemu_can_allocate_is_accepted_and_blank() -> None:
    driver = Driver(HollowStore())
    driver.ok(create_2d(1, MAX_SIDE + 1, 16), create_2d(2, MAX_SIDE, 16))
    wide: Box = (0, 0, MAX_SIDE + 1, 16)
    assert shown(driver.ok(set_scanout(0, 1, wide))) == (0, None, NOTHING)
    assert driver.ok(flush(1, wide)).display == ()
    assert shown(driver.ok(set_scanout(0, 2, (0, 0, MAX_SIDE, 16)))).surface is not None
    assert len(driver.ok(flush(2, (0, 0, 16, 16))).display) == 1


# -- heads that QEMU may not have: it is asked, the command has been done meanwhile


def unsure() -> Driver:
    driver = Driver(heads=None)
    driver.ok(create_2d(1), set_scanout(0, 1))
    return driver


def held(ask: Ask) -> Outcome:
    assert ask.question is Question.HEAD
    assert ask.done is not None
    return ask.done


@pytest.mark.parametrize("head", [1, 2, 15])
def test_S01_a_head_that_may_not_be_there_is_asked_for(head: int) -> None:
    driver = unsure()
    ask = driver.ask(set_scanout(head, 1, flags=FENCE, fence=4))
    assert (ask.scanout_id, ask.timeline) == (head, DEVICE_TIMELINE)
    assert held(ask).display == (ShowSurface(head, driver.surface(1), Rect(0, 0, 64, 64)),)
    answer = driver.answer(ask, bytes(1056))
    assert (answer.kind, answer.flags, answer.fence, answer.display) == (OK, FENCE, 4, ())
    assert [message.scanout_id for message in driver.ok(flush(1)).display] == [0, head]
    driver.ok(*(set_scanout(known, 1) for known in range(head + 1)))


@pytest.mark.parametrize(
    ("resource", "box"),
    [(1, (0, 0, 64, 64)), (0, (0, 0, 0, 0)), (77, (0, 0, 64, 64)), (1, (0, 0, 1, 1))],
)
def test_S01_a_head_that_turns_out_not_to_be_there_is_refused(resource: int, box: Box) -> None:
    driver = unsure()
    answer = driver.answer(driver.ask(set_scanout(2, resource, box, flags=FENCE)), Silence.ABSENT)
    assert (answer.kind, answer.flags) == (BAD_SCANOUT, FENCE)
    assert [message.scanout_id for message in driver.ok(flush(1)).display] == [0]
    driver.refused(set_scanout(2, 1), BAD_SCANOUT)
    driver.refused(set_scanout(15, 1), BAD_SCANOUT)


def test_S01_a_head_that_nobody_answers_for_is_taken_for_real() -> None:
    driver = unsure()
    answer = driver.answer(driver.ask(set_scanout(9, 1)))
    assert (answer.kind, answer.display) == (OK, ())
    assert len(driver.ok(flush(1)).display) == 2


@pytest.mark.parametrize(
    ("resource", "box", "kind"),
    [
        (77, (0, 0, 64, 64), BAD_RESOURCE),
        (1, (0, 0, 65, 64), BAD_PARAMETER),
        (1, (0, 0, 15, 64), BAD_PARAMETER),
    ],
)
def test_an_error_survives_the_question_about_the_head(resource: int, box: Box, kind: int) -> None:
    driver = unsure()
    ask = driver.ask(set_scanout(3, resource, box))
    assert held(ask).display == ()
    assert driver.answer(ask, bytes(1056)).kind == kind
    driver.refused(set_scanout(3, resource, box), kind)


def test_an_edid_tells_that_a_head_is_there() -> None:
    driver = unsure()
    driver.answer(driver.ask(get_edid(3)), bytes(1056))
    driver.ok(set_scanout(3, 1))
