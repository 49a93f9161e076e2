"""The tests of an experiment: clips that every training is evaluated on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from dtsf.cache.reader import open_dataset
from dtsf.cache.schema import describe_difference
from dtsf.errors import CacheError, CheckpointError, ConfigError
from dtsf.experiments.results import TestSummary
from dtsf.training.protocols import parse_protocol, split_clips

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dtsf.cache.reader import CachedDataset
    from dtsf.training.protocols import Protocol, Split


@dataclass(frozen=True)
class TestSet:
    """Clips that a job is evaluated on: the test clips of a protocol in one dataset of the cache."""

    summary: TestSummary
    data: CachedDataset
    rule: Protocol
    key: str
    """Hash of the clips and of the settings of the cache. A score with another key is not used."""


def open_tests(
    cache: Path, data: CachedDataset, rule: Protocol, split: Split, others: Sequence[str] = ()
) -> tuple[TestSet, ...]:
    """Return the test of a training's own protocol, then those of other datasets of the cache.

    ``data``, ``rule``, ``split``: dataset, protocol and clips of the training. ``others``: ``NAME`` or ``NAME@PROTOCOL`` each.
    Raises CheckpointError: other classes. CacheError: no such dataset, or other settings. ConfigError: a test is named twice.
    """
    tests = [_test(data.info.name, data, rule, (data, rule, split))]
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
        own = parse_protocol(protocol if at else "all", other.info.kind)
        tests.append(_test(text, other, own, (data, rule, split)))
    names = [test.summary.name for test in tests]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"--test {twice[0]}: named twice; the test of the training's own protocol is always included")
    return tuple(tests)


def _test(name: str, data: CachedDataset, rule: Protocol, training: tuple[CachedDataset, Protocol, Split]) -> TestSet:
    trained_on, trained_rule, split = training
    parts = split_clips(data.clips, rule, data.info.kind, data.info.view_names)
    same_dataset = data.info.name == trained_on.info.name
    task, note = parts.task, ""
    if not (same_dataset and rule == trained_rule):
        task = f"all clips of {data.info.name}" if rule.name == "all" else f"test clips of {data.info.name} by {rule}"
        shared = {clip.id for clip in split.train} & {clip.id for clip in parts.test} if same_dataset else set()
        subjects = {clip.subject for clip in split.train if clip.subject}
        known = sum(clip.subject in subjects for clip in parts.test)
        if shared:
            note = f"{len(shared)} of its {len(parts.test)} clips were trained on"
        elif known:
            note = f"{known} of its {len(parts.test)} clips are of subjects (by number) that were trained on"
    ids = sorted(clip.id for clip in parts.test)
    summary = TestSummary(name=name, task=task, n_groups=len({clip.group for clip in parts.test}), note=note)
    return TestSet(summary, data, rule, hash_of([data.spec.fingerprint(), data.info.name, str(rule), ids]))


def hash_of(document: object) -> str:
    """Return a hash of a JSON document; the same on every machine."""
    return xxhash.xxh3_64_hexdigest(json.dumps(document, sort_keys=True).encode())
