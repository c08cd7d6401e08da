"""What the daemon did: counts, and how long flushes took."""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import Final

SAMPLES: Final = 4096
"""Flush times kept, in seconds: a minute of a 60 Hz guest."""


class Stats:
    """Counters of one session; plain attributes, written by the tasks."""

    def __init__(self) -> None:
        self.commands = 0
        self.frames = 0
        self.updates = 0
        self.pixel_bytes = 0
        self.dmabuf_updates = 0
        self.late_flushes = 0
        self.unanswered = 0
        self.unasked = 0
        self._times: deque[float] = deque(maxlen=SAMPLES)

    def flushed(self, seconds: float) -> None:
        """A flush that damaged something was answered, so long after it was taken up."""
        self.frames += 1
        self._times.append(seconds)

    def sent(self, updates: int, pixel_bytes: int, dmabuf_update: bool) -> None:
        """So many UPDATEs, or another message, went out whole."""
        self.updates += updates
        self.pixel_bytes += pixel_bytes
        self.dmabuf_updates += dmabuf_update

    def percentile(self, share: float) -> float:
        """Seconds within which `share` (0 to 1) of the recent flushes were answered."""
        times = sorted(self._times)
        return times[max(0, ceil(len(times) * share) - 1)] if times else 0.0

    def fields(self) -> dict[str, object]:
        """For a log line; times in milliseconds."""
        return {
            "frames": self.frames,
            "updates": self.updates,
            "commands": self.commands,
            "pixel_bytes": self.pixel_bytes,
            "dmabuf_updates": self.dmabuf_updates,
            "late_flushes": self.late_flushes,
            "unanswered": self.unanswered,
            "unasked": self.unasked,
            "flush_p50_ms": f"{self.percentile(0.5) * 1e3:.2f}",
            "flush_p99_ms": f"{self.percentile(0.99) * 1e3:.2f}",
        }
