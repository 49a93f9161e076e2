"""Render one self-contained HTML file. Templates, style and script are part of it."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from dtsf.errors import ConfigError
from dtsf.files.write import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from jinja2 import Environment

    from dtsf.cache.schema import CacheSpec


def render(template: str, **values: Any) -> str:
    """Fill a template. It escapes every value except Markup, which only :mod:`.svg` makes."""
    folder = resources.files("dtsf.report") / "templates"
    style, script = ((folder / name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The browser loads nothing and runs only our script, even if the escaping has a defect.
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    page = _templates().get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=policy, **values)  # noqa: S704


@lru_cache(maxsize=1)
def _templates() -> Environment:
    """Compile the templates once, because that takes longer than to fill them."""
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


def _number(value: float | None, digits: int = 3) -> str:
    return "\u2013" if value is None else f"{value:.{digits}f}"


def write_page(file: Path, text: str) -> Path:
    """Write a page atomically. Raises ConfigError: the file cannot be written."""
    # A folder name can contain bytes that are not UTF-8.
    data = text.encode("utf-8", "backslashreplace")
    write_atomically(file, data, error=lambda why: ConfigError(f"cannot write {file}: {why}: choose another --out"))
    return file


def spec_rows(spec: CacheSpec) -> list[tuple[str, str]]:
    """Return the settings of a cache as rows of a table."""
    size = f"{spec.frames} frames, {spec.size} px ({spec.crop} crop)"
    return [
        ("encoder", f"{spec.encoder}, weights {spec.weights_hash}"),
        ("input", f"{size}, {spec.grid} x {spec.grid} cells x {spec.channels} channels"),
        ("decoder", f"{spec.decoder}, {spec.sampling}"),
    ]
