"""Charts of the page as inline SVG. They use the page's colours and so follow its theme."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

from lora_drop.runs.words import Compared, measured, number

WIDTH, HEIGHT = 560, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 14, 40
Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, width, height."""


def line_chart(points: Sequence[Point], across: str, up: str, label: str) -> Markup:
    """Draw values as a line. `across` and `up` name the axes; `label` describes the chart to screen readers."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    scale = _Scale(min(xs), max(xs), *_widened(min(ys), max(ys)))
    path = " ".join(f"{scale.x(x):.1f},{scale.y(y):.1f}" for x, y in points)
    dots = [_dot(scale.x(x), scale.y(y), 3, "dot") for x, y in points] if len(points) <= 30 else []
    marks = [f'<polyline class="line" points="{path}"/>', *dots]
    return _frame(scale, [f"{x:,.6g}" for x in (scale.left, scale.right)], marks, across, up, label)


def pareto(rows: Sequence[Compared]) -> Markup:
    """Draw scores against trainable parameters, with LoRA-drop in colour, labelled points, and bars for deviations."""
    logs = [math.log10(max(row.parameters, 1)) for row in rows]  # an adapter may have none: the head alone is trained
    lows = [row.mean - (row.deviation or 0) for row in rows]
    highs = [row.mean + (row.deviation or 0) for row in rows]
    room = max(0.12 * (max(logs) - min(logs)), 0.1)
    scale = _Scale(min(logs) - room, max(logs) + room, *_widened(min(lows), max(highs)))
    marks: list[str] = []
    taken = [(scale.x(place) - 6, scale.y(row.mean) - 6, 12.0, 12.0) for row, place in zip(rows, logs, strict=True)]
    for row, low, high, place in zip(rows, lows, highs, logs, strict=True):
        kind = "dot own" if row.first.method == "lora_drop" else "dot"
        x, y = scale.x(place), scale.y(row.mean)
        if row.deviation:
            marks.append(f'<path class="bar" d="M{x:.1f} {scale.y(low):.1f}V{scale.y(high):.1f}"/>')
        marks.append(_dot(x, y, 5, kind))
        marks.append(_name(row.title, x, y, taken))
    label = "; ".join(f"{row.title}: {measured(row)} with {row.parameters:,.0f} parameters" for row in rows)
    ends = [f"{10**value:,.0f}" for value in (scale.left, scale.right)]
    return _frame(scale, ends, marks, "trainable parameters (logarithmic)", rows[0].first.primary, label)


def _name(title: str, x: float, y: float, taken: list[Box]) -> str:
    """Return a label near a point that covers no other label or point, and add its box to `taken`."""
    width, right = 7.0 * len(title), x > WIDTH / 2
    left = x - 9 - width if right else x + 9
    boxes: list[Box] = [(left, y + shift - 8, width, 15.0) for far in range(0, 120, 15) for shift in (-far, far)]
    inside = [box for box in boxes if TOP < box[1] < HEIGHT - BOTTOM - 15]
    free = [box for box in inside if not any(_overlap(box, other) for other in taken)]
    chosen = next(iter(free or inside or boxes))
    taken.append(chosen)
    middle = chosen[1] + 12
    place, anchor = (x - 9, "end") if right else (x + 9, "start")
    far = abs(middle - 4 - y) > 12
    line = f'<path class="grid" d="M{x:.1f} {y:.1f}L{place:.1f} {middle - 4:.1f}"/>' if far else ""
    return f'{line}<text x="{place:.1f}" y="{middle:.1f}" text-anchor="{anchor}" class="name">{escape(title)}</text>'


def _overlap(one: Box, other: Box) -> bool:
    return all(one[i] < other[i] + other[i + 2] and other[i] < one[i] + one[i + 2] for i in (0, 1))


class _Scale:
    """Maps values to positions in the drawing."""

    def __init__(self, left: float, right: float, low: float, high: float):
        self.left, self.right, self.low, self.high = left, right if right > left else left + 1, low, high

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def _widened(low: float, high: float) -> Point:
    room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _dot(x: float, y: float, radius: int, kind: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def _frame(scale: _Scale, ends: Sequence[str], marks: Sequence[str], across: str, up: str, label: str) -> Markup:
    """Return an SVG of the marks with axes around them."""
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">']
    for step in range(4):
        value = scale.low + (step + 0.5) / 4 * (scale.high - scale.low)
        y = scale.y(value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)[:6]}</text>')
    bottom = HEIGHT - BOTTOM
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}"/>')
    parts.append(f'<text x="{LEFT}" y="{bottom + 16}">{ends[0]}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{bottom + 16}" text-anchor="end">{ends[1]}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(across)}</text>')
    parts.append(f'<text x="{LEFT + 6}" y="{TOP + 2}" class="name">{escape(up)}</text>')
    return Markup("".join([*parts, *marks, "</svg>"]))
