"""The fuzzers: every input that was kept, then a short search. Longer ones are `make fuzz`."""

from __future__ import annotations

import importlib
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.fuzz import native, python
from tests.fuzz.__main__ import TARGETS, corpus, fuzz, replay

SECONDS = 10
EDGES = {"frontend": 300, "device": 250, "ring": 250, "pixels": 250}
"""Far below what a corpus reaches: less means that something is not measured any more."""


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_short_search_finds_nothing(target: str, tmp_path: Path) -> None:
    into = tmp_path / "found"
    into.mkdir()
    done = fuzz(target, SECONDS, into)
    assert done.status == 0, done.report[-4000:]
    assert done.executions > len(list(corpus(target).iterdir()))
    assert done.coverage > EDGES[target], done.report[-1000:]


@pytest.mark.parametrize("target", python.TARGETS)
def test_the_kept_inputs_pass_without_a_fuzzer(target: str) -> None:
    one = importlib.import_module(f"tests.fuzz.{target}").one
    inputs = sorted(corpus(target).iterdir())
    assert len(inputs) > 50
    for path in inputs:
        one(path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("target", native.TARGETS)
def test_the_kept_inputs_pass_in_the_sanitized_extension(target: str) -> None:
    done = replay(target)
    assert done.status == 0, done.report[-4000:]
    assert done.executions >= len(list(corpus(target).iterdir())) > 50


def test_a_planted_error_is_found_by_the_kept_inputs() -> None:
    """A rectangle that nobody checks is drawn beside its image."""
    from tests.fuzz import device

    def search() -> None:
        for path in sorted(corpus("device").iterdir()):
            device.one(path.read_bytes())

    with patch("vgpud.device.gpu.fits", return_value=True):
        with pytest.raises(AssertionError, match="lets nothing outside through"):
            search()
