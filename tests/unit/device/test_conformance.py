"""The conformance table is whole: every row is there, and shown by a test or said why not."""

from __future__ import annotations

from tests.conformance.__main__ import summary, table
from tests.conformance.rows import IDS, ROWS, exists, names_by_id, shown_by


def test_no_row_is_missing_and_none_is_there_twice() -> None:
    ids = [row.id for row in ROWS]
    assert sorted(ids) == sorted(IDS)
    assert len(IDS) == 208


def test_a_row_has_a_test_or_says_why_not() -> None:
    assert [row.id for row in ROWS if not shown_by(row) and not row.untested] == []


def test_a_row_that_has_a_test_does_not_say_why_not() -> None:
    assert [row.id for row in ROWS if shown_by(row) and row.untested] == []


def test_every_test_that_a_row_names_exists() -> None:
    """Better than a name in `also` is the row's id in the name of the test."""
    assert [test for row in ROWS for test in shown_by(row) if not exists(test)] == []


def test_every_id_in_a_test_s_name_is_a_row() -> None:
    assert {row: tests for row, tests in names_by_id().items() if row not in IDS} == {}


def test_a_difference_has_a_reason() -> None:
    assert [row.id for row in ROWS if bool(row.ours) != bool(row.because)] == []


def test_the_table_fits_a_page_of_100_columns() -> None:
    printed = [*table({"T06": "5 rows"}), *summary()]
    assert max(map(len, printed)) <= 100
    text = "\n".join(printed)
    assert all(f"\n{row.id} " in text for row in ROWS)
    assert "seen: 5 rows" in " ".join(text.split())
