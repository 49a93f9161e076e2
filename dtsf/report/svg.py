"""Inline SVG for the pages. Colours come from the style sheet of the page, for light and dark.

``Markup.format`` escapes every text from outside.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dtsf.training.metrics import ReliabilityBin

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 30
MAX_LABELS = 30
"""Maximum number of classes for which a confusion matrix shows names and counts."""
MAX_POINTS = 400


def picture(width: float, height: float, title: str, parts: Sequence[Markup]) -> Markup:
    """Join parts to one drawing. ``title`` describes it for screen readers."""
    head = Markup(
        '<svg viewBox="0 0 {w:g} {h:g}" style="max-width:{w:g}px" role="img" aria-label="{title}" xmlns="http://www.w3.org/2000/svg">'
    )
    return head.format(w=width, h=height, title=title) + Markup("").join(parts) + Markup("</svg>")


def text(x: float, y: float, words: object, css: str = "", anchor: str = "start") -> Markup:
    """Draw text at a point."""
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(x, y, css, anchor, words)


def straight(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    """Draw a straight line."""
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, css)


def turned(x: float, y: float, angle: int, words: str, anchor: str = "start") -> Markup:
    """Draw small rotated text; ``angle`` in degrees, clockwise."""
    return Markup(
        '<text transform="translate({:.1f} {:.1f}) rotate({})" class="small" text-anchor="{}">{}</text>'
    ).format(x, y, angle, anchor, words)


def _rect(x: float, y: float, width: float, height: float, css: str, title: str = "", opacity: float = 1.0) -> Markup:
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}" fill-opacity="{:.2f}"><title>{}</title></rect>'
    ).format(x, y, max(0.0, width), max(0.0, height), css, opacity, title)


def _axes(low: float, high: float, x_low: str, x_high: str, x_name: str) -> list[Markup]:
    """Draw three grid lines with numbers, and the labels of the x axis."""
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        parts.append(straight(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(text(LEFT - 5, y + 4, short_number(low + share * (high - low)), "small", "end"))
    bottom = HEIGHT - BOTTOM + 14
    parts.append(text(LEFT, bottom, x_low, "small"))
    parts.append(text(WIDTH - RIGHT, bottom, x_high, "small", "end"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, bottom + 12, x_name, "small", "middle"))
    return parts


def round_up(value: float) -> float:
    """Round up to an axis maximum whose half is also round: 11.8 -> 12, 0.83 -> 1."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(step for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if step >= value / power * (1 - 1e-9))


def short_number(value: float) -> str:
    """Format a number with two digits, short enough for an axis: 0.00025 -> 2.5e-4."""
    plain = f"{value:.2g}"
    return plain if len(plain) < 7 else f"{value:.1e}".replace("e-0", "e-")


def curves(series: Mapping[str, Sequence[float]], x_name: str) -> Markup:
    """Draw lines over the same steps, each in its own colour. The legend is part of the page. ``series``: name -> values."""
    values = [value for line in series.values() for value in line]
    low, high = min(0.0, *values), max(values)
    if low == 0.0 < high:
        high = round_up(high)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    n = max(len(line) for line in series.values())
    parts = _axes(low, high, "1", str(n), x_name)
    for k, (name, line) in enumerate(series.items()):
        points = " ".join(
            f"{LEFT + i / max(1, n - 1) * (WIDTH - LEFT - RIGHT):.1f},"
            f"{HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM):.1f}"
            for i, value in enumerate(line)
        )
        parts.append(
            Markup('<polyline points="{}" class="line c{}"><title>{}</title></polyline>').format(points, k % 6, name)
        )
    return picture(WIDTH, HEIGHT, f"{', '.join(series)} by {x_name}", parts)


def reliability(bins: Sequence[ReliabilityBin]) -> Markup:
    """Draw accuracy against probability, with one bar per bin that is not empty."""
    side = 240
    total = sum(one.n_groups for one in bins)
    parts = []
    for share in (0.0, 0.5, 1.0):
        y, x = TOP + side * (1 - share), LEFT + side * share
        parts += [straight(LEFT, y, LEFT + side, y, "grid"), text(LEFT - 5, y + 4, f"{share:g}", "small", "end")]
        parts.append(text(x, TOP + side + 14, f"{share:g}", "small", "middle"))
    for one in bins:
        if one.probability is None or one.accuracy is None:
            continue
        x, height = LEFT + side * one.low + 1, max(1.5, side * one.accuracy)
        title = f"{one.n_groups} groups: mean probability {one.probability:.2f}, accuracy {one.accuracy:.2f}"
        # A bin of few groups is pale, because its accuracy is uncertain.
        opacity = 0.25 + 0.75 * min(1.0, one.n_groups * len(bins) / (2 * total))
        y = TOP + side * (1 - one.accuracy)
        parts.append(_rect(x, y, side / len(bins) - 2, height, "fill0", title, opacity))
    parts.append(straight(LEFT, TOP + side, LEFT + side, TOP, "ideal"))
    parts.append(text(LEFT + side / 2, TOP + side + 28, "predicted probability", "small", "middle"))
    parts.append(turned(12, TOP + side / 2, -90, "accuracy", "middle"))
    return picture(LEFT + side + RIGHT, TOP + side + 34, "reliability diagram", parts)


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Draw true classes as rows and predicted classes as columns. The opacity of a cell is its share of the row."""
    K = len(names)
    few = K <= MAX_LABELS
    cell = 26 if few else max(4, 780 // K)
    left = 12 + min(190, 6.2 * max(map(len, names))) if few else 34
    top = left * 0.72 + 8 if few else 20
    parts = []
    for k, name in enumerate(names):
        short = name if len(name) <= 30 else name[:29] + "\u2026"
        if few:
            parts.append(text(left - 6, top + (k + 0.66) * cell, short, "small", "end"))
            parts.append(turned(left + (k + 0.5) * cell, top - 6, -45, short))
        elif k % 10 == 0:
            parts.append(text(left - 4, top + k * cell + 8, k, "small", "end"))
            parts.append(text(left + k * cell, top - 4, k, "small"))
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            x, y = left + j * cell, top + i * cell
            if few and not count:
                parts.append(_rect(x, y, cell - 1, cell - 1, "empty"))
            if not count:
                continue
            title = f"{names[i]} classified as {names[j]}: {count} of {sum(row)}"
            share = count / sum(row)
            parts.append(_rect(x, y, cell - 1, cell - 1, "fill0" if i == j else "fill1", title, 0.15 + 0.85 * share))
            if few:
                css = "count strong" if share > 0.55 else "count"
                parts.append(text(x + cell / 2 - 0.5, y + cell * 0.64, count, css, "middle"))
    extra = top if few else 8.0
    return picture(left + K * cell + extra, top + K * cell + 4, "confusion matrix", parts)


def dots(rows: Mapping[str, Sequence[tuple[float, bool, str]]]) -> Markup:
    """Draw two lanes of dots per row, right answers above wrong answers. A dot is (value, right, title)."""
    if not any(rows.values()):
        return Markup("")
    parts, width, height = dot_rows(rows)
    return picture(width, height, "view weights of single performances", parts)


def dot_rows(
    rows: Mapping[str, Sequence[tuple[float, bool, str]]], *, lanes: int = 2, notes: Mapping[str, str] | None = None
) -> tuple[list[Markup], float, float]:
    """Draw the rows of :func:`dots` on one axis. Returns the parts, their width and their height.

    ``lanes``: 1 draws all dots of a row in one lane. ``notes``: a text behind each row.
    """
    values = [value for row in rows.values() for value, _, _ in row]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-6:
        low, high = low - 0.005, high + 0.005
    left = 16 + min(190, 7 * max(map(len, rows)))
    width, lane = WIDTH, 22
    row_height = lanes * lane + (12 if lanes > 1 else 2)
    circle = '<circle cx="{:.1f}" cy="{:.1f}" r="4" class="{}" fill-opacity="0.6"><title>{}</title></circle>'
    parts = []
    for k, (name, row) in enumerate(rows.items()):
        top = 8 + k * row_height
        middle = top + lanes * lane / 2 + 4
        parts.append(text(left - 8, middle, name, "", "end"))
        for right in (True, False)[:lanes]:
            y = top + (0.5 if right else 1.5) * lane
            parts.append(straight(left, y, width, y, "grid"))
            chosen = [dot for dot in row if lanes == 1 or dot[1] is right]
            # Draw every n-th dot if there are many, to keep the page small.
            for value, is_right, title in chosen[:: 1 + len(chosen) // MAX_POINTS]:
                x = left + (value - low) / (high - low) * (width - left - 12) + 6
                parts.append(Markup(circle).format(x, y, "fill0" if is_right else "fill1", title))
        if notes:
            parts.append(text(width + 8, middle, notes[name], "small"))
    bottom = 8 + len(rows) * row_height + 10
    parts += [text(left, bottom, f"{low:.3f}", "small"), text(width - 6, bottom, f"{high:.3f}", "small", "end")]
    return parts, width + (60 if notes else 4), bottom + 6
