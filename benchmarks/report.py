"""Memory and time of training, evaluation and report of a large dataset: random rows in a cache, half of them for the test.

    TMPDIR=/dev/shm python benchmarks/report.py --clips 10000 --json

It runs the commands ``dtsf train`` (one epoch, without calibration), ``dtsf evaluate`` and ``dtsf report``, each in a process of
its own, and gives for each {peak_mb, cpu_s, wall_s}. The pages of the cache that a process reads count. They are not copies: the
system can take them back. The cache has 0.24 MB a clip.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from loader import write_drawn

from dtsf.cache.schema import Clip, DatasetInfo
from dtsf.pipeline.preprocess import make_spec
from dtsf.pipeline.settings import PreprocessSettings

VIEWS, CLASSES, PEOPLE = 3, 60, 40


def clip_of(k: int) -> Clip:
    """Return clip number ``k``: the first half of the people trains, the others test."""
    group = k // VIEWS
    person = group % PEOPLE
    split = "train" if person < PEOPLE // 2 else "test"
    label = group // PEOPLE % CLASSES
    names = {"path": f"{k:06d}.avi", "raw_label": f"{label}", "group": f"{group:06d}", "subject": f"{person}"}
    return Clip(id=f"{k:06d}", label=label, view=k % VIEWS + 1, split=split, **names)


def make(cache: Path, clips: int) -> None:
    """Write the cache."""
    names = tuple(f"class {k}" for k in range(CLASSES))
    views = tuple(f"cam{k}" for k in range(1, VIEWS + 1))
    info = DatasetInfo(kind="manifest", name="large", class_names=names, view_names=views)
    spec = make_spec(PreprocessSettings(workers=1))
    write_drawn(cache / "large", spec, info, [clip_of(k) for k in range(clips)])


def measured(*words: str) -> dict[str, float]:
    """Run a command of dtsf and return its peak of memory and its times."""
    begin = time.perf_counter()
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    child = os.posix_spawn(sys.executable, [sys.executable, "-m", "dtsf", *words], os.environ, file_actions=silent)
    _, status, used = os.wait4(child, 0)
    if status:
        sys.exit(f"dtsf {' '.join(words)}: exit code {os.waitstatus_to_exitcode(status)}")
    wall, cpu = time.perf_counter() - begin, used.ru_utime + used.ru_stime
    return {"peak_mb": round(used.ru_maxrss / 1024), "cpu_s": round(cpu, 1), "wall_s": round(wall, 1)}


def main() -> None:
    """Make the cache, run the commands and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache, run = Path(folder, "cache"), str(Path(folder, "run"))
        make(cache, options.clips)
        result: dict[str, object] = {"clips": options.clips}
        chosen = ("--protocol", "split", "--epochs", "1", "--set", "train.calibrate=0", "--quiet")
        result["train"] = measured("train", "--cache", str(cache), "--out", run, *chosen)
        result["evaluate"] = measured("evaluate", run, "--cache", str(cache), "--quiet")
        result["report"] = measured("report", run, "--cache", str(cache), "--quiet")
        pages = Path(folder).rglob("*.html")
        result["page_mb"] = round(sum(page.stat().st_size for page in pages) / 1e6, 1)
    sys.stdout.write(json.dumps(result, indent=1) + "\n" if options.json else f"{result}\n")


if __name__ == "__main__":
    main()
