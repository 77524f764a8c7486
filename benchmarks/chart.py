"""Bar and line charts as SVG text, without a library: small files that any page can show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_COLOURS = ("#76b900", "#1f77b4", "#7f7f7f", "#ff7f0e", "#9467bd", "#8c564b")
_STYLE = 'font-family="Helvetica, Arial, sans-serif" font-size="12" fill="#222"'


def bars(title: str, unit: str, values: Mapping[str, float], *, ours: Sequence[str] = ()) -> str:
    """Horizontal bars, in the order given; those named in ``ours`` stand out."""
    labels, height, width = 250, 22, 800
    scale = (width - labels - 90) / max(values.values())
    parts = [_text(10, 20, f"{title} ({unit})", weight="bold")]
    for row, (name, value) in enumerate(values.items()):
        y = 36 + row * height
        colour = _COLOURS[0] if name in ours else _COLOURS[2]
        length = max(1.0, value * scale)
        parts += [
            _text(labels - 8, y + 13, name, anchor="end"),
            f'<rect x="{labels}" y="{y}" width="{length:.1f}" height="16" fill="{colour}"/>',
            _text(labels + length + 6, y + 13, f"{value:.4g}"),
        ]
    return _page(width, 44 + len(values) * height, parts)


def lines(title: str, x_title: str, unit: str, series: Mapping[str, Mapping[float, float]]) -> str:
    """A line for each series, over the x values that any has; a single point becomes a level."""
    width, height, left, right, top, bottom = 800, 340, 70, 250, 40, 46
    xs = sorted({x for points in series.values() for x in points})
    top_value = _round_up(max(value for points in series.values() for value in points.values()))

    def place(x: float, value: float) -> tuple[float, float]:
        across = (x - xs[0]) / ((xs[-1] - xs[0]) or 1)
        return (
            left + across * (width - left - right),
            height - bottom - value / top_value * (height - top - bottom),
        )

    parts = [_text(10, 20, f"{title} ({unit})", weight="bold")]
    for step in range(5):
        value = top_value * step / 4
        _, y = place(xs[0], value)
        end = width - right
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{end}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(left - 8, y + 4, f"{value:g}", anchor="end"))
    for x in xs:
        parts.append(_text(place(x, 0)[0], height - bottom + 18, f"{x:g}", anchor="middle"))
    parts.append(_text((left + width - right) / 2, height - 8, x_title, anchor="middle"))
    for number, (name, points) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        dashes = ""
        if len(points) == 1:
            points, dashes = dict.fromkeys(xs, *points.values()), ' stroke-dasharray="6 4"'
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in sorted(points.items())))
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>'
        )
        y = top + 8 + number * 20
        x = width - right + 14
        parts.append(f'<rect x="{x}" y="{y - 4}" width="14" height="4" fill="{colour}"/>')
        parts.append(_text(x + 20, y + 3, name))
    return _page(width, height, parts)


def _round_up(value: float) -> float:
    """To the next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if value <= step * power)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    return f"<text {place} {_STYLE}>{escape(text)}</text>"


def _page(width: int, height: int, parts: Sequence[str]) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    background = '<rect width="100%" height="100%" fill="white"/>'
    body = "\n".join((background, *parts))
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n{body}\n</svg>\n'
