"""vgpuctl's pictures."""

from __future__ import annotations

import pytest

from tests.support.png import parse_png
from vgpud.ctl import ansi, main, png

WIDTH, HEIGHT = 3, 2
BGRX = b"".join(bytes((b, b + 1, b + 2, 0xEE)) for b in range(0, 18, 3))


def test_a_png_has_every_pixel_in_rgb() -> None:
    picture = parse_png(png(WIDTH, HEIGHT, BGRX))
    assert (picture.width, picture.height) == (WIDTH, HEIGHT)
    assert picture.rgb == b"".join(BGRX[i : i + 3][::-1] for i in range(0, len(BGRX), 4))


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
