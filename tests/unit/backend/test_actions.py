"""Actions are plain values: what the session relies on when it matches them."""

from __future__ import annotations

import dataclasses
import typing

import pytest

from vgpud.backend import actions
from vgpuwire import MemRegion

KINDS = [
    kind
    for kind in vars(actions).values()
    if dataclasses.is_dataclass(kind) and kind is not actions.RingSetup
]


def test_the_union_has_every_action() -> None:
    members = {typing.get_origin(m) or m for m in typing.get_args(actions.Action)}
    assert members == set(KINDS)
    assert typing.get_args(actions.Action[int])  # the session names its own kind of fd


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_frozen_compared_by_value_and_documented(kind) -> None:
    names = [field.name for field in dataclasses.fields(kind)]
    action = kind(*names)
    assert action == kind(*names)
    assert kind.__match_args__ == tuple(names)
    assert not kind.__doc__.startswith(f"{kind.__name__}(")  # what dataclass writes itself
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(action, names[0], None)


def test_by_position_as_the_session_matches_them() -> None:
    region = MemRegion(0, 4096, 0x1000, 0)
    match actions.ReplaceMemory(((region, 7),)):
        case actions.ReplaceMemory(((found, fd),)):
            assert (found, fd) == (region, 7)
        case _:
            pytest.fail("not matched")
