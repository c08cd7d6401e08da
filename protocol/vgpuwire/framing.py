"""Messages out of a byte stream that carries file descriptors.

Both sockets have the same header and the same rule: descriptors belong to the message whose bytes
they came with. So the shell reads exactly what `Framer.wanted` says, never over a message's end:

    while (message := framer.feed(*receive(framer.wanted))) is None: ...

What a descriptor is (an int, an owner object) is the caller's business: here it is a `T`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from construct import Int32ul

from vgpuwire.errors import BadFlags, TooLong, Truncated, WireError, WrongFdCount
from vgpuwire.payload import of_record
from vgpuwire.record import Record, field

T = TypeVar("T")


class Header(Record):
    """Both sockets' header: `size` is the payload's, in bytes; host byte order."""

    request: int = field(Int32ul)
    flags: int = field(Int32ul)
    size: int = field(Int32ul)


HEADER: Final = of_record(Header)


@dataclass(frozen=True, slots=True)
class Message(Generic[T]):
    """One whole message. `request` is a member of the socket's enum where its number is known;
    where it is not, a plain int, and the payload its raw bytes. Whoever gets a message owns its
    fds."""

    request: int
    flags: int
    need_reply: bool
    payload: object
    fds: tuple[T, ...] = ()


class Parse(Protocol):
    """Raises a WireError for what the direction's protocol does not have."""

    def __call__(self, header: Header, payload: bytes, fds: Sequence[T] = (), /) -> Message[T]: ...


class Dialect(NamedTuple):
    """One direction of one socket: what a Framer holds its messages to."""

    parse: Parse
    flags: frozenset[int]
    """The whole flags fields that this direction has."""
    max_payload: int
    """Bytes. A larger size is refused when the header is read: nothing is stored on a claim."""
    max_fds: int


def check_header(header: Header, dialect: Dialect) -> None:
    """Raises BadFlags or TooLong: the stream is not in step, or the peer is not what it says."""
    if header.flags not in dialect.flags:
        allowed = " or ".join(f"{flags:#x}" for flags in sorted(dialect.flags))
        raise BadFlags(f"request {header.request}: flags {header.flags:#x}, not {allowed}")
    if header.size > dialect.max_payload:
        raise TooLong(
            f"request {header.request}: {header.size} bytes, at most {dialect.max_payload}"
        )


def check_frame(header: Header, payload: bytes, dialect: Dialect) -> None:
    """check_header, and the payload is the one that the header tells of."""
    check_header(header, dialect)
    if len(payload) != header.size:
        error = Truncated if len(payload) < header.size else TooLong
        raise error(f"request {header.request}: {len(payload)} bytes, header says {header.size}")


def check_fds(what: str, fds: Sequence[object], low: int, high: int) -> None:
    """Raises WrongFdCount."""
    if not low <= len(fds) <= high:
        due = f"{low}" if low == high else f"{low} to {high}"
        raise WrongFdCount(f"{what}: {len(fds)} file descriptors, not {due}")


class Framer(Generic[T]):
    """Cuts one direction of a socket into messages. It neither reads nor closes anything.

    After an error the stream cannot be followed: every later feed() raises the same error.
    """

    def __init__(self, dialect: Dialect) -> None:
        self.undelivered: list[T] = []
        """Descriptors that came and are in no message yet. At EOF or after an error the owner
        of the socket closes them."""
        self._dialect = dialect
        self._data = bytearray()
        self._header: Header | None = None
        self._error: WireError | None = None

    @property
    def wanted(self) -> int:
        """How many bytes to read next, at most; not 0 unless feed() has raised a WireError."""
        end = Header.SIZE + (self._header.size if self._header else 0)
        return end - len(self._data)

    @property
    def between_messages(self) -> bool:
        """Nothing is half read: an EOF here is a peer that went away in good order."""
        return not self._data and not self.undelivered

    def feed(self, data: bytes, fds: Sequence[T] = ()) -> Message[T] | None:
        """Take what one receive brought; the message that it completes, if any.

        Raises a WireError for bytes that mean nothing, ValueError for more than `wanted` (then
        nothing but the fds was taken). Whatever it raises, the fds are in `undelivered`.
        """
        self.undelivered += fds
        if self._error is not None:
            raise self._error
        if len(data) > self.wanted:
            raise ValueError(f"fed {len(data)} bytes of {self.wanted} wanted")
        self._data += data
        try:
            return self._advance()
        except WireError as error:
            self._error = error
            raise

    def _advance(self) -> Message[T] | None:
        if self._header is None and len(self._data) == Header.SIZE:
            header = HEADER.parse(bytes(self._data), "header")
            check_header(header, self._dialect)
            self._header = header
        check_fds("message", self.undelivered, 0, self._dialect.max_fds)
        if self._header is None or self.wanted:
            return None
        payload = bytes(memoryview(self._data)[Header.SIZE :])
        message = self._dialect.parse(self._header, payload, tuple(self.undelivered))
        self._header, self._data, self.undelivered = None, bytearray(), []
        return message
