"""vgpuwire.record: the derived codec against construct, and what a declaration may be."""

from __future__ import annotations

import copy
import pickle
import struct

import construct as cs
import pytest
from construct import (
    Array,
    Bytes,
    GreedyBytes,
    Int8ul,
    Int16sl,
    Int32sl,
    Int32ub,
    Int32ul,
    Int64ul,
    Padding,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.vgpuwire.values import RECORDS, name, values_of
from vgpuwire import Record, Truncated, WireError, field
from vgpuwire.payload import from_container, to_container
from vgpuwire.record import RecordType


class Point(Record):
    x: int = field(Int32ul)
    y: int = field(Int16sl)
    z: int = field(Int8ul, default=9)
    _padding = Padding(1)


class Shape(Record):
    """Everything that a record may hold."""

    kind: int = field(Int64ul)
    _padding = Padding(4)
    at: Point = field(Point)
    tag: bytes = field(Bytes(3))
    _padding2 = Padding(1)
    sides: tuple[int, ...] = field(Array(3, Int32sl))
    path: tuple[Point, ...] = field(Array(2, Point.layout))
    names: tuple[bytes, ...] = field(Array(2, Bytes(2)))
    grid: tuple[tuple[int, ...], ...] = field(Array(2, Array(2, Int8ul)))


class Deep(Record):
    shapes: tuple[Shape, ...] = field(Array(2, Shape.layout))
    last: Shape = field(Shape)


POINT = Point(1, -2, 3)
SHAPE = Shape(7, POINT, b"abc", (1, -1, 0), (POINT, Point(4, 5)), (b"no", b"on"), ((1, 2), (3, 4)))
DEEP = Deep((SHAPE, SHAPE), SHAPE)


@pytest.mark.parametrize("record", [Point, Shape, Deep, *RECORDS], ids=name)
def test_codec_agrees_with_construct(record: type[Record]) -> None:
    @settings(max_examples=15, deadline=None)
    @given(values_of(record.layout))
    def agree(value: Record) -> None:
        data = value.encode()
        assert data == record.layout.build(to_container(value))
        assert record.decode(data) == value
        assert from_container(record.layout, record.layout.parse(data)) == value

    agree()


@pytest.mark.parametrize("record", [Point, Shape, Deep, *RECORDS], ids=name)
def test_any_bytes_decode_as_construct_parses(record: type[Record]) -> None:
    for seed in range(4):
        data = bytes((seed * 89 + at * 151) & 0xFF for at in range(record.SIZE))
        parsed = from_container(record.layout, record.layout.parse(data))
        assert record.decode(data) == parsed
        assert record.decode(data).encode() == record.layout.build(to_container(parsed))


@pytest.mark.parametrize("record", [Point, Shape, Deep, *RECORDS], ids=name)
def test_size_is_constructs(record: type[Record]) -> None:
    assert record.layout.sizeof() == record.SIZE


@pytest.mark.parametrize("record", [Point, Shape, Deep, *RECORDS], ids=name)
def test_truncated_at_every_length(record: type[Record]) -> None:
    data = bytes(record.SIZE)
    for size in range(record.SIZE):
        with pytest.raises(Truncated, match=record.__name__):
            record.decode(data[:size])


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_offset_and_trailing_bytes(kind: type) -> None:
    data = kind(b"###" + SHAPE.encode() + b"trailing")
    assert Shape.decode(data, 3) == SHAPE
    with pytest.raises(Truncated, match=f"needs {Shape.SIZE} from byte 12"):
        Shape.decode(data, 12)


def test_bytes_on_the_wire() -> None:
    assert POINT.encode() == struct.pack("<IhBx", 1, -2, 3)
    head = struct.pack("<Q4x", 7) + POINT.encode() + b"abc\0" + struct.pack("<iii", 1, -1, 0)
    tail = POINT.encode() + struct.pack("<IhBx", 4, 5, 9) + b"noon" + bytes([1, 2, 3, 4])
    assert SHAPE.encode() == head + tail
    assert DEEP.encode() == SHAPE.encode() * 3


def test_packed_from_its_integers() -> None:
    assert Point.pack(1, -2, 3) == POINT.encode()
    with pytest.raises(WireError, match=r"Point: \(1, 32768, 3\) does not fit"):
        Point.pack(1, 1 << 15, 3)
    with pytest.raises(WireError, match="does not fit"):
        Point.pack(1, 2)


def test_padding_is_written_as_zeros_and_not_looked_at() -> None:
    assert Point.decode(b"\xff" * 8) == Point(0xFFFFFFFF, -1, 0xFF)
    assert Point.decode(b"\xff" * 8).encode()[-1] == 0


# -- values


def test_made_by_position_by_name_and_with_a_default() -> None:
    assert Point(1, 2) == Point(x=1, y=2) == Point(1, y=2, z=9)
    with pytest.raises(TypeError):
        Point(1)
    with pytest.raises(TypeError):
        Point(1, 2, 3, 4)
    with pytest.raises(TypeError):
        Point(1, 2, w=3)


def test_equal_by_type_and_content() -> None:
    class Other(Record):
        x: int = field(Int32ul)
        y: int = field(Int16sl)
        z: int = field(Int8ul)

    assert Point(1, 2, 3) == Point(1, 2, 3)
    assert Point(1, 2, 3) != Point(1, 2, 4)
    assert Point(1, 2, 3) != Other(1, 2, 3)
    assert Point(1, 2, 3) != (1, 2, 3)
    assert (1, 2, 3) != Point(1, 2, 3)  # noqa: SIM300
    assert len({Point(1, 2, 3), Point(1, 2, 3), Other(1, 2, 3)}) == 2
    assert hash(DEEP) == hash(Deep.decode(DEEP.encode()))


def test_immutable_and_without_a_dict() -> None:
    with pytest.raises(AttributeError):
        POINT.x = 2
    with pytest.raises(AttributeError):
        POINT.w = 2
    assert not hasattr(POINT, "_padding")
    assert not hasattr(POINT, "__dict__")


def test_repr_names_type_and_fields() -> None:
    assert repr(POINT) == "Point(x=1, y=-2, z=3)"


def test_matched_by_position_and_by_name() -> None:
    match SHAPE:
        case Shape(7, Point(x, y=y), tag=tag):
            assert (x, y, tag) == (1, -2, b"abc")
        case _:
            pytest.fail("not matched")


def test_copied_and_pickled() -> None:
    assert copy.deepcopy(SHAPE) == SHAPE
    assert type(copy.copy(SHAPE)) is Shape
    assert pickle.loads(pickle.dumps(POINT)) == POINT


def test_fields_named_as_tuple_methods() -> None:
    class Counted(Record):
        index: int = field(Int32ul)
        count: int = field(Int32ul)

    assert Counted.decode(bytes([1, 0, 0, 0, 2, 0, 0, 0])).count == 2


# -- values that do not fit


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Point(-1, 0), r"Point\.x: -1: "),
        (Point(1 << 32, 0), r"Point\.x: 4294967296: "),
        (Point(0, 1 << 15), r"Point\.y: 32768: "),
        (Point(0, 0, 256), r"Point\.z: 256: "),
        (Point(0, None), r"Point\.y: None: "),
        (Point("1", 0), r"Point\.x: '1': "),
        (Point(1.5, 0), r"Point\.x: 1.5: "),
        (Shape.decode(bytes(Shape.SIZE)), None),
        (Deep((SHAPE,), SHAPE), r"Deep\.shapes: .*: needs a tuple of 2"),
        (Deep([SHAPE, SHAPE], SHAPE), r"Deep\.shapes: .*: needs a tuple of 2"),
        (Deep((SHAPE, POINT), SHAPE), r"Deep\.shapes: .*: needs a Shape"),
        (Deep((SHAPE, SHAPE), POINT), r"Deep\.last: .*: needs a Shape"),
    ],
)
def test_encode_names_the_field(value: Record, message: str | None) -> None:
    if message is None:
        assert value.encode() == bytes(value.SIZE)
        return
    with pytest.raises(WireError, match=message):
        value.encode()


@pytest.mark.parametrize("tag", [b"ab", b"abcd", b"", bytearray(b"abc"), "abc", None, 3])
def test_bytes_are_neither_padded_nor_cut(tag: object) -> None:
    zero = Shape.decode(bytes(Shape.SIZE))
    value = Shape(0, zero.at, tag, zero.sides, zero.path, zero.names, zero.grid)
    with pytest.raises(WireError, match=r"Shape\.tag: .* needs exactly 3 bytes"):
        value.encode()


def test_encode_names_the_inner_field() -> None:
    zero = Shape.decode(bytes(Shape.SIZE))
    bad = Shape(0, Point(0, 40000), b"abc", zero.sides, zero.path, zero.names, zero.grid)
    with pytest.raises(WireError, match=r"^Deep\.last\.at\.y: 40000: "):
        Deep((SHAPE, SHAPE), bad).encode()


# -- declarations that are refused when the class is made


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"x": field(Int32ub)}, r"Bad\.x: .*neither a little-endian integer"),
        ({"x": field(GreedyBytes)}, r"Bad\.x: "),
        ({"x": field(Bytes(cs.this.n))}, r"Bad\.x: "),
        ({"x": field(Array(cs.this.n, Int8ul))}, r"Bad\.x: "),
        ({"x": field(Array(2, Int32ub))}, r"Bad\.x: "),
        ({"x": field("y" / Int8ul)}, r"Bad\.x: "),
        ({"x": field(cs.Struct("y" / Int8ul))}, r"Bad\.x: "),
        ({"x": field(Padding(2))}, r"Bad\.x: "),
        ({"x": field(Record)}, r"Bad\.x: "),
        ({"x": field(int)}, r"Bad\.x: "),
        ({"x": Int8ul}, r"Bad\.x: write field"),
        ({"x": 1}, r"Bad\.x: has no field"),
        ({"decode": field(Int8ul)}, r"Bad\.decode: not a name"),
        ({"layout": field(Int8ul)}, r"Bad\.layout: not a name"),
        ({"_x": field(Int8ul)}, r"Bad\._x: not a name"),
        (
            {"x": field(Int8ul, default=0), "y": field(Int8ul)},
            r"Bad\.y: needs a default",
        ),
    ],
)
def test_wrong_declaration_names_class_and_field(space: dict[str, object], message: str) -> None:
    annotated = {"__annotations__": dict.fromkeys(space, "int"), **space}
    with pytest.raises(TypeError, match=message):
        RecordType("Bad", (Record,), annotated)


def test_half_declarations() -> None:
    with pytest.raises(TypeError, match=r"Bad\.x: a field needs a type"):
        RecordType("Bad", (Record,), {"x": field(Int8ul)})
    with pytest.raises(TypeError, match=r"Bad: a record needs a field"):
        RecordType("Bad", (Record,), {"_padding": Padding(1)})
    with pytest.raises(TypeError, match=r"Bad: a record derives from Record alone"):
        RecordType("Bad", (Point,), {})


def test_class_variables_and_methods_are_kept() -> None:
    class Sized(Record):
        LIMIT: "ClassVar[int]" = 3  # noqa: F821, UP037
        x: int = field(Int8ul)

        def doubled(self) -> int:
            return self.x * 2

    assert (Sized.LIMIT, Sized(4).doubled(), Sized.SIZE) == (3, 8, 1)


@settings(deadline=None)
@given(st.binary(max_size=64), st.integers(0, 70))
def test_decode_of_anything(data: bytes, offset: int) -> None:
    if offset + Point.SIZE <= len(data):
        assert Point.decode(data, offset).encode()[:7] == data[offset : offset + 7]
    else:
        with pytest.raises(Truncated):
            Point.decode(data, offset)
