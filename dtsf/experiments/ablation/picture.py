"""An ablation as one picture: a panel a test, a row a variant, a dot a seed, a bar at the mean.

The file stands alone (a README shows it as an image), so it brings its own colours, for light and for dark.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from markupsafe import Markup

from dtsf.experiments.ablation.results import mean_and_spread
from dtsf.report import svg

if TYPE_CHECKING:
    from dtsf.experiments.ablation.results import Ablation

STYLE = Markup(
    "<style>svg{background:#fff}text{font:12px system-ui,sans-serif;fill:#222}.small{font-size:11px;fill:#666}"
    ".strong{font-weight:600}.grid{stroke:#ddd}.zero{stroke:#888}.range{stroke:#4878b0;stroke-opacity:.35;stroke-width:6}"
    ".mean{stroke:#24508a;stroke-width:2.5}.dot{fill:#4878b0;fill-opacity:.75}.ours{fill:#c8641e}"
    "@media(prefers-color-scheme:dark){svg{background:#16181c}text{fill:#e6e6e6}.small{fill:#a0a4ab}.grid{stroke:#33373d}"
    ".mean{stroke:#9cc2f0}}</style>"
)
ROW, PANEL, SPACE, TOP, RIGHT = 26, 250, 62, 46, 16
LETTER = 6.7
"""Width of a letter of a row's name, about."""


def draw_ablation(ablation: Ablation) -> Markup:
    """Draw every test of an ablation, and its gap, side by side."""
    columns = ablation.columns()
    left = 20 + LETTER * max(len(row.variant) for row in ablation.rows)
    height = TOP + ROW * len(ablation.rows) + 40
    width = left + len(columns) * (PANEL + SPACE) - SPACE + 46 + RIGHT
    parts = [STYLE, svg.text(8, 18, ablation.title, "strong")]
    for k, row in enumerate(ablation.rows):
        parts.append(svg.text(left - 10, TOP + (k + 0.5) * ROW + 4, row.variant, "strong" if k == 0 else "", "end"))
    for c, (name, what, values) in enumerate(columns):
        x = left + c * (PANEL + SPACE)
        found = [value for by_seed in values for value in by_seed.values()]
        low, high, step = _axis(found)
        parts.append(svg.text(x, TOP - 10, name, "strong"))
        ticks = [low + i * step for i in range(round((high - low) / step) + 1)]

        def at(value: float, x: float = x, low: float = low, high: float = high) -> float:
            return x + (value - low) / (high - low) * PANEL

        bottom, words = TOP + ROW * len(ablation.rows), what.removeprefix("top-1, ")
        for tick in ticks:
            css = "zero" if abs(tick) < 1e-9 and low < 0 else "grid"
            parts.append(svg.straight(at(tick), TOP, at(tick), bottom, css))
            parts.append(svg.text(at(tick), bottom + 15, f"{tick:.2f}", "small", "middle"))
        parts.append(svg.text(x, bottom + 31, words if len(words) <= 54 else words[:53] + "\u2026", "small"))
        for k, by_seed in enumerate(values):
            y = TOP + (k + 0.5) * ROW
            both = mean_and_spread(by_seed.values())
            if both is None:
                parts.append(svg.text(x + PANEL + 9, y + 4, "not yet", "small"))
                continue
            parts.append(svg.straight(at(min(by_seed.values())), y, at(max(by_seed.values())), y, "range"))
            parts += [_dot(at(value), y, k == 0, f"seed {seed}: {value:.3f}") for seed, value in by_seed.items()]
            parts.append(svg.straight(at(both[0]), y - 9, at(both[0]), y + 9, "mean"))
            parts.append(svg.text(x + PANEL + 9, y + 4, f"{both[0]:.3f}", "strong" if k == 0 else ""))
    return svg.picture(width, height, f"{ablation.title}: means and seeds", parts)


def _axis(values: list[float]) -> tuple[float, float, float]:
    """A range of whole steps around the values, and the step."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    step = next(step for step in (0.05, 0.1, 0.2, 0.25, 0.5) if high - low <= 5 * step or step == 0.5)
    begin = step * int((low + 10) / step + 1e-6) - 10
    end = begin + step
    while end < high - 1e-9:
        end += step
    return begin, end, step


def _dot(x: float, y: float, ours: bool, title: str) -> Markup:
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4" class="dot{}"><title>{}</title></circle>').format(
        x, y, " ours" if ours else "", title
    )
