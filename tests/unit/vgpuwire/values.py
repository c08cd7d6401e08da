"""All records of vgpuwire, and random values for any of them."""

from __future__ import annotations

from typing import Any

import construct as cs
from hypothesis import strategies as st

from vgpuwire import Record, framing, ioctls, vhost_user, vhost_user_gpu, virtio_gpu, virtio_ring

MODULES = (virtio_ring, virtio_gpu, framing, vhost_user, vhost_user_gpu, ioctls)

RECORDS = sorted(
    {
        one
        for module in MODULES
        for one in vars(module).values()
        if isinstance(one, type) and issubclass(one, Record) and one is not Record
    },
    key=lambda record: (record.__module__, record.__name__),
)


def name(record: type[Record]) -> str:
    return f"{record.__module__.removeprefix('vgpuwire.')}.{record.__name__}"


def values_of(layout: Any) -> st.SearchStrategy[Any]:
    """Values that fit a layout: a record's, an array's, an integer's or Bytes'."""
    if record := getattr(layout, "record", None):
        fields = {sub.name: values_of(sub.subcon) for sub in layout.subcons if sub.name}
        return st.builds(record, **fields)
    if isinstance(layout, cs.Array):
        return st.tuples(*[values_of(layout.subcon)] * layout.count)
    if isinstance(layout, cs.Bytes):
        return st.binary(min_size=layout.length, max_size=layout.length)
    bits = layout.sizeof() * 8
    if layout.fmtstr[1:].islower():
        return st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
    return st.integers(0, (1 << bits) - 1)
