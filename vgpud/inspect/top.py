"""vgpuctl top and list: each daemon in a line, live."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from vgpud.inspect.client import Daemon, Failed, Usage, ask, usage

HEADER = (
    *("VM", "HEADS", "FPS", "P50", "P99", "MB/S", "CMD/S", "RES", "HOSTMEM", "DMABUFS", "PINNED"),
    *("FDS", "MEM", "CPU"),
)


class Sample(NamedTuple):
    """What a daemon said, and what /proc says of it. `when` is in seconds of a steady clock."""

    when: float
    status: Mapping[str, Any]
    usage: Usage | None


def sample(daemon: Daemon) -> Sample | None:
    """None where it does not answer: it may just have ended."""
    try:
        status, _ = ask(daemon.path, {"command": "status"})
    except Failed:
        return None
    return Sample(time.monotonic(), status, usage(int(status["pid"])))


def samples(daemons: Sequence[Daemon]) -> dict[str, Sample]:
    return {one.name: found for one in daemons if (found := sample(one)) is not None}


def amount(value: float) -> str:
    """Bytes, short: 1.5M."""
    for unit in ("", "K", "M", "G"):
        if value < 1024 or unit == "G":
            return f"{value:.1f}{unit}" if unit and value < 100 else f"{value:.0f}{unit}"
        value /= 1024
    raise AssertionError


def of(quota: Sequence[int], show: Any = str) -> str:
    """A quota: what is used and how much of it that is."""
    used, limit, _ = quota
    return f"{show(used)} {100 * used // limit if limit else 0}%"


def row(name: str, now: Sample, before: Sample | None) -> tuple[str, ...]:
    """The cells of HEADER; rates need a sample of before."""
    session = now.status["session"]
    cpu = _cpu(now, before)
    process = (
        ("-", "-", cpu)
        if now.usage is None
        else (str(now.usage.fds), amount(now.usage.memory), cpu)
    )
    if session is None:
        return (name, "no QEMU", *["-"] * 9, *process)
    quotas = session["quotas"]
    heads = " ".join(
        f"{number}:{head['size']}{'*' if head['way'] == 'DMABUF_SCANOUT' else ''}"
        for number, head in session["heads"].items()
    )
    return (
        name,
        heads or "dark",
        _rate(now, before, "frames", "{:.0f}".format),
        f"{float(session['flush_p50_ms']):.1f}ms",
        f"{float(session['flush_p99_ms']):.1f}ms",
        _rate(now, before, "pixel_bytes", lambda rate: f"{rate / 1e6:.1f}"),
        _rate(now, before, "commands", "{:.0f}".format),
        of(quotas["resources"]),
        of(quotas["hostmem_bytes"], amount),
        of(quotas["dmabufs"]),
        of(quotas["pinned_bytes"], amount),
        *process,
    )


def _rate(now: Sample, before: Sample | None, key: str, show: Any) -> str:
    if before is None or before.status["session"] is None:
        return "-"
    done = now.status["session"][key] - before.status["session"][key]
    # A new session counts from 0.
    return str(show(max(0, done) / max(1e-3, now.when - before.when)))


def _cpu(now: Sample, before: Sample | None) -> str:
    if before is None or now.usage is None or before.usage is None:
        return "-"
    spent = now.usage.cpu - before.usage.cpu
    return f"{100 * spent / max(1e-3, now.when - before.when):.0f}%"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """In columns as wide as they must be; numbers to the right."""
    widths = [max(len(line[n]) for line in rows) for n in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if n < 2 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in rows
    ]


def lines(now: Mapping[str, Sample], before: Mapping[str, Sample]) -> list[str]:
    """The whole screen."""
    rows = [row(name, one, before.get(name)) for name, one in now.items()]
    return table([HEADER, *rows])


def watch(daemons: Any, interval: float) -> Iterator[list[str]]:
    """A screen each `interval` seconds; `daemons` is asked each time who there is."""
    before = samples(daemons())
    while True:
        time.sleep(interval)
        now = samples(daemons())
        yield lines(now, before)
        before = now


def listing(daemons: Sequence[Daemon]) -> list[str]:
    """vgpuctl list."""
    rows = [("VM", "PID", "VERSION", "SCANOUT", "CONTROL")]
    for one in daemons:
        found = sample(one)
        if found is None:
            rows.append((one.name, "-", "-", "does not answer", one.path))
        else:
            status = found.status
            rows.append(
                (one.name, str(status["pid"]), status["version"], status["scanout"], one.path)
            )
    widths = [max(len(line[n]) for line in rows) for n in range(5)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in rows
    ]
