"""Hooks of mkdocs: the command-line reference, made from the app itself, and a check that the site loads nothing from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

REMOTE = re.compile(
    r"""<(?:script|img|iframe|link rel="(?:stylesheet|preload|preconnect)")[^>]*(?:src|href)="?(?:https?:)?//[^ ">]+"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from the code."""
    files.append(File.generated(config, "cli.md", content=cli_page()))
    return files


def on_page_content(html: str, **_: Any) -> str:
    """Show the roles of docstrings (``:func:`name```) as code."""
    return re.sub(r":(?:func|class|mod|data|meth|attr):(?=<code>)", "", html)


def on_post_build(config: MkDocsConfig) -> None:
    """Raise PluginError if a page loads anything from another server."""
    for page in Path(config.site_dir).rglob("*.html"):
        if found := REMOTE.search(page.read_text("utf-8")):
            raise PluginError(f"{page.relative_to(config.site_dir)} loads from another server: {found.group()}")


def cli_page() -> str:
    """Return the command-line reference: every command with its arguments, options and defaults."""
    import typer.main

    from dtsf.cli.app import app

    root = typer.main.get_command(app)
    lines = ["# Command line", "", root.help or "", "", root.epilog or "", ""]
    for name, command in sorted(root.commands.items()):
        for words, leaf in _leaves([name], command):
            lines += _command(words, leaf)
    return "\n".join(lines)


def _leaves(words: list[str], command: Any) -> Any:
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, child in sorted(command.commands.items()):
        yield from _leaves([*words, name], child)


def _command(words: list[str], command: Any) -> list[str]:
    context = command.make_context(" ".join(["dtsf", *words]), [], resilient_parsing=True)
    arguments = [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]
    lines = [f"## dtsf {' '.join(words)}", "", _plain(command.help or ""), ""]
    lines += ["```text", " ".join(["dtsf", *words, *arguments, "[OPTIONS]"]), "```", "", "| option | |", "|---|---|"]
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record and parameter.name not in ("quiet", "verbose", "help"):
            words_shown = record[0].replace("<list[str]>", "<str>").replace(" range>", ">")
            lines.append(f"| `{_cell(words_shown)}` | {_cell(_plain(record[1]))} |")
    return [*lines, ""]


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("<", "&lt;").strip()


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
