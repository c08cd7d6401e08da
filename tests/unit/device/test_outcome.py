"""The values that the device hands on."""

from __future__ import annotations

import dataclasses

import pytest

from vgpud.device.outcome import DEVICE_TIMELINE, Ask, Outcome, Question
from vgpuwire import CtrlHdr


def test_an_outcome_shows_nothing_and_is_unfenced_unless_it_says_so() -> None:
    assert Outcome(b"answer") == (b"answer", (), None)


def test_a_question_cannot_change_while_it_is_parked() -> None:
    ask = Ask(Question.EDID, CtrlHdr(0x10A, 0, 0, 0, 0), None, 3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ask.scanout_id = 4


def test_no_guest_can_name_the_device_s_own_timeline() -> None:
    context, ring = DEVICE_TIMELINE
    assert context < 0, "a guest's are unsigned"
    assert ring < 0
