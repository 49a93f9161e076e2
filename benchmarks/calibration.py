"""Quality of a run's uncertainty: before and after calibration, and on clips without a recognisable action.

    python benchmarks/calibration.py RUN --cache cache [--dataset NAME --protocol all] [--unknown NAME]... [--json]

Evaluates the test split without and with calibration: calibration error, AUROC of uncertainty for errors, mean uncertainty.
``least_ece`` is the mean calibration error of as many groups if every probability is exactly right: fifteen bins of few
groups always differ. Then it evaluates the same clips as a still picture (one frame with sensor noise), with shuffled
frames, and as noise. It also evaluates other datasets of the cache: mean uncertainty, and AUROC against the test split.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dtsf import api
from dtsf.cache.reader import open_dataset
from dtsf.training.data import Groups, load_groups
from dtsf.training.evaluate import evaluate_groups
from dtsf.training.metrics import calibration_error, open_set_metrics
from dtsf.training.protocols import parse_protocol, split_clips
from dtsf.training.splits import split_by_known_classes

if TYPE_CHECKING:
    from collections.abc import Callable

    from dtsf.model.network import DTSFNet

SENSOR = 0.02
"""Standard deviation of sensor noise, relative to that of all embeddings."""


def still(x_NFHWC: torch.Tensor) -> torch.Tensor:
    frame = x_NFHWC[:, x_NFHWC.shape[1] // 2, None].float()
    return frame + SENSOR * frame.std() * torch.randn(x_NFHWC.shape)


def shuffled(x_NFHWC: torch.Tensor) -> torch.Tensor:
    return x_NFHWC[:, torch.randperm(x_NFHWC.shape[1])]


def noise(x_NFHWC: torch.Tensor) -> torch.Tensor:
    x_NFHWC = x_NFHWC.float()
    return x_NFHWC.mean((0, 1)) + x_NFHWC.std((0, 1)) * torch.randn(x_NFHWC.shape)


STRANGE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"still": still, "shuffled": shuffled, "noise": noise}


def least_error(probability_G: torch.Tensor, draws: int = 200) -> float:
    """Return the mean calibration error of right probabilities, with outcomes drawn at random."""
    both_G2 = torch.stack([probability_G, torch.zeros_like(probability_G)], 1)
    return statistics.mean(
        calibration_error(both_G2, (torch.rand(len(both_G2)) >= probability_G).long()) for _ in range(draws)
    )


def uncertainties(net: DTSFNet, groups: Groups) -> torch.Tensor:
    names = tuple(map(str, range(net.encoders[0].head.out_features)))
    metrics = evaluate_groups(net, replace(groups, label_G=torch.zeros_like(groups.label_G)), names)
    return torch.tensor([p.uncertainty for p in metrics.predictions])


def main() -> None:
    """Evaluate the run and print a line, or an object, for each dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--dataset", help="default: that of the run")
    parser.add_argument("--protocol", help="default: that of the run")
    parser.add_argument("--unknown", action="append", default=[], help="another dataset of the cache")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    run = api.load(options.run)
    data = open_dataset(options.cache, options.dataset or run.state.info.name)
    rule = parse_protocol(options.protocol or run.state.protocol, data.info.kind)
    names, net = run.state.info.class_names, run.net
    clips = split_clips(data.clips, rule, data.info.kind, data.info.view_names, needed=("test",)).test
    groups = load_groups(data, split_by_known_classes(clips, data.info.class_names, names)[0])
    learnt, found = net.calibrator.fitted, {}
    for what, on in (("uncalibrated", False), ("calibrated", learnt)):
        net.calibrator.fitted = on
        metrics = evaluate_groups(net, groups, names)
        found[what] = {
            "n_groups": metrics.n_groups,
            "top1": metrics.top1,
            "ece": metrics.ece,
            "least_ece": least_error(torch.tensor([p.probability for p in metrics.predictions])),
            "auroc_u": metrics.auroc_uncertainty,
            "uncertainty": metrics.uncertainty,
        }
    known_G = torch.tensor([p.uncertainty for p in metrics.predictions])
    sets = {name: replace(groups, embeddings_NFHWC=make(groups.embeddings_NFHWC)) for name, make in STRANGE.items()}
    for name in options.unknown:
        other = open_dataset(options.cache, name)
        sets[name] = load_groups(other, other.clips)
    for name, strange in sets.items():
        told = open_set_metrics(name, name, known_G, uncertainties(net, strange))
        found[name] = {
            "n_groups": told.n_groups,
            "auroc": told.auroc,
            "fpr95": told.fpr95,
            "uncertainty": told.uncertainty,
        }
    if options.json:
        print(json.dumps(found))
        return
    for name, row in found.items():
        print(name, *(f"{key} {x:.3f}" if isinstance(x, float) else f"{key} {x}" for key, x in row.items()), sep="  ")


if __name__ == "__main__":
    main()
