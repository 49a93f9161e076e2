"""Tests of the jobs of an experiment, sizes of their networks, and the lock of their folder."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import xxhash

from dtsf.cache.reader import CachedDataset, open_dataset
from dtsf.cache.schema import Clip, describe_difference
from dtsf.errors import CacheError, CheckpointError, ConfigError
from dtsf.experiments.job import TestSet
from dtsf.experiments.results import TestSummary
from dtsf.files.write import lock
from dtsf.training.protocols import Protocol, Split, parse_protocol, split_clips, subjects_of
from dtsf.training.recipe import Recipe, resolve_auto
from dtsf.training.splits import compare_sides, exclude_classes, limit_training
from dtsf.training.start import Start, fit_recipe

K = TypeVar("K", bound=Hashable)


def open_tests(
    cache: Path, data: CachedDataset, rule: Protocol, split: Split, others: Sequence[str] = (), usual: str = "all"
) -> tuple[TestSet, ...]:
    """Return a training's own test, then others: ``NAME@PROTOCOL``, or ``NAME`` with the protocol ``usual``. Raises
    CheckpointError: other classes. CacheError: no such dataset, or other settings. ConfigError: a test is named twice.
    """
    chosen = {data.info.name: (data, rule)}
    for text in others:
        name, at, protocol = text.partition("@")
        other = open_dataset(cache, name)
        if other.info.class_names != data.info.class_names:
            raise CheckpointError(
                f"--test {text}: {name} has other classes ({len(other.info.class_names)}) than {data.info.name} "
                f"({len(data.info.class_names)})"
            )
        if other.spec.fingerprint() != data.spec.fingerprint():
            raise CacheError(
                f"--test {text}: {other.store} was made with other settings than {data.store} "
                f"({describe_difference(other.spec, data.spec)}): preprocess it with the same settings"
            )
        if text in chosen:
            raise ConfigError(f"--test {text}: named twice; the test of the training's own protocol is always included")
        chosen[text] = other, parse_protocol(protocol if at else usual, other.info.kind)
    people = set(subjects_of(split.train))
    tests = []
    for name, (other, own) in chosen.items():
        try:
            parts = split_clips(other.clips, own, other.info.kind, other.info.view_names)
        except ConfigError as error:
            raise error if name == data.info.name else ConfigError(f"--test {name}: {error}") from error
        same_dataset = other.info.name == data.info.name
        task = parts.task
        leak, doubts = compare_sides(
            data, split.train, other, parts.test, data.info.class_names, own, pooled=usual != "all"
        )
        notes = [leak.partition(":")[0], *doubts]
        if not same_dataset or own != rule:
            task = (
                f"all clips of {other.info.name}" if own.name == "all" else f"test clips of {other.info.name} by {own}"
            )
            known = sum(not people.isdisjoint(subjects_of([clip])) for clip in parts.test)
            if known and not leak:
                of = f"{known} of its {len(parts.test)} clips"
                notes.append(f"{of} are of subjects (by number) that were trained on")
        note = "; ".join(filter(None, notes))
        summary = TestSummary(name=name, task=task, n_groups=len({clip.group for clip in parts.test}), note=note)
        key = hash_of([other.spec.fingerprint(), other.info.name, str(own), identity(other, parts.test)])
        tests.append(TestSet(summary, other, own, key))
    return tuple(tests)


def identity(data: CachedDataset, clips: Iterable[Clip]) -> list[tuple[str, str]]:
    """Return clips with what an experiment reads of them, sorted. A clip with another label is another clip."""
    return sorted((clip.id, data.digests[clip.id]) for clip in clips)


def hash_of(document: object) -> str:
    """Return a hash of a JSON document; the same on every machine."""
    return xxhash.xxh3_64_hexdigest(json.dumps(document, sort_keys=True).encode())


def resolve(recipe: Recipe, data: CachedDataset, split: Split, start: Start | None) -> Recipe:
    """Return the recipe with the sizes that the training will choose for this split or for its start."""
    split, info = exclude_classes(split, data.info, recipe.train.exclude_classes)
    clips = limit_training(split, recipe.train).train
    n_groups = len({clip.group for clip in clips})
    return resolve_auto(fit_recipe(start, recipe, data.spec), len(clips), n_groups, info.class_names)


def locked(out: Path, command: str) -> AbstractContextManager[None]:
    """Create the folder ``out`` and lock it. Raises ConfigError: another process works in it, or it cannot be created."""
    return lock(
        out / ".lock",
        unwritable=lambda why: ConfigError(f"cannot write to the folder {out}: {why}; choose another --out"),
        busy=ConfigError(f"another dtsf {command} works in {out}: wait for it, or choose another --out"),
    )
