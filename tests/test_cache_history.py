"""Any order of preprocess, damage, repair, changed lists, kills and compact: a listed clip has its row, or is said to lack it."""

import contextlib
import tempfile
from pathlib import Path

import make_cache
import numpy as np
import pytest
from helpers import MEMORY
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from make_cache import names

from dtsf.cache.check import repair, verify
from dtsf.cache.documents import open_handle, read_records, read_tombstones, record_name
from dtsf.cache.formats import array_shapes
from dtsf.cache.reader import open_cached, open_dataset
from dtsf.cache.schema import ClipRecord, FilePart, ShardRecord, Source
from dtsf.cache.writer import compact, convert, write_shard
from dtsf.errors import CacheError, ConfigError, SourceError
from dtsf.pipeline import preprocess as run
from dtsf.pipeline.datasets.manifest import catalog_manifest
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.pipeline.source import content_hash, file_stat

CLIPS = range(10)
SETTINGS = PreprocessSettings(encoder="pixels", size=32, frames=1, workers=1, shard_size=3, max_bad=1)


def write_list(root, clips):
    text = "".join(f"v{k}.avi,{'xy'[k % 2]},g{k},1\n" for k in clips)
    (root / "m.csv").write_text("path,label,group,view\n" + text)


def made_rows(dataset, records):
    """Rows that follow from the content of the sources."""
    seeds = [int(record.source.content_hash[:8], 16) for record in records if record.row is not None]
    rows = {}
    for array, (shape, dtype) in array_shapes(dataset.spec).items():
        rows[array] = np.empty((len(seeds), *shape), dtype)
        for row, seed in zip(rows[array], seeds, strict=True):
            row[:] = seed % 127
    return rows


def work(tasks, unusable=(), stop=None):
    """Stage 1 without videos: commit the planned shards. ``stop``: number of shards until the process is killed."""
    for done, task in enumerate(tasks):
        if done == stop:
            raise KeyboardInterrupt
        records, row = [], 0
        for clip in task.clips:
            path = Path(task.root) / clip.path
            stat = file_stat(path)
            part = {name: getattr(clip, name) for name in FilePart.model_fields}
            source = Source(**part, **vars(stat), content_hash=content_hash(path, stat))
            bad = path.stem in unusable
            found = {"status": "timeout", "row": None, "reason": "busy"} if bad else {"status": "ok", "row": row}
            records.append(ClipRecord(source=source, **found))
            row += not bad
        fingerprint = task.dataset.metadata.fingerprint
        shard = ShardRecord(shard=task.shard, fingerprint=fingerprint, rows=row, clips=tuple(records), files={})
        write_shard(task.dataset, shard, made_rows(task.dataset, records))


def preprocess(root, unusable=(), stop=None, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_tasks", lambda tasks, *_, **__: work(tasks, unusable, stop))
        catalog = catalog_manifest(root / "m.csv")
        return run.preprocess(catalog, root / "c", SETTINGS.changed(**changes))


def seen(folder):
    """Names of the clips that stage 2 reads, each with its right row."""
    data = open_cached(folder)
    for clip in data.clips:
        _, record = data.records[clip.id]
        expected = made_rows(data, [record.model_copy(update={"row": 0})])
        assert (data.embeddings([clip.id]) == expected["embeddings"]).all(), clip.path
    return {Path(clip.path).stem for clip in data.clips}


class History(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory(dir=MEMORY)
        self.root = Path(self.temporary.name)
        self.folder = self.root / "c/manifest"
        self.damaged = False
        for k in CLIPS:
            # Different sizes: only some files are hashed before the run.
            (self.root / f"v{k}.avi").write_bytes(b"%d" % k * (1 + k // 2))

    @initialize()
    def begin(self):
        write_list(self.root, CLIPS)
        preprocess(self.root)
        self.listed = {f"v{k}" for k in CLIPS}

    def teardown(self):
        self.temporary.cleanup()

    @rule(
        clips=st.sets(st.sampled_from(CLIPS), min_size=1),
        unusable=st.sets(st.sampled_from(CLIPS), max_size=3),
        retry=st.booleans(),
    )
    def annotate(self, clips, unusable, retry):
        if self.damaged:
            return
        write_list(self.root, sorted(clips))
        self.listed = {f"v{k}" for k in clips}
        result = preprocess(self.root, {f"v{k}" for k in unusable}, retry_bad=retry)
        found = seen(self.folder)
        assert result.verdicts.get("ok", 0) == len(found)
        assert set(result.verdicts) <= {"ok", "timeout"}
        if retry and not unusable:
            assert found == self.listed
        assert read_tombstones(open_handle(self.folder)) == []

    @rule(clips=st.sets(st.sampled_from(CLIPS), min_size=1), stop=st.integers(0, 2))
    def killed(self, clips, stop):
        if self.damaged:
            return
        write_list(self.root, sorted(clips))
        with contextlib.suppress(KeyboardInterrupt):
            preprocess(self.root, stop=stop)
        self.listed = {f"v{k}" for k in clips}

    @rule(shard=st.integers(0, 30), rows=st.booleans(), record=st.booleans())
    def damage(self, shard, rows, record):
        if self.damaged:
            return
        records = read_records(open_handle(self.folder))
        chosen = records[shard % len(records)].shard
        files = [f"embeddings/c/{chosen}/0/0/0"] * rows + [record_name(chosen)] * record
        for name in files:
            content = bytearray((self.folder / name).read_bytes())
            content[50] ^= 255
            (self.folder / name).write_bytes(content)
        self.damaged = bool(files)

    @rule(shard=st.integers(0, 30))
    def remove_record(self, shard):
        """A shard without its record does not exist: verify must miss the rows that the catalog lists."""
        if self.damaged:
            return
        data = open_cached(self.folder)
        numbers = sorted(data.shards)
        chosen = numbers[shard % len(numbers)]
        before = seen(self.folder)
        (self.folder / record_name(chosen)).unlink()
        if before != seen(self.folder):
            waiting = {e.clip.id for e in data.catalog.clips if e.status}
            assert verify(self.folder).ok == all(clip.id in waiting for clip in data.clips if data.records[clip.id][0] == chosen)
        self.damaged = True

    @rule()
    def mend(self):
        repair(self.folder)
        self.damaged = False

    @rule()
    def compacted(self):
        if self.damaged:
            return
        before = seen(self.folder)
        compact(self.folder)
        assert seen(self.folder) == before

    @invariant()
    def nothing_is_lost_in_silence(self):
        if self.damaged or not hasattr(self, "listed"):
            return
        found = verify(self.folder, deep=True)
        assert found.ok, found.damaged
        data = open_cached(self.folder)
        assert seen(self.folder) | {Path(one.clip.path).stem for one in data.bad} == self.listed


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=15, stateful_step_count=10, deadline=None)


def spoil(file):
    content = bytearray(file.read_bytes())
    content[50] ^= 255
    file.write_bytes(content)


@pytest.fixture
def root(tmp_path):
    for k in range(12):
        (tmp_path / f"v{k}.avi").write_bytes(b"%d" % k * (1 + k // 2))
    write_list(tmp_path, range(12))
    preprocess(tmp_path, shard_size=4)
    return tmp_path


def test_preprocess__rows_written_below_a_tombstone_count(root):
    folder, late = root / "c/manifest", [4, 5, 6, 8, 9, 10, 11]
    for name in (record_name(0), "embeddings/c/1/0/0/0"):
        spoil(folder / name)
    repair(folder)
    write_list(root, late)
    assert preprocess(root, shard_size=4).verdicts == {"ok": 7}
    assert seen(folder) == {f"v{k}" for k in late}
    assert verify(folder, deep=True).ok
    assert preprocess(root, shard_size=4).already_done == 7


def test_compact__keeps_rows_that_it_moves_below_a_tombstone(root):
    folder = root / "c/manifest"
    spoil(folder / "embeddings/c/1/0/0/0")
    repair(folder)
    kept = None
    for gone in ({7}, {0, 1, 2, 3, 7}, {0, 1, 2, 3, 6, 7}):
        kept = sorted(set(range(12)) - gone)
        write_list(root, kept)
        preprocess(root, shard_size=4)
        compact(folder)
    assert seen(folder) == {f"v{k}" for k in kept}
    assert verify(folder, deep=True).ok


def test_verify__names_rows_that_no_reader_sees(tmp_path):
    folder = tmp_path / "a"
    make_cache.make(folder)
    make_cache.list_clips(folder, open_cached(folder).clips, make_cache.info())
    (folder / record_name(1)).unlink()
    (found,) = verify(folder).damaged
    assert (found.file, "3 clips without a row" in found.reason) == ("catalog.json", True)
    _, done = repair(folder)
    assert done == ["catalog.json: 3 clips without a row are marked for preprocess"]
    assert {one.clip.id for one in open_cached(folder).bad} == set(names(1))
    assert verify(folder).ok


def test_repair__a_clip_that_was_unusable_before_its_lost_row_waits(root):
    folder = root / "c/manifest"
    write_list(root, [0, 1])
    (root / "v0.avi").write_bytes(b"new")
    preprocess(root, {"v0"})
    preprocess(root, retry_bad=True)
    data = open_cached(folder)
    assert len(data.clips) == 2
    shard = next(data.records[clip.id][0] for clip in data.clips if clip.path == "v0.avi")
    spoil(folder / f"embeddings/c/{shard}/0/0/0")
    repair(folder)
    assert [one.status for one in open_cached(folder).bad] == ["waiting"]
    assert preprocess(root).verdicts == {"ok": 2}


def test_reader__open_while_compact_ran_says_so(root):
    folder = root / "c/manifest"
    write_list(root, [0, 1, 4, 5, 8, 9])
    preprocess(root)
    early, opened = open_dataset(root / "c"), open_dataset(root / "c")
    ids = [clip.id for clip in early.clips]
    rows = early.embeddings(ids)
    compact(folder)
    assert (early.embeddings(ids) == rows).all()
    with pytest.raises(CacheError, match="written again after this command had opened the cache"):
        opened.embeddings(ids)
    # Another shard of the same number and size: its rows are never taken for the old ones.
    write_list(root, range(12))
    preprocess(root, shard_size=4)
    assert open_handle(folder).store.size("embeddings/c/0/0/0/0")
    with pytest.raises(CacheError, match="run the same command again"):
        opened.embeddings(ids[:1])
    assert len(open_dataset(root / "c").clips) == 12


def test_convert__onto_a_repaired_copy_leaves_no_tombstone(root, tmp_path):
    folder, copy = root / "c/manifest", tmp_path / "copy/manifest"
    convert(folder, copy)
    write_list(root, range(1, 12))
    preprocess(root, shard_size=4)
    compact(folder)
    spoil(copy / "embeddings/c/0/0/0/0")
    repair(copy)
    assert convert(folder, copy) == 1
    assert seen(copy) == seen(folder) == {f"v{k}" for k in range(1, 12)}
    assert read_tombstones(open_handle(copy)) == []
    assert verify(copy, deep=True).ok


def test_preprocess__makes_and_removes_nothing_before_the_source_is_known_to_be_good(root, monkeypatch):
    before = make_cache.snapshot(root / "c/manifest")
    for file in root.glob("*.avi"):
        file.unlink()
        file.symlink_to("/no/such/file")
    for changes in ({"name": "other"}, {"overwrite": True, "size": 48}):
        with pytest.raises(SourceError, match="none of the 12"):
            preprocess(root, **changes)
    assert [folder.name for folder in (root / "c").iterdir() if folder.is_dir()] == ["manifest"]
    assert make_cache.snapshot(root / "c/manifest") == before


@pytest.mark.parametrize("step", ["check_scheduler", "prepare_encoder", "run_tasks"])
def test_preprocess__an_error_before_the_first_shard_leaves_what_there_was(root, monkeypatch, step):
    def refuse(*_, **__):
        raise ConfigError("it does not respond")

    before = make_cache.snapshot(root / "c/manifest")
    catalog = catalog_manifest(root / "m.csv")
    monkeypatch.setattr(run, "run_tasks", refuse)
    monkeypatch.setattr(run, step, refuse)
    options = {"scheduler": "tcp://127.0.0.1:1" if step == "check_scheduler" else None, "size": 48}
    with pytest.raises(ConfigError, match="does not respond"):
        run.preprocess(catalog, root / "c", SETTINGS.changed(name="other", **options))
    assert [folder.name for folder in (root / "c").iterdir() if folder.is_dir()] == ["manifest"]
    if step != "run_tasks":
        with pytest.raises(ConfigError, match="does not respond"):
            run.preprocess(catalog, root / "c", SETTINGS.changed(overwrite=True, **options))
        assert make_cache.snapshot(root / "c/manifest") == before


def test_preprocess__counts_as_done_before_only_what_was_done_before(root):
    for name in ("v1.avi", "v2.avi"):
        (root / name).unlink()
    (root / "v2.avi").symlink_to("v3.avi")
    (root / "v3.avi").write_bytes(b"new content")
    result = preprocess(root, shard_size=4)
    assert (result.changes.to_decode, result.already_done) == (1, 9)
    assert result.verdicts == {"ok": 11, "missing": 1}
    fresh = preprocess(root, shard_size=4, name="fresh")
    assert (fresh.changes.to_decode, fresh.already_done) == (10, 0)
