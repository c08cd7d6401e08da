"""Payloads of the two sockets: parsed and built by construct itself, handed on as typed values.

A payload on a socket has no trailing bytes: sizes are told by the header, so too many are an
error as much as too few.
"""

from __future__ import annotations

from collections.abc import Callable
from types import NoneType
from typing import Any, Final, Generic, TypeVar

import construct as cs

from vgpuwire.errors import TooLong, Truncated, WireError
from vgpuwire.record import Record

V = TypeVar("V")
R = TypeVar("R", bound=Record)


class Payload(Generic[V]):
    """A construct and the values of one type that stand for it: `make` takes what construct
    parsed, `spread` gives what construct builds from."""

    def __init__(
        self,
        kind: type[V],
        layout: Any,
        make: Callable[[Any], V] | None = None,
        spread: Callable[[V], Any] | None = None,
    ) -> None:
        self._kind = kind
        self._body = layout
        self._layout = cs.Sequence(layout, cs.Terminated)
        self._make, self._spread = make or _same, spread or _same

    def parse(self, data: bytes, what: str) -> V:
        """The value of exactly these bytes; `what` names the message in errors.

        Raises Truncated, or TooLong for trailing bytes or a count beyond its limit.
        """
        try:
            return self._make(self._layout.parse(data)[0])
        except cs.StreamError:
            raise Truncated(f"{what}: {len(data)} bytes are too few") from None
        except cs.TerminatedError:
            raise TooLong(f"{what}: {len(data)} bytes are too many") from None
        except cs.CheckError:
            raise TooLong(f"{what}: a count is beyond its limit") from None

    def build(self, value: object, what: str) -> bytes:
        """Bytes of a value. Raises WireError where it is not of this type or does not fit."""
        if not isinstance(value, self._kind):
            raise WireError(f"{what}: {value!r} does not fit: not a {self._kind.__name__}")
        try:
            built: bytes = self._body.build(self._spread(value))
        except (cs.ConstructError, WireError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise WireError(f"{what}: {value!r} does not fit: {reason}") from None
        return built


def _same(value: Any) -> Any:
    return value


class _Packed(cs.Construct):  # type: ignore[misc]
    """A construct that reads and writes one record by the record's own codec: the same bytes as
    its layout, a tenth of the time, and no container on the way."""

    def __init__(self, record: type[Record]) -> None:
        super().__init__()
        self._record = record

    def _parse(self, stream: Any, context: Any, path: str) -> Record:
        return self._record.decode(cs.stream_read(stream, self._record.SIZE, path))

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Any:
        cs.stream_write(stream, obj.encode(), self._record.SIZE, path)
        return obj

    def _sizeof(self, context: Any, path: str) -> int:
        return self._record.SIZE


def of_record(record: type[R]) -> Payload[R]:
    """The payload that is one record."""
    return Payload(record, _Packed(record))


def from_container(layout: Any, parsed: Any) -> Any:
    """What construct parsed with a record's layout, as the record."""
    record = getattr(layout, "record", None)
    if record is not None:
        named = [sub for sub in layout.subcons if sub.name]
        return record(*[from_container(sub.subcon, parsed[sub.name]) for sub in named])
    if isinstance(parsed, list):
        return tuple(from_container(layout.subcon, item) for item in parsed)
    return parsed


def to_container(value: Any) -> Any:
    """A record as construct builds it: dicts and lists."""
    if isinstance(value, Record):
        names = type(value).__match_args__  # type: ignore[attr-defined]
        return {name: to_container(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [to_container(item) for item in value]
    return value


NOTHING: Final = Payload(NoneType, cs.Pass)
U64: Final = Payload(int, cs.Int64ul)
OPAQUE: Final = Payload(bytes, cs.GreedyBytes)
"""Bytes of a message that nobody here looks into."""


def exactly(size: int) -> Payload[bytes]:
    """A blob of that many bytes, decoded by whoever it is for."""
    return Payload(bytes, cs.Bytes(size))
