"""Throughput of dask's scheduler with shard tasks and their progress events; sleeping simulates decoding. Or planning of clips.

    python benchmarks/scheduler.py --shards 10000 --clips 8 --events 8 --workers 8
    python benchmarks/scheduler.py --shards 256 --clips 8 --seconds 0.35 --events 3 --workers 64
    python benchmarks/scheduler.py --plan 100000

Prints tasks and events per second. A worker sends its progress once per second (``dtsf.pipeline.workers.REPORT_EVERY``), so one
scheduler can serve about as many cores as it handles events per second. ``--seconds``: of each clip; efficiency = seconds asleep /
(workers x wall seconds). ``--plan``: seconds and memory to compare so many files with an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from pathlib import Path

from dtsf.cache.catalog import check_catalog
from dtsf.cache.documents import DatasetHandle
from dtsf.cache.schema import LAYOUT, CacheSpec, Clip, DatasetInfo, DatasetMetadata, DatasetName
from dtsf.cache.store import open_store
from dtsf.pipeline.datasets.catalog import SourceCatalog
from dtsf.pipeline.plan import make_plan
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.pipeline.worker import ShardTask

TOPIC = "dtsf-clips"


def hand_in(task: ShardTask, events: int, seconds: float) -> int:
    """Run a shard's task without its work; the messages to the scheduler are the same. ``seconds``: to sleep for each clip."""
    from distributed import get_worker

    worker = get_worker()
    for _ in range(events):
        time.sleep(seconds * len(task.clips) / events)
        worker.log_event(TOPIC, (1, 0))
    return task.shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--events", type=int, default=8, help="progress events per shard")
    parser.add_argument("--workers", type=int, default=8, help="threads that simulate workers")
    parser.add_argument("--seconds", type=float, default=0.0, help="to sleep for each clip")
    parser.add_argument("--plan", type=int, default=0, help="instead: number of clips to plan")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    document = plan(arguments.plan) if arguments.plan else schedule(arguments)
    lines = (f"{key:14} {value:,.2f}" for key, value in document.items())
    print(json.dumps(document) if arguments.json else "\n".join(lines))


def make_clip(k: int) -> Clip:
    """Return a clip of NTU RGB+D's form."""
    name = f"S001C{k % 3 + 1:03d}P{k // 3:06d}R001A001"
    group = f"S001P{k // 3:06d}R001A001"
    about = {"label": 0, "raw_label": "1", "view": k % 3 + 1, "subject": str(k // 300), "setup": 1}
    return Clip(id=name, path=f"nturgb+d_rgb/{name}_rgb.avi", group=group, **about)


def plan(count: int) -> dict[str, float]:
    """Plan so many clips; their files are sparse, each of its own size."""
    views = ("1", "2", "3")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "nturgb+d_rgb").mkdir()
        clips = tuple(make_clip(k) for k in range(count))
        for k, clip in enumerate(clips):
            (root / clip.path).touch()
            os.truncate(root / clip.path, k + 1)
        info = DatasetInfo(kind="ntu", name="ntu", class_names=("drink",), view_names=views)
        catalog = SourceCatalog(kind="ntu", root=root, clips=clips, class_names=("drink",), view_names=views)
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, (time.perf_counter(), time.process_time())
        made = make_plan(catalog, info, None, 64, 16)
        check_catalog(made.document, "ntu")
        seconds, cpu = time.perf_counter() - begun[0], time.process_time() - begun[1]
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sizes = {"plan_mb": (after - before) / 1e3, "rss_mb": after / 1e3}
    return {"clips": count, "shards": len(made.shards), "plan_s": seconds, "plan_cpu_s": cpu, **sizes}


def schedule(arguments: argparse.Namespace) -> dict[str, float]:
    """Run the tasks on simulated workers."""
    from distributed import Client, LocalCluster

    spec = CacheSpec(decoder="none", frames=16, size=192, grid=6, encoder="none", weights_hash="none", channels=112)
    clips = tuple(make_clip(k) for k in range(arguments.clips))
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
        futures = client.map(hand_in, tasks, events=arguments.events, seconds=arguments.seconds, pure=False)
        handed_out = time.perf_counter() - begun
        for future in futures:
            future.result()
        seconds = time.perf_counter() - begun
    asleep = arguments.shards * arguments.clips * arguments.seconds
    return {
        "shards": arguments.shards,
        "clips_a_shard": arguments.clips,
        "submit_s": handed_out,
        "seconds": seconds,
        "shards_per_s": arguments.shards / seconds,
        "events_per_s": arguments.shards * arguments.events / seconds,
        "events_seen": seen,
        "efficiency": asleep / (arguments.workers * seconds),
    }


if __name__ == "__main__":
    main()
