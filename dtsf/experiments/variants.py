"""Variants of a recipe: the tables of ``experiments/tables/*.toml``, applied to one recipe."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dtsf.errors import ConfigError
from dtsf.model.config import BranchConfig
from dtsf.training.recipe import builtin_names, load_recipe, read_toml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dtsf.training.recipe import Recipe


class VariantRow(BaseModel):
    """One row of a table file. Keys are ``section.key=value``, as in ``--set``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    source: str = ""
    """Source of the method, and the part of the network that it replaces."""
    set: tuple[str, ...] = ()
    """Changed keys of the recipe."""
    needs: str = ""
    """Input that a branch of the recipe must have; else the row changes no branch."""
    drop: tuple[str, ...] = ()
    """Inputs or views of branches to remove. A word that would remove all branches removes none."""
    branch: dict[str, Any] = {}
    """Keys to set in the remaining branches. Input ``pixels`` stays. Equal branches are then merged."""


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
        branches = _change_branches(base.model.branch, row)
        changes = (*row.set, *([_as_override(branches)] if branches != _as_dicts(base.model.branch) else []))
        try:
            settings = load_recipe(recipe, (*overrides, *changes))
        except ConfigError as error:
            raise ConfigError(f"row {row.name!r}: {error}") from error
        same_as = next((earlier.name for earlier in made if earlier.recipe == settings), None)
        differs = differences(made[0].recipe.model_dump(mode="json"), settings.model_dump(mode="json")) if made else ()
        made.append(Variant(row.name, row.source, (*overrides, *changes), settings, differs, same_as))
    return tuple(made)


def _as_dicts(branches: Sequence[BranchConfig]) -> list[dict[str, Any]]:
    return [branch.model_dump(exclude_defaults=True) for branch in branches]


def _change_branches(given: Sequence[BranchConfig], row: VariantRow) -> list[dict[str, Any]]:
    """Return the branches of a recipe as a row changes them. A dropped branch leaves its weight to those with its input."""
    branches = list(given)
    if row.needs and row.needs not in {branch.input for branch in branches}:
        return _as_dicts(branches)
    for word in row.drop:
        kept = [branch for branch in branches if word not in (branch.input, branch.views)]
        for dropped in [branch for branch in branches if kept and branch not in kept]:
            heirs = [branch for branch in kept if branch.input == dropped.input]
            more = dropped.weight / max(1, len(heirs))
            kept = [x.model_copy(update={"weight": x.weight + more}) if x in heirs else x for x in kept]
        branches = kept or branches
    changed: list[dict[str, Any]] = []
    for branch in branches:
        keys = branch.model_dump(exclude_defaults=True) | row.branch
        if branch.input == "pixels":
            keys["input"] = branch.input
        alike = [{**other, "weight": 1} for other in changed]
        if {**keys, "weight": 1} not in alike:
            changed.append(BranchConfig.model_validate(keys).model_dump(exclude_defaults=True))
    return changed


def _as_override(branches: list[dict[str, Any]]) -> str:
    """Return the branches as an override: ``model.branch=[{ input = "motion" }]``."""
    tables = [
        "{ " + ", ".join(f"{key} = {json.dumps(value)}" for key, value in keys.items()) + " }" for keys in branches
    ]
    return f"model.branch=[{', '.join(tables)}]"


def differences(first: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the settings of the recipe ``other`` that differ, with the value of ``first`` in brackets, and its branches."""
    found = []
    for section, values in other.items():
        for key, value in values.items():
            before = first.get(section, {}).get(key)
            if value != before:
                branches = (section, key) == ("model", "branch")
                found.append(f"{section}.{key} " + (_in_words(value) if branches else f"{value} ({before})"))
    return tuple(found)


def _in_words(branches: Sequence[Mapping[str, Any]]) -> str:
    """Describe branches: ``motion each 0.67; dynamic each 8 channels 0.33``."""
    words = []
    for branch in branches:
        more = [f"{branch['channels']} channels"] if branch["channels"] else []
        more += [branch["paste"]] if branch["paste"] != "none" else []
        more += ["msm"] if branch["msm"] else []
        words.append(" ".join([branch["input"], branch["views"], *more, f"{branch['weight']:g}"]))
    return "; ".join(words)
