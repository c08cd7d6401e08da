"""Which rows of the sandbox a configuration gets."""

from __future__ import annotations

import pytest

from vgpud.config import Config
from vgpud.confine import rules


@pytest.mark.parametrize(
    ("config", "calls"),
    [
        (Config(fd=3), set()),
        (Config(socket_path="x"), {"unlink", "unlinkat"}),
        (Config(fd=3, control="x"), {"unlink", "unlinkat"}),
        (Config(fd=3, scanout="dmabuf"), {"socket", "bind"}),
        (Config(fd=3, qmp="x"), {"socket", "bind", "connect"}),
    ],
)
def test_no_more_than_it_needs(config: Config, calls: set[str]) -> None:
    assert {name for row in rules(config) for name in row.calls.split()} == calls


def test_what_is_taken_from_qemu_needs_proc() -> None:
    found = {name for row in rules(Config(fd=3, vfio_from_qemu=True)) for name in row.calls.split()}
    assert {"openat", "pidfd_getfd"} <= found
