"""Choose the protocols of a reproduction, and check them against the data before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtsf.errors import ConfigError, DataError
from dtsf.training.protocols import parse_protocol, split_clips
from dtsf.training.recipe import load_recipe, recipe_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dtsf.pipeline.datasets.catalog import SourceCatalog
    from dtsf.training.recipe import Recipe

PUBLISHED_SUBJECT = 10
"""Test subject of DVANet's public cross-subject list."""


def choose_protocols(catalog: SourceCatalog, asked: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the protocols to run, and notes on those that the data set does not allow.

    Left out: every rotation of cross-view, and cross-subject with subject 10 tested, as DVANet's public list; where there
    is no such subject, with the last third of those that there are.

    Raises ConfigError: one that is asked for does not exist or leaves a side empty. DataError: none can be formed.
    """
    words, notes = (list(asked), []) if asked else _usual(catalog)
    rules = [parse_protocol(word, catalog.kind) for word in words]
    for rule in rules:
        split_clips(catalog.clips, rule, catalog.kind, catalog.view_names)
    if not rules:
        raise DataError(f"{catalog.root} has one view of one subject: no protocol can be formed")
    return list(dict.fromkeys(map(str, rules))), tuple(notes)


def check_recipe(recipe: str | None, overrides: Sequence[str]) -> None:
    """Check recipe and keys before stage 1 starts. Raises ConfigError: unknown, or out of range; where the recipe is left to
    training, in every recipe there is.
    """
    candidates = [recipe] if recipe is not None else recipe_names()
    for k, name in enumerate(candidates, 1):
        try:
            load_recipe(name, overrides)
        except ConfigError:
            if k == len(candidates):
                raise
        else:
            return


def recipe_name(settings: Recipe, asked: str | None, overrides: Sequence[str]) -> str:
    """Name of the recipe that has these settings."""
    if asked is not None:
        return asked
    for name in recipe_names():
        try:
            if load_recipe(name, overrides) == settings:
                return name
        except ConfigError:
            continue  # these overrides are not for that one
    return "custom"


def _usual(catalog: SourceCatalog) -> tuple[list[str], list[str]]:
    views = sorted({clip.view for clip in catalog.clips})
    subjects = sorted({int(clip.subject) for clip in catalog.clips if clip.subject})
    absent = [view for view in range(1, len(catalog.view_names) + 1) if view not in views]
    notes = [f"cross-view:{view} is left out: no clip of view {view}" for view in absent]
    protocols = [f"cross-view:{view}" for view in views] if len(views) > 1 else []
    if not protocols:
        notes.append(f"cross-view is left out: all clips are of view {views[0]}")
    if len(subjects) < 2:
        notes.append(f"cross-subject is left out: all clips are of subject {', '.join(map(str, subjects))}")
    elif PUBLISHED_SUBJECT in subjects:
        protocols.append(f"cross-subject:{PUBLISHED_SUBJECT}")
    else:
        test = ",".join(map(str, subjects[-max(1, len(subjects) // 3) :]))
        protocols.append(f"cross-subject:{test}")
        notes.append(
            f"cross-subject tests {test}: there is no subject {PUBLISHED_SUBJECT}, whom N-UCLA's public list tests"
        )
    return protocols, notes
