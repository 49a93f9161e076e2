"""Plain models on the same cached embeddings, to compare with DTSFNet and to measure the background alone.

    python benchmarks/baselines.py --cache cache --dataset iid --protocol cross-subject:5,6 --seeds 3 [--json]

Every model sees single views. The class probabilities of a group are the mean over its views. Rows:

mean-linear    logistic regression on the mean over time and space: appearance, no motion
frame-linear   logistic regression on all cells of the middle frame: one pose and its background
gru-raw        a GRU over the frames, all cells, unchanged
gru-dynamic    the same after subtraction of the clip's temporal mean, cell by cell
gru-jitter     the same, with frames drawn at random from their segments (interpolated between cached frames)
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from dtsf.cache.reader import open_dataset
from dtsf.training.data import Groups, load_groups
from dtsf.training.protocols import parse_protocol, split_clips

if TYPE_CHECKING:
    import numpy as np


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


def top1(probability_NK: Tensor, group_N: Tensor, groups: Groups) -> float:
    """Return the accuracy over groups, with probabilities averaged over views."""
    sums_GK = torch.zeros(len(groups), probability_NK.shape[1])
    sums_GK.index_add_(0, group_N, probability_NK)
    return (sums_GK.argmax(1) == groups.label_G).float().mean().item()


def linear(train: Groups, test: Groups, *, one_frame: bool) -> float:
    """Return the accuracy of logistic regression on a pooled clip or on one frame."""

    def features(groups: Groups) -> tuple[np.ndarray, Tensor, Tensor]:
        x, label, group = clips(groups)
        x = x[:, x.shape[1] // 2].flatten(1) if one_frame else x.mean((1, 2, 3))
        return x.numpy(), label, group

    x, label, _ = features(train)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300, C=0.1)).fit(x, label.numpy())
    x_test, _, group = features(test)
    return top1(torch.from_numpy(model.predict_proba(x_test)).float(), group, test)


def gru(train: Groups, test: Groups, seed: int, *, dynamic: bool, jitter: bool, epochs: int = 40) -> float:
    """Train and evaluate the GRU."""
    torch.manual_seed(seed)
    x, label, _ = clips(train)
    x_test, _, group = clips(test)

    def prepare(x_NFHWC: Tensor) -> Tensor:
        return (x_NFHWC - x_NFHWC.mean(1, keepdim=True) if dynamic else x_NFHWC).flatten(2)

    flat = prepare(x)
    mean, deviation = flat.mean((0, 1)), flat.std((0, 1)) + 1e-3
    net = Gru(flat.shape[-1], int(label.max()) + 1)
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
        return top1(net((prepare(x_test) - mean) / deviation).softmax(-1), group, test)


def _jittered(x_NFHWC: Tensor) -> Tensor:
    """Read every clip at times that are shifted by up to half a segment."""
    N, F = x_NFHWC.shape[:2]
    time_NF = (torch.arange(F) + torch.rand(N, F) - 0.5).clamp(0, F - 1)
    before = time_NF.floor().long()
    share = (time_NF - before).view(N, F, 1, 1, 1)
    row = torch.arange(N).unsqueeze(1)
    return x_NFHWC[row, before] * (1 - share) + x_NFHWC[row, (before + 1).clamp(max=F - 1)] * share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--dataset", help="name in the cache; optional if the cache has one dataset")
    parser.add_argument("--protocol", help="as for dtsf train")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)

    data = open_dataset(options.cache, options.dataset)
    rule = parse_protocol(options.protocol, data.info.kind)
    split = split_clips(data.clips, rule, data.info.kind, data.info.view_names)
    train, test = load_groups(data, split.train), load_groups(data, split.test)
    seeds = range(options.seeds)
    results = {
        "mean-linear": [linear(train, test, one_frame=False)],
        "frame-linear": [linear(train, test, one_frame=True)],
        "gru-raw": [gru(train, test, seed, dynamic=False, jitter=False) for seed in seeds],
        "gru-dynamic": [gru(train, test, seed, dynamic=True, jitter=False) for seed in seeds],
        "gru-jitter": [gru(train, test, seed, dynamic=True, jitter=True) for seed in seeds],
    }
    if options.json:
        about = {
            "dataset": data.info.name,
            "encoder": data.spec.encoder,
            "frames": data.spec.frames,
            "protocol": str(rule),
        }
        sys.stdout.write(json.dumps({**about, "train": len(train), "test": len(test), "top1": results}) + "\n")
        return
    print(
        f"{data.info.name}: {data.spec.encoder}, {data.spec.frames} frames; {rule}: {len(train)} groups train, {len(test)} test"
    )
    for name, values in results.items():
        print(f"{name:14s} {statistics.mean(values):.3f}   seeds: {', '.join(f'{value:.3f}' for value in values)}")


if __name__ == "__main__":
    main()
