"""A picture of a terminal for the documentation: what a program wrote, as an SVG.

python3 -m tests.support.terminal TITLE <text >picture.svg
"""

from __future__ import annotations

import re
import sys
from html import escape

COLOURS = {"31": "#e06c75", "32": "#98c379", "33": "#e5c07b"}
WIDTH, HEIGHT = 8.4, 18
"""Pixels of a character of 14 pixels in a fixed font."""


def spans(line: str) -> str:
    """A line's text with its colours (SGR 31 to 33, 0)."""
    parts = re.split(r"\x1b\[(\d+)m", line)
    out, colour = escape(parts[0]), ""
    for code, text in zip(parts[1::2], parts[2::2], strict=True):
        colour = COLOURS.get(code, "")
        fill = f' fill="{colour}"' if colour else ""
        out += f"<tspan{fill}>{escape(text)}</tspan>"
    return out


def svg(title: str, text: str) -> str:
    lines = text.rstrip("\n").split("\n")
    plain = [re.sub(r"\x1b\[\d+m", "", line) for line in [title, *lines]]
    width = int(max(map(len, plain)) * WIDTH) + 32
    height = len(lines) * HEIGHT + 56
    rows = [
        f'<text x="16" y="{52 + n * HEIGHT}" xml:space="preserve">{spans(line)}</text>'
        for n, line in enumerate(lines)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        ' font-family="DejaVu Sans Mono, monospace" font-size="14" fill="#d7dae0">\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="#21252b"/>\n'
        f'<text x="16" y="22" fill="#7f848e" xml:space="preserve">{escape(title)}</text>\n'
        + "\n".join(rows)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    sys.stdout.write(svg(sys.argv[1], sys.stdin.read()))
