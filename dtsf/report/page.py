"""Render one self-contained HTML file: templates, style and script are put into it."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from dtsf.errors import ConfigError
from dtsf.files.write import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from jinja2 import Environment


def render(template: str, **facts: Any) -> str:
    """Fill a template. Every value is escaped except those that are Markup, which only :mod:`.svg` makes."""
    from markupsafe import Markup

    folder = resources.files("dtsf.report") / "templates"
    style, script = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # Nothing may be fetched, and no script runs but ours, even if something should slip through the escaping.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    page = _templates().get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=policy, **facts)  # noqa: S704


@lru_cache(maxsize=1)
def _templates() -> Environment:
    """Kept: to compile the templates takes longer than to fill them."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("dtsf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = _number
    return environment


def write_page(file: Path, text: str) -> Path:
    """Write a page whole or not at all. Raises ConfigError: the place cannot be written."""
    # The name of a folder may be in letters of no encoding.
    data = text.encode("utf-8", "backslashreplace")
    write_atomically(
        file, data, error=lambda why: ConfigError(f"cannot write {file}: {why}: name another place with --out")
    )
    return file


def _number(value: float | None, digits: int = 3) -> str:
    return "\u2013" if value is None else f"{value:.{digits}f}"
