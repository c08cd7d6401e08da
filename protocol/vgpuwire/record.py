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

Only the layout is checked here. What a value means is checked by whoever uses it.
"""

from __future__ import annotations

import struct
import sys
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple, Self, dataclass_transform

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
    record = layout if isinstance(layout, RecordType) else getattr(layout, "record", None)
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
    step, make = item.leaves, item.make

    def make_each(leaves: tuple[Any, ...]) -> tuple[Any, ...]:
        assert make is not None
        return tuple([make(leaves[at : at + step]) for at in range(0, len(leaves), step)])

    def put(leaves: list[Any], value: Any) -> None:
        if not isinstance(value, tuple) or len(value) != count:
            raise struct.error(f"needs a tuple of {count}")
        for one in value:
            item.put(leaves, one)

    make_all = tuple if make is None else make_each
    return _Codec(item.format * count, count * step, make_all, put)


def _record_codec(record: Any, layout: str, codecs: tuple[_Codec, ...]) -> _Codec:
    plan, at = [], 0
    for codec in codecs:
        plan.append((codec.make, at if codec.make is None else slice(at, at + codec.leaves)))
        at += codec.leaves
    flat = all(make is None for make, _ in plan)
    record._plan = None if flat else tuple(plan)

    def make_nested(leaves: tuple[Any, ...]) -> Any:
        return _new(record, [make(leaves[at]) if make else leaves[at] for make, at in plan])

    def put(leaves: list[Any], value: Any) -> None:
        if type(value) is not record:
            raise struct.error(f"needs a {record.__name__}")
        for codec, one in zip(codecs, value, strict=True):
            codec.put(leaves, one)

    return _Codec(layout, at, partial(_new, record) if flat else make_nested, put)


class RecordType(type):
    """The class of Record classes: turns fields into a named tuple with a struct format."""

    _parts: dict[str, Any]
    _codecs: dict[str, _Codec]
    _codec: _Codec
    _layout: Any

    def __new__(mcs, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> RecordType:
        if not bases:
            return super().__new__(mcs, name, bases, space)
        if bases != (Record,):
            raise TypeError(f"{name}: a record derives from Record alone")
        parts = _declared(name, space)
        fields = {key: part for key, part in parts.items() if isinstance(part, _Field)}
        defaults = [f.default for f in fields.values() if f.default is not _REQUIRED]
        values = namedtuple(name, fields, defaults=defaults)  # type: ignore[misc]  # noqa: PYI024
        body = {key: value for key, value in space.items() if key not in parts}
        cls = super().__new__(mcs, name, (Record, values), {"__slots__": (), **body})
        cls._parts, cls._layout = parts, None
        cls._bind()
        return cls

    def _bind(cls) -> None:
        """Walk the fields: the struct format, and how nested values are taken and put."""
        formats, cls._codecs = [], {}
        for key, part in cls._parts.items():
            if not isinstance(part, _Field):
                formats.append(f"{part.length}x")
                continue
            try:
                cls._codecs[key] = codec = _codec(part.layout)
            except TypeError as error:
                raise TypeError(f"{cls.__name__}.{key}: {error}") from None
            formats.append(codec.format)
        codecs = tuple(cls._codecs.values())
        cls._scalars = all(codec.put is list.append for codec in codecs)
        cls._codec = _record_codec(cls, "".join(formats), codecs)
        cls._struct = struct.Struct("<" + cls._codec.format)
        cls.SIZE = cls._struct.size

    @property
    def layout(cls) -> Any:
        """The same layout as a construct.Struct, made when it is first asked for."""
        if cls._layout is None:
            subcons = []
            for key, part in cls._parts.items():
                if isinstance(part, _Field):
                    nested = isinstance(part.layout, RecordType)
                    subcons.append(key / (part.layout.layout if nested else part.layout))
                else:
                    subcons.append(part)
            cls._layout = cs.Struct(*subcons)
            cls._layout.record = cls
        return cls._layout


def _declared(name: str, space: dict[str, Any]) -> dict[str, Any]:
    """Fields and padding of a class body, in order. Raises TypeError for half a declaration."""
    parts = {key: value for key, value in space.items() if isinstance(value, _Field | cs.Construct)}
    annotated = space.get("__annotations__", {})
    for key, part in parts.items():
        if isinstance(part, _Field) and key not in annotated:
            raise TypeError(f"{name}.{key}: a field needs a type")
        if not isinstance(part, _Field) and not _is_padding(part):
            raise TypeError(f"{name}.{key}: write field(...) around a construct")
        if key in Record.__dict__ or key == "layout":
            raise TypeError(f"{name}.{key}: every record has an attribute of that name")
    for key in annotated:
        if key not in parts and "ClassVar" not in str(annotated[key]):
            raise TypeError(f"{name}.{key}: has no field(...)")
    if not annotated:
        raise TypeError(f"{name}: a record needs a field")
    return parts


def _is_padding(part: Any) -> bool:
    return isinstance(part, cs.Padded) and part.subcon is cs.Pass and isinstance(part.length, int)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
class Record(metaclass=RecordType):
    """A fixed layout and its immutable values; see the module's docstring."""

    __slots__ = ()

    SIZE: ClassVar[int]
    """Bytes on the wire."""
    _struct: ClassVar[struct.Struct]
    _scalars: ClassVar[bool]
    """All fields are integers: the values are the leaves."""
    _plan: ClassVar[tuple[tuple[Any, Any], ...] | None]
    """(codec.make, index or slice of the leaves) of each field; None where all are leaves."""

    @classmethod
    def decode(cls, buffer: Buffer, offset: int = 0) -> Self:
        """The record at `offset`; bytes behind it are ignored. Raises Truncated."""
        try:
            values = cls._struct.unpack_from(buffer, offset)
        except struct.error:
            raise Truncated(
                f"{cls.__name__}: {len(buffer)} bytes, needs {cls.SIZE} from byte {offset}"
            ) from None
        plan = cls._plan
        if plan is None:
            return _new(cls, values)  # type: ignore[no-any-return]
        fields = [make(values[at]) if make else values[at] for make, at in plan]
        return _new(cls, fields)  # type: ignore[no-any-return]

    def encode(self) -> bytes:
        """SIZE bytes. Raises WireError naming the field whose value does not fit."""
        cls = type(self)
        try:
            if cls._scalars:
                return cls._struct.pack(*self)  # type: ignore[misc]
            leaves: list[Any] = []
            cls._codec.put(leaves, self)
            return cls._struct.pack(*leaves)
        except struct.error:
            raise WireError(_blame(self)) from None

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and tuple.__eq__(self, other)  # type: ignore

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return tuple.__hash__(self)  # type: ignore[arg-type]


def _blame(record: Any) -> str:
    """Which field does not fit, as `Outer.inner.field: why`."""
    for (name, codec), value in zip(type(record)._codecs.items(), record, strict=True):
        try:
            leaves: list[Any] = []
            codec.put(leaves, value)
            struct.pack("<" + codec.format, *leaves)
        except struct.error as error:
            inner = f".{_blame(value).partition('.')[2]}" if isinstance(value, Record) else ""
            detail = inner if len(inner) > 1 else f": {value!r}: {error}"
            return f"{type(record).__name__}.{name}{detail}"
    return ""
