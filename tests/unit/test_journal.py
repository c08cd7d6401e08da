"""The journal's native protocol, read back by its rules."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vgpud.journal import connected, datagram


def parsed(data: bytes) -> dict[str, bytes]:
    found = {}
    while data:
        key, _, rest = data.partition(b"\n")
        size = int.from_bytes(rest[:8], "little")
        found[key.decode()] = rest[8 : 8 + size]
        assert rest[8 + size : 9 + size] == b"\n"
        data = rest[9 + size :]
    return found


def test_fields_are_kept_apart_whatever_they_hold() -> None:
    fields = {"reason": "x\nPRIORITY=0\n", "p50-ms": "1.5"}
    assert parsed(datagram("warning", "no-dmabuf", "event=no-dmabuf", fields)) == {
        "MESSAGE": b"event=no-dmabuf",
        "PRIORITY": b"4",
        "SYSLOG_IDENTIFIER": b"vgpud",
        "VGPUD_EVENT": b"no-dmabuf",
        "VGPUD_REASON": b"x\nPRIORITY=0\n",
        "VGPUD_P50_MS": b"1.5",
    }


def test_a_long_value_is_cut() -> None:
    assert len(parsed(datagram("info", "x", "y" * 10_000, {}))["MESSAGE"]) == 4096


@pytest.mark.parametrize(
    ("to", "stream", "used"),
    [("null", False, True), ("file", False, False), ("file", True, True)],
)
def test_when_the_journal_is_used(tmp_path: Path, to: str, stream: bool, used: bool) -> None:
    path = str(tmp_path / "journal")
    assert connected(path=path) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.bind(path)
        stderr = os.open(os.devnull if to == "null" else tmp_path / "log", os.O_RDWR | os.O_CREAT)
        found = os.fstat(stderr)
        environment = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"} if stream else {}
        sock = connected(stderr, environment, path)
        os.close(stderr)
        assert (sock is not None) == used
        if sock is not None:
            sock.send(b"x")
            assert theirs.recv(10) == b"x"
            sock.close()
