"""One structured line an event, in logfmt: `level=info event=session-start fd=3`.

A leaf that anyone may import. Values with blanks, quotes or control bytes are quoted, so that
nothing a guest or QEMU sends can forge a line; an event that comes too often is counted instead of
written, so that nothing they do can fill a disk.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from typing import Any, Final

from vgpud import journal

LEVELS: Final = ("debug", "info", "warning", "error")

BURST: Final = 50
WINDOW: Final = 30.0
"""Lines of one event in so many seconds; the next one says how many there would have been."""

_logger: Final = logging.getLogger("vgpud")


class _Limit:
    """What is written of each event. Debug lines, which somebody asked for, are not limited."""

    def __init__(self) -> None:
        self._events: dict[str, tuple[float, int]] = {}

    def admit(self, event: str, now: float) -> int | None:
        """How many were left out before this one; None where this one is."""
        since, count = self._events.get(event, (now, 0))
        if now - since >= WINDOW:
            self._events[event] = (now, 1)
            return max(0, count - BURST)
        self._events[event] = (since, count + 1)
        return 0 if count < BURST else None


_limit = _Limit()


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"level={record.levelname.lower()} {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Journal(logging.Handler):
    def __init__(self, sock: Any) -> None:
        super().__init__()
        self._sock = sock

    def emit(self, record: logging.LogRecord) -> None:
        event, fields = getattr(record, "event", ""), getattr(record, "fields", {})
        line = record.getMessage()
        # A journal that is away, or busy, is no reason to stop.
        with suppress(OSError):
            self._sock.send(journal.datagram(record.levelname.lower(), event, line, fields))


def configure(level: str) -> None:
    """Send events of `level` and above to the journal, where standard error leads there or
    nowhere, else to standard error."""
    sock = journal.connected()
    handler: logging.Handler = logging.StreamHandler() if sock is None else _Journal(sock)
    handler.setFormatter(_Formatter())
    _logger.handlers[:] = [handler]
    _logger.propagate = False
    _logger.setLevel(level.upper())


def _value(text: str) -> str:
    if text and all(c > " " and c not in "\"'=\\" and c != "\x7f" for c in text):
        return text
    return json.dumps(text)


def _line(event: str, fields: dict[str, str]) -> str:
    return " ".join([f"event={event}", *(f"{key}={_value(v)}" for key, v in fields.items())])


def _tell(level: int, event: str, fields: dict[str, Any]) -> None:
    if level > logging.DEBUG:
        left_out = _limit.admit(event, time.monotonic())
        if left_out is None:
            return
        if left_out:
            fields = {**fields, "left_out": left_out}
    # Text at once: an error that a record keeps would keep its frames, and their descriptors.
    texts = {key: str(value) for key, value in fields.items()}
    _logger.log(level, "%s", _line(event, texts), extra={"event": event, "fields": texts})


def debug(event: str, **fields: Any) -> None:
    if _logger.isEnabledFor(logging.DEBUG):
        _tell(logging.DEBUG, event, fields)


def info(event: str, **fields: Any) -> None:
    _tell(logging.INFO, event, fields)


def warning(event: str, **fields: Any) -> None:
    _tell(logging.WARNING, event, fields)


def error(event: str, **fields: Any) -> None:
    _tell(logging.ERROR, event, fields)
