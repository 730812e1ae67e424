"""Line charts as SVG text, so that reports need no plotting library and stay sharp at any size."""

import math
from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float | int, float | int]

_WIDTH, _HEIGHT = 460, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 40, 40
_SMALL = 'font-size="11" fill="#5a6270"'
_COLOURS = ("#2463c4", "#d1571f", "#2a8a57", "#8a3fb0", "#b3205a", "#6b7280")


def line_chart(title: str, series: Mapping[str, Sequence[Point]], x_label: str = "step") -> str:
    """Draws named lines of (x, y) points as an <svg> element; points that aren't finite are left out.

    Raises:
        ValueError: no point is left to draw.
    """
    finite = {name: [(float(x), float(y)) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    points = [point for line in finite.values() for point in line]
    if not points:
        raise ValueError(f"expected at least one finite point to draw for {title!r}, got none; leave the chart out")
    x_ticks, y_ticks = (_ticks(min(axis), max(axis)) for axis in zip(*points, strict=True))
    x_low, x_high = min(p[0] for p in points), max(max(p[0] for p in points), min(p[0] for p in points) + 1)
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)
        up = (y - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM)
        return _LEFT + across, _HEIGHT - _BOTTOM - up

    parts = [f'<text x="{_LEFT}" y="16" font-size="13" font-weight="600" fill="#181c24">{escape(title)}</text>']
    for tick in y_ticks:
        y = place(x_low, tick)[1]
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e5ea"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end" {_SMALL}>{tick:g}</text>')
    for tick in (t for t in x_ticks if x_low <= t <= x_high):
        x = place(tick, y_low)[0]
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle" {_SMALL}>{tick:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle" {_SMALL}>{escape(x_label)}</text>')
    for (name, line), colour in zip(finite.items(), _COLOURS * len(finite), strict=False):
        parts += _line([place(*point) for point in line], name, colour)
    parts += _legend(list(finite))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'font-family="system-ui, sans-serif" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _line(points: Sequence[tuple[float, float]], name: str, colour: str) -> list[str]:
    if len(points) == 1:
        return [f'<circle cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="3" fill="{colour}"/>']
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    title = f"<title>{escape(name)}</title>"
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8">{title}</polyline>']


def _legend(names: Sequence[str]) -> list[str]:
    parts, x = [], _LEFT
    for name, colour in zip(names, _COLOURS * len(names), strict=False):
        parts.append(f'<rect x="{x}" y="26" width="10" height="3" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="31" {_SMALL}>{escape(name)}</text>')
        x += 24 + 6.2 * len(name)
    return parts


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose the range."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if span / (power * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]
