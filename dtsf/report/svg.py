"""Inline SVG for the pages: colours come from the page's style sheet, so that one drawing serves light and dark.

Every word that is not ours goes through ``Markup.format``, which escapes it.
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
MOST_LABELS = 30
"""Classes up to which a confusion matrix names its columns and writes its counts."""
MOST_POINTS = 400


def picture(width: float, height: float, what: str, parts: Sequence[Markup]) -> Markup:
    """Put parts together to a drawing; ``what`` says in words what it shows."""
    head = Markup(
        '<svg viewBox="0 0 {w:g} {h:g}" style="max-width:{w:g}px" role="img" aria-label="{what}" xmlns="http://www.w3.org/2000/svg">'
    )
    return head.format(w=width, h=height, what=what) + Markup("").join(parts) + Markup("</svg>")


def text(x: float, y: float, words: object, css: str = "", anchor: str = "start") -> Markup:
    """Draw words at a point."""
    return Markup('<text x="{:.1f}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(x, y, css, anchor, words)


def straight(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    """Draw a straight line."""
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, css)


def _rect(x: float, y: float, width: float, height: float, css: str, title: str = "", opacity: float = 1.0) -> Markup:
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}" fill-opacity="{:.2f}"><title>{}</title></rect>'
    ).format(x, y, max(0.0, width), max(0.0, height), css, opacity, title)


def _frame(low: float, high: float, x_low: str, x_high: str, x_name: str) -> list[Markup]:
    """Axes, three grid lines with numbers, and the words along x."""
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
        parts.append(straight(LEFT, y, WIDTH - RIGHT, y, "grid"))
        parts.append(text(LEFT - 5, y + 4, _short(low + share * (high - low)), "small", "end"))
    bottom = HEIGHT - BOTTOM + 14
    parts.append(text(LEFT, bottom, x_low, "small"))
    parts.append(text(WIDTH - RIGHT, bottom, x_high, "small", "end"))
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, bottom + 12, x_name, "small", "middle"))
    return parts


def _round_above(value: float) -> float:
    """The next number whose half is a short one too, for the top of an axis: 12 for 11.8, 1 for 0.83."""
    power = 10.0 ** math.floor(math.log10(value))
    return power * next(step for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if step >= value / power * (1 - 1e-9))


def _short(value: float) -> str:
    """Two digits, in as many letters as fit beside the axis: 0.00025 as 2.5e-4."""
    plain = f"{value:.2g}"
    return plain if len(plain) < 7 else f"{value:.1e}".replace("e-0", "e-")


def curves(series: Mapping[str, Sequence[float]], x_name: str, *, from_zero: bool = True) -> Markup:
    """Draw lines over the same steps, each in its own colour. What they are called stands in the page's legend. ``series``:
    name -> values, all of one length. ``from_zero``: whether the axis begins at 0.
    """
    values = [value for line in series.values() for value in line]
    low, high = (min(0.0, *values) if from_zero else min(values)), max(values)
    if low == 0.0 < high:
        high = _round_above(high)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    n = max(len(line) for line in series.values())
    parts = _frame(low, high, "1", str(n), x_name)
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
    """Draw accuracy against probability, a bar for each bin of equal width that holds groups."""
    side, n = 240, len(bins)
    total = sum(held.n_groups for held in bins)
    parts = []
    for share in (0.0, 0.5, 1.0):
        y, x = TOP + side * (1 - share), LEFT + side * share
        parts += [straight(LEFT, y, LEFT + side, y, "grid"), text(LEFT - 5, y + 4, f"{share:g}", "small", "end")]
        parts.append(text(x, TOP + side + 14, f"{share:g}", "small", "middle"))
    for held in bins:
        count, probability, accuracy = held.n_groups, held.probability, held.accuracy
        if probability is None or accuracy is None:
            continue
        title = f"{count} groups: mean probability {probability:.2f}, right in {accuracy:.2f}"
        # Pale where a bin stands on few groups: its height means little.
        opacity = 0.25 + 0.75 * min(1.0, count * n / (2 * total))
        parts.append(
            _rect(
                LEFT + side * held.low + 1,
                TOP + side * (1 - accuracy),
                side / n - 2,
                max(1.5, side * accuracy),
                "fill0",
                title,
                opacity,
            )
        )
    parts.append(straight(LEFT, TOP + side, LEFT + side, TOP, "ideal"))
    parts.append(text(LEFT + side / 2, TOP + side + 28, "probability that it gave", "small", "middle"))
    parts.append(
        Markup('<text transform="translate(12 {y}) rotate(-90)" class="small" text-anchor="middle">{t}</text>').format(
            y=TOP + side / 2, t="share that was right"
        )
    )
    return picture(LEFT + side + RIGHT, TOP + side + 34, "reliability diagram", parts)


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Draw rows of true classes and columns of predicted ones; a cell is as strong as its share of the row."""
    K = len(names)
    few = K <= MOST_LABELS
    cell = 26 if few else max(4, 780 // K)
    left = 12 + min(190, 6.2 * max(map(len, names))) if few else 34
    top = left * 0.72 + 8 if few else 20
    parts = []
    for k, name in enumerate(names):
        short = name if len(name) <= 30 else name[:29] + "\u2026"
        if few:
            x, y = left + (k + 0.5) * cell, top - 6
            parts.append(text(left - 6, top + (k + 0.66) * cell, short, "small", "end"))
            parts.append(
                Markup('<text transform="translate({:.1f} {:.1f}) rotate(-45)" class="small">{}</text>').format(
                    x, y, short
                )
            )
        elif k % 10 == 0:
            parts.append(text(left - 4, top + k * cell + 8, k, "small", "end"))
            parts.append(text(left + k * cell, top - 4, k, "small"))
    for i, row in enumerate(matrix):
        total = sum(row)
        for j, count in enumerate(row):
            x, y = left + j * cell, top + i * cell
            if few and not count:
                parts.append(_rect(x, y, cell - 1, cell - 1, "empty"))
            if not count:
                continue
            title = f"{names[i]} taken for {names[j]}: {count} of {total}"
            share = count / total
            parts.append(_rect(x, y, cell - 1, cell - 1, "fill0" if i == j else "fill1", title, 0.15 + 0.85 * share))
            if few:
                css = "count strong" if share > 0.55 else "count"
                parts.append(text(x + cell / 2 - 0.5, y + cell * 0.64, count, css, "middle"))
    extra = top if few else 8.0
    return picture(left + K * cell + extra, top + K * cell + 4, "confusion matrix", parts)


def dots(rows: Mapping[str, Sequence[tuple[float, bool, str]]]) -> Markup:
    """Draw one row of dots each: (value, right, text of the dot). Wrong ones are in a second lane."""
    if not any(rows.values()):
        return Markup("")
    parts, width, height = dot_rows(rows)
    return picture(width, height, "weights of single samples", parts)


def dot_rows(
    rows: Mapping[str, Sequence[tuple[float, bool, str]]], *, lanes: int = 2, notes: Mapping[str, str] | None = None
) -> tuple[list[Markup], float, float]:
    """Draw the rows of :func:`dots` on one axis. Return the parts, their width and height.

    ``lanes``: 1 draws all dots of a row in one lane. ``notes``: texts behind the rows.
    """
    values = [value for row in rows.values() for value, _, _ in row]
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if high - low < 1e-6:
        low, high = low - 0.005, high + 0.005
    left = 16 + min(190, 7 * max(map(len, rows)))
    width, lane = WIDTH, 22
    row_height = lanes * lane + (12 if lanes > 1 else 2)
    parts = []
    for k, (name, row) in enumerate(rows.items()):
        top = 8 + k * row_height
        parts.append(text(left - 8, top + lanes * lane / 2 + 4, name, "", "end"))
        for j in range(lanes):
            parts.append(straight(left, top + (j + 0.5) * lane, width, top + (j + 0.5) * lane, "grid"))
        for right in (True, False):
            y = top + (0.5 if right or lanes == 1 else 1.5) * lane
            chosen = [(value, what) for value, good, what in row if good is right]
            # Too many would make a page of megabytes. Every n-th dot shows the same distribution.
            for value, what in chosen[:: 1 + len(chosen) // MOST_POINTS]:
                x = left + (value - low) / (high - low) * (width - left - 12) + 6
                parts.append(
                    Markup(
                        '<circle cx="{:.1f}" cy="{:.1f}" r="4" class="{}" fill-opacity="0.6"><title>{}</title></circle>'
                    ).format(x, y, "fill0" if right else "fill1", what)
                )
        if notes:
            parts.append(text(width + 8, top + lanes * lane / 2 + 4, notes[name], "small"))
    bottom = 8 + len(rows) * row_height + 10
    parts += [text(left, bottom, f"{low:.3f}", "small"), text(width - 6, bottom, f"{high:.3f}", "small", "end")]
    return parts, width + (60 if notes else 4), bottom + 6


def bars(shares: Mapping[str, float]) -> Markup:
    """Draw one short bar for each share in [0, 1]: for a table's cell or a caption."""
    parts = []
    for k, (name, share) in enumerate(shares.items()):
        parts.append(_rect(0, 2 + k * 9, 60, 7, "empty"))
        parts.append(_rect(0, 2 + k * 9, 60 * min(1.0, share), 7, f"fill{k % 6}", f"{name}: {share:.3f}"))
    return picture(60, 2 + 9 * len(shares), ", ".join(f"{name} {share:.3f}" for name, share in shares.items()), parts)
