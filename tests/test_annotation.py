"""A source that changes: new annotations need no decoding, removed clips are not trained on, and decoding again compares."""

import csv
import json
import shutil
from unittest.mock import Mock

import numpy as np
import pytest

from dtsf import api
from dtsf.cache.catalog import write_catalog
from dtsf.cache.documents import open_handle
from dtsf.cache.reader import open_dataset, summarise
from dtsf.errors import BadClipsError, CheckpointError, SourceError
from dtsf.pipeline import plan as planning
from dtsf.pipeline import rows as clip_rows
from dtsf.pipeline import worker
from dtsf.pipeline.preprocess import make_spec
from dtsf.pipeline.settings import PreprocessSettings

CHANGES = {"encoder": "efficientnet-lite0:32", "frames": 3, "size": 96, "grid": 3, "workers": 1}
SMALL = [word for name, value in CHANGES.items() for word in (f"--{name}", value)]
PIXELS = {"encoder": "pixels", "frames": 4, "size": 32, "grid": 4, "workers": 1, "max_bad": 1.0}


@pytest.fixture
def own(make_video, tmp_path):
    """Eight videos of two people, two actions and two cameras; returns its folder and its rows."""
    rows = []
    for k in range(8):
        make_video(tmp_path / "own" / f"v{k}.avi", 8 + k)
        person, action = f"s{k // 4}", ("wave", "sit")[k // 2 % 2]
        row = {"path": f"v{k}.avi", "label": action, "group": f"{person}-{action}", "view": f"cam{k % 2}"}
        rows.append(row | {"subject": person, "split": ("train", "test")[k // 4]})
    write(tmp_path / "own", rows)
    return tmp_path, rows


def write(folder, rows):
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def run(folder, **changes):
    return api.preprocess("manifest", folder / "own", folder / "cache", **CHANGES, **changes)


def test_preprocess__moved_touched_and_copied_files_are_not_decoded(own, monkeypatch):
    folder, rows = own
    run(folder)
    decoded = []
    original = clip_rows.decode_parallel
    monkeypatch.setattr(clip_rows, "decode_parallel", lambda d, r: decoded.extend(x.path.name for x in r) or original(d, r))
    videos = folder / "own"
    (videos / "sit").mkdir()
    for row in rows:
        if row["label"] == "sit":
            (videos / row["path"]).rename(videos / "sit" / row["path"])
            row["path"] = f"sit/{row['path']}"
    (videos / "v0.avi").touch()
    shutil.copy(videos / "v1.avi", videos / "copy.avi")
    write(videos, [*rows, rows[1] | {"path": "copy.avi", "group": "again"}])
    result = run(folder)
    assert decoded == []
    assert (result.changes.moved, result.changes.new, result.changes.unchanged, result.changes.to_decode) == (4, 1, 4, 0)
    data = open_dataset(folder / "cache")
    by_path = {clip.path: clip.id for clip in data.clips}
    np.testing.assert_array_equal(data.embeddings([by_path["copy.avi"]]), data.embeddings([by_path["v1.avi"]]))


def test_preprocess__decodes_a_folder_again_if_one_picture_changes(tmp_path):
    from PIL import Image

    for view in (1, 2):
        folder = tmp_path / f"own/view_{view}/a01_s01_e00"
        folder.mkdir(parents=True)
        for k in range(4):
            Image.fromarray(np.full((48, 64, 3), 40 * k + view, np.uint8)).save(folder / f"frame_{k}_tc_{k}_rgb.jpg")
    words = ("nucla", tmp_path / "own", tmp_path / "cache")
    api.preprocess(*words, **CHANGES)
    assert api.preprocess(*words, **CHANGES).changes.unchanged == 2
    Image.fromarray(np.full((48, 64, 3), 200, np.uint8)).save(tmp_path / "own/view_1/a01_s01_e00/frame_2_tc_2_rgb.jpg")
    result = api.preprocess(*words, **CHANGES)
    assert (result.changes.changed, result.changes.unchanged, result.changes.to_decode) == (1, 1, 1)


def test_dry_run__prints_the_changes_and_writes_nothing(own, dtsf):
    folder, rows = own
    found = run(folder, dry_run=True)
    assert (found.dry_run, found.changes.to_decode, found.changes.new) == (True, 8, 8)
    assert not (folder / "cache").exists()
    assert run(folder).changes == found.changes
    files = {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*")}
    rows[0]["split"], rows[1]["subject"] = "val", "anna"
    write(folder / "own", rows[:-1])
    found = run(folder, dry_run=True)
    changes = {name: count for name, count in found.changes.model_dump().items() if count}
    assert changes == {"unchanged": 5, "relabelled": 2, "gone": 1}
    assert files == {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*")}
    assert run(folder).changes == found.changes
    words = ("preprocess", "manifest", "--root", "own", *SMALL, "--dry-run")
    assert "changes since the last run: 7 unchanged" in dtsf.said(*words, cwd=folder)


def test_compact__frees_rows_of_clips_that_are_gone(own, dtsf):
    folder, rows = own
    run(folder)
    before = open_dataset(folder / "cache")
    embeddings = {clip.path: before.embeddings([clip.id])[0] for clip in before.clips}
    write(folder / "own", rows[:5])
    assert run(folder).changes.gone == 3
    page = dtsf.json("cache", "info", "cache", cwd=folder)["datasets"][0]
    assert (page["clips"], page["not_listed"]) == (5, 3)
    assert page["not_listed_bytes"] > 0
    assert dtsf.json("cache", "compact", "cache", cwd=folder)["datasets"]["manifest"]["rows"] == 3
    data = open_dataset(folder / "cache")
    assert sum(shard.rows for shard in data.shards.values()) == 5
    for clip in data.clips:
        np.testing.assert_array_equal(data.embeddings([clip.id])[0], embeddings[clip.path])
    assert dtsf.json("cache", "verify", "cache", "--deep", cwd=folder)["ok"]
    write(folder / "own", rows)
    assert run(folder).changes.to_decode == 3


def test_preprocess__source_errors_do_not_mark_clips_as_bad(own, monkeypatch):
    folder, rows = own
    write(folder / "own", rows[:4])
    run(folder)
    write(folder / "own", rows)
    monkeypatch.setattr(worker, "RETRY_AFTER", (0.0,))
    content_hash = worker.content_hash
    for error in (OSError(5, "Input/output error"), OSError(116, "Stale file handle")):
        monkeypatch.setattr(worker, "content_hash", Mock(side_effect=error))
        with pytest.raises(SourceError, match=r"Finished work is safe: run the same command again"):
            run(folder)
    # Files that disappear during the run: a single one waits, three in a row raise an error.
    monkeypatch.setattr(worker, "content_hash", Mock(side_effect=FileNotFoundError(2, "gone")))
    with pytest.raises(SourceError, match="3 files in a row .* the last is"):
        run(folder)
    locked = folder / "own/v5.avi"

    def one_is_locked(path, stat):
        if path == locked:
            raise PermissionError(13, "Permission denied")
        return content_hash(path, stat)

    monkeypatch.setattr(worker, "content_hash", one_is_locked)
    with pytest.raises(BadClipsError) as raised:
        run(folder)
    assert [(one.clip.path, one.status) for one in raised.value.result.bad] == [("v5.avi", "waiting")]
    monkeypatch.undo()
    result = run(folder)
    assert (result.verdicts, result.changes.to_decode) == ({"ok": 8}, 1)


def test_preprocess__missing_source_does_not_change_the_catalog(own, monkeypatch):
    folder, _ = own
    run(folder)
    catalog = (folder / "cache/manifest/catalog.json").read_bytes()
    (folder / "own").rename(folder / "away")
    (folder / "own").mkdir()
    shutil.copy(folder / "away/manifest.csv", folder / "own")
    with pytest.raises(SourceError, match=r"none of the 8 manifest files .* check the disk or share"):
        run(folder)
    monkeypatch.setattr(planning, "file_stat", Mock(side_effect=OSError(116, "Stale file handle")))
    with pytest.raises(SourceError, match="Stale file handle"):
        run(folder)
    assert (folder / "cache/manifest/catalog.json").read_bytes() == catalog


def test_evaluate__names_a_changed_catalog(world, tmp_path):
    cache = shutil.copytree(world / "cache", tmp_path / "cache")
    words = {"protocol": "cross-subject:2", "overrides": ["train.epochs=2", "model.depth=1"], "recipe": "default"}
    api.train(cache, **words, run=tmp_path / "run")
    before = api.load(tmp_path / "run").evaluate(cache)
    assert before.catalog == open_dataset(cache).catalog_hash
    document = open_dataset(cache).catalog
    clips = [entry.model_copy(update={"clip": entry.clip.model_copy(update={"background": "x"})}) for entry in document.clips]
    write_catalog(open_handle(cache / "nucla"), document.model_copy(update={"clips": tuple(clips)}))
    after = api.load(tmp_path / "run").evaluate(cache)
    assert after.metrics == before.metrics
    assert after.task == before.task + "; its clips or labels have changed since this run was trained"
    with pytest.raises(CheckpointError, match="other clips or labels than the cache names now"):
        api.train(cache, **words, run=tmp_path / "run", resume=True)


@pytest.fixture
def cameras(make_video, tmp_path):
    """Group g: 2 s at 30 fps, and 3 s at 10 fps that started 0.5 s later. Group h: no common time. Group k: one view."""
    root = tmp_path / "v"
    make_video(root / "a.mp4", 60, codec="libx264")
    make_video(root / "b.mp4", 30, codec="libx264", fps=10)
    make_video(root / "c.avi", 20)
    rows = ["a.mp4,x,g,1,0", "b.mp4,x,g,2,0.5", "a.mp4,y,h,1,0", "c.avi,y,h,2,10", "c.avi,x,k,1,3"]
    (root / "m.csv").write_text("path,label,group,view,offset\n" + "\n".join(rows) + "\n")
    return root


def test_align_group__views_have_the_same_frame_times(cameras, tmp_path):
    result = api.preprocess("manifest", cameras / "m.csv", tmp_path / "c", align="group", **PIXELS)
    assert result.verdicts == {"ok": 3, "unreadable": 2}
    data = open_dataset(tmp_path / "c")
    assert data.spec.align == "group"
    # Both views show 0.5 to 2 s of the performance: 0.5 to 2 s of file a, 0 to 1.5 s of file b.
    first, second, alone = data.frame_time(["g_v01", "g_v02", "k_v01"])
    moments = 0.5 + 1.5 * (np.arange(4) + 0.5) / 4
    assert (np.abs(first - moments) < 1 / 30 + 1e-6).all()
    assert (np.abs(second + 0.5 - moments) < 1 / 10 + 1e-6).all()
    assert (first <= moments + 1e-6).all()
    assert alone[-1] > 0.5
    again = api.preprocess("manifest", cameras / "m.csv", tmp_path / "c", align="group", **PIXELS)
    assert again.already_done == 5


def test_align_own__views_keep_their_own_time_and_fingerprint(cameras, tmp_path):
    own, group = (make_spec(PreprocessSettings(**PIXELS, align=align)) for align in ("own", "group"))
    assert own.fingerprint() != group.fingerprint()
    assert own.fingerprint() == own.model_copy(update={"align": "own"}).fingerprint()
    api.preprocess("manifest", cameras / "m.csv", tmp_path / "c", **PIXELS)
    data = open_dataset(tmp_path / "c")
    assert data.frame_time(["g_v02"])[0, -1] > 2.5
    lengths = summarise(tmp_path / "c/manifest")["views_differ_by"]
    assert lengths["groups"] == 2
    assert lengths["largest"] == pytest.approx(2 / 3, abs=0.01)


def test_verify_source__names_clips_with_different_pictures(cameras, make_video, tmp_path, dtsf):
    api.preprocess("manifest", cameras / "m.csv", tmp_path / "c", **PIXELS)
    assert api.verify_source(tmp_path / "c", cameras).ok
    make_video(cameras / "b.mp4", 29, codec="libx264", fps=10)
    (cameras / "c.avi").unlink()
    found = api.verify_source(tmp_path / "c", cameras)
    assert [(one.clip, one.reason.split(":")[0]) for one in found.mismatches] == [
        ("g_v02", "different pictures"),
        ("h_v02", "unreadable"),
        ("k_v01", "unreadable"),
    ]
    said = dtsf("cache", "verify", "c", "--source", "--root", cameras, "--sample", "50%", "--json", cwd=tmp_path)
    assert said.returncode == 2, said.stderr
    assert json.loads(said.stdout)["source"]["manifest"]["checked"] == 3
    assert dtsf("cache", "verify", "c", "--source", "--sample", "none", "--root", cameras, cwd=tmp_path).returncode == 2
