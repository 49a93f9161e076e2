"""What an ablation compares: tables of variants, each a recipe with some keys changed. The tables are in ``tables/*.toml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dtsf.errors import ConfigError
from dtsf.training.builtin import builtin_names, read_toml
from dtsf.training.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dtsf.training.recipe import Recipe


class Row(BaseModel):
    """One variant, as a table's file writes it. Keys are ``section.key=value``, as ``--set`` takes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    source: str = ""
    """Whose it is, and what it stands in the place of."""
    set: tuple[str, ...] = ()
    """What is changed in the recipe."""
    if_merged: tuple[str, ...] = ()
    """Changed too where the recipe encodes all cameras as one: ``model.views`` ``merged`` or ``both``."""
    if_both: tuple[str, ...] = ()
    """Changed too where the recipe has ``model.canvas`` ``both``."""
    if_frame: tuple[str, ...] = ()
    """Changed too where the recipe has ``model.anchor`` ``frame``."""


class Table(BaseModel):
    """A table, as its file writes it: rows in order, the first is what the others are compared with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    row: tuple[Row, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Variant:
    """A row made concrete for one recipe."""

    name: str
    source: str
    overrides: tuple[str, ...]
    """What is changed in the recipe, the caller's own changes first."""
    recipe: Recipe
    differs: tuple[str, ...]
    """Where its settings differ from the first row's: ``model.fusion tmc (msf)``."""
    same_as: str | None
    """An earlier row with the same settings: one training serves both."""


def table_names() -> list[str]:
    """Names of the tables that come with dtsf."""
    return builtin_names("table")


def load_table(name_or_file: str) -> Table:
    """Read a table. ``name_or_file``: A name of :func:`table_names`, or the path of a TOML file of the same form. Raises
    ConfigError: unknown table, or one that is not written as it must be.
    """
    try:
        table = Table.model_validate(read_toml("table", name_or_file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"table {name_or_file}: {where}: {first['msg']}") from error
    names = [row.name for row in table.row]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"table {name_or_file}: two rows are called {twice[0]!r}")
    return table


def make_variants(table: Table, recipe: str, overrides: Sequence[str] = ()) -> tuple[Variant, ...]:
    """Apply the rows of a table to a recipe. ``overrides``: changes that all rows share; a row's own come after them. Raises
    ConfigError: a row that does not go with the recipe; the message names it.
    """
    base = load_recipe(recipe, overrides)
    made: list[Variant] = []
    for row in table.row:
        changes = (
            *row.set,
            *(row.if_merged if base.model.views in ("merged", "both") else ()),
            *(row.if_both if base.model.canvas == "both" else ()),
            *(row.if_frame if base.model.anchor == "frame" else ()),
        )
        try:
            settings = load_recipe(recipe, (*overrides, *changes))
        except ConfigError as error:
            raise ConfigError(f"row {row.name!r}: {error}") from error
        same_as = next((earlier.name for earlier in made if earlier.recipe == settings), None)
        differs = _differences(made[0].recipe, settings) if made else ()
        made.append(Variant(row.name, row.source, (*overrides, *changes), settings, differs, same_as))
    return tuple(made)


def _differences(first: Recipe, other: Recipe) -> tuple[str, ...]:
    ours, theirs = first.model_dump(mode="json"), other.model_dump(mode="json")
    return tuple(
        f"{section}.{key} {theirs[section][key]} ({ours[section][key]})"
        for section in ours
        for key in ours[section]
        if ours[section][key] != theirs[section][key]
    )
