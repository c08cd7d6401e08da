"""vgpuwire itself: what it exports, and what importing it brings along."""

from __future__ import annotations

import subprocess
import sys

import vgpuwire


def test_all_names_exist_once() -> None:
    assert len(set(vgpuwire.__all__)) == len(vgpuwire.__all__)
    assert all(hasattr(vgpuwire, name) for name in vgpuwire.__all__)


def test_import_is_small_and_does_no_io() -> None:
    """Neither ctypes (ioctl_opt) nor sockets; the ioctls are imported by whoever calls them."""
    code = (
        "import sys; sys.path.insert(0, 'protocol'); import vgpuwire;"
        "print(*{'ctypes', 'socket', 'trio', 'vgpud', 'vgpuwire.ioctls'} & set(sys.modules))"
    )
    root = __file__.rsplit("/tests/", 1)[0]
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    assert result.stdout.split() == []
