"""Throughput of dask's scheduler: tiny shard tasks with their progress events, without decoding.

    python benchmarks/scheduler.py --shards 10000 --clips 8 --events 8 --workers 8

Prints tasks and events per second. A worker sends its progress once per second (``dtsf.pipeline.worker.EVENT_EVERY``), so one
scheduler can serve about as many cores as it handles events per second.
"""

from __future__ import annotations

import argparse
import json
import time

from dtsf.cache.documents import DatasetHandle
from dtsf.cache.schema import LAYOUT, CacheSpec, Clip, DatasetMetadata, DatasetName
from dtsf.cache.store import open_store
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.pipeline.worker import ShardTask

TOPIC = "dtsf-clips"


def hand_in(task: ShardTask, events: int) -> int:
    """Run a shard's task without its work; the messages to the scheduler are the same."""
    from distributed import get_worker

    worker = get_worker()
    for _ in range(events):
        worker.log_event(TOPIC, (1, 0))
    return task.shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--events", type=int, default=8, help="progress events per shard")
    parser.add_argument("--workers", type=int, default=8, help="threads that simulate workers")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    from distributed import Client, LocalCluster

    spec = CacheSpec(decoder="none", frames=16, size=192, grid=6, encoder="none", weights_hash="none", channels=112)
    clips = tuple(
        Clip(
            id=f"S001C001P{k:03d}R001A001",
            path=f"nturgb+d_rgb/S001C001P{k:03d}R001A001_rgb.avi",
            label=0,
            raw_label="1",
            group=f"S001P{k:03d}R001A001",
            view=1,
            subject=str(k),
            setup=1,
        )
        for k in range(arguments.clips)
    )
    metadata = DatasetMetadata(
        layout=LAYOUT,
        format="zarr",
        compress="none",
        fingerprint=spec.fingerprint(),
        shard_size=arguments.clips,
        info=DatasetName(kind="ntu", name="ntu"),
        spec=spec,
    )
    dataset = DatasetHandle(open_store("/c"), metadata)
    settings = PreprocessSettings()
    tasks = [
        ShardTask(dataset=dataset, root="/v", shard=k, clips=clips, settings=settings)
        for k in range(arguments.shards)
    ]
    seen = 0

    def count(event: object) -> None:
        nonlocal seen
        seen += 1

    with (
        LocalCluster(
            n_workers=arguments.workers, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.subscribe_topic(TOPIC, count)
        begun = time.perf_counter()
        futures = client.map(hand_in, tasks, events=arguments.events, pure=False)
        handed_out = time.perf_counter() - begun
        for future in futures:
            future.result()
        seconds = time.perf_counter() - begun
    document = {
        "shards": arguments.shards,
        "clips_a_shard": arguments.clips,
        "submit_s": handed_out,
        "seconds": seconds,
        "shards_per_s": arguments.shards / seconds,
        "events_per_s": arguments.shards * arguments.events / seconds,
        "events_seen": seen,
    }
    print(
        json.dumps(document)
        if arguments.json
        else "\n".join(f"{key:14} {value:,.1f}" for key, value in document.items())
    )


if __name__ == "__main__":
    main()
