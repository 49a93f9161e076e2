"""Run the jobs of a grid side by side: ablate, crossval, reproduce."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from typing import TypeVar

from dtsf.experiments.job import Job
from dtsf.experiments.results import RunRecord
from dtsf.training.parallel import side_by_side, usable_workers

K = TypeVar("K", bound=Hashable)


def run_jobs(
    jobs: Mapping[K, Job], *, on_epoch: Callable[[int, int, str], None] = lambda *_: None
) -> Iterator[tuple[K, RunRecord]]:
    """Run jobs side by side on the cores of this machine, in their order. Yield key and record of each as it finishes.

    ``on_epoch``: called with epochs done and all epochs, of all jobs, and a line. Raises the first error of a job. All others are
    stopped; a later call continues them.
    """
    keys, done = list(jobs), [0] * len(jobs)
    epochs = [job.settings.train.epochs for job in jobs.values()]

    def show(k: int, report: tuple[int, int, str]) -> None:
        part, whole, note = report
        # A calibrated training reports the epochs of its folds too.
        done[k] = epochs[k] * part // max(1, whole)
        on_epoch(sum(done), sum(epochs), f"{jobs[keys[k]].title}, {note}")

    work = [partial(_run_reporting, job) for job in jobs.values()]
    threads = max((job.settings.train.usable_threads for job in jobs.values()), default=1)
    wanted = next((job.workers for job in jobs.values()), None)
    workers = usable_workers(len(jobs), wanted=wanted, threads=threads)
    for k, record in side_by_side(work, workers=workers, on_report=show):
        done[k] = epochs[k]
        yield keys[k], record


def _run_reporting(job: Job, report: Callable[[tuple[int, int, str]], None]) -> RunRecord:
    return job.run(lambda *words: report(words))
