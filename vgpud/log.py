"""One structured line an event, in logfmt: `level=info event=session-start fd=3`.

A leaf that anyone may import. Values with blanks, quotes or control bytes are quoted, so that
nothing a guest or QEMU sends can forge a line.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Final

LEVELS: Final = ("debug", "info", "warning", "error")

_logger: Final = logging.getLogger("vgpud")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = f"level={record.levelname.lower()} {record.getMessage()}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure(level: str) -> None:
    """Send events of `level` and above to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    _logger.handlers[:] = [handler]
    _logger.propagate = False
    _logger.setLevel(level.upper())


def _value(value: Any) -> str:
    text = str(value)
    if text and all(c > " " and c not in "\"'=\\" and c != "\x7f" for c in text):
        return text
    return json.dumps(text)


def _line(event: str, fields: dict[str, Any]) -> str:
    return " ".join([f"event={event}", *(f"{key}={_value(v)}" for key, v in fields.items())])


def debug(event: str, **fields: Any) -> None:
    if _logger.isEnabledFor(logging.DEBUG):
        _logger.debug("%s", _line(event, fields))


def info(event: str, **fields: Any) -> None:
    _logger.info("%s", _line(event, fields))


def warning(event: str, **fields: Any) -> None:
    _logger.warning("%s", _line(event, fields))


def error(event: str, **fields: Any) -> None:
    _logger.error("%s", _line(event, fields))
