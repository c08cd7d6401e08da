"""Finding running daemons, and asking them on their control sockets."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

FOLDER: Final = "/run/vgpud"
"""Where the units of the system put NAME/control."""

CONTROL: Final = "control"

PATIENCE: Final = struct.pack("ll", 60, 0)
"""A struct timeval: for a turn, and for a gigabyte of picture."""

STATUS_PATIENCE: Final = struct.pack("ll", 3, 0)
"""For what is answered at once, and may be asked of many daemons, some of which hang."""


class Failed(Exception):
    """What to tell the user; exit status 1."""


class Daemon(NamedTuple):
    """A control socket and the name of the virtual machine, which is its folder's."""

    name: str
    path: str


class Usage(NamedTuple):
    """What a process has, as /proc tells: open descriptors, bytes in memory, seconds of CPU."""

    fds: int
    memory: int
    cpu: float


def folders(environment: Mapping[str, str] = os.environ) -> list[Path]:
    """Where control sockets are looked for: the system's, then the user's own."""
    found = [Path(FOLDER)]
    if runtime := environment.get("XDG_RUNTIME_DIR"):
        found.append(Path(runtime) / "vgpud")
    return found


def running(where: list[Path]) -> list[Daemon]:
    """All that listen, by name."""
    found = []
    for folder in where:
        with suppress(OSError):  # not there, or not ours to look into
            found += [Daemon(path.parent.name, str(path)) for path in folder.glob(f"*/{CONTROL}")]
    return sorted(found)


def resolve(control: str | None, where: list[Path]) -> Daemon:
    """The daemon that is meant: a path, a name, or the only one there is. Raises Failed."""
    if control is not None and "/" in control:
        return Daemon(Path(control).parent.name, control)
    found = running(where)
    if control is not None:
        found = [one for one in found if one.name == control]
    if len(found) == 1:
        return found[0]
    names = ", ".join(one.name for one in running(where)) or "none"
    places = " and ".join(map(str, where))
    wanted = "--control=NAME or --control=PATH is needed"
    reason = wanted if control is None else f"no machine {control}"
    raise Failed(f"{reason}; in {places} there is: {names}")


def ask(
    path: str, request: dict[str, Any], fds: Sequence[int] = ()
) -> tuple[dict[str, Any], list[int]]:
    """The answer's fields, and the descriptors that came with it; `fds` go with the request. Raises
    Failed."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            # Not settimeout(): then connect() would not wait where many ask at once.
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                patience = STATUS_PATIENCE if request["command"] == "status" else PATIENCE
                sock.setsockopt(socket.SOL_SOCKET, option, patience)
            sock.connect(path)
            socket.send_fds(sock, [json.dumps(request).encode() + b"\n"], list(fds))
            data, came, _, _ = socket.recv_fds(sock, 1 << 16, 1)
            line = data
            while data and not line.endswith(b"\n"):
                data = sock.recv(1 << 16)
                line += data
    except PermissionError as error:
        raise Failed(f"{path}: {error.strerror}: be vgpud's user, or root") from error
    except OSError as error:
        raise Failed(f"{path}: {error}; is vgpud running with --control={path}?") from error
    if not line:
        raise Failed(f"{path}: vgpud did not answer; it serves its own user and root only")
    try:
        answer = json.loads(line)
        if not answer["ok"]:
            raise Failed(answer["error"])
    except (ValueError, TypeError, KeyError) as error:
        for fd in came:
            os.close(fd)
        raise Failed(f"{path}: that is no answer of vgpud's: {line[:40]!r}") from error
    return answer, came


def usage(pid: int, proc: Path = Path("/proc")) -> Usage | None:
    """None for a process that has gone, or that is not ours to look at."""
    try:
        fds = len(os.listdir(proc / str(pid) / "fd"))
        pages = int((proc / str(pid) / "statm").read_text().split()[1])
        # The name, in parentheses, may have blanks.
        times = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, IndexError, ValueError):
        return None
    ticks = int(times[11]) + int(times[12])
    return Usage(fds, pages * os.sysconf("SC_PAGESIZE"), ticks / os.sysconf("SC_CLK_TCK"))
