"""The program as its launchers see it: options, sockets, signals, exit statuses."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vgpud import cli, ctl

VGPUD = [sys.executable, "-m", "vgpud", "--sandbox=kill"]
PATIENCE = 20.0
GET_FEATURES = b"\1\0\0\0\1\0\0\0\0\0\0\0"


def run(*options: str, **more: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*VGPUD, *options], capture_output=True, text=True, timeout=PATIENCE, **more
    )


@contextmanager
def running(
    *options: str, program: list[str] = VGPUD, **more: object
) -> Iterator[subprocess.Popen[str]]:
    """A daemon that is ready; ended at the end if the test has not done so."""
    child = subprocess.Popen([*program, *options], stderr=subprocess.PIPE, text=True, **more)
    try:
        assert child.stderr is not None
        line = child.stderr.readline()
        assert "event=ready" in line, line + child.stderr.read()
        yield child
    finally:
        child.kill()
        child.communicate(timeout=PATIENCE)


def end(child: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
    child.send_signal(number)
    _, log = child.communicate(timeout=PATIENCE)
    return child.returncode, log


def ask(path: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(path)
        sock.sendall(GET_FEATURES)
        return sock.recv(64)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--nonsense",),
        ("--fd=x",),
        ("--fd=-1",),
        ("--fd=99999999999999",),
        ("--fd=3", "--socket-path=x"),
        ("--fd=3", "--virgl"),
        ("--fd=3", "--scanout=gl"),
        ("--fd=3", "--outputs=big"),
        ("--fd=3", "--outputs=32x32"),
        ("--fd=3", "--outputs=\uff11\uff10\uff10x100"),
        ("--fd=3", "--udmabuf="),
        ("--fd=3", "--qmp="),
        ("--fd=3", "--device-fps=0"),
        ("--fd=3", "--device-fps=nan"),
        ("--fd=3", "--device-fps=fast"),
        ("--fd=3", "--max-hostmem=0"),
        ("--fd=3", "--max-hostmem=99999999999999999999G"),
        ("--sock=x",),
    ],
)
def test_usage(options: tuple[str, ...]) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert done.stderr.startswith("vgpud: ")
    assert "Traceback" not in done.stderr


def test_capabilities_whatever_else_is_asked() -> None:
    for options in ((), ("--fd=3",), ("--virgl", "--nonsense")):
        done = run("--print-capabilities", *options)
        assert done.returncode == 0
        assert json.loads(done.stdout) == cli.capabilities()


def test_a_render_node_is_offered_where_there_is_one(tmp_path: Path) -> None:
    assert cli.capabilities(str(tmp_path / "none"))["features"] == []
    (tmp_path / "card0").touch()
    assert cli.capabilities(str(tmp_path))["features"] == []
    (tmp_path / "renderD128").touch()
    assert cli.capabilities(str(tmp_path)) == {"type": "gpu", "features": ["render-node"]}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--fd=63",), "Bad file descriptor"),
        (("--fd=0",), "no socket"),
        (("--fd=0", "--render-node=/nowhere"), "No such file"),
        (("--fd=0", "--render-node=/etc"), "no character device"),
        (("--socket-path=",), "1 to 107 bytes"),
        (("--socket-path=/" + "x" * 200,), "1 to 107 bytes"),
        (("--socket-path=/nowhere/vgpu",), "is the folder there"),
        (("--socket-path=/tmp",), "is no socket"),
        (("--fd=0", "--udmabuf=fd=63"), "Bad file descriptor"),
    ],
)
def test_failure(options: tuple[str, ...], why: str) -> None:
    done = run(*options, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert why in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["file", "fifo", "link to a file", "dangling link", "folder"])
def test_nothing_but_a_stale_socket_is_replaced(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "it", tmp_path / "other"
    other.write_text("precious")
    match kind:
        case "file":
            path.write_text("precious")
        case "fifo":
            os.mkfifo(path)
        case "link to a file":
            path.symlink_to(other)
        case "dangling link":
            path.symlink_to(tmp_path / "nothing")
        case "folder":
            path.mkdir()
    before = path.lstat()
    done = run(f"--socket-path={path}")
    assert done.returncode == 1
    assert "is no socket" in done.stderr
    assert path.lstat().st_ino == before.st_ino
    assert other.read_text() == "precious"


def test_a_stale_socket_is_replaced_and_ours_removed(tmp_path: Path) -> None:
    path = str(tmp_path / "gpu")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    with running(f"--socket-path={path}") as child:
        assert ask(path)[:4] == b"\1\0\0\0"
        code, log = end(child)
    assert code == 0
    assert not os.path.exists(path)
    assert "Traceback" not in log


def test_a_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = str(tmp_path / "gpu")
    with running(f"--socket-path={path}"):
        done = run(f"--socket-path={path}")
        assert done.returncode == 1
        assert "somebody listens" in done.stderr
        assert ask(path)


def test_another_ones_socket_is_not_removed_at_the_end(tmp_path: Path) -> None:
    path = str(tmp_path / "gpu")
    with running(f"--socket-path={path}") as first:
        os.unlink(path)
        with running(f"--socket-path={path}"):
            code, log = end(first)
            assert code == 0, log
            assert ask(path)


def test_one_qemu_after_another_and_not_two_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "gpu")
    with running(f"--socket-path={path}") as child:
        with socket.socket(socket.AF_UNIX) as first:
            first.settimeout(PATIENCE)
            first.connect(path)
            first.sendall(GET_FEATURES)
            assert first.recv(64)
            with socket.socket(socket.AF_UNIX) as second:
                second.settimeout(PATIENCE)
                second.connect(path)
                assert second.recv(64) == b""  # turned away at once
        for _ in range(3):
            assert ask(path)
        _, log = end(child)
    assert log.count("event=refused") == 1
    assert "Traceback" not in log


@pytest.mark.parametrize(
    ("data", "code"), [(b"", 0), (GET_FEATURES, 0), (GET_FEATURES[:7], 1), (b"\xff" * 64, 1)]
)
def test_an_inherited_connection_ends_the_program(data: bytes, code: int) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with running(f"--fd={theirs.fileno()}", pass_fds=[theirs.fileno()]) as child:
            theirs.close()
            ours.sendall(data)
            ours.close()
            _, log = child.communicate(timeout=PATIENCE)
            assert child.returncode == code, log
            assert ("session-failed" in log) == (code == 1)
            assert "Traceback" not in log


def test_a_socket_from_the_service_manager(tmp_path: Path) -> None:
    path, notices = str(tmp_path / "gpu"), tmp_path / "notify"
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX, 2) as manager:
        manager.bind(str(notices))
        manager.settimeout(PATIENCE)
        sock.bind(path)
        sock.listen()
        # As systemd does: the socket is fd 3, the variables name the very process.
        script = 'exec 3<&"$0"; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
        command = ["bash", "-c", script, str(sock.fileno()), *VGPUD]
        env = {**os.environ, "NOTIFY_SOCKET": str(notices)}
        child = subprocess.Popen(
            command, pass_fds=[sock.fileno()], env=env, stderr=subprocess.PIPE, text=True
        )
        try:
            assert manager.recv(4096).startswith(b"READY=1")
            assert ask(path)
            code, log = end(child)
        finally:
            child.kill()
            child.wait()
    assert code == 0, log
    assert stat.S_ISSOCK(os.stat(path).st_mode)  # the manager's, not ours to remove


def test_statistics_on_demand(tmp_path: Path) -> None:
    with running(f"--socket-path={tmp_path / 'gpu'}") as child:
        child.send_signal(signal.SIGUSR1)
        assert child.stderr is not None
        assert "event=stats" in child.stderr.readline()


def test_the_control_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    control = tmp_path / "control"
    with running(f"--socket-path={tmp_path / 'gpu'}", f"--control={control}") as child:
        assert stat.S_IMODE(os.stat(control).st_mode) == 0o600
        assert ctl.main([f"--control={control}", "status"]) == 0
        assert json.loads(capsys.readouterr().out)["session"] is None
        with pytest.raises(ctl.Failed, match="shows nothing"):
            ctl.screenshot(str(control), 0)
        for request in (b"nonsense\n", b"[1]\n", b'{"command": "no"}\n', b'{"head": 1}\n'):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(PATIENCE)
                sock.connect(str(control))
                sock.sendall(request)
                assert json.loads(sock.recv(4096))["ok"] is False
        code, log = end(child)
    assert code == 0
    assert "Traceback" not in log
    assert not control.exists()
    assert ctl.main([f"--control={control}", "status"]) == 1
    assert "is vgpud running" in capsys.readouterr().err


BROKEN_IN = """
import sys
from vgpud import cli, daemon
daemon.Daemon._status = lambda *_: open("/etc/passwd")
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("mode", "code"), [("--sandbox=kill", -signal.SIGSYS), ("--sandbox=on", 0)]
)
def test_a_daemon_that_was_broken_into_opens_no_file(tmp_path: Path, mode: str, code: int) -> None:
    control = tmp_path / "control"
    options = [f"--socket-path={tmp_path / 'gpu'}", f"--control={control}", mode]
    with running(*options, program=[sys.executable, "-c", BROKEN_IN]) as child:
        with pytest.raises(ctl.Failed):
            ctl.ask(str(control), {"command": "status"})
        if code:
            child.wait(PATIENCE)
        found, log = end(child)
    assert found == code, log


def test_without_a_sandbox_there_is_a_warning(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [*VGPUD, "--no-sandbox", f"--socket-path={tmp_path / 'gpu'}"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stderr is not None
        assert "level=warning event=no-sandbox" in child.stderr.readline()
    finally:
        child.kill()
        child.communicate(timeout=PATIENCE)
