"""The types of arguments that both programs have."""

from __future__ import annotations

import argparse

import pytest

from vgpud.arguments import Parser, between, descriptor


@pytest.mark.parametrize(("text", "value"), [("0.1", 0.1), ("1", 1.0), ("1e1", 10.0)])
def test_a_number_in_its_bounds(text: str, value: float) -> None:
    assert between(0.1, 10, "s")(text) == value


@pytest.mark.parametrize("text", ["0", "-1", "10.1", "nan", "inf", "1e300", "", "a"])
def test_a_number_that_is_not(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"use 0\.1 to 10 s"):
        between(0.1, 10, "s")(text)


@pytest.mark.parametrize("text", ["-1", "1.5", "", "a", "99999999999"])
def test_what_is_no_descriptor(text: str) -> None:
    assert descriptor("2147483647") == (1 << 31) - 1
    with pytest.raises(argparse.ArgumentTypeError, match="is no file descriptor"):
        descriptor(text)


def test_usage_names_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        Parser(prog="x y").error("why")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "x: why\nTry 'x --help'.\n"
