"""The sandbox, entered by a process of its own for each case: what is left, and what ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from vgpud.host import sandbox

START = """
import errno, fcntl, mmap, os, socket, sys, threading
from vgpud.host import sandbox
from vgpud.host.fd import Folder
left, right = socket.socketpair()
"""

LEFT = {
    "descriptors": "os.close(os.dup(0)); os.fstat(0)",
    "sockets": "left.sendall(b'x'); assert right.recv(1) == b'x'",
    "surfaces": "fd = os.memfd_create('x'); os.ftruncate(fd, 4096); mmap.mmap(fd, 4096)",
    "threads": "t = threading.Thread(target=lambda: print('there')); t.start(); t.join()",
    "what a descriptor is": "os.readlink('/proc/self/fd/0')",
    "random numbers": "os.urandom(16)",
    "a traceback": "import traceback; traceback.format_exception(ValueError('x'))",
    "ioctls by number": "left.setblocking(False); fcntl.ioctl(left, 0x5411, bytes(4))",
}
GONE = {
    "a file": "os.open('/etc/passwd', os.O_RDONLY)",
    "a file by open()": "open('/etc/passwd')",
    "making a file": "os.open('/tmp/made', os.O_CREAT | os.O_WRONLY)",
    "a program": "os.execv('/bin/true', ['true'])",
    "a process": "os.fork()",
    "a socket": "socket.socket(socket.AF_INET)",
    "a local socket": "socket.socket(socket.AF_UNIX)",
    "another's memory": "import ctypes; ctypes.CDLL(None).process_vm_readv(1, 0, 0, 0, 0, 0)",
    "memory to run": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "another ioctl": "fcntl.ioctl(0, 0x5413, bytes(8))",
    "a signal to another": "os.kill(os.getppid(), 0)",
    "removing a file": "os.unlink('/tmp/nothing')",
    "the name of the machine": "socket.sethostname('x')",
}
# A C library's own table decides how an errno reads; these are ended in any mode.
HOSTILE = {"a program", "another's memory"}


def run(mode: str, code: str, enter: str = "") -> subprocess.CompletedProcess[str]:
    script = START + f"sandbox.enter({mode!r}, {enter})\n" + textwrap.dedent(code) + "\nprint('ok')"
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", LEFT)
def test_what_is_left(name: str) -> None:
    done = run("kill", LEFT[name])
    assert done.stdout.endswith("ok\n"), done.stderr


@pytest.mark.parametrize("name", GONE)
def test_what_ends_it(name: str) -> None:
    setup, _, call = GONE[name].rpartition("; ")
    script = START + f"{setup}\nsandbox.enter('kill')\n{call}\nprint('ok')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGSYS, done.stderr


@pytest.mark.parametrize("name", sorted(set(GONE) - HOSTILE))
def test_what_fails(name: str) -> None:
    code = f"""
    try:
        {GONE[name]}
    except OSError as error:
        assert error.errno == errno.EPERM, error
    else:
        raise SystemExit('it worked')
    """
    done = run("on", code)
    assert done.stdout.endswith("ok\n"), done.stderr


def test_a_program_is_never_started() -> None:
    assert run("on", GONE["a program"]).returncode == -signal.SIGSYS


def test_an_unexpected_error_is_still_told() -> None:
    done = run("kill", "def f():\n    raise KeyError('lost')\nf()")
    assert done.returncode == 1
    assert "KeyError: 'lost'" in done.stderr
    assert "in f" in done.stderr


def test_folders_that_stay(tmp_path: Path) -> None:
    """Reading through a folder, and nowhere else by an absolute path; removing in another."""
    (tmp_path / "read").mkdir()
    (tmp_path / "read/it").write_text("inside")
    (tmp_path / "remove").mkdir()
    (tmp_path / "remove/it").touch()
    code = f"""
    assert folder.read('it') == 'inside'
    for path in ('/etc/passwd', '../remove/it'):
        try:
            folder.read(path)
        except PermissionError as error:
            pass
        else:
            raise SystemExit(path)
    os.unlink('{tmp_path}/remove/it')
    try:
        os.unlink('{tmp_path}/read/it')
    except PermissionError:
        pass
    else:
        raise SystemExit('removed')
    """
    setup = f"folder = Folder('{tmp_path}/read'); missing = Folder('/nowhere')\n"
    arguments = f"(sandbox.REMOVE_SOCKETS,), (folder, missing), ('{tmp_path}/remove',)"
    script = START + setup + f"told = sandbox.enter('kill', {arguments})\n" + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert os.path.exists(tmp_path / "read/it")


def test_every_row_says_why() -> None:
    rows = (*sandbox.ALWAYS, sandbox.REMOVE_SOCKETS, *sandbox.CONNECT, *sandbox.UEVENTS)
    assert all(row.why for row in rows)
    calls = [name for row in rows for name in row.calls.split() if not row.arguments]
    assert len(calls) == len(set(calls))
