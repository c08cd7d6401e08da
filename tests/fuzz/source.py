"""A fuzzer's bytes as numbers: small ones, and those at which sums go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

EDGES: Final = (
    *(0, 1, 15, 16, 63, 64, 65, 4095, 4096, 16384, 16385),
    *(1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63), (1 << 64) - 1),
)


class Source:
    """Takes from the front; zeros when all is used up."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def bytes(self, count: int) -> bytes:
        """Fewer at the end."""
        found = bytes(self._data[self._at : self._at + count])
        self._at += len(found)
        return found

    def integer(self, size: int) -> int:
        """`size` bytes, little-endian."""
        return int.from_bytes(self.bytes(size), "little")

    def choose(self, choices: Sequence[T]) -> T:
        return choices[self.integer(1) % len(choices)]

    def number(self, bits: int) -> int:
        """Small in most cases, else near an edge, else any; below 2**bits."""
        how = self.integer(1)
        if how < 160:
            value = how
        elif how < 224:
            value = EDGES[how % len(EDGES)] + self.integer(1) % 8 - 3
        elif how < 240:
            value = self.integer(2)
        else:
            value = self.integer(bits // 8)
        return value % (1 << bits)
