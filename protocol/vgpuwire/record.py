"""Records: a wire layout declared once with construct, read and written by `struct`.

    class Rect(Record):
        x: int = field(Int32ul)
        y: int = field(Int32ul)

    class Flush(Record):
        hdr: CtrlHdr = field(CtrlHdr)           # a record inside a record
        r: Rect = field(Rect)
        strides: tuple[int, ...] = field(Array(4, Int32ul))
        name: bytes = field(Bytes(16))
        _padding = Padding(4)                   # bytes without a name: zeros, never looked at

Records are immutable values: made by position or by name, compared, hashed and matched by type
and content. All integers are little-endian. `Rect.layout` is the real `construct.Struct`; the
struct format is made by walking the declaration, and the tests hold both to the same bytes. An
array of records is `field(Array(16, Rect.layout))`.

A module of records starts with `from __future__ import annotations`.

Only the layout is checked here. What a value means is checked by whoever uses it.
"""

from __future__ import annotations

import struct
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self, dataclass_transform

import construct as cs

from vgpuwire.errors import Truncated, WireError

if sys.byteorder != "little":
    raise ImportError("vgpuwire: the sockets are in host byte order and the rings little-endian")

Buffer = bytes | bytearray | memoryview

_REQUIRED: Final = object()
_new: Any = tuple.__new__


class _Field(NamedTuple):
    layout: Any
    default: Any


def field(layout: Any, *, default: Any = _REQUIRED) -> Any:
    """One field: a construct (Int32ul, Bytes(16), Array(4, Int32ul)) or a Record class."""
    return _Field(layout, default)


class _Codec(NamedTuple):
    """How a value becomes the leaves of a struct format, and back."""

    format: str
    leaves: int
    make: Callable[[tuple[Any, ...]], Any] | None
    """Makes the value of that many leaves; None where the value is the leaf itself."""
    put: Callable[[list[Any], Any], None]
    """Appends the leaves of a value. Raises struct.error where it has another shape."""


def _codec(layout: Any) -> _Codec:
    """Walk a declaration. Raises TypeError for what has no fixed little-endian format."""
    record = getattr(layout, "record", layout)
    if isinstance(record, RecordType) and record is not Record:
        return record._codec
    if isinstance(layout, cs.FormatField) and layout.fmtstr[0] == "<":
        return _Codec(layout.fmtstr[1:], 1, None, list.append)
    if isinstance(layout, cs.Bytes) and isinstance(layout.length, int):
        return _bytes_codec(layout.length)
    if isinstance(layout, cs.Array) and isinstance(layout.count, int):
        return _array_codec(layout.count, _codec(layout.subcon))
    raise TypeError(f"{layout!r} is neither a little-endian integer, Bytes, Array nor a Record")


def _bytes_codec(size: int) -> _Codec:
    def put(leaves: list[Any], value: Any) -> None:
        # struct would pad a shorter value and cut a longer one, both without a word.
        if not isinstance(value, bytes) or len(value) != size:
            raise struct.error(f"needs exactly {size} bytes")
        leaves.append(value)

    return _Codec(f"{size}s", 1, None, put)


def _array_codec(count: int, item: _Codec) -> _Codec:
    step, make_one = item.leaves, item.make

    def make(leaves: tuple[Any, ...]) -> tuple[Any, ...]:
        if make_one is None:
            return leaves
        return tuple([make_one(leaves[at : at + step]) for at in range(0, len(leaves), step)])

    def put(leaves: list[Any], value: Any) -> None:
        if not isinstance(value, tuple) or len(value) != count:
            raise struct.error(f"needs a tuple of {count}")
        for one in value:
            item.put(leaves, one)

    return _Codec(item.format * count, count * step, make, put)


def _record_codec(record: RecordType, layout: str, codecs: tuple[_Codec, ...]) -> _Codec:
    ends = tuple(accumulate(codec.leaves for codec in codecs))
    plan = [
        (codec.make, end - 1 if codec.make is None else slice(end - codec.leaves, end))
        for codec, end in zip(codecs, ends, strict=True)
    ]

    def put(leaves: list[Any], value: Any) -> None:
        if type(value) is not record:
            raise struct.error(f"needs a {record.__name__}")
        for codec, one in zip(codecs, value, strict=True):
            codec.put(leaves, one)

    flat = all(codec.make is None for codec in codecs)
    return _Codec(layout, ends[-1], partial(_new, record) if flat else _unrolled(record, plan), put)


def _unrolled(record: RecordType, plan: list[tuple[Any, Any]]) -> Callable[[tuple[Any, ...]], Any]:
    """The constructor of a record with parts, written out as namedtuple() writes its own: half
    the time of a loop over `plan`, for every command of a guest. Made when first called, because
    most records are never read."""

    def make(leaves: tuple[Any, ...]) -> Any:
        names: dict[str, Any] = {"new": _new, "record": record}
        parts = []
        for number, (one, at) in enumerate(plan):
            if one is None:
                parts.append(f"leaves[{at}]")
                continue
            inner = ", ".join(f"leaves[{n}]" for n in range(at.start, at.stop))
            names[f"make{number}"] = one
            call = f"make{number}(({inner},))"
            if isinstance(one, partial):  # a flat record: its own call is saved
                names[f"make{number}"] = one.args[0]
                call = f"new(make{number}, ({inner},))"
            parts.append(call)
        unrolled = eval(f"lambda leaves: new(record, ({', '.join(parts)},))", names)
        record._codec = record._codec._replace(make=unrolled)
        return unrolled(leaves)

    return make


class RecordType(type):
    """The class of Record classes: turns fields into a named tuple with a struct format."""

    _parts: dict[str, Any]
    """Fields and padding, as declared."""
    _codecs: dict[str, _Codec]
    """Of the fields."""
    _codec: _Codec
    """Of the whole."""
    _layout: Any

    def __new__(mcs, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> RecordType:
        if not bases:
            return super().__new__(mcs, name, bases, space)
        if bases != (Record,):
            raise TypeError(f"{name}: a record derives from Record alone")
        parts = _declared(name, space)
        codecs, formats = {}, []
        for key, part in parts.items():
            if isinstance(part, _Field):
                try:
                    codecs[key] = _codec(part.layout)
                except TypeError as error:
                    raise TypeError(f"{name}.{key}: {error}") from None
                formats.append(codecs[key].format)
            else:
                formats.append(f"{part.length}x")
        defaults = [parts[key].default for key in codecs if parts[key].default is not _REQUIRED]
        values = namedtuple(name, codecs, defaults=defaults)  # type: ignore[misc]  # noqa: PYI024
        body = {key: value for key, value in space.items() if key not in parts}
        cls: Any = super().__new__(mcs, name, (Record, values), {"__slots__": (), **body})
        cls._parts, cls._codecs, cls._layout = parts, codecs, None
        cls._codec = _record_codec(cls, "".join(formats), tuple(codecs.values()))
        cls._struct = struct.Struct("<" + cls._codec.format)
        cls.SIZE = cls._struct.size
        return cls  # type: ignore[no-any-return]

    @property
    def layout(cls) -> Any:
        """The same layout as a construct.Struct, made when it is first asked for."""
        if cls._layout is None:
            subcons = []
            for key, part in cls._parts.items():
                inner = part.layout if isinstance(part, _Field) else part
                inner = inner.layout if isinstance(inner, RecordType) else inner
                subcons.append(key / inner if isinstance(part, _Field) else inner)
            cls._layout = cs.Struct(*subcons)
            cls._layout.record = cls
        return cls._layout


def _declared(name: str, space: dict[str, Any]) -> dict[str, Any]:
    """Fields and padding of a class body, in order. Raises TypeError for half a declaration."""
    parts = {key: value for key, value in space.items() if isinstance(value, _Field | cs.Construct)}
    annotated = space.get("__annotations__", {})
    optional = False
    for key, part in parts.items():
        if not isinstance(part, _Field):
            if not (isinstance(part, cs.Padded) and part.subcon is cs.Pass):
                raise TypeError(f"{name}.{key}: write field(...) around a construct")
            continue
        if key not in annotated:
            raise TypeError(f"{name}.{key}: a field needs a type")
        if key in _TAKEN or key.startswith("_"):
            raise TypeError(f"{name}.{key}: not a name for a field")
        if optional and part.default is _REQUIRED:
            raise TypeError(f"{name}.{key}: needs a default, as the field before it has one")
        optional = part.default is not _REQUIRED
    for key, kind in annotated.items():
        if key not in parts and "ClassVar" not in str(kind):
            raise TypeError(f"{name}.{key}: has no field(...)")
    if not any(isinstance(part, _Field) for part in parts.values()):
        raise TypeError(f"{name}: a record needs a field")
    return parts


_TAKEN: Final = frozenset({"SIZE", "layout", "decode", "encode", "mro", "pack"})


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Record(metaclass=RecordType):
    """A fixed layout and its immutable values; see the module's docstring."""

    __slots__ = ()

    SIZE: ClassVar[int]
    """Bytes on the wire."""
    _struct: ClassVar[struct.Struct]

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Any]: ...

    @classmethod
    def decode(cls, buffer: Buffer, offset: int = 0) -> Self:
        """The record at `offset`; bytes behind it are ignored. Raises Truncated."""
        try:
            leaves = cls._struct.unpack_from(buffer, offset)
        except struct.error:
            raise Truncated(
                f"{cls.__name__}: {len(buffer)} bytes, needs {cls.SIZE} from byte {offset}"
            ) from None
        return cls._codec.make(leaves)  # type: ignore[misc, no-any-return]

    @classmethod
    def pack(cls, *leaves: int) -> bytes:
        """SIZE bytes of a record of integers, given in the layout's order, with no value made on
        the way: what a guest's every command is answered with. Raises WireError."""
        try:
            return cls._struct.pack(*leaves)
        except struct.error as error:
            raise WireError(f"{cls.__name__}: {leaves!r:.200} does not fit: {error}") from None

    def encode(self) -> bytes:
        """SIZE bytes. Raises WireError naming the field whose value does not fit."""
        leaves: list[Any] = []
        try:
            type(self)._codec.put(leaves, self)
            return self._struct.pack(*leaves)
        except struct.error:
            raise WireError(f"{type(self).__name__}{_blame(self)}") from None

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and tuple.__eq__(self, other)  # type: ignore

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return tuple.__hash__(self)  # type: ignore[arg-type]


def _blame(record: Any) -> str:
    """Which field does not fit, as `.inner.field: why`; empty where all do."""
    for (name, codec), value in zip(type(record)._codecs.items(), record, strict=True):
        try:
            leaves: list[Any] = []
            codec.put(leaves, value)
            struct.pack("<" + codec.format, *leaves)
        except struct.error as error:
            inner = _blame(value) if isinstance(value, Record) else ""
            return f".{name}{inner}" if inner else f".{name}: {value!r:.80}: {error}"
    return ""
