"""vgpuctl's pictures."""

from __future__ import annotations

import struct
import zlib

import pytest

from vgpud.ctl import ansi, main, png

WIDTH, HEIGHT = 3, 2
BGRX = b"".join(bytes((b, b + 1, b + 2, 0xEE)) for b in range(0, 18, 3))


def chunks(data: bytes) -> dict[bytes, bytes]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert zlib.crc32(kind + body) == struct.unpack_from(">I", data, at + 8 + length)[0]
        found[kind] = body
        at += 12 + length
    return found


def test_a_png_has_every_pixel_in_rgb() -> None:
    found = chunks(png(WIDTH, HEIGHT, BGRX))
    assert struct.unpack(">IIBBBBB", found[b"IHDR"]) == (WIDTH, HEIGHT, 8, 2, 0, 0, 0)
    rows = zlib.decompress(found[b"IDAT"])
    pixels = [BGRX[i : i + 3][::-1] for i in range(0, len(BGRX), 4)]
    assert rows == b"\0" + b"".join(pixels[:3]) + b"\0" + b"".join(pixels[3:])


def test_a_terminal_picture_has_two_pixels_a_character() -> None:
    text = ansi(WIDTH, HEIGHT, BGRX, 80)
    assert text.count("\u2580") == WIDTH
    assert text.startswith("\x1b[38;2;2;1;0m\x1b[48;2;11;10;9m")
    assert text.endswith("\x1b[0m\n")
    assert ansi(200, 100, bytes(200 * 100 * 4), 40).count("\n") == 10


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["status"],
        ["--control=x"],
        ["--control=x", "screenshot"],
        ["--control=x", "screenshot", "--ansi", "out.png"],
        ["--control=x", "screenshot", "--head=a", "out.png"],
    ],
)
def test_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
