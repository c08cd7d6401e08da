"""vgpuctl's pictures."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.png import parse_png
from vgpud import ctl
from vgpud.ctl import Failed, add_device, ansi, ask, main, png, screenshot
from vgpud.host.fd import OwnedFd, memory_file
from vgpud.host.handover import Found

WIDTH, HEIGHT = 3, 2
BGRX = b"".join(bytes((b, b + 1, b + 2, 0xEE)) for b in range(0, 18, 3))


def test_a_png_has_every_pixel_in_rgb() -> None:
    picture = parse_png(png(WIDTH, HEIGHT, BGRX))
    assert (picture.width, picture.height) == (WIDTH, HEIGHT)
    assert picture.rgb == b"".join(BGRX[i : i + 3][::-1] for i in range(0, len(BGRX), 4))


def test_a_terminal_picture_has_two_pixels_a_character() -> None:
    text = ansi(WIDTH, HEIGHT, BGRX, 80)
    assert text.count("\u2580") == WIDTH
    assert text.startswith("\x1b[38;2;2;1;0m\x1b[48;2;11;10;9m")
    assert text.endswith("\x1b[0m\n")
    assert ansi(200, 100, bytes(200 * 100 * 4), 40).count("\n") == 10


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--control"],
        ["--control=x"],
        ["--control=x", "screenshot"],
        ["--control=x", "screenshot", "--ansi", "out.png"],
        ["--control=x", "screenshot", "--ansi", ""],
        ["--cont=x", "status"],
        ["--control=x", "vfio", "add", "gpu", "--fd=99999999999"],
        *([f"--interval={seconds}", "top"][::-1] for seconds in ("-1", "0", "nan", "1e300", "a")),
        ["--control=x", "screenshot", "--head=a", "out.png"],
    ],
)
def test_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_a_picture_to_standard_output(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setattr(ctl, "screenshot", lambda path, head: (WIDTH, HEIGHT, BGRX))
    assert main(["--control=/x", "screenshot", "-"]) == 0
    assert capfdbinary.readouterr().out == png(WIDTH, HEIGHT, BGRX)


def test_a_reader_who_has_seen_enough() -> None:
    out, into = os.pipe()
    os.close(out)
    done = subprocess.run(
        [sys.executable, "-m", "vgpud.ctl", "list"], stdout=into, stderr=subprocess.PIPE
    )
    os.close(into)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("arguments", [["--control=@", "status"], ["status", "--control=@"]])
def test_the_path_may_stand_anywhere(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(tmp_path / "nothing")
    assert main([one.replace("@", path) for one in arguments]) == 1
    assert f"{path}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "said",
    [b"", b'{"ok": true, "vers', b"RFB 003.008\n", b"[]\n", b"{}\n", b"7\n", b"\xff\n"],
)
def test_a_peer_that_is_no_vgpud(said: bytes, tmp_path: Path) -> None:
    with peer(tmp_path / "peer", said) as path, pytest.raises(Failed, match="answer"):
        ask(path, {"command": "status"})


@pytest.mark.parametrize("said", [b'{"ok": true}\n', b'{"ok": true, "width": 1, "height": 1}\n'])
def test_an_answer_that_is_no_picture(said: bytes, tmp_path: Path) -> None:
    with peer(tmp_path / "peer", said) as path, pytest.raises(Failed, match="no picture"):
        screenshot(path, 0)


@contextmanager
def peer(path: Path, said: bytes) -> Iterator[str]:
    """Something that listens, reads a line, says this and goes."""

    def serve() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(4096)
            client.sendall(said)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield str(path)
        thread.join()


@pytest.mark.parametrize("ids", [["hostdev0"], ["hostdev0", "hostdev1"]])
def test_a_kernel_that_does_not_name_descriptors(
    ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux 6.12: the only descriptor is the only device's; of two devices nobody knows."""
    taken: list[tuple[int, int, str]] = []
    asked: list[object] = []

    def take_device(pid: int, number: int, host: str) -> OwnedFd:
        taken.append((pid, number, host))
        return memory_file()

    def answer(
        path: str, request: dict[str, object], fds: object = ()
    ) -> tuple[dict[str, object], list[int]]:
        asked.append(request["command"])
        devices = [{"id": one, "host": f"0000:0{n}:00.0"} for n, one in enumerate(ids)]
        return {"pid": 77, "devices": devices}, []

    monkeypatch.setattr(ctl, "ask", answer)
    monkeypatch.setattr(ctl, "devices_of", lambda pid: [Found(9, "")])
    monkeypatch.setattr(ctl, "take_device", take_device)
    if len(ids) > 1:
        with pytest.raises(Failed, match="has no descriptor of"):
            add_device("path", "hostdev0", None, None)
        assert taken == []
    else:
        add_device("path", "hostdev0", None, None)
        assert taken == [(77, 9, "0000:00:00.0")]
        assert asked == ["vfio-list", "vfio-add"]
