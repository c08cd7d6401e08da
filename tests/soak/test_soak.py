"""Two minutes of everything: nothing grows."""

from __future__ import annotations

import pytest

from tests.soak.load import WARM, Sample, growth, soak

SECONDS = 120


@pytest.mark.slow
async def test_two_minutes() -> None:
    samples = await soak(SECONDS, seed=1, tell=print)
    assert samples[-1].commands > 1000
    assert growth(samples) == []


def samples(**changes: int) -> list[Sample]:
    """A flat series of which the last has `changes`."""
    flat = [Sample(n, n, 20, 90_000, 3) for n in range(30)]
    return [*flat, *[flat[-1]._replace(**changes)] * 10]


@pytest.mark.parametrize("changes", [{"fds": 21}, {"tasks": 4}, {"rss": 97_000}])
def test_growth_is_seen(changes: dict[str, int]) -> None:
    (found,) = growth(samples(**changes))
    assert next(iter(changes)) in found
    assert growth(samples()) == []
    warm = [Sample(0, 0, 99, 200_000, 9)] * WARM
    assert growth(warm + samples()[:12]) == [], "the first lives fill caches"
