"""Line charts as SVG: a few lines of our own, because two axes are all that is needed."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, floor, log10
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 480, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 34, 46
COLORS = ("#0b5fa5", "#c2410c", "#5b21b6", "#15803d")


def _decades(values: list[float]) -> list[int]:
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return list(range(low, max(high, low + 1) + 1))


def _number(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:g}"


def chart(title: str, x_name: str, y_name: str, lines: Mapping[str, Mapping[float, float]]) -> str:
    """A chart with two logarithmic axes: a straight line of slope 1 is growth in proportion."""
    points = [(x, y) for line in lines.values() for x, y in line.items()]
    xs, ys = _decades([x for x, _ in points]), _decades([y for _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (log10(x) - xs[0]) / (xs[-1] - xs[0])
        up = (log10(y) - ys[0]) / (ys[-1] - ys[0])
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        f'<text x="{LEFT}" y="16" font-size="13" font-weight="bold">{escape(title)}</text>',
    ]
    bottom, left = HEIGHT - BOTTOM, LEFT
    for power in xs:
        x, _ = at(10.0**power, 10.0 ** ys[0])
        out.append(f'<path d="M{x:.1f} {TOP}V{bottom}" stroke="#dddddd"/>')
        out.append(
            f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{_number(power)}</text>'
        )
    for power in ys:
        _, y = at(10.0 ** xs[0], 10.0**power)
        out.append(f'<path d="M{left} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        out.append(
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_number(power)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    out.append(f'<text x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x_name)}</text>')
    out.append(f'<text x="{LEFT}" y="{TOP - 4}" fill="#555555">{escape(y_name)}</text>')
    for color, line in zip(COLORS, lines.values(), strict=False):
        places = [at(x, y) for x, y in sorted(line.items())]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        out.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in places]
    for number, (color, name) in enumerate(zip(COLORS, lines, strict=False)):
        x = WIDTH - RIGHT - 110 * (len(lines) - number)
        out.append(f'<rect x="{x}" y="{TOP - 13}" width="10" height="10" fill="{color}"/>')
        out.append(f'<text x="{x + 14}" y="{TOP - 4}">{escape(name)}</text>')
    return "\n".join([*out, "</svg>", ""])
