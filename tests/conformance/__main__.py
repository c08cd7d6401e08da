"""Prints the conformance table: python -m tests.conformance."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Final

from tests.conformance.rows import ROWS, TABLES, Row, shown_by

WIDTHS: Final = (4, 24, 24, 22, 22)
HEADING: Final = ("row", "input", "QEMU", "vgpud", "same / different because")


def verdict(row: Row) -> str:
    if row.later:
        return row.untested
    words = "same" if row.same else row.because
    return f"{words} (not tested: {row.untested})" if row.untested else words


def lines(*cells: str) -> Iterator[str]:
    """One row of the table, each cell in as many lines as it needs."""
    columns = [textwrap.wrap(cell, width) for cell, width in zip(cells, WIDTHS, strict=True)]
    for parts in zip_longest(*columns, fillvalue=""):
        padded = (part.ljust(width) for part, width in zip(parts, WIDTHS, strict=True))
        yield " ".join(padded).rstrip()


def table(seen: Mapping[str, str] | None = None) -> Iterator[str]:
    """The lines of the table. `seen` is what the differential oracle saw, by row id."""
    seen = seen or {}
    for letter, title in TABLES.items():
        yield f"{letter}: {title}"
        yield from lines(*HEADING)
        for row in (row for row in ROWS if row.table == letter):
            said = verdict(row)
            if row.id in seen:
                said = f"{said}; seen: {seen[row.id]}"
            ours = "the same" if row.same else row.ours
            yield from lines(row.id, row.input, row.qemu, ours, said)
        yield ""


def summary() -> Iterator[str]:
    later = [row for row in ROWS if row.later]
    now = [row for row in ROWS if not row.later]
    tested = [row for row in now if shown_by(row)]
    same = sum(row.same for row in now)
    tests = {test for row in ROWS for test in shown_by(row)}
    yield f"{len(ROWS)} rows: {same} same, {len(now) - same} different, {len(later)} later."
    yield f"{len(tested)} rows are shown by {len(tests)} tests."
    reasons = Counter(row.untested for row in ROWS if not shown_by(row))
    yield f"{sum(reasons.values())} rows have no test:"
    for reason, count in reasons.most_common():
        yield f"  {count:3}  {reason}"


def main() -> None:
    for line in (*table(), *summary()):
        print(line)


if __name__ == "__main__":
    main()
