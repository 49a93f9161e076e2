"""Render one self-contained HTML file. Templates, style and script are part of it."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from dtsf.errors import ConfigError
from dtsf.files.write import write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, script_name: str = "page.js", media: str = "'none'", **values: Any) -> str:
    """Fill a template. It escapes every value except Markup, which only :mod:`.svg` and :func:`embed_json` make.

    ``script_name``: its script. ``media``: sources of its videos, in the words of a Content-Security-Policy.
    """
    folder = resources.files("dtsf.report") / "templates"
    style, script = ((folder / name).read_text("utf-8") for name in ("page.css", script_name))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The browser loads nothing and runs only our script, even if the escaping has a defect.
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; media-src {media}"
    )
    page = _templates().get_template(template)
    return page.render(style=Markup(style), script=Markup(script), policy=policy, **values)  # noqa: S704


def embed_json(value: Any) -> Markup:
    """Return a value as the text of a ``script`` element of type JSON: no text in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704


@lru_cache(maxsize=1)
def _templates() -> Environment:
    """Compile the templates once, because that takes longer than to fill them."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    options: dict[str, Any] = {"autoescape": True, "undefined": StrictUndefined}
    environment = Environment(loader=PackageLoader("dtsf.report"), trim_blocks=True, lstrip_blocks=True, **options)
    environment.filters["number"] = lambda x, digits=3: "\u2013" if x is None else f"{x:.{digits}f}"
    return environment


def write_page(file: Path, text: str) -> Path:
    """Write a page atomically. Raises ConfigError: the file cannot be written."""
    # A folder name can contain bytes that are not UTF-8.
    data = text.encode("utf-8", "backslashreplace")
    write_atomically(file, data, error=lambda why: ConfigError(f"cannot write {file}: {why}: choose another --out"))
    return file
