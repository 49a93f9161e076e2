"""Random edits of a source and its table: stage 2 sees the current state, and no clip is decoded without need."""

import contextlib
import csv
import itertools
import os
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import xxhash
from helpers import MEMORY
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from make_cache import SPEC

from dtsf.cache.check import verify
from dtsf.cache.documents import open_handle, read_records
from dtsf.cache.reader import open_cached
from dtsf.cache.writer import compact
from dtsf.errors import VideoError
from dtsf.files import write as commit
from dtsf.pipeline import preprocess as run
from dtsf.pipeline import rows, worker
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.preprocess import preprocess
from dtsf.pipeline.settings import PreprocessSettings

content_hash = xxhash.xxh3_128_hexdigest


def frames_of(content, start):
    generator = np.random.default_rng(xxhash.xxh3_64_intdigest(content + repr(start).encode()))
    return generator.integers(0, 255, (SPEC.frames, SPEC.size, SPEC.size, 3)).astype(np.uint8)


def embed(frames):
    return frames[:, : SPEC.grid**2, : SPEC.channels, 0].astype(np.float16)


class FakeStage1:
    """Replaces decoding and embedding. ``decoded`` counts (content hash, start)."""

    device = "cpu"
    embed = staticmethod(embed)

    def __init__(self, patch):
        self.decoded = Counter()
        patch.setattr(run, "make_spec", lambda settings: SPEC)
        patch.setattr(run, "prepare_encoder", lambda *given: None)
        patch.setattr(worker, "shared_decoders", lambda *given, **named: contextlib.nullcontext())
        patch.setattr(rows, "decode_parallel", lambda decoders, requests: map(self._decode, requests))
        patch.setattr(worker, "load_encoder", lambda *given, **named: self)

    def _decode(self, request):
        content = request.path.read_bytes()
        self.decoded[content_hash(content), request.span.start] += 1
        if content.startswith(b"bad"):
            return VideoError("not a video", "unreadable")
        facts = {"frame_index": [0, 1], "frame_time": [0.0, 0.5], "status": "ok", "reason": ""}
        return frames_of(content, request.span.start), facts


COLUMNS = ("path", "label", "group", "view", "subject", "split", "start")
WORDS = st.sampled_from(["wave", "sit", "walk", "jump"])
CHANGES = [*itertools.product(("subject", "split"), ("a", "b", "test", "train"))]
CHANGES += [("start", start) for start in ("", "0.5", "1.5")]


def edit(**draws):
    return lambda method: precondition(lambda self: self.table)(rule(data=st.data(), **draws)(method))


class SourceMachine(RuleBasedStateMachine):
    """A table of clips and its files are edited in all ways; runs are killed; the cache is compacted."""

    def __init__(self):
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory(dir=MEMORY)
        self.root = Path(self.temporary.name) / "videos"
        self.root.mkdir()
        self.cache = Path(self.temporary.name) / "cache"
        self.patch = pytest.MonkeyPatch()
        self.stage1 = FakeStage1(self.patch)
        self.table = []
        self.clock = 10**18
        self.fresh = itertools.count(1).__next__
        self.computed = set()
        self.seen = None  # the table at the last complete run

    def teardown(self):
        self.patch.undo()
        self.temporary.cleanup()

    def write(self, path, content):
        self.clock += 10**9
        (self.root / path).parent.mkdir(exist_ok=True)
        (self.root / path).write_bytes(content)
        os.utime(self.root / path, ns=(self.clock, self.clock))

    def key(self, row):
        return content_hash((self.root / row["path"]).read_bytes()), float(row["start"]) if row["start"] else None

    @initialize()
    def begin(self):
        self.add("wave", "cam1", bad=False, start="")
        self.run()

    @rule(label=WORDS, view=st.sampled_from(["cam1", "cam2", "cam10"]), bad=st.booleans(), start=st.sampled_from(["", "0.5"]))
    def add(self, label, view, bad, start):
        k = self.fresh()
        path = f"{label}/{k}.avi"
        self.write(path, (b"bad" if bad and k % 3 == 0 else b"ok ") + str(k).encode())
        row = {"path": path, "label": label, "group": f"g{k}", "view": view, "subject": f"s{k % 3}", "split": "train"}
        self.table.append(row | {"start": start})

    def chosen(self, data):
        return data.draw(st.sampled_from(self.table))

    @edit(label=WORDS)
    def relabel(self, data, label):
        row = self.chosen(data)
        for other in self.table:
            if other["group"] == row["group"]:
                other["label"] = label

    @edit(change=st.sampled_from(CHANGES))
    def edit_cell(self, data, change):
        self.chosen(data).update([change])

    @edit()
    def move(self, data):
        row = self.chosen(data)
        old, new = row["path"], f"moved/{self.fresh()}.avi"
        (self.root / "moved").mkdir(exist_ok=True)
        (self.root / old).rename(self.root / new)
        for other in self.table:
            if other["path"] == old:
                other["path"] = new

    @edit()
    def touch(self, data):
        self.clock += 10**9
        os.utime(self.root / self.chosen(data)["path"], ns=(self.clock, self.clock))

    @edit()
    def edit_file(self, data):
        self.write(self.chosen(data)["path"], b"ok " + str(self.fresh()).encode())

    @precondition(lambda self: len(self.table) > 1)
    @rule(data=st.data())
    def delete_row(self, data):
        self.table.remove(self.chosen(data))

    @edit(same_file=st.booleans())
    def copy(self, data, same_file):
        row, k = self.chosen(data), self.fresh()
        path = row["path"]
        if not same_file:
            path = f"copy/{k}.avi"
            self.write(path, (self.root / row["path"]).read_bytes())
        self.table.append(row | {"path": path, "group": f"g{k}"})

    @edit(new=st.sampled_from(["camera", "class"]))
    def add_camera_or_class(self, data, new):
        row, k = self.chosen(data), self.fresh()
        path = f"new {new}/{k}.avi"
        self.write(path, b"ok " + str(k).encode())
        words = {"view": f"new{k}"} if new == "camera" else {"label": f"class {k}", "group": f"g{k}"}
        self.table.append(row | {"path": path} | words)

    @edit()
    def rename_camera(self, data):
        self.chosen(data)["view"] = f"renamed{self.fresh()}"

    def preprocess(self):
        with (self.root / "manifest.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.table)
        catalog = scan_source("manifest", self.root)
        return preprocess(catalog, self.cache, PreprocessSettings(workers=1, shard_size=2, max_bad=1.0))

    def records(self):
        """(content hash, start) of each record in the cache."""
        shards = read_records(open_handle(self.cache / "manifest"))
        return {(record.source.content_hash, record.source.start) for shard in shards for record in shard.clips}

    @rule()
    def run(self):
        wanted = {self.key(row) for row in self.table} - self.computed
        self.stage1.decoded.clear()
        result = self.preprocess()
        assert self.stage1.decoded == dict.fromkeys(wanted, 1)
        assert result.changes.to_decode == len(wanted)
        counts = result.changes.model_dump(include={"new", "changed", "relabelled", "moved", "unchanged"})
        assert sum(counts.values()) == len(self.table) == result.clips
        self.computed |= wanted
        self.seen = [dict(row) for row in self.table]
        again = self.preprocess()
        assert (again.changes.unchanged, again.changes.to_decode) == (len(self.table), 0)
        assert verify(self.cache / "manifest", deep=True).ok

    @rule(after=st.integers(0, 25))
    def run_until_killed(self, after):
        count = iter(range(1000))
        original = commit.rename

        def die(*given):
            if next(count) == after:
                raise KeyboardInterrupt
            original(*given)

        with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(commit, "rename", die)
            self.preprocess()
        self.computed |= self.records()
        self.seen = None

    @rule()
    def compact_rows(self):
        compact(self.cache / "manifest")
        self.computed &= self.records()
        data = open_cached(self.cache / "manifest")
        named = {(shard, record.key) for shard, record in data.records.values()}
        assert named == {(n, record.key) for n, shard in data.shards.items() for record in shard.clips}
        assert verify(self.cache / "manifest", deep=True).ok

    @invariant()
    def stage_2_sees_the_current_table_and_the_rows_of_a_new_cache(self):
        if self.seen is None:
            return
        data = open_cached(self.cache / "manifest")
        names, views = data.info.class_names, data.info.view_names
        found = Counter()
        for clip in (*data.clips, *(one.clip for one in data.bad)):
            start = "" if clip.start is None else str(clip.start)
            found[clip.path, names[clip.label], clip.group, views[clip.view - 1], clip.subject, clip.split, start] += 1
        assert found == Counter(tuple(row[column] for column in COLUMNS) for row in self.seen)
        for clip in data.clips if self.seen == self.table else ():
            content = (self.root / clip.path).read_bytes()
            if content_hash(content) == data.records[clip.id][1].source.content_hash:
                np.testing.assert_array_equal(data.embeddings([clip.id])[0], embed(frames_of(content, clip.start)))


TestSourceMachine = SourceMachine.TestCase
TestSourceMachine.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)
