"""vgpuctl trace: what a guest asks, one command a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

from vgpud.inspect.client import Daemon, ask

OWN: Final = {"at", "ring", "command", "answer", "us", "fence", "lost"}
"""What is not a field of the command."""


def opened(daemon: Daemon, wanted: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The commands that the filters let through, until the daemon's session ends. Raises Failed."""
    _, (fd,) = ask(daemon.path, {"command": "trace", **wanted})
    with open(fd, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def text(line: dict[str, Any], start: float) -> str:
    """For people: seconds since the start, ring, command, its fields, answer, time taken."""
    fields = " ".join(f"{k}={_value(v)}" for k, v in line.items() if k not in OWN)
    fence = f" fence={line['fence']}" if "fence" in line else ""
    lost = f" ({line['lost']} lost before)" if "lost" in line else ""
    answer = f" -> {line['answer']}" if line["answer"] else ""
    return (
        f"{line['at'] - start:10.6f} {line['ring']:7} {line['command']} {fields}".rstrip()
        + f"{fence}{answer} {line['us'] / 1e3:.3f} ms{lost}"
    )


def texts(lines: Iterable[dict[str, Any]]) -> Iterator[str]:
    start: float | None = None
    for line in lines:
        start = line["at"] if start is None else start
        yield text(line, start)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        if value.keys() == {"x", "y", "width", "height"}:
            return "{width}x{height}+{x}+{y}".format(**value)
        return "(" + " ".join(f"{k}={_value(v)}" for k, v in value.items()) + ")"
    return str(value)
