"""Probes of the report: of the input of the network, on other datasets, and by the names of backgrounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from dtsf.cache.compare import find_copies
from dtsf.cache.reader import CachedDataset, list_datasets, open_dataset
from dtsf.cache.schema import Clip
from dtsf.errors import CacheError
from dtsf.model.network import DTSFNet
from dtsf.report.run_data import RunData, known_clips
from dtsf.training.data import load_groups
from dtsf.training.evaluate import evaluate_groups
from dtsf.training.metrics import GroupPrediction, Metrics
from dtsf.training.probes import InputProbes, probe_inputs
from dtsf.training.protocols import parse_protocol, split_clips, subjects_of
from dtsf.training.splits import draw_groups

MAX_GROUPS = 1000  # that a probe reads, so that the memory of a report does not grow with the dataset


class DatasetProbe(NamedTuple):
    """Metrics on another dataset with the same classes. Groups of ``shared_subjects`` do not test unseen people;
    ``shared_clips`` show recordings of the training.
    """

    name: str
    metrics: Metrics
    shared_subjects: tuple[str, ...]
    shared_clips: int


class BackgroundProbe(NamedTuple):
    """Static bias in the test groups, if the dataset names backgrounds. ``share``: of training clips with their class's usual
    one.
    ``agree``, ``conflict``: (right, all) of the groups with the usual training background of their own class, or of another.
    """

    agree: tuple[int, int]
    conflict: tuple[int, int]
    share: float
    n_backgrounds: int


class Probes(NamedTuple):
    """All probes. ``skipped``: datasets that cannot be evaluated, with the reason. ``drawn``: test groups, if not all of them."""

    inputs: InputProbes
    datasets: tuple[DatasetProbe, ...]
    skipped: tuple[str, ...]
    background: BackgroundProbe | None
    drawn: int = 0

    @property
    def static_bias(self) -> dict[str, float]:
        """Accuracy on the dataset NAME-aligned minus accuracy on NAME-conflict, by NAME."""
        top1 = {probe.name: probe.metrics.top1 for probe in self.datasets}
        stems = (name.removesuffix("-conflict") for name in top1 if name.endswith("-conflict"))
        return {stem: top1[f"{stem}-aligned"] - top1[f"{stem}-conflict"] for stem in stems if f"{stem}-aligned" in top1}


def probe(
    run: RunData, net: DTSFNet, data: CachedDataset, cache: Path, on_step: Callable[[int, int, str], None]
) -> Probes:
    """Probe the input, and evaluate on the other datasets. ``on_step`` is called with (done, total, name of the next step)."""
    names, others = data.info.view_names, [name for name in list_datasets(cache) if name != data.info.name]
    rule = parse_protocol(run.evaluation.protocol, data.info.kind)
    split = split_clips(known_clips(run.checkpoint.state, data), rule, data.info.kind, names)
    steps = 0

    def on_input(done: int, total: int, name: str) -> None:
        nonlocal steps
        steps = total
        on_step(done, total + len(others), name)

    tested, drawn = draw_groups(split.test, MAX_GROUPS)
    inputs = probe_inputs(net, load_groups(data, tested), run.class_names, names, on_input)
    subjects = set(subjects_of(split.train))
    trained = [data.pieces[clip.id] for clip in split.train]
    state, datasets, skipped = run.checkpoint.state, [], []
    for k, name in enumerate(others, steps):
        on_step(k, steps + len(others), name)
        try:
            other = open_dataset(cache, name)
            clips = known_clips(state, other)
            if other.spec.fingerprint() != state.fingerprint:
                raise CacheError("it has other settings")
            chosen, _ = draw_groups(clips, MAX_GROUPS)
            metrics = evaluate_groups(net, load_groups(other, chosen), state.info.class_names)
        except CacheError as error:
            skipped.append(f"{name}: {error}")
        else:
            shared = [person for person in subjects_of(clips) if person in subjects]
            copies, _ = find_copies([*other.pieces.values()], trained)
            datasets.append(DatasetProbe(other.info.name, metrics, tuple(shared), len(copies)))
    on_step(steps + len(others), steps + len(others), "")
    background = _probe_backgrounds(split.train, split.test, run.metrics.predictions)
    return Probes(inputs, tuple(datasets), tuple(skipped), background, drawn)


def _probe_backgrounds(
    train: Sequence[Clip], test: Sequence[Clip], predictions: Sequence[GroupPrediction]
) -> BackgroundProbe | None:
    """Compare the test groups by background: most frequent in training for their own class, or for another class."""
    counts: dict[int, Counter[str]] = {}
    for clip in train:
        if clip.background is not None:
            counts.setdefault(clip.label, Counter())[clip.background] += 1
    frequent = {label: backgrounds.most_common(1)[0][0] for label, backgrounds in counts.items()}
    background = {clip.group: clip.background for clip in test if clip.background is not None}
    right: dict[bool, list[bool]] = {True: [], False: []}
    for p in predictions:
        if p.group not in background:
            continue
        own = frequent.get(p.label) == background[p.group]
        other = background[p.group] in {b for label, b in frequent.items() if label != p.label}
        # Skip a background that is the most frequent one of this class and of another class, or of no class.
        if own != other:
            right[own].append(p.label == p.predicted)
    if not (right[True] and right[False]):
        return None
    share = sum(c[frequent[label]] for label, c in counts.items()) / sum(map(Counter.total, counts.values()))
    agree, conflict = ((sum(right[own]), len(right[own])) for own in (True, False))
    return BackgroundProbe(agree, conflict, share, len({b for c in counts.values() for b in c}))
