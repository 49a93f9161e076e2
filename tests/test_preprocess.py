"""Stage 1 from videos to rows: clips are done once, unusable clips are listed, killed runs resume."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import zarr
from helpers import wait_until

from dtsf.cache.reader import open_dataset
from dtsf.cache.schema import Clip, ViewRegion
from dtsf.errors import BadClipsError, CacheError, ConfigError, FingerprintError
from dtsf.pipeline import preprocess as run
from dtsf.pipeline.datasets.catalog import SourceCatalog
from dtsf.pipeline.encoders.choose import load_encoder
from dtsf.pipeline.preprocess import make_spec
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.decode import decode_clip
from dtsf.pipeline.worker import check_source

SMALL = {"encoder": "efficientnet-lite0:32", "frames": 3, "size": 96, "grid": 3}
SETTINGS = PreprocessSettings(**SMALL, workers=1)


@pytest.fixture(autouse=True)
def one_thread():
    """The worker sets one thread in its process; in these tests that is this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def catalog_of(root, names, dataset="nucla"):
    clips = tuple(
        Clip(id=name, path=f"{name}.avi", label=k // 2 % 2, raw_label=str(k // 2 % 2), group=f"g{k // 2}", view=k % 2 + 1)
        for k, name in enumerate(names)
    )
    return SourceCatalog(kind=dataset, root=root, clips=clips, class_names=("x", "y"), view_names=("1", "2"))


@pytest.fixture(scope="module")
def videos(make_video, tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for k in range(10):
        make_video(root / f"c{k}.avi", 8 + k, 64 + 2 * k, 48)
    return root


def preprocess(catalog, cache, settings=SETTINGS, on_progress=None, **changes):
    return run.preprocess(catalog, cache, settings.changed(**changes), on_progress=on_progress)


def embedded(video):
    """Return a video's embedding, and its decoded clip."""
    spec = make_spec(SETTINGS)
    decoded = decode_clip(video, 3, 96, crop=spec.crop)
    return load_encoder(spec.encoder, spec.size, spec.grid, "cpu").embed(decoded.frames), decoded


def test_preprocess__rows_equal_decoding_and_embedding(videos, tmp_path):
    seen = []
    catalog = catalog_of(videos, [f"c{k}" for k in range(10)])
    result = preprocess(catalog, tmp_path, shard_size=4, on_progress=seen.append)
    assert (result.clips, result.groups, result.already_done, result.verdicts) == (10, 5, 0, {"ok": 10})
    assert [(p.done, p.total, p.bad) for p in seen] == [(k, 10, 0) for k in range(1, 11)]
    data = open_dataset(tmp_path)
    assert len(list((data.store.path / "shards").iterdir())) == 3
    for name in ("c0", "c9"):
        cells, decoded = embedded(videos / f"{name}.avi")
        np.testing.assert_array_equal(data.embeddings([name])[0], cells)
        np.testing.assert_array_equal(data.frame_index([name])[0], decoded.frame_index)
        # A pixel of the small picture is the mean of 2 x 2.
        blocks = decoded.frames.reshape(3, 48, 2, 48, 2, 3).mean((2, 4))
        assert np.abs(data.pictures([name])[0] - blocks).max() <= 1
    shard, record = data.records["c9"]
    row = zarr.open_group(data.store.path, mode="r")["embeddings"][shard * data.shard_size + record.row]
    np.testing.assert_array_equal(row, data.embeddings(["c9"])[0])


def test_preprocess__second_run_does_only_changed_and_new_clips(make_video, tmp_path):
    root, cache = tmp_path / "v", tmp_path / "c"
    for k in range(3):
        make_video(root / f"c{k}.avi", 8 + k)
    preprocess(catalog_of(root, ["c0", "c1"]), cache)
    files = {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file() and not p.name.endswith(".lock")}
    again = preprocess(catalog_of(root, ["c0", "c1"]), cache)
    assert (again.already_done, again.clips) == (2, 2)
    assert files == {p: p.stat().st_mtime_ns for p in cache.rglob("*") if p.is_file() and not p.name.endswith(".lock")}
    before = open_dataset(cache).embeddings(["c0", "c1"])
    make_video(root / "c1.avi", 12, 320, 240)
    third = preprocess(catalog_of(root, ["c0", "c1", "c2"]), cache)
    assert (third.already_done, third.clips) == (1, 3)
    after = open_dataset(cache).embeddings(["c0", "c1"])
    np.testing.assert_array_equal(after[0], before[0])
    assert (after[1] != before[1]).any()


def test_preprocess__region_of_a_clip_is_decoded_and_named_by_its_view(make_video, dtsf, tmp_path):
    for k in range(4):
        make_video(tmp_path / f"v/c{k}.avi", 8 + k, 320, 240)
    catalog = catalog_of(tmp_path / "v", [f"c{k}" for k in range(4)])
    own, other = (0.5, 0.5, 0.5, 0.5), (0.0, 0.0, 160.0, 120.0)
    clips = [clip.model_copy(update={"region": own}) if clip.view == 1 else clip for clip in catalog.clips]
    catalog = catalog.model_copy(update={"clips": tuple(clips)})
    cache = tmp_path / "c"
    preprocess(catalog, cache)
    before = open_dataset(cache)
    decoded = decode_clip(tmp_path / "v/c0.avi", 3, 96, crop=before.spec.crop, span=Span(region=own))
    encoder = load_encoder(before.spec.encoder, before.spec.size, before.spec.grid, "cpu")
    np.testing.assert_array_equal(before.embeddings(["c0"])[0], encoder.embed(decoded.frames))
    again = preprocess(catalog, cache, region="0 0 160 120", ignore="0.9 0.9 0.1 0.1")
    assert again.changes.to_decode == 4
    after = open_dataset(cache)
    assert [clip.region for clip in after.clips] == [own, other, own, other]
    assert after.info.view_regions == tuple(ViewRegion(region=r, ignore=((0.9, 0.9, 0.1, 0.1),)) for r in (own, other))
    np.testing.assert_array_equal(after.embeddings(["c0"]), before.embeddings(["c0"]))
    assert (after.embeddings(["c1"]) != before.embeddings(["c1"])).any()
    assert check_source(after, tmp_path / "v").ok
    assert after.squares == {"still": ["c0.avi", "c1.avi", "c2.avi", "c3.avi"]}
    shown = dtsf.said("cache", "info", "c", cwd=tmp_path)
    assert "4 clips: nothing moves: the middle of the picture is used (c0.avi, c1.avi, c2.avi and 1 more)" in shown
    with pytest.raises(ConfigError, match="--ignore has no effect with --crop centre"):
        preprocess(catalog, tmp_path / "d", crop="centre", ignore="0 0 1 1")


def test_preprocess__bad_clips_are_listed_and_not_repeated(make_video, cut_file, tmp_path):
    root, cache = tmp_path / "v", tmp_path / "c"
    whole = make_video(root / "whole.avi", 60)
    cut_file(whole, root / "cut.avi", 0.6)
    make_video(root / "one.avi", 1)
    (root / "text.avi").write_text("no video")
    catalog = catalog_of(root, ["cut", "missing", "one", "text", "whole"])
    with pytest.raises(BadClipsError, match=r"3 of 5 clips.*--max-bad 5%") as raised:
        preprocess(catalog, cache)
    for name in ("cut.avi: truncated", "missing.avi: missing: the file does not exist", "text.avi: unreadable"):
        assert name in str(raised.value)
    assert raised.value.exit_code == 1
    assert raised.value.result.verdicts == {"ok": 1, "short": 1, "truncated": 1, "unreadable": 1, "missing": 1}
    data = open_dataset(cache)
    assert [c.id for c in data.clips] == ["one", "whole"]
    again = preprocess(catalog, cache, max_bad=0.6)
    assert (again.already_done, len(again.bad)) == (4, 3)
    make_video(root / "missing.avi", 9)
    assert preprocess(catalog, cache, max_bad=0.6).already_done == 4
    assert open_dataset(cache).verdicts == {"ok": 2, "short": 1, "truncated": 1, "unreadable": 1}


def test_preprocess__pipes_and_devices_are_listed_and_not_opened(make_video, tmp_path):
    """There are two pipes, because files of the same size are hashed before decoding."""
    make_video(tmp_path / "v/whole.avi", 10)
    for name in ("pipe", "pipe2"):
        os.mkfifo(tmp_path / f"v/{name}.avi")
    (tmp_path / "v/endless.avi").symlink_to("/dev/zero")
    catalog = catalog_of(tmp_path / "v", ["pipe", "endless", "whole", "pipe2"])
    result = preprocess(catalog, tmp_path / "c", max_bad=1)
    assert result.verdicts == {"ok": 1, "unreachable": 3}
    assert {one.reason for one in result.bad} == {"a pipe, socket or device, not a regular file"}
    assert [clip.id for clip in open_dataset(tmp_path / "c").clips] == ["whole"]


def test_retry_bad__repeats_only_unusable_clips(make_video, tmp_path):
    root, cache = tmp_path / "v", tmp_path / "c"
    for name, frames in (("late", 9), ("whole", 10)):
        make_video(root / f"{name}.avi", frames)
    (root / "text.avi").write_text("no video")
    catalog = catalog_of(root, ["late", "text", "whole"])
    # Shorter than the start of the decoder process, as on a busy machine.
    first = preprocess(catalog, cache, max_bad=1, deadline=0.01)
    assert first.verdicts["timeout"] >= 1
    lost = [one.clip.id for one in first.bad]
    before = {file: file.read_bytes() for file in (cache / "nucla").rglob("*/0*") if file.is_file()}
    assert preprocess(catalog, cache, max_bad=1).already_done == 3
    retried = preprocess(catalog, cache, max_bad=1, retry_bad=True)
    assert (retried.already_done, retried.verdicts) == (3 - len(lost), {"ok": 2, "unreadable": 1})
    # Committed files do not change; the new results are in a new shard.
    assert before.items() <= {file: file.read_bytes() for file in before}.items()
    data = open_dataset(cache)
    assert data.verdicts == {"ok": 2, "unreadable": 1}
    for name in ("late", "whole"):
        np.testing.assert_array_equal(data.embeddings([name])[0], embedded(root / f"{name}.avi")[0])
    assert preprocess(catalog, cache, max_bad=1).already_done == 3


def test_preprocess__other_settings_need_another_name_or_overwrite(videos, tmp_path):
    catalog = catalog_of(videos, ["c0", "c1"])
    preprocess(catalog, tmp_path)
    other = SETTINGS.changed(frames=2)
    with pytest.raises(FingerprintError, match="frames: 3 in the cache, 2 requested"):
        preprocess(catalog, tmp_path, other)
    preprocess(catalog, tmp_path, other, name="two")
    preprocess(catalog, tmp_path, other, overwrite=True)
    assert open_dataset(tmp_path, "nucla").spec.frames == open_dataset(tmp_path, "two").spec.frames == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    with pytest.raises(CacheError, match="does not remove it"):
        preprocess(catalog, tmp_path, name="mine", overwrite=True)
    assert (tmp_path / "mine/thesis.txt").exists()
    for name in ("../up", ".hidden", "a/b", " "):
        with pytest.raises(ConfigError, match="plain folder name"):
            preprocess(catalog, tmp_path, name=name)


def test_preprocess__refuses_a_second_run_at_the_same_time(videos, tmp_path):
    catalog, refused = catalog_of(videos, ["c0", "c1"]), []

    def meanwhile(_):
        with pytest.raises(CacheError, match="another dtsf process is writing"):
            preprocess(catalog, tmp_path)
        refused.append(1)

    assert preprocess(catalog, tmp_path, on_progress=meanwhile).verdicts == {"ok": 2}
    assert len(refused) == 2


SCRIPT = """
import json, sys
from pathlib import Path
from dtsf.pipeline.datasets.catalog import SourceCatalog
from dtsf.pipeline.preprocess import preprocess
from dtsf.pipeline.settings import PreprocessSettings

# Without ``if __name__ == "__main__"``: no worker runs the script again.
catalog = SourceCatalog.model_validate_json(Path(sys.argv[1]).read_text())
settings = PreprocessSettings(**json.loads(sys.argv[3]), workers=int(sys.argv[4]), shard_size=int(sys.argv[5]))
preprocess(catalog, Path(sys.argv[2]), settings)
"""


def start_script(tmp_path, catalog, cache, workers, shard_size=1):
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "catalog.json").write_text(catalog.model_dump_json())
    arguments = [tmp_path / "script.py", tmp_path / "catalog.json", cache, json.dumps(SMALL), str(workers), str(shard_size)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *arguments], stderr=subprocess.PIPE, env=environment, start_new_session=True)


def test_preprocess__resumed_after_kill_equals_undisturbed(make_video, tmp_path):
    for k in range(12):
        make_video(tmp_path / f"v/c{k}.avi", 30 + k, 640, 480)
    catalog = catalog_of(tmp_path / "v", [f"c{k}" for k in range(12)])
    preprocess(catalog, tmp_path / "whole")
    process = start_script(tmp_path, catalog, tmp_path / "killed", 1)
    wait_until(lambda: len(list((tmp_path / "killed").glob("nucla/shards/0*.json"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL
    result = preprocess(catalog, tmp_path / "killed", shard_size=1)
    assert 2 <= result.already_done < 12
    whole, killed = open_dataset(tmp_path / "whole"), open_dataset(tmp_path / "killed")
    ids = [clip.id for clip in catalog.clips]
    for name in ("embeddings", "pictures", "frame_index"):
        np.testing.assert_array_equal(getattr(killed, name)(ids), getattr(whole, name)(ids))
    assert not list((tmp_path / "killed").rglob("*tmp*"))


def test_preprocess__pixels_equal_decoded_frames(videos, tmp_path):
    settings = PreprocessSettings(encoder="pixels", frames=4, size=96, grid=6, workers=1)
    preprocess(catalog_of(videos, ["c2", "c3"]), tmp_path, settings)
    pixels = open_dataset(tmp_path).embeddings(["c3"])[0]
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels.reshape(4, 96, 96, 3), decode_clip(videos / "c3.avi", 4, 96).frames)
