"""What the command lines of both programs share. A leaf."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says in two lines what cannot be understood, and exits with status 2."""

    def error(self, message: str) -> NoReturn:
        program = self.prog.partition(" ")[0]
        self.exit(2, f"{program}: {message}\nTry '{program} --help'.\n")


def between(least: float, most: float, unit: str) -> Callable[[str], float]:
    """A type of argument: a number of `unit` in these bounds."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:  # not a number is neither
            raise argparse.ArgumentTypeError(f"{text!r}: use {least:g} to {most:g} {unit}")
        return value

    return number


def descriptor(text: str) -> int:
    """A type of argument: the number of a file descriptor."""
    if not text.isdecimal() or int(text) >= 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is no file descriptor")
    return int(text)
