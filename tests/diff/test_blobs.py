"""The blob scripts themselves: they are what they say, and a wrong device is found. They run in the
lab (tests/lab/inner/diff_blob.py)."""

from __future__ import annotations

import struct

import pytest

from tests.diff.blobs import Case, faults, generate
from tests.diff.runner import Answer, Result
from tests.diff.script import parse


def right(case: Case) -> Result:
    """What a device does that does all right."""
    result = Result()
    for number, code in case.codes.items():
        result.answers[number] = Answer(24, struct.pack("<I", code).ljust(24, b"\0"))
    for number, heads in case.shown.items():
        result.dumps[number] = {
            head: b"P6\n%d %d\n255\n" % (width, height) + rgb
            for head, (width, height, rgb) in heads.items()
        }
    return result


@pytest.mark.parametrize("seed", range(1, 40))
def test_text(seed: int) -> None:
    case = generate(seed)
    assert parse(str(case.script)).steps == case.script.steps
    assert list(faults(case, "device", right(case))) == []


def test_two_hundred_scripts_reach_what_they_are_for() -> None:
    cases = [generate(seed) for seed in range(1, 201)]
    codes = [code for case in cases for code in case.codes.values()]
    assert {0x1100, 0x1202, 0x1203, 0x1205} == set(codes)
    assert sum(len(heads) for case in cases for heads in case.shown.values()) > 500


def test_a_wrong_answer_and_a_wrong_pixel_are_seen() -> None:
    case = next(case for case in map(generate, range(1, 99)) if any(case.shown.values()))
    result = right(case)
    result.answers[0] = Answer(24, struct.pack("<I", 0x1205).ljust(24, b"\0"))
    (fault,) = faults(case, "device", result)
    assert "0x1205, expected 0x1100" in fault
    result = right(case)
    number = next(number for number, heads in case.shown.items() if heads)
    head, dump = next(iter(result.dumps[number].items()))
    result.dumps[number][head] = dump[:-1] + bytes([dump[-1] ^ 1])
    (fault,) = faults(case, "device", result)
    assert f"head {head}: 1 of" in fault
