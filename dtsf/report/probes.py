"""Bias probes: accuracy with cameras taken away, and in other rooms."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtsf.cache.reader import list_datasets, open_dataset
from dtsf.errors import CacheError, ConfigError
from dtsf.training.data import Groups, load_groups
from dtsf.training.evaluate import evaluate_groups
from dtsf.training.protocols import parse_protocol, split_clips

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from dtsf.cache.reader import CachedDataset
    from dtsf.cache.schema import Clip
    from dtsf.model.network import DTSFNet
    from dtsf.report.run_data import RunFacts
    from dtsf.training.evaluate import GroupPrediction


@dataclass(frozen=True)
class ViewProbe:
    """Accuracy with some of the cameras, beside that with all cameras on the same groups."""

    what: str
    n_groups: int
    top1: float
    with_all: float
    uncertainty: float


@dataclass(frozen=True)
class CollectionProbe:
    """Accuracy on another collection of the same classes."""

    name: str
    n_groups: int
    top1: float
    uncertainty: float
    view_weights: tuple[float, ...]
    shared_subjects: tuple[str, ...]
    """Subjects that the run was trained on: their groups do not test unseen people."""


@dataclass(frozen=True)
class RoomProbe:
    """Static bias inside the test groups, where the data set names its rooms."""

    agree: tuple[int, int]
    """Right and all groups whose room is the most frequent one of their own class in training."""
    conflict: tuple[int, int]
    """The same for groups whose room is the most frequent one of some other class."""
    followed: float
    """Share of training clips in the most frequent room of their class: how much the room gave the class away."""
    n_rooms: int


@dataclass(frozen=True)
class Probes:
    """All of them."""

    views: tuple[ViewProbe, ...]
    collections: tuple[CollectionProbe, ...]
    skipped: tuple[str, ...]
    """Collections of the cache that could not be judged, and why."""
    rooms: RoomProbe | None

    @property
    def static_bias(self) -> dict[str, float]:
        """Accuracy where room and action agree minus where they conflict, of collections NAME-aligned and NAME-conflict."""
        top1 = {collection.name: collection.top1 for collection in self.collections}
        stems = (name.removesuffix("-conflict") for name in top1 if name.endswith("-conflict"))
        return {stem: top1[f"{stem}-aligned"] - top1[f"{stem}-conflict"] for stem in stems if f"{stem}-aligned" in top1}


def probe(
    facts: RunFacts, net: DTSFNet, data: CachedDataset, cache: Path, on_step: Callable[[int, int, str], None]
) -> Probes:
    """Judge the network again, with views withheld and on the other collections of the cache. ``on_step``: called with how many
    questions are answered, of how many, and the next one.
    """
    names, others = data.info.view_names, [name for name in list_datasets(cache) if name != data.info.name]
    rule = parse_protocol(facts.evaluation.protocol, data.info.kind)
    split = split_clips(data.clips, rule, data.info.kind, names)
    present = {clip.view for clip in split.test}
    questions = [("only", view) for view in sorted(present)] if len(present) > 1 else []
    # With two views, one alone and the other withheld are the same question.
    questions += [("without", view) for view in sorted(present)] if len(present) > 2 else []
    total = len(questions) + len(others)
    views, groups = [], load_groups(data, split.test)
    with_all = {p.group: p for p in facts.metrics.predictions}
    for k, (word, view) in enumerate(questions):
        what = f"{word} view {names[view - 1]}"
        on_step(k, total, what)
        views.append(_ask(net, groups, data, what, {view} if word == "only" else present - {view}, view, with_all))
    subjects = {clip.subject for clip in split.train if clip.subject is not None}
    collections, skipped = [], []
    for k, name in enumerate(others, len(questions)):
        on_step(k, total, name)
        try:
            collections.append(_collection(net, facts, open_dataset(cache, name), subjects))
        except (CacheError, ConfigError) as error:
            skipped.append(f"{name}: {error}")
    on_step(total, total, "")
    rooms = _rooms(split.train, split.test, facts.metrics.predictions)
    return Probes(tuple(v for v in views if v is not None), tuple(collections), tuple(skipped), rooms)


def _ask(
    net: DTSFNet,
    groups: Groups,
    data: CachedDataset,
    what: str,
    given: set[int],
    view: int,
    with_all: dict[str, GroupPrediction],
) -> ViewProbe | None:
    has_it_G = groups.mask_GV[:, view - 1]
    names = tuple(name for name, has in zip(groups.names, has_it_G.tolist(), strict=True) if has)
    # Only groups that have the view in question: elsewhere nothing would be taken away.
    asked = Groups(groups.embeddings_NFHWC, groups.row_GV[has_it_G], groups.label_G[has_it_G], names).with_views(given)
    if not len(asked):
        return None
    metrics = evaluate_groups(net, asked, data.info.class_names)
    before = [with_all[name] for name in asked.names if name in with_all]
    return ViewProbe(
        what,
        metrics.n_groups,
        metrics.top1,
        sum(p.label == p.predicted for p in before) / max(1, len(before)),
        metrics.uncertainty,
    )


def _collection(net: DTSFNet, facts: RunFacts, other: CachedDataset, subjects: set[str]) -> CollectionProbe:
    state = facts.checkpoint.state
    if other.info.class_names != state.info.class_names:
        raise ConfigError("has other classes")
    if other.spec.fingerprint() != state.fingerprint:
        raise ConfigError("was made with other settings")
    metrics = evaluate_groups(net, load_groups(other, other.clips), other.info.class_names)
    shared = sorted({clip.subject for clip in other.clips if clip.subject is not None} & subjects)
    return CollectionProbe(
        other.info.name, metrics.n_groups, metrics.top1, metrics.uncertainty, metrics.view_weights, tuple(shared)
    )


def _rooms(train: Sequence[Clip], test: Sequence[Clip], predictions: Sequence[GroupPrediction]) -> RoomProbe | None:
    """Split the test groups by whether their room is the one that training showed most with their class."""
    counts: dict[int, Counter[str]] = {}
    for clip in train:
        if clip.background is not None:
            counts.setdefault(clip.label, Counter())[clip.background] += 1
    usual = {label: rooms.most_common(1)[0][0] for label, rooms in counts.items()}
    room = {clip.group: clip.background for clip in test if clip.background is not None}
    tally = {"agree": [0, 0], "conflict": [0, 0]}
    for p in predictions:
        if p.group not in room:
            continue
        others = {background for label, background in usual.items() if label != p.label}
        own = usual.get(p.label) == room[p.group]
        # A room that is usual for this class and for another tells nothing either way.
        if own == (room[p.group] in others):
            continue
        tally["agree" if own else "conflict"][0] += p.label == p.predicted
        tally["agree" if own else "conflict"][1] += 1
    if not (tally["agree"][1] and tally["conflict"][1]):
        return None
    agree, conflict = tally["agree"], tally["conflict"]
    followed = sum(rooms.most_common(1)[0][1] for rooms in counts.values()) / sum(map(Counter.total, counts.values()))
    n_rooms = len({background for rooms in counts.values() for background in rooms})
    return RoomProbe((agree[0], agree[1]), (conflict[0], conflict[1]), followed, n_rooms)
