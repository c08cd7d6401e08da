"""Backings and rectangles of every shape, good and bad."""

from random import Random

from tests.diff.memory import DIMM_SIZE, DIMMS, LOW, LOW_SIZE, PIXELS, PIXELS_SIZE
from tests.qtest.gpu import Rect

MAX = 0xFFFF_FFFF


def entries(rng: Random, size: int) -> list[tuple[int, int]]:
    """A backing of about `size` bytes in one of many shapes."""
    shape = rng.randrange(10)
    if shape == 0:  # short or long, by bytes or by rows
        size = max(1, size + rng.choice((-1, -2, -3, -4, -64, -size // 2, 1, 4096)))
    if shape <= 2:
        return [(PIXELS + 4096 * rng.randrange(64), size)]
    if shape == 3:  # unaligned
        return [(PIXELS + rng.randrange(100_000), size)]
    if shape == 4:  # over the seam of two memory modules
        return [(DIMMS[1] - min(rng.randrange(1, size + 1), DIMM_SIZE), size)]
    if shape == 5:  # pages in any order, some twice
        pages = [(PIXELS + 4096 * rng.randrange(256), 4096) for _ in range(size // 4096 + 1)]
        return pages[:300]
    if shape == 6 and size > 12:  # pieces of odd lengths, from all regions
        return odd_pieces(rng, size)
    if shape == 7:
        return [(LOW + rng.randrange(4096), min(size, LOW_SIZE - 4096))]
    if shape == 8 and rng.randrange(4) == 0:
        return []
    return [(PIXELS, (size + 4095) // 4096 * 4096)]


def odd_pieces(rng: Random, size: int) -> list[tuple[int, int]]:
    pieces: list[tuple[int, int]] = []
    left = size
    while left > 0:
        length = min(left, rng.choice((1, 2, 3, 4, 5, 7, 100, 1021, 4096, 10_001)))
        if len(pieces) >= 60:
            length = left
        start, room = rng.choice(
            (
                (PIXELS, PIXELS_SIZE),
                (LOW, LOW_SIZE),
                (DIMMS[0], DIMM_SIZE),
                (DIMMS[1], DIMM_SIZE),
            )
        )
        length = min(length, room)
        pieces.append((start + rng.randrange(room - length + 1), length))
        left -= length
    return pieces


def rectangle(rng: Random, width: int, height: int) -> Rect:
    """A rectangle of an image: whole, inside, at an edge, or wrong."""
    kind = rng.randrange(16)
    if kind < 5:
        return 0, 0, width, height
    if kind < 12:
        x, y = rng.randrange(width + 1), rng.randrange(height + 1)
        return x, y, rng.randrange(width - x + 1), rng.randrange(height - y + 1)
    if kind == 12:  # full rows, which QEMU copies in one piece
        y = rng.randrange(height + 1)
        return 0, y, width, rng.randrange(height - y + 1)
    if kind == 13:
        return rng.choice(((width, 0, 0, height), (0, height, width, 0), (0, 0, 0, 0)))
    if kind == 14:
        return rng.choice(((1, 0, width, height), (0, 1, width, height), (0, 0, width + 1, 1)))
    return rng.choice(
        ((MAX, 0, 2, 1), (0, MAX, 1, 2), (0, 0, MAX, MAX), (1, 1, MAX, 1), (MAX, MAX, 1, 1))
    )
