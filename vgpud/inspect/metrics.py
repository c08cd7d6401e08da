"""vgpuctl metrics: all daemons in Prometheus' text format (exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from vgpud.inspect.top import Sample

COUNTERS: Final = {
    "frames": "flushes that damaged something",
    "commands": "commands of the guest",
    "updates": "pictures sent as pixels",
    "pixel_bytes": "bytes of pixels sent to QEMU",
    "dmabuf_updates": "pictures shared as dma-bufs",
    "late_flushes": "flushes that the display did not answer in time",
    "unanswered": "questions that QEMU did not answer",
}
QUOTAS: Final = {
    "hostmem_bytes": "memory of 2D resources",
    "resources": "resources",
    "entries": "entries of backings",
    "dmabufs": "dma-bufs",
    "pinned_bytes": "memory that dma-bufs pin",
}
PROCESS: Final = {"fds": "open descriptors", "memory": "bytes in memory"}

Series = tuple[str, float]
"""Labels and a value."""

Metric = tuple[str, str, str, list[Series]]
"""Name, type, help, series."""


def text(found: Mapping[str, Sample], asked: Iterable[str] = ()) -> str:
    """Every metric with its help and type, then a line for each machine; of those `asked` that gave
    no sample only that they are not up."""
    lines = []
    for name, kind, about, series in (_up(found, asked), *_metrics(found)):
        lines += [f"# HELP vgpud_{name} {about}", f"# TYPE vgpud_{name} {kind}"]
        lines += [f"vgpud_{name}{{{labels}}} {value}" for labels, value in series]
    return "\n".join(lines) + "\n"


def _up(found: Mapping[str, Sample], asked: Iterable[str]) -> Metric:
    series = [(_label(name), float(name in found)) for name in sorted({*found, *asked})]
    return "up", "gauge", "whether the daemon answers on its control socket", series


def _metrics(found: Mapping[str, Sample]) -> Iterator[Metric]:
    names = {name: _label(name) for name in found}
    serving = {n: one.status["session"] for n, one in found.items()}
    sessions: dict[str, Any] = {n: one for n, one in serving.items() if one is not None}
    yield (
        *("serving", "gauge", "whether a QEMU is connected"),
        [(names[n], float(one is not None)) for n, one in serving.items()],
    )
    for key, about in COUNTERS.items():
        series = [(names[n], float(one[key])) for n, one in sessions.items()]
        yield f"{key}_total", "counter", about, series
    for share, key in ((0.5, "flush_p50_ms"), (0.99, "flush_p99_ms")):
        series = [(names[n], float(one[key]) / 1e3) for n, one in sessions.items()]
        name = f"flush_p{share * 100:.0f}_seconds"
        yield name, "gauge", f"within which {share:.0%} of recent flushes were answered", series
    for key, about in QUOTAS.items():
        for which, word in enumerate(("used", "limit")):
            series = [(names[n], float(one["quotas"][key][which])) for n, one in sessions.items()]
            yield f"{key}_{word}", "gauge", f"{about}, {word}", series
    yield (
        *("guest_errors_total", "counter", "commands refused, by response code"),
        [
            (f'{names[n]},code="{code}"', float(count))
            for n, one in sessions.items()
            for code, count in one["guest_errors"].items()
        ],
    )
    used = {n: one.usage for n, one in found.items() if one.usage is not None}
    for key, about in PROCESS.items():
        series = [(names[n], float(getattr(one, key))) for n, one in used.items()]
        yield f"process_{key}", "gauge", f"{about} of the daemon", series
    series = [(names[n], one.cpu) for n, one in used.items()]
    yield "process_cpu_seconds_total", "counter", "CPU time of the daemon", series


def _label(machine: str) -> str:
    escaped = machine.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'vm="{escaped}"'
