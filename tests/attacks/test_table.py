"""The attack table is whole: every row is there, and shown by a test or said why it cannot be."""

from __future__ import annotations

from tests.attacks.__main__ import summary, table
from tests.attacks.rows import LAST, ROWS, exists, names_by_number, shown_by


def test_no_row_is_missing_and_none_is_there_twice() -> None:
    assert [row.number for row in ROWS] == list(range(1, LAST + 1))


def test_a_row_has_a_test_or_says_why_it_cannot() -> None:
    assert [row.number for row in ROWS if bool(shown_by(row)) == bool(row.cannot)] == []


def test_every_test_that_a_row_names_exists() -> None:
    """Better than a name in `also` is the row's number in the name of the test."""
    assert [test for row in ROWS for test in shown_by(row) if not exists(test)] == []


def test_every_number_in_a_test_s_name_is_a_row() -> None:
    numbers = {row.number for row in ROWS}
    assert {one: tests for one, tests in names_by_number().items() if one not in numbers} == {}


def test_a_row_says_what_vgpud_does() -> None:
    assert [row.number for row in ROWS if bool(row.ours) == bool(row.cannot)] == []


def test_the_table_fits_a_page_of_100_columns() -> None:
    printed = [*table(), *summary()]
    assert max(map(len, printed)) <= 100
    assert printed[-2].startswith(f"{LAST} rows: ")
