"""Prints the attack table: python -m tests.attacks."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from itertools import zip_longest
from typing import Final

from tests.attacks.rows import ROWS, Row, shown_by

WIDTHS: Final = (3, 21, 33, 40)
HEADING: Final = ("", "where", "input", "vgpud / why not")


def lines(*cells: str) -> Iterator[str]:
    """One row, each cell in as many lines as it needs."""
    columns = [textwrap.wrap(cell, width) for cell, width in zip(cells, WIDTHS, strict=True)]
    for parts in zip_longest(*columns, fillvalue=""):
        padded = (part.ljust(width) for part, width in zip(parts, WIDTHS, strict=True))
        yield " ".join(padded).rstrip()


def table() -> Iterator[str]:
    """Each row, and how many tests show it."""
    yield from lines(*HEADING)
    for row in ROWS:
        yield from lines(str(row.number), row.where, row.input, said(row))


def said(row: Row) -> str:
    if row.cannot:
        return f"does not apply: {row.cannot}"
    count = len(shown_by(row))
    return f"{row.ours} ({count} test{'s' if count > 1 else ''})"


def summary() -> Iterator[str]:
    shown = [row for row in ROWS if shown_by(row)]
    tests = {test for row in shown for test in shown_by(row)}
    yield f"{len(ROWS)} rows: {len(shown)} are shown by {len(tests)} tests,"
    yield f"{len(ROWS) - len(shown)} cannot apply to a back-end, or to this one."


def main() -> None:
    for line in (*table(), "", *summary()):
        print(line)


if __name__ == "__main__":
    main()
