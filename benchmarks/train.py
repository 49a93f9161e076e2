"""Time of the parts of a training step: the default recipe on embeddings of the default cache's shape, on this CPU.

One step is 16 groups x 3 views x 16 frames of 6 x 6 x 112, drawn at random in memory: loading (gather, augmentation), the
network forward and backward, the losses, clipping and AdamW. ``--json`` gives {step_ms, share{}, ...}; step_ms is the
median over the steps without the profiler. Shares come from PyTorch's profiler. The time of every operator counts for the
innermost of these parts, and the time of its backward likewise, so that the shares add up to 1:
  scan       the selective scan's two functions            conv       the causal convolution's two functions
  matmul     matrix products, of all linear layers         norm       RMSNorm
  glue       rest of the encoder: residuals, positions, splits, layouts, casts, the arguments of convolution and scan,
             Python between them
  fusion     rest of the network: branches averaged, MSF, evidence, uncertainty
  loss       the three losses, of all and of each view     autograd   the engine itself: order, sums of gradients
  input      the network's input                           tsm        pasting of thumbnails
  loader     the batch                                     optimizer  AdamW, clipping, gradients set to none
  python     the loop itself

``--clips N``: the size of the network, the steps of an epoch and the epochs are those of a training of N clips, and all lie in
memory. It gives {step_ms, epochs, steps, training_s, peak_mb}: seconds of all steps, computed from the median, and the peak of
the memory of the process, statistics of the clips included. ``--steps 0``: memory alone.

With ``--cache`` it trains with the command instead, ``--epochs`` epochs with calibration, and gives {wall_s, processor_s}: all
that a user waits for. ``--before DIR`` takes turns with the code of another checkout, and gives the ratios to it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from dtsf.model import inputs
from dtsf.model.inputs import Inputs
from dtsf.model.network import DTSFNet
from dtsf.model.videomamba import RMSNorm, VideoMamba
from dtsf.training.data import Groups, training_batches
from dtsf.training.distributed import OneProcess
from dtsf.training.losses import dtsf_loss
from dtsf.training.prepare import adamw, prepare_network
from dtsf.training.recipe import REFERENCE_CLIPS, Recipe, load_recipe, resolve_auto

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dtsf.training.data import Batch

ENGINE = "autograd::engine::evaluate_function"
SIDE, CHANNELS, CLASSES, FRAMES, VIEWS = 6, 112, 10, 16, 3
LABELS = {
    "_Scan": "scan",
    "_ScanBackward": "scan",
    "_Conv": "conv",
    "_ConvBackward": "conv",
    "aten::mm": "matmul",
    "aten::addmm": "matmul",
    "aten::bmm": "matmul",
    "aten::convolution": "matmul",
}


def random_groups(n: int) -> Groups:
    torch.manual_seed(0)
    x = torch.empty(n * VIEWS, FRAMES, SIDE, SIDE, CHANNELS, dtype=torch.float16)
    for part in x.split(64):
        part.copy_(torch.randn(part.shape))
    rows = torch.arange(n * VIEWS).view(n, VIEWS)
    return Groups(x, rows, torch.arange(n) % CLASSES, tuple(map(str, range(n))))


def labelled(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        with record_function(f"part:{name}"):
            return function(*arguments, **options)

    return run


def make_epoch(recipe: Recipe, n_groups: int, n_steps: int = 4) -> Callable[[], list[float]]:
    """Return a function that makes a few steps of full batches and returns the seconds of each."""
    groups = random_groups(n_groups)
    net = DTSFNet(recipe.model, channels=CHANNELS, side=SIDE, n_classes=CLASSES, n_views=VIEWS)
    optimizer = adamw(net, recipe.train, OneProcess())
    source, motion_sampling, deviation_C = prepare_network(net, groups, recipe)

    def step(batches: Iterator[Batch]) -> bool:
        with record_function("part:loader"):
            batch = next(batches, None)
        if batch is None:
            return False
        with record_function("part:fusion"):
            output = net(batch.x_BVTHWC, batch.mask_BV)
        with record_function("part:loss"):
            loss = dtsf_loss(output, batch.label_B, recipe.loss, 5)["loss"]
        with record_function("part:optimizer"):
            optimizer.zero_grad()
        with record_function("part:autograd"):
            loss.backward()
        with record_function("part:optimizer"):
            torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.train.clip_norm)
            optimizer.step()
        return True

    def epoch() -> list[float]:
        seconds: list[float] = []
        order = torch.randperm(len(source)).split(recipe.train.batch_size)[:n_steps]
        batches = training_batches(
            source,
            recipe.train.batch_size,
            recipe.model.frames,
            motion_sampling,
            recipe.augment,
            deviation_C,
            order,
        )
        while True:
            begun = time.perf_counter()
            with record_function("part:python"):
                more = step(batches)
            if not more:
                return seconds
            seconds.append(time.perf_counter() - begun)

    return epoch


def measure_training(recipe: Recipe, clips: int, n_steps: int) -> dict[str, float]:
    """Return the time of a step, that of all steps of a training of so many clips, and the memory of the process."""
    epoch = make_epoch(recipe, clips // VIEWS, n_steps)
    steps = math.ceil(clips / VIEWS / recipe.train.batch_size)
    found: dict[str, float] = {
        "clips": clips,
        "width": recipe.model.width,
        "epochs": recipe.train.epochs,
        "steps": steps,
    }
    if n_steps:
        epoch()
        step_s = statistics.median(value for _ in range(3) for value in epoch())
        found |= {"step_ms": 1000 * step_s, "training_s": step_s * steps * recipe.train.epochs}
    return found | {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def own_part(event: Any) -> str | None:
    """Return the label of an event alone, if its name determines it."""
    return event.name.removeprefix("part:") if event.name.startswith("part:") else LABELS.get(event.name)


def part_of(event: Any, forward: dict[int, str]) -> str:
    """Return the innermost label around an event; for the backward of an operator, the label of the operator.

    Args:
        event: Event of the profiler.
        forward: Part of the forward operators, by the number that autograd gave each and its backward.
    """
    while event is not None:
        own = own_part(event)
        if own is not None:
            return own
        if event.cpu_parent is not None and event.cpu_parent.name.startswith(ENGINE):
            return forward.get(event.cpu_parent.sequence_nr, "autograd") if "Backward" in event.name else "autograd"
        event = event.cpu_parent
    return "python"


def shares(epoch: Callable[[], list[float]]) -> dict[str, float]:
    with ExitStack() as stack:
        # A method patched on the class receives its network as the first argument.
        for name, owner, attribute in (
            ("tsm", inputs, "paste_thumbnails"),
            ("input", Inputs, "forward"),
            ("glue", VideoMamba, "forward"),
            ("glue", VideoMamba, "encode_sequence"),
            ("norm", RMSNorm, "forward"),
        ):
            stack.enter_context(patch.object(owner, attribute, labelled(name, getattr(owner, attribute))))
        profiler = stack.enter_context(profile(activities=[ProfilerActivity.CPU]))
        for _ in range(8):
            epoch()
    events = list(profiler.events())
    forward: dict[int, str] = {}
    for event in sorted(events, key=lambda event: event.time_range.start):
        # Of the operators with one number, autograd recorded the last to start.
        if event.sequence_nr >= 0 and not in_backward(event):
            forward[event.sequence_nr] = part_of(event, {})
    spent: dict[str, float] = defaultdict(float)
    for event in events:
        spent[part_of(event, forward)] += event.self_cpu_time_total
    total = sum(spent.values())
    return {name: value / total for name, value in sorted(spent.items(), key=lambda item: -item[1])}


def in_backward(event: Any) -> bool:
    while event is not None:
        if event.name == "part:autograd" or event.name.startswith(ENGINE):
            return True
        event = event.cpu_parent
    return False


def time_command(code: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Train with the code of a checkout. Return the seconds on the clock, and of all its processes on all cores."""
    words = ["train", "--cache", str(arguments.cache.absolute()), "--epochs", str(arguments.epochs), "--quiet"]
    words += ["--dataset", arguments.dataset] if arguments.dataset else []
    words += ["--protocol", arguments.protocol] if arguments.protocol else []
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"PYTHONPATH": str(code.absolute()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "dtsf", *words, "--out", f"{folder}/run"]
        begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
        wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "processor_s": spent}


def compare_commands(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the smallest times of whole trainings, and their ratios to those of the code before."""
    codes = {"now": Path(__file__).parents[1]} | ({"before": arguments.before} if arguments.before else {})
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(arguments.repeats):
        for name, code in codes.items():
            found[name].append(time_command(code, arguments))
    least = {name: {key: min(one[key] for one in all_) for key in all_[0]} for name, all_ in found.items()}
    ratios = {key: least["now"][key] / least["before"][key] for key in least["now"]} if arguments.before else {}
    return {"epochs": arguments.epochs, **least["now"], "before": least.get("before"), "ratio": ratios}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clips", type=int, help="train on so many drawn clips")
    parser.add_argument("--steps", type=int, default=4, help="with --clips: steps in a turn")
    parser.add_argument("--cache", type=Path, help="train with the command from this cache")
    parser.add_argument("--dataset")
    parser.add_argument("--protocol")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    arguments = parser.parse_args()
    if arguments.cache is not None:
        compared = compare_commands(arguments)
        lines = [f"{key}: {value}" for key, value in compared.items()]
        sys.stdout.write((json.dumps(compared) if arguments.json else "\n".join(lines)) + "\n")
        return
    torch.set_num_threads(arguments.threads)
    recipe = resolve_auto(load_recipe(arguments.recipe), arguments.clips or REFERENCE_CLIPS)
    if arguments.clips:
        sys.stdout.write(json.dumps(measure_training(recipe, arguments.clips, arguments.steps)) + "\n")
        return
    epoch = make_epoch(recipe, 4 * recipe.train.batch_size)
    epoch()
    seconds = [value for _ in range(6) for value in epoch()]
    document = {
        "recipe": arguments.recipe,
        "threads": arguments.threads,
        "step_ms": 1000 * statistics.median(seconds),
        "fastest_step_ms": 1000 * min(seconds),
        "share": shares(epoch),
    }
    if arguments.json:
        sys.stdout.write(json.dumps(document) + "\n")
        return
    sys.stdout.write(
        f"{arguments.recipe}: {document['step_ms']:.0f} ms a step ({document['fastest_step_ms']:.0f} at best)\n"
    )
    for name, share in document["share"].items():
        sys.stdout.write(f"  {name:10} {share:6.1%}\n")


if __name__ == "__main__":
    main()
