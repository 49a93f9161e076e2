"""What the trainings of an ablation are judged on: the protocol's own test, and other data sets of the cache."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import xxhash

from dtsf.cache.reader import open_dataset
from dtsf.cache.spec import describe_difference
from dtsf.errors import CacheError, CheckpointError, ConfigError
from dtsf.experiments.ablation.results import AblationTest
from dtsf.training.protocols import parse_protocol, split_clips

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dtsf.cache.reader import CachedDataset
    from dtsf.training.protocols import Protocol, Split


@dataclass(frozen=True)
class Test:
    """A test, opened and checked."""

    shown: AblationTest
    data: CachedDataset
    rule: Protocol
    key: str
    """Hash of the clips and of how they were cached: a judgement of others is none of these."""


def open_tests(
    cache: Path, data: CachedDataset, rule: Protocol, split: Split, judges: Sequence[str]
) -> tuple[Test, ...]:
    """The protocol's own test first, then the judges, checked: same classes, made with the same settings."""
    made = [_test(data.info.name, data, rule, split, data, rule)]
    for word in judges:
        name, at, protocol = word.partition("@")
        other = open_dataset(cache, name)
        if other.info.class_names != data.info.class_names:
            raise CheckpointError(
                f"--judge {word}: {name} has other classes ({len(other.info.class_names)}) than {data.info.name} "
                f"({len(data.info.class_names)})"
            )
        if other.spec.fingerprint() != data.spec.fingerprint():
            raise CacheError(
                f"--judge {word}: {other.folder} was made with other settings than {data.folder} "
                f"({describe_difference(other.spec, data.spec)}): preprocess it with the same"
            )
        own = parse_protocol(protocol if at else "all", other.info.dataset)
        made.append(_test(word, other, own, split, data, rule))
    names = [test.shown.name for test in made]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ConfigError(f"--judge {twice[0]}: named twice; the data set that trains is judged by its protocol anyway")
    return tuple(made)


def _test(
    name: str, other: CachedDataset, rule: Protocol, split: Split, data: CachedDataset, trained: Protocol
) -> Test:
    parts = split_clips(other.clips, rule, other.info.dataset, other.info.view_names)
    is_own = other.info.name == data.info.name
    if is_own and rule == trained:
        # The protocol's own words say what is unseen.
        task, note = parts.task, ""
    else:
        task = f"all clips of {other.info.name}" if rule.name == "all" else f"test clips of {other.info.name} by {rule}"
        same = {clip.id for clip in split.train} & {clip.id for clip in parts.test} if is_own else set()
        persons = {clip.subject for clip in split.train if clip.subject}
        met = sum(clip.subject in persons for clip in parts.test)
        note = (
            f"{len(same)} of its {len(parts.test)} clips were trained on"
            if same
            else f"{met} of its {len(parts.test)} clips are of subjects (by number) that were trained on"
            if met
            else ""
        )
    ids = sorted(clip.id for clip in parts.test)
    return Test(
        AblationTest(name=name, task=task, n_groups=len({clip.group for clip in parts.test}), note=note),
        other,
        rule,
        hash_of([other.spec.fingerprint(), other.info.name, str(rule), ids]),
    )


def hash_of(document: object) -> str:
    """Of anything that JSON can write; the same on every machine."""
    return xxhash.xxh3_64_hexdigest(json.dumps(document, sort_keys=True).encode())
