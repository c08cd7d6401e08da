"""Screenshots are read and compared exactly, and the pattern is what drmdraw.c says."""

import zlib

import pytest

from tests.guest.pattern import pattern
from tests.support.png import Picture, parse_ppm


def test_ppm() -> None:
    """Pixels that look like white space belong to the picture."""
    rgb = b"\n \t" * 4
    assert parse_ppm(b"P6\n2 2\n255\n" + rgb) == Picture(2, 2, rgb)
    padded = rgb[:6] + b"??" + rgb[6:] + b"??"
    assert parse_ppm(b"P6\n2 2\n255\n" + padded) == Picture(2, 2, rgb)
    for bad in (b"", b"P5\n2 2\n255\n", b"P6\n2 2\n255\n" + rgb[:-1]):
        with pytest.raises(ValueError, match="PPM"):
            parse_ppm(bad)


def test_difference() -> None:
    picture = Picture(2, 3, bytes(range(18)))
    assert picture.difference(bytes(range(18))) == ""
    assert picture.difference(bytes(range(6, 18)), top=1) == ""
    wrong = bytearray(range(18))
    wrong[9] = 0xFF
    assert "1 of 6 pixels differ, the first at (1, 1): 090a0b" in picture.difference(bytes(wrong))
    assert "expected 15" in picture.difference(b"x" * 15)


def test_png_holds_the_pixels() -> None:
    data = Picture(2, 2, bytes(range(12))).png()
    start = data.index(b"IDAT")
    size = int.from_bytes(data[start - 4 : start], "big")
    rows = zlib.decompress(data[start + 4 : start + 4 + size])
    assert rows == b"\0" + bytes(range(6)) + b"\0" + bytes(range(6, 12))


def test_pattern() -> None:
    width, height, seed = 600, 520, 9
    rgb = pattern(width, height, seed)
    for x, y in ((0, 0), (599, 0), (256, 255), (300, 519)):
        blue = x ^ y ^ (x >> 8) * 16 ^ (y >> 8) * 32 ^ 7 * seed
        expected = bytes([(x + 31 * seed) & 255, (y + 17 * seed) & 255, blue & 255])
        assert rgb[(y * width + x) * 3 :][:3] == expected
    assert pattern(width, height, seed, top=500) == rgb[500 * width * 3 :]
