"""Rectangles of unsigned 32-bit pixels, computed without wrapping.

The wire's Rect (virtio 1.3, 5.7.6.8) is four le32; Python's integers do not overflow, so sums
such as x + width are exact and a rectangle that would wrap in C is simply outside.
"""

from __future__ import annotations

from vgpuwire import Rect


def fits(rect: Rect, width: int, height: int) -> bool:
    """Whether `rect` lies inside a width x height image; an empty one on the edge does."""
    return rect.x + rect.width <= width and rect.y + rect.height <= height


def intersection(a: Rect, b: Rect) -> Rect | None:
    """The common part of two rectangles, None where there is none or it is empty."""
    if a.width and a.height and holds(b, a):  # nearly always: the damage is inside of the head
        return a
    left, top = max(a.x, b.x), max(a.y, b.y)
    right = min(a.x + a.width, b.x + b.width)
    bottom = min(a.y + a.height, b.y + b.height)
    if right <= left or bottom <= top:
        return None
    return Rect(left, top, right - left, bottom - top)


def holds(outer: Rect, inner: Rect) -> bool:
    """Whether all of `inner` is in `outer`."""
    left, top, width, height = outer
    x, y, inner_width, inner_height = inner
    return bool(
        left <= x
        and top <= y
        and x + inner_width <= left + width
        and y + inner_height <= top + height
    )


def union(a: Rect, b: Rect) -> Rect:
    """The smallest rectangle that holds both."""
    left, top = min(a.x, b.x), min(a.y, b.y)
    right = max(a.x + a.width, b.x + b.width)
    bottom = max(a.y + a.height, b.y + b.height)
    return Rect(left, top, right - left, bottom - top)
