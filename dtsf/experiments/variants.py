"""Variants of a recipe: the tables of ``experiments/tables/*.toml``, applied to one recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dtsf.errors import ConfigError
from dtsf.training.builtin import builtin_names, read_toml
from dtsf.training.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dtsf.training.recipe import Recipe


class VariantRow(BaseModel):
    """One row of a table file. Keys are ``section.key=value``, as in ``--set``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    source: str = ""
    """Its publication, and the part of the network that it replaces."""
    set: tuple[str, ...] = ()
    """Changes of the recipe."""
    if_merged: tuple[str, ...] = ()
    """Further changes if the recipe encodes all cameras together: ``model.views`` is ``merged`` or ``both``."""
    if_both: tuple[str, ...] = ()
    """Further changes if ``model.canvas`` is ``both``."""
    if_frame: tuple[str, ...] = ()
    """Further changes if ``model.anchor`` is ``frame``."""


class VariantTable(BaseModel):
    """A table file. The other rows are compared with the first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    row: tuple[VariantRow, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Variant:
    """A row applied to one recipe."""

    name: str
    source: str
    overrides: tuple[str, ...]
    """Changes of the recipe: first those of all rows, then those of this row."""
    recipe: Recipe
    differs: tuple[str, ...]
    """Settings that differ from the first row: ``model.fusion tmc (msf)``."""
    same_as: str | None
    """An earlier row with the same settings: one training serves both."""


def table_names() -> list[str]:
    """Return the names of the built-in tables."""
    return builtin_names("table")


def load_table(name_or_file: str) -> VariantTable:
    """Read a table. ``name_or_file``: one of :func:`table_names`, or the path of a TOML file. Raises ConfigError: an unknown
    table or an invalid file.
    """
    try:
        table = VariantTable.model_validate(read_toml("table", name_or_file))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"table {name_or_file}: {where}: {first['msg']}") from error
    names = [row.name for row in table.row]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"table {name_or_file}: two rows are called {twice[0]!r}")
    return table


def make_variants(table: VariantTable, recipe: str, overrides: Sequence[str] = ()) -> tuple[Variant, ...]:
    """Apply the rows of a table to a recipe. ``overrides``: changes of all rows; the changes of a row come after them. Raises
    ConfigError: a row does not fit the recipe.
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
        differs = differences(made[0].recipe.model_dump(mode="json"), settings.model_dump(mode="json")) if made else ()
        made.append(Variant(row.name, row.source, (*overrides, *changes), settings, differs, same_as))
    return tuple(made)


def differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the settings of the recipe ``other`` that differ, with the value of ``first`` in brackets."""
    return tuple(
        f"{section}.{key} {value} ({first.get(section, {}).get(key)})"
        for section, values in other.items()
        for key, value in values.items()
        if value != first.get(section, {}).get(key)
    )
