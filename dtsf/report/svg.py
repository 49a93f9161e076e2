"""Inline SVG for the pages, with the colours of their style sheet. ``Markup.format`` escapes every text from outside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from dtsf.training.metrics import ReliabilityBin

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 30
MAX_LABELS, MAX_POINTS = 30, 400  # most classes with names in a confusion matrix, most dots in a lane


def picture(width: float, height: float, title: str, parts: Sequence[Markup]) -> Markup:
    """Join parts to one drawing. ``title`` describes it for screen readers."""
    head = Markup('<svg viewBox="0 0 {0:g} {1:g}" style="max-width:{0:g}px" role="img" aria-label="{2}" ')
    space = Markup('xmlns="http://www.w3.org/2000/svg">')
    return head.format(width, height, title) + space + Markup("").join(parts) + Markup("</svg>")


def text(x: float, y: float, words: object, css: str = "", anchor: str = "start", angle: int = 0) -> Markup:
    """Draw text at a point, rotated clockwise by ``angle`` degrees."""
    turn = Markup(' transform="rotate({} {:.1f} {:.1f})"').format(angle, x, y) if angle else ""
    element = Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}"{}>{}</text>')
    return element.format(x, y, css, anchor, turn, words)


def _line(x1: float, y1: float, x2: float, y2: float, css: str = "grid") -> Markup:
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, css)


def _rect(x: float, y: float, width: float, height: float, css: str, title: str = "", opacity: float = 1.0) -> Markup:
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}" fill-opacity="{:.2f}"><title>{}</title></rect>'
    ).format(x, y, width, height, css, opacity, title)


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
    high = round_up(high) if low == 0.0 < high else high
    if high <= low:
        low, high = low - 0.5, high + 0.5
    n = max(len(line) for line in series.values())
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - TOP)
        parts.append(_line(LEFT, y, right, y))
        parts.append(text(LEFT - 5, y + 4, short_number(low + share * (high - low)), "small", "end"))
    parts += [text(LEFT, bottom + 14, "1", "small"), text(right, bottom + 14, n, "small", "end")]
    parts.append(text((LEFT + right) / 2, bottom + 26, x_name, "small", "middle"))
    polyline = Markup('<polyline points="{}" class="line c{}"><title>{}</title></polyline>')
    for k, (name, line) in enumerate(series.items()):
        x = [LEFT + i / max(1, n - 1) * (right - LEFT) for i in range(len(line))]
        y_of_line = [bottom - (value - low) / (high - low) * (bottom - TOP) for value in line]
        points = " ".join(f"{x_k:.1f},{y_k:.1f}" for x_k, y_k in zip(x, y_of_line, strict=True))
        parts.append(polyline.format(points, k % 6, name))
    return picture(WIDTH, HEIGHT, f"{', '.join(series)} by {x_name}", parts)


def panels(title: str, series: Mapping[str, Sequence[float]]) -> list[tuple[str, list[str], Markup]]:
    """Return title, legend and :func:`curves` of panels. A panel has at most six lines, because there are six colours."""
    lines = list(series.items())
    parts = [dict(lines[k : k + 6]) for k in range(0, len(lines), 6)]
    return [(title, list(part), curves(part, "epoch")) for part in parts]


def reliability(bins: Sequence[ReliabilityBin]) -> Markup:
    """Draw accuracy against probability, with one bar per bin that is not empty."""
    side, total = 240, sum(one.n_groups for one in bins)
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = TOP + side * (1 - share)
        parts += [_line(LEFT, y, LEFT + side, y), text(LEFT - 5, y + 4, f"{share:g}", "small", "end")]
        parts.append(text(LEFT + side * share, TOP + side + 14, f"{share:g}", "small", "middle"))
    for one in bins:
        if one.probability is None or one.accuracy is None:
            continue
        title = f"{one.n_groups} groups: mean probability {one.probability:.2f}, accuracy {one.accuracy:.2f}"
        # A bin of few groups is pale, because its accuracy is uncertain.
        opacity = 0.25 + 0.75 * min(1.0, one.n_groups * len(bins) / (2 * total))
        x, y, height = LEFT + side * one.low + 1, TOP + side * (1 - one.accuracy), max(1.5, side * one.accuracy)
        parts.append(_rect(x, y, side / len(bins) - 2, height, "fill0", title, opacity))
    parts.append(_line(LEFT, TOP + side, LEFT + side, TOP, "ideal"))
    parts.append(text(LEFT + side / 2, TOP + side + 28, "predicted probability", "small", "middle"))
    parts.append(text(12, TOP + side / 2, "accuracy", "small", "middle", -90))
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
            parts.append(text(left + (k + 0.5) * cell, top - 6, short, "small", angle=-45))
        elif k % 10 == 0:
            parts.append(text(left - 4, top + k * cell + 8, k, "small", "end"))
            parts.append(text(left + k * cell, top - 4, k, "small"))
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            x, y = left + j * cell, top + i * cell
            if count:
                title, share = f"{names[i]} classified as {names[j]}: {count} of {sum(row)}", count / sum(row)
                css = "fill0" if i == j else "fill1"
                parts.append(_rect(x, y, cell - 1, cell - 1, css, title, 0.15 + 0.85 * share))
            elif few:
                parts.append(_rect(x, y, cell - 1, cell - 1, "empty"))
            if count and few:
                css = "count strong" if share > 0.55 else "count"
                parts.append(text(x + cell / 2 - 0.5, y + cell * 0.64, count, css, "middle"))
    extra = top if few else 8.0
    return picture(left + K * cell + extra, top + K * cell + 4, "confusion matrix", parts)


def shares(rows: Mapping[str, Sequence[float]], parts: Sequence[str]) -> Markup:
    """Draw one bar of length 1 per row, divided into parts. The legend is part of the page."""
    if not rows:
        return Markup("")
    height, drawn = 22, []
    for k, (name, row) in enumerate(rows.items()):
        drawn.append(text(0, k * 2 * height + 15, name))
        left = 0.0
        for j, (part, share) in enumerate(zip(parts, row, strict=True)):
            title = f"{name}, {part}: {share:.2f}"
            drawn.append(
                _rect(left * WIDTH, k * 2 * height + height, max(0.0, share * WIDTH - 1), 16, f"fill{j}", title)
            )
            left += share
    return picture(WIDTH, len(rows) * 2 * height, "static shares of the features", drawn)


def levels(points: Sequence[tuple[int, float, tuple[float, float] | None]], x_name: str) -> Markup:
    """Draw accuracies and their intervals by a number, on an axis of doublings. A point is (number, accuracy, interval)."""
    low = min(value for _, accuracy, interval in points for value in (accuracy, *(interval or ())))
    low, bottom, right = min(0.9, max(0.0, math.floor(low * 10) / 10)), HEIGHT - BOTTOM, WIDTH - RIGHT - 10
    first, last = math.log2(points[0][0]), math.log2(max(points[-1][0], points[0][0] + 1))

    def place(number: int, value: float) -> tuple[float, float]:
        x = LEFT + 16 + (math.log2(number) - first) / (last - first) * (right - LEFT - 16)
        return x, bottom - (value - low) / max(1e-9, 1 - low) * (bottom - TOP)

    parts = []
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - TOP)
        parts += [
            _line(LEFT, y, right, y),
            text(LEFT - 5, y + 4, short_number(low + share * (1 - low)), "small", "end"),
        ]
    line = " ".join("{:.1f},{:.1f}".format(*place(number, accuracy)) for number, accuracy, _ in points)
    parts.append(Markup('<polyline points="{}" class="line c0"/>').format(line))
    circle = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4" class="fill0"><title>{}</title></circle>')
    for number, accuracy, interval in points:
        x, y = place(number, accuracy)
        words = f"{number}: {accuracy:.3f}"
        if interval is not None:
            parts.append(_line(x, place(number, interval[0])[1], x, place(number, interval[1])[1], "c0"))
            words += f", {interval[0]:.3f} to {interval[1]:.3f}"
        parts += [circle.format(x, y, words), text(x, bottom + 14, number, "small", "middle")]
    parts.append(text((LEFT + right) / 2, bottom + 26, x_name, "small", "middle"))
    return picture(WIDTH, HEIGHT, f"top-1 by {x_name}", parts)


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
    left, width, lane = 16 + min(190, 7 * max(map(len, rows))), WIDTH, 22
    row_height = lanes * lane + (12 if lanes > 1 else 2)
    circle = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4" class="{}" fill-opacity="0.6"><title>{}</title></circle>')
    parts = []
    for k, (name, row) in enumerate(rows.items()):
        top = 8 + k * row_height
        middle = top + lanes * lane / 2 + 4
        parts.append(text(left - 8, middle, name, "", "end"))
        for right in (True, False)[:lanes]:
            y = top + (0.5 if right else 1.5) * lane
            parts.append(_line(left, y, width, y))
            chosen = [dot for dot in row if lanes == 1 or dot[1] is right]
            # Draw every n-th dot if there are many, to keep the page small.
            for value, is_right, title in chosen[:: 1 + len(chosen) // MAX_POINTS]:
                x = left + (value - low) / (high - low) * (width - left - 12) + 6
                parts.append(circle.format(x, y, "fill0" if is_right else "fill1", title))
        if notes:
            parts.append(text(width + 8, middle, notes[name], "small"))
    bottom = 8 + len(rows) * row_height + 10
    parts += [text(left, bottom, f"{low:.3f}", "small"), text(width - 6, bottom, f"{high:.3f}", "small", "end")]
    return parts, width + (60 if notes else 4), bottom + 6
