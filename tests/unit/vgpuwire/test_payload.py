"""vgpuwire.payload: construct's outcomes become ours, whatever the layout."""

from __future__ import annotations

from collections.abc import Callable

import construct as cs
import pytest
from construct import Array, Bytes, Check, Int8ul, Int16ul, Padding, Struct, this

from vgpuwire import Record, TooLong, Truncated, WireError, field
from vgpuwire.payload import (
    NOTHING,
    OPAQUE,
    U64,
    Payload,
    exactly,
    from_container,
    of_record,
    to_container,
)


class Inner(Record):
    a: int = field(Int8ul)
    _padding = Padding(1)
    b: int = field(Int16ul)


class Outer(Record):
    inner: Inner = field(Inner)
    many: tuple[Inner, ...] = field(Array(2, Inner.layout))
    tag: bytes = field(Bytes(2))


VALUE = Outer(Inner(1, 2), (Inner(3, 4), Inner(5, 6)), b"ab")


def test_records_to_containers_and_back() -> None:
    container = to_container(VALUE)
    inner = {"a": 1, "b": 2}
    assert container == {
        "inner": inner,
        "many": [{"a": 3, "b": 4}, {"a": 5, "b": 6}],
        "tag": b"ab",
    }
    assert from_container(Outer.layout, cs.Container(container)) == VALUE


def test_of_record_is_strict() -> None:
    payload = of_record(Outer)
    data = VALUE.encode()
    assert payload.parse(data, "it") == VALUE
    assert payload.build(VALUE, "it") == data
    for size in range(len(data)):
        with pytest.raises(Truncated, match=f"it: {size} bytes are too few"):
            payload.parse(data[:size], "it")
    with pytest.raises(TooLong, match="it: 15 bytes are too many"):
        payload.parse(data + b"\0", "it")


@pytest.mark.parametrize(
    ("payload", "value", "data"),
    [
        (NOTHING, None, b""),
        (U64, 1, b"\1" + bytes(7)),
        (OPAQUE, b"", b""),
        (OPAQUE, b"xyz", b"xyz"),
        (exactly(3), b"xyz", b"xyz"),
    ],
)
def test_plain_ones(payload: Payload[object], value: object, data: bytes) -> None:
    assert payload.parse(data, "it") == value
    assert payload.build(value, "it") == data


@pytest.mark.parametrize(
    ("payload", "data", "error"),
    [
        (NOTHING, b"\0", TooLong),
        (U64, bytes(7), Truncated),
        (U64, bytes(9), TooLong),
        (exactly(3), b"xy", Truncated),
        (exactly(3), b"wxyz", TooLong),
    ],
)
def test_wrong_sizes(payload: Payload[object], data: bytes, error: type[WireError]) -> None:
    with pytest.raises(error, match="it: "):
        payload.parse(data, "it")


@pytest.mark.parametrize(
    ("payload", "value"),
    [
        (NOTHING, 0),
        (U64, None),
        (U64, -1),
        (U64, 1 << 64),
        (U64, b""),
        (OPAQUE, None),
        (exactly(3), b"xy"),
        (of_record(Inner), VALUE),
        (of_record(Inner), Inner(256, 0)),
    ],
)
def test_values_that_do_not_fit(payload: Payload[object], value: object) -> None:
    with pytest.raises(WireError, match=r"it: .* does not fit: "):
        payload.build(value, "it")


def test_counts_are_checked_before_anything_is_read() -> None:
    reads = []

    def seen(_: object, __: object) -> None:
        reads.append(1)

    layout = Struct("n" / Int8ul, Check(this.n <= 2), "items" / Array(this.n, Int8ul * seen))
    make: Callable[[cs.Container], list[int]] = lambda got: list(got["items"])  # noqa: E731
    counted = Payload(list, layout, make, lambda items: {"n": len(items), "items": items})
    assert counted.parse(b"\2ab", "it") == [97, 98]
    reads.clear()
    with pytest.raises(TooLong, match="it: a count is beyond its limit"):
        counted.parse(b"\xff" + bytes(255), "it")
    assert not reads
    with pytest.raises(WireError, match="does not fit"):
        counted.build([1, 2, 3], "it")
