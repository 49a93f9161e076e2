"""Run the jobs of an experiment side by side, and publish what is known after each: ablate, crossval, reproduce."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from dtsf.experiments.job import Job
from dtsf.experiments.results import RunRecord
from dtsf.training.parallel import side_by_side, usable_workers

R = TypeVar("R")


def finished_records(jobs: Sequence[Job]) -> dict[str, RunRecord]:
    """Return the records of the jobs that are done, by name."""
    return {job.name: record for job in jobs if (record := job.finished_record())}


def publish_all(
    jobs: Sequence[Job], publish: Callable[[dict[str, RunRecord], int], R], on_epoch: Callable[[int, int, str], None]
) -> R:
    """Run the jobs that are not done. ``publish``: gets the records and how many were there before, first and after each job.
    Return its last result.
    """
    records = finished_records(jobs)
    reused = len(records)
    result = publish(records, reused)
    for name, record in run_jobs({job.name: job for job in jobs if job.name not in records}, on_epoch=on_epoch):
        records[name] = record
        result = publish(records, reused)
    return result


def run_jobs(
    jobs: Mapping[str, Job], *, on_epoch: Callable[[int, int, str], None] = lambda *_: None
) -> Iterator[tuple[str, RunRecord]]:
    """Run jobs side by side on the cores of this machine, in their order. Yield name and record of each as it finishes.

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
