"""vgpuwire.errors: the tree in its docstring is the real one."""

from __future__ import annotations

import pytest

from vgpuwire import errors

LEAVES = [
    errors.Truncated,
    errors.TooLong,
    errors.UnknownRequest,
    errors.BadFlags,
    errors.WrongFdCount,
]


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_error_is_a_wire_error(leaf: type[Exception]) -> None:
    assert leaf.__bases__ == (errors.WireError,)
    assert leaf.__doc__


def test_the_docstring_draws_them_all() -> None:
    assert errors.WireError.__bases__ == (ValueError,)
    drawn = [line.split("── ")[1].split()[0] for line in (errors.__doc__ or "").splitlines()
             if "── " in line]  # fmt: skip
    assert drawn == ["WireError", *[leaf.__name__ for leaf in LEAVES]]
    classes = {n for n, one in vars(errors).items() if isinstance(one, type)}
    assert classes == set(drawn)
