"""Counters and flush times."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgpud.tasks.stats import SAMPLES, Stats


def with_times(times: list[float]) -> Stats:
    stats = Stats()
    for seconds in times:
        stats.flushed(seconds)
    return stats


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, 1.0])
def test_without_a_flush_every_percentile_is_zero(share: float) -> None:
    assert Stats().percentile(share) == 0.0


@settings(max_examples=50, deadline=None)
@given(
    times=st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=50),
    share=st.floats(0, 1),
)
def test_so_many_flushes_took_at_most_the_percentile(times: list[float], share: float) -> None:
    value = with_times(times).percentile(share)
    assert value in times
    assert sum(seconds <= value for seconds in times) >= share * len(times)


def test_the_whole_is_the_slowest() -> None:
    assert with_times([3.0, 1.0, 2.0]).percentile(1.0) == 3.0


def test_one_outlier_in_a_thousand_is_not_in_the_99th() -> None:
    stats = with_times([0.001] * 999 + [5.0])
    assert stats.percentile(0.99) == 0.001
    assert stats.percentile(1.0) == 5.0


def test_old_flush_times_are_forgotten_but_counted() -> None:
    stats = with_times([9.0] * SAMPLES + [0.001] * SAMPLES)
    assert stats.percentile(1.0) == 0.001
    assert stats.frames == 2 * SAMPLES


def test_updates_and_other_messages_are_told_apart() -> None:
    stats = Stats()
    for count, size in ((0, 0), (1, 4096), (0, 0), (2, 16)):
        stats.sent(count, size, False)
    stats.sent(0, 0, True)
    assert (stats.updates, stats.pixel_bytes, stats.dmabuf_updates) == (3, 4112, 1)


def test_the_log_line_has_every_counter_and_times_in_milliseconds() -> None:
    stats = with_times([0.002] * 10)
    stats.commands, stats.late_flushes, stats.unanswered, stats.unasked = 7, 1, 2, 3
    assert stats.fields() == {
        "frames": 10,
        "updates": 0,
        "commands": 7,
        "pixel_bytes": 0,
        "dmabuf_updates": 0,
        "late_flushes": 1,
        "unanswered": 2,
        "unasked": 3,
        "flush_p50_ms": "2.00",
        "flush_p99_ms": "2.00",
    }
