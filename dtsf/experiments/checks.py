"""Checks of a reproduction before any work: its protocols, recipe and folder."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

from dtsf.errors import ConfigError, DataError
from dtsf.experiments.grid import read_json, write_json
from dtsf.training.protocols import parse_protocol, split_clips
from dtsf.training.recipe import builtin_names, load_recipe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dtsf.experiments.settings import ReproduceSettings
    from dtsf.pipeline.datasets.catalog import SourceCatalog

SETTINGS, STAGE1 = "reproduce.json", "stage1.json"
PUBLISHED_SUBJECT = 10
"""Test subject of DVANet's public cross-subject list."""


def choose_protocols(catalog: SourceCatalog, names: Sequence[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return the protocols to run, and notes on those that the dataset does not allow.

    The default is every rotation of cross-view, and cross-subject with test subject 10 as in DVANet's public list. Without
    such a subject, the last third of the subjects is tested.

    Raises ConfigError: a given protocol does not exist or leaves a side empty. DataError: no protocol is possible.
    """
    words, notes = (list(names), []) if names else _default_protocols(catalog)
    rules = [parse_protocol(word, catalog.kind) for word in words]
    for rule in rules:
        split_clips(catalog.clips, rule, catalog.kind, catalog.view_names)
    if not rules:
        raise DataError(f"{catalog.root} has one view of one subject: no protocol is possible")
    return list(dict.fromkeys(map(str, rules))), tuple(notes)


def _default_protocols(catalog: SourceCatalog) -> tuple[list[str], list[str]]:
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
        notes.append(f"cross-subject tests {test}: the data have no subject {PUBLISHED_SUBJECT}, as in the public list")
    return protocols, notes


def check_recipe(recipe: str | None, overrides: Sequence[str]) -> None:
    """Check recipe and overrides before stage 1. Without a recipe, the overrides must fit one of the built-in recipes. Raises
    ConfigError: an unknown recipe or key, or a value out of range.
    """
    candidates = [recipe] if recipe is not None else builtin_names("recipe")
    for name in candidates:
        try:
            load_recipe(name, overrides)
            return
        except ConfigError:
            if name == candidates[-1]:
                raise


def claim(plan: ReproduceSettings, out: Path, catalog: SourceCatalog) -> None:
    """Start in the folder of a run, or continue there with the same settings. Raises ConfigError: the folder contains
    something else, or was started with other settings.
    """
    file = out / SETTINGS
    clips = "\n".join(f"{clip.id} {clip.path} {clip.label}" for clip in catalog.clips)
    settings = {
        "root": str(catalog.root),
        "clips": len(catalog.clips),
        "digest": hashlib.sha256(clips.encode()).hexdigest()[:16],
        "overrides": list(plan.changes()),
        **plan.model_dump(mode="json", include={"cache", "recipe", "init", "encoder", "frames", "size", "grid"}),
    }
    if not file.is_file():
        if out.is_dir() and any(path.name != ".lock" for path in out.iterdir()):
            raise ConfigError(f"the folder {out} contains something else than a reproduction: choose another --out")
    elif plan.overwrite:
        for name in ("runs", "cache"):
            shutil.rmtree(out / name, ignore_errors=True)
        for path in (out / STAGE1, *out.glob("results.*")):
            path.unlink(missing_ok=True)
    else:
        before = read_json(file)
        changed = [
            f"{key} {before.get(key)!r}, now {settings.get(key)!r}"
            for key in sorted(settings.keys() | before.keys())
            if before.get(key) != settings.get(key)
        ]
        if changed:
            raise ConfigError(
                f"{out} was started with {'; '.join(changed)}: choose another --out, or --overwrite to start again there"
            )
    write_json(file, settings)
