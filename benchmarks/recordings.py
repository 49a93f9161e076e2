"""Timelines of people whom the network has not seen, and what a timeline costs.

    python benchmarks/recordings.py --root DIR [--people s01,s02] [--set section.key=value] [--work FOLDER] [--as-needed] [--json]

``DIR``: recordings.csv with offsets and events, one recording or more a person (`dtsf synth sessions` draws such a folder; then
``dtsf sync --write``). One person after the other is left out: the network is trained on the others, and finds the timeline.
Printed are F1 at an overlap of 0.5, mean average precision, and frame accuracy of

- the timeline,
- ``windows``: the same network, windows of a usual event every half second, equal answers merged, shortest bout half a second,
- ``without nothing``: a network that was trained on the events alone.

``cost``: processor seconds of a timeline over those of decoding all its cameras once and embedding every frame of its grid once,
with the peak memory. Caches and runs stay in ``--work``; what is there is not made again. One person takes about ten minutes.

``--as-needed``: instead, timelines from all cameras, from as many as needed (``auto``), and from each camera alone, in turns.
Printed are also the share of the camera time that was decoded, the processor seconds of a second of recording, and their ratio to
those of all cameras.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dtsf.api import load
from dtsf.predict.recordings import open_model, plan_recording
from dtsf.predict.run import Run
from dtsf.recordings.bouts import Timeline
from dtsf.recordings.cameras import CameraStream
from dtsf.recordings.events import NOTHING, Event, read_all_events
from dtsf.recordings.metrics import Scored, Segment, measure
from dtsf.recordings.settings import TimelineSettings
from dtsf.recordings.table import Recording, read_recordings


def dtsf(*words: object) -> None:
    """Run a command of dtsf."""
    command = [sys.executable, "-m", "dtsf", *map(str, words), "--json"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


KINDS = {"timeline": 1, "without nothing": 0}


def make_runs(
    root: Path, work: Path, people: Sequence[str], changes: Sequence[str], kinds: Sequence[str] = tuple(KINDS)
) -> dict[str, dict[str, Path]]:
    """Train a network without each person, with and without the class of pauses. Return the runs by kind and person."""
    runs: dict[str, dict[str, Path]] = {}
    for kind in kinds:
        nothing = KINDS[kind]
        name = kind.replace(" ", "-")
        manifest, cache = work / f"{name}.csv", work / f"{name}-cache"
        if not manifest.exists():
            dtsf("import", "--recordings", root / "recordings.csv", "--nothing", nothing, "--out", manifest)
        dtsf("preprocess", "manifest", "--root", manifest, "--cache", cache, "--align", "group", "--workers", 1)
        for person in people:
            run = work / f"{name}-{person}"
            runs.setdefault(kind, {})[person] = run
            if not (run / "metrics.json").exists():
                options = [word for change in changes for word in ("--set", change)]
                dtsf("train", "--cache", cache, "--protocol", f"cross-subject:{person}", "--out", run, *options)
    return runs


def merged_windows(run: Run, recording: Recording) -> Iterator[Segment]:
    """Yield the bouts of a plain sliding window: the likeliest class, equal answers merged."""
    usual = float(np.median([seconds[3] for seconds in run.state.info.clip_seconds if seconds]))
    last: tuple[str, float, float] | None = None
    for window in run.windows(recording, windows=(usual,), hop=0.5):
        label = max(window.probabilities, key=lambda name: window.probabilities[name])
        middle = (window.start + window.stop) / 2
        begin = last[1] if last and last[0] == label else middle - 0.25
        if last and last[0] not in (label, NOTHING) and last[2] - last[1] >= 0.5:
            yield Segment(last[1], last[2], last[0])
        last = (label, begin, middle + 0.25)
    if last and last[0] != NOTHING and last[2] - last[1] >= 0.5:
        yield Segment(last[1], last[2], last[0])


def scored(timeline: Timeline, marks: Sequence[Event], bouts: Sequence[Segment]) -> Scored:
    """Return one recording for the metrics."""
    own = [mark for mark in marks if mark.recording == timeline.recording]
    known = tuple(Segment(mark.start, mark.stop, mark.label) for mark in own)
    return Scored(timeline.recording, timeline.start, timeline.stop, known, tuple(bouts))


def processor_seconds() -> float:
    """Return the processor seconds of this process and of those that it waited for."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def as_needed(
    runs: dict[str, Path], table: Sequence[Recording], marks: Sequence[Event], out: Path
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield the numbers of timelines from all cameras, as needed, and from each camera alone."""
    found: dict[str, list[Scored]] = {}
    spent, filmed, decoded = Counter[str](), Counter[str](), Counter[str]()
    for person, folder in runs.items():
        run = load(folder)
        for recording in (one for one in table if one.subject == person):
            whole: Timeline | None = None
            alone = {camera.view: replace(recording, cameras=(camera,)) for camera in recording.cameras}
            for kind, given in {"all cameras": recording, "as needed": recording, **alone}.items():
                options = {"as_needed": "auto"} if kind == "as needed" else {}
                began = processor_seconds()
                (timeline,) = run.timeline((given,), out / f"{kind}-{time.time_ns()}", **options)
                spent[kind] += processor_seconds() - began
                whole = whole or timeline
                bouts = [Segment(bout.start, bout.stop, bout.label, bout.probability) for bout in timeline.bouts]
                found.setdefault(kind, []).append(scored(whole, marks, bouts))
                filmed[kind] += whole.stop - whole.start
                decoded[kind] += sum(timeline.decoded) / len(alone) if kind == "as needed" else len(given.cameras) / len(alone)
            print(f"{recording.name} is done", file=sys.stderr)
    for kind, recordings in found.items():
        metrics = measure(recordings, NOTHING)
        numbers = {"f1_50": metrics.f1_50, "map": metrics.map["mean"], "frame_accuracy": metrics.frame_accuracy}
        cost_of = {"decoded": decoded[kind] / len(recordings), "seconds_per_second": spent[kind] / filmed[kind]}
        cost_of["of_all_cameras"] = spent[kind] / spent["all cameras"]
        yield kind, {name: round(value, 3) for name, value in (numbers | cost_of).items()}


def cost(run: Run, recording: Recording, out: Path) -> dict[str, float]:
    """Measure the processor seconds of a timeline against decoding and embedding its frames once."""
    plan = plan_recording(run, recording, TimelineSettings(), recording.name)
    model = open_model(run, [source.number for source in plan.sources])

    began = processor_seconds()
    for source in plan.sources:
        with CameraStream(source, model.spec, plan.grid.rate, [(plan.grid.first, plan.grid.last)]) as stream:
            for stretch in iter(stream.read, None):
                for k in range(0, len(stretch.frames_FSSC), 16):
                    model.encoder.embed(stretch.frames_FSSC[k : k + 16])
    once = processor_seconds() - began
    began, clock = processor_seconds(), time.monotonic()
    list(run.timeline((recording,), out / f"cost-{time.time_ns()}"))
    spent = processor_seconds() - began
    filmed = (plan.grid.last - plan.grid.first + 1) / plan.grid.rate
    return {
        "ratio": spent / once,
        "seconds_per_second": spent / filmed,
        "times_as_fast": filmed / (time.monotonic() - clock),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Train, find the timelines, and print the metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--people", default="", help="people to leave out, joined by commas; default: all")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, as for dtsf train")
    parser.add_argument("--work", type=Path, default=Path("recordings-benchmark"))
    parser.add_argument("--as-needed", action="store_true", help="instead: all cameras, as needed, each camera alone")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    table = read_recordings(options.root / "recordings.csv")
    people = options.people.split(",") if options.people else sorted({one.subject for one in table if one.subject})
    options.work.mkdir(parents=True, exist_ok=True)
    marks, _ = read_all_events(table)
    if options.as_needed:
        made = make_runs(options.root, options.work, people, options.set, ["timeline"])["timeline"]
        numbers = dict(as_needed(made, table, marks, options.work))
        if options.json:
            print(json.dumps(numbers))
            return
        rows = csv.writer(sys.stdout, delimiter="\t")
        rows.writerow(("", *numbers["all cameras"]))
        rows.writerows((kind, *row.values()) for kind, row in numbers.items())
        return
    runs = make_runs(options.root, options.work, people, options.set)
    found: dict[str, list[Scored]] = {}
    costs: dict[str, float] = {}
    for person in people:
        mine = [one for one in table if one.subject == person]
        for kind, of_kind in runs.items():
            run = load(of_kind[person])
            for timeline, recording in zip(run.timeline(mine, options.work / kind / person), mine, strict=True):
                bouts = [Segment(bout.start, bout.stop, bout.label, bout.probability) for bout in timeline.bouts]
                found.setdefault(kind, []).append(scored(timeline, marks, bouts))
                if kind == "timeline":
                    plain = list(merged_windows(run, recording))
                    found.setdefault("windows", []).append(scored(timeline, marks, plain))
        if not costs:
            costs = cost(load(runs["timeline"][person]), mine[0], options.work)
    result = {kind: measure(recordings, NOTHING).model_dump() for kind, recordings in found.items()}
    document = {"people": people, "cost": {name: round(value, 3) for name, value in costs.items()}, **result}
    if options.json:
        print(json.dumps(document))
        return
    rows = csv.writer(sys.stdout, delimiter="\t")
    rows.writerow(("", "F1@50", "mAP", "frames"))
    for kind, metrics in result.items():
        rows.writerow(
            (kind, *(f"{value:.3f}" for value in (metrics["f1_50"], metrics["map"]["mean"], metrics["frame_accuracy"])))
        )
    print(f"cost of a timeline: {costs}")


if __name__ == "__main__":
    main()
