"""Plain models on the same cached embeddings, to compare with DTSFNet and to measure the background alone.

    python benchmarks/baselines.py --cache cache --dataset iid --protocol cross-subject:5,6 --seeds 0,1,2 [--json]
    python benchmarks/baselines.py --cache cache --dataset iid --folds people --models gru-dynamic --against RESULT

Every model sees single views. The class probabilities of a group are the mean over its views. ``--folds``: as for dtsf crossval,
with pooled answers. ``--against``: folder of a result of dtsf crossval on the same folds; it is compared with each model, in
pairs. Models:

mean-linear    logistic regression on the mean over time and space: appearance, no motion
frame-linear   logistic regression on all cells of the middle frame: one pose and its background
gru-raw        a GRU over the frames, all cells, unchanged
gru-dynamic    the same after subtraction of the clip's temporal mean, cell by cell
gru-jitter     the same, with frames drawn at random from their segments (interpolated between cached frames)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from dtsf.cache.reader import CachedDataset, open_dataset
from dtsf.experiments.folds import plan_folds
from dtsf.experiments.results import difference_text
from dtsf.training.answers import Answers, join, read_answers
from dtsf.training.data import Groups, load_groups
from dtsf.training.protocols import Split, parse_protocol, split_clips
from dtsf.training.scores import compare, summarise

if TYPE_CHECKING:
    import numpy as np

Model = Callable[[Groups, Groups, int, int], Tensor]
"""Training groups, test groups, number of classes and seed -> probabilities (G, K) of the test groups."""


class Gru(nn.Module):
    """One recurrent layer over the flattened cells, the mean of its states, a linear head."""

    def __init__(self, n_inputs: int, n_classes: int, hidden: int = 128) -> None:
        super().__init__()
        self.recurrent = nn.GRU(n_inputs, hidden, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(hidden, n_classes))

    def forward(self, x_NTX: Tensor) -> Tensor:
        """Return logits (N, K)."""
        state_NTH, _ = self.recurrent(x_NTX)
        logits_NK: Tensor = self.head(state_NTH.mean(1))
        return logits_NK


def clips(groups: Groups) -> tuple[Tensor, Tensor, Tensor]:
    """Return the present views one by one: embeddings (N, F, H, W, C), labels (N,), index of the group (N,)."""
    g, v = torch.nonzero(groups.mask_GV, as_tuple=True)
    return groups.embeddings_NFHWC[groups.row_GV[g, v]].float(), groups.label_G[g], g


def pool_views(probability_NK: Tensor, group_N: Tensor, groups: Groups) -> Tensor:
    """Return the class probabilities of each group, the mean over its views: (G, K)."""
    sum_GK = torch.zeros(len(groups), probability_NK.shape[1])
    sum_GK.index_add_(0, group_N, probability_NK)
    return sum_GK / group_N.bincount(minlength=len(groups)).unsqueeze(1)


def linear(train: Groups, test: Groups, n_classes: int, *, one_frame: bool) -> Tensor:
    """Train logistic regression on a pooled clip or on one frame. Return the probabilities of the test groups."""

    def features(groups: Groups) -> tuple[np.ndarray, Tensor, Tensor]:
        x, label, group = clips(groups)
        x = x[:, x.shape[1] // 2].flatten(1) if one_frame else x.mean((1, 2, 3))
        return x.numpy(), label, group

    x, label, _ = features(train)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1)).fit(x, label.numpy())
    x_test, _, group = features(test)
    p_NK = torch.zeros(len(x_test), n_classes)
    p_NK[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_proba(x_test)).float()
    return pool_views(p_NK, group, test)


def gru(
    train: Groups, test: Groups, n_classes: int, seed: int, *, dynamic: bool, jitter: bool, epochs: int = 40
) -> Tensor:
    """Train the GRU. Return the probabilities of the test groups."""
    torch.manual_seed(seed)
    x, label, _ = clips(train)
    x_test, _, group = clips(test)

    def prepare(x_NFHWC: Tensor) -> Tensor:
        return (x_NFHWC - x_NFHWC.mean(1, keepdim=True) if dynamic else x_NFHWC).flatten(2)

    flat = prepare(x)
    mean, deviation = flat.mean((0, 1)), flat.std((0, 1)) + 1e-3
    net = Gru(flat.shape[-1], n_classes)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, epochs * -(-len(x) // 32))
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(32):
            batch = prepare(_jittered(x[chosen])) if jitter else flat[chosen]
            loss = nn.functional.cross_entropy(net((batch - mean) / deviation), label[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.inference_mode():
        return pool_views(net((prepare(x_test) - mean) / deviation).softmax(-1), group, test)


def _jittered(x_NFHWC: Tensor) -> Tensor:
    """Read every clip at times that are shifted by up to half a segment."""
    N, F = x_NFHWC.shape[:2]
    time_NF = (torch.arange(F) + torch.rand(N, F) - 0.5).clamp(0, F - 1)
    before = time_NF.floor().long()
    share = (time_NF - before).view(N, F, 1, 1, 1)
    row = torch.arange(N).unsqueeze(1)
    return x_NFHWC[row, before] * (1 - share) + x_NFHWC[row, (before + 1).clamp(max=F - 1)] * share


MODELS: dict[str, Model] = {
    "mean-linear": lambda train, test, n, _: linear(train, test, n, one_frame=False),
    "frame-linear": lambda train, test, n, _: linear(train, test, n, one_frame=True),
    "gru-raw": partial(gru, dynamic=False, jitter=False),
    "gru-dynamic": partial(gru, dynamic=True, jitter=False),
    "gru-jitter": partial(gru, dynamic=True, jitter=True),
}


def answer(data: CachedDataset, split: Split, model: Model, seed: int) -> Answers:
    """Train a model on one side of a split. Return its answers to the other side."""
    train, test = load_groups(data, split.train), load_groups(data, split.test)
    p_GK = model(train, test, len(data.info.class_names), seed)
    subject_of = {clip.group: clip.subject or "" for clip in split.test}
    return Answers(
        classes=data.info.class_names,
        views=data.info.view_names,
        groups=test.names,
        subjects=tuple(subject_of[name] for name in test.names),
        label_G=test.label_G,
        group_R=torch.arange(len(test)),
        given_RV=test.mask_GV,
        complete_R=torch.ones(len(test), dtype=torch.bool),
        log_p_RK=p_GK.clamp(min=1e-12).log(),
        uncertainty_R=1 - p_GK.amax(1),
    )


def main() -> None:
    """Train, answer and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--dataset", help="name in the cache; optional if the cache has one dataset")
    parser.add_argument("--protocol", help="as for dtsf train")
    parser.add_argument("--folds", help="as for dtsf crossval, instead of --protocol")
    parser.add_argument("--against", type=Path, help="result of dtsf crossval")
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)

    data = open_dataset(options.cache, options.dataset)
    if options.folds:
        about, rules = plan_folds(data, options.folds)
    else:
        rule = parse_protocol(options.protocol, data.info.kind)
        about, rules = str(rule), {"": rule}
    splits = [split_clips(data.clips, rule, data.info.kind, data.info.view_names) for rule in rules.values()]
    other: dict[int, Answers] = {}
    if options.against:
        for file in sorted((options.against / "answers").glob(f"{data.info.name}-seed*.safetensors")):
            other[int(file.stem.rpartition("seed")[2])] = read_answers(file).complete()
    found: dict[str, dict[str, object]] = {}
    for name in options.models.split(","):
        own = {
            seed: join([answer(data, split, MODELS[name], seed) for split in splits])
            for seed in map(int, options.seeds.split(","))
        }
        found[name] = summarise(list(own.values())).model_dump(mode="json")
        line = f"{name:14s} top-1 {found[name]['top1']:.3f}, log loss {found[name]['log_loss']:.2f}"
        if other:
            versus = compare(other, own)
            found[name]["against"] = versus.model_dump(mode="json")
            score = versus.scores["top1"]
            line += f"; {options.against}: {difference_text(score)}"
            line += "" if score.better is None else f", better with probability {score.better:.2f}"
        print(f"{data.info.name}, {about}: {line}", file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps({"dataset": data.info.name, "split": about, "seeds": options.seeds, "models": found}))


if __name__ == "__main__":
    main()
