"""TOML that comes with dtsf, by name, or a file of the user's own: recipes and tables of variants."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from dtsf.errors import ConfigError
from dtsf.files.read import read_file

LIMIT = 1 << 20
"""Bytes of a recipe or a table."""
PACKAGES = {"recipe": "dtsf.training", "table": "dtsf.experiments"}
"""Package that holds the files of each kind."""


def builtin_names(kind: str) -> list[str]:
    """Names of what comes with dtsf of a kind, ``recipe`` or ``table``."""
    folder = resources.files(PACKAGES[kind]) / f"{kind}s"
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def read_recipe(name_or_file: str, *, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """Read a recipe with what it extends: ``extends = "NAME"`` takes another's keys, but for those it sets itself.

    ``name_or_file``: as :func:`read_toml`; an extended file is looked for beside the one that extends it. Raises ConfigError:
    as :func:`read_toml`, or recipes that extend each other in a circle.
    """
    if name_or_file in below:
        raise ConfigError(f"recipes extend each other in a circle: {' -> '.join((*below, name_or_file))}")
    own = read_toml("recipe", name_or_file)
    extended = own.pop("extends", None)
    if extended is None:
        return own
    if not isinstance(extended, str):
        raise ConfigError(f'recipe {name_or_file}: extends = {extended!r} must name one recipe, as extends = "default"')
    if extended.endswith(".toml") and name_or_file.endswith(".toml"):
        extended = str(Path(name_or_file).parent / extended)
    whole = read_recipe(extended, below=(*below, name_or_file))
    for section, keys in own.items():
        both = isinstance(keys, dict) and isinstance(whole.get(section), dict)
        whole[section] = {**whole[section], **keys} if both else keys
    return whole


def read_toml(kind: str, name_or_file: str) -> dict[str, Any]:
    """Read one. ``name_or_file``: A name of :func:`builtin_names`, or the path of a TOML file. Raises ConfigError: unknown
    name, or a file that cannot be read as TOML.
    """
    names = builtin_names(kind)
    if name_or_file in names:
        text = (resources.files(PACKAGES[kind]) / f"{kind}s" / f"{name_or_file}.toml").read_text("utf-8")
    elif name_or_file.endswith(".toml"):
        file = Path(name_or_file)
        data = read_file(file, limit=LIMIT, error=lambda why: ConfigError(f"{kind} file {why}"), follow=True)
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{kind} file {name_or_file} cannot be read: {error}") from error
    else:
        raise ConfigError(f"unknown {kind} {name_or_file!r}; there are {', '.join(names)}, or give a .toml file")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{kind} {name_or_file} is not valid TOML: {error}") from error
