"""A watched folder with any content: each performance is handled by itself."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers import resident
from hostile import listing, nothing_outside, put_in_place
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtsf import api
from dtsf.cli.app import app
from dtsf.errors import DataError
from dtsf.pipeline.watch import PREDICTION, Watch, predicted_videos

DTSF = Path(sys.executable).with_name("dtsf")


def watch_once(folder):
    """Return all performances by name, each with a prediction written, and all messages."""
    messages, found = [], {}
    for one, _ in predicting(folder, messages.append, once=True):
        found[one.folder.name] = one
    return found, messages


def predicting(folder, notify, *, once=False, before=lambda one: None):
    """Yield each performance, and whether its prediction was written. ``before``: called before it is written."""
    watch = Watch(folder, settle=0.05, poll=0.03, once=once, notify=notify)
    for one in watch:
        before(one)
        yield one, watch.write_prediction(one, {"label": "x"})


def performance(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"video")
    return folder


def test_watch__takes_all_kinds_of_videos(tmp_path):
    performance(tmp_path / "p1", "cam1.webm", "cam2.MTS", "cam10.h264", "cam3.ts", "notes.txt", "poster.jpg", "x.mp4.part")
    found, messages = watch_once(tmp_path)
    assert [video.name for video in found["p1"].videos] == ["cam1.webm", "cam2.MTS", "cam3.ts", "cam10.h264"]
    assert (found["p1"].ignored, messages) == ((), [])


def test_watch__names_ignored_files_once(tmp_path):
    performance(tmp_path / "p1", "cam1.mp4", "cam2.xyz")
    performance(tmp_path / "p2/camA", "a.mp4")
    performance(tmp_path / "p3", "cam1.mp4")
    (tmp_path / "p3/cam2.mp4").touch()
    (tmp_path / "loose.mp4").write_bytes(b"video")
    (tmp_path / "linked").symlink_to(tmp_path / "p1")
    found, messages = watch_once(tmp_path)
    assert list(found) == ["p1"]
    assert found["p1"].ignored == ("cam2.xyz does not have the ending of a video",)
    text = "\n".join(sorted(messages))
    for words in (
        "linked: is a link",
        "loose.mp4: is in the watched folder itself",
        "p2: no video: 1 video in the subfolder camA",
        "p3: cam2.mp4 is empty; waiting",
    ):
        assert text.count(words) == 1, text


def make_hostile(file, kind, victim):
    """Replace a view, or a prediction, by something else."""
    file.touch()
    text = {"deep": "[" * 500_000, "noise": "\x00\xff", "nan": '{"videos": {"cam1.mp4": [NaN, 1e999]}}'}
    if kind in ("pipe", "folder", "link", "loop"):
        put_in_place(file, kind, victim)
        if kind == "folder":
            (file / "kept").touch()
    elif kind == "many":
        for k in range(1, 90):
            (file.parent / f"cam{k}.mp4").write_bytes(b"none")
    else:
        file.write_bytes({"garbage": os.urandom(3000)}.get(kind, text.get(kind, "").encode()))
        if kind == "huge":
            os.truncate(file, 1 << 42)


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "loop"])
def test_watch__view_that_is_not_a_file_is_a_problem_of_its_performance(tmp_path, kind):
    performance(tmp_path / "in/bad", "cam1.mp4", "cam2.mp4")
    performance(tmp_path / "in/good", "cam1.mp4")
    (tmp_path / "secret.mp4").write_bytes(b"private")
    make_hostile(tmp_path / "in/bad/cam2.mp4", kind, tmp_path / "secret.mp4")
    found, _ = watch_once(tmp_path / "in")
    assert "cam2.mp4 is" in found["bad"].problem
    assert found["good"].problem == ""
    assert watch_once(tmp_path / "in") == ({}, [])


@pytest.mark.parametrize("kind", ["pipe", "link", "loop", "huge", "deep", "noise", "nan"])
def test_watch__replaces_a_hostile_prediction(tmp_path, kind):
    file = performance(tmp_path / "in/p", "cam1.mp4") / PREDICTION
    (tmp_path / "victim").write_text("precious")
    make_hostile(file, kind, tmp_path / "victim")
    found, _ = watch_once(tmp_path / "in")
    assert list(found) == ["p"]
    assert json.loads(file.read_text())["label"] == "x"
    assert (tmp_path / "victim").read_text() == "precious"


def test_write_prediction__failure_is_not_repeated(tmp_path):
    performance(tmp_path / "bad", "cam1.mp4")
    (tmp_path / "bad" / PREDICTION / "kept").mkdir(parents=True)
    performance(tmp_path / "good", "cam1.mp4")
    messages, names = [], []
    for one, _ in predicting(tmp_path, messages.append):
        names.append(one.folder.name)
        if one.folder.name == "late":
            break
        if names == ["bad", "good"]:
            time.sleep(0.3)
            performance(tmp_path / "late", "cam1.mp4")
    assert names == ["bad", "good", "late"]
    assert len(messages) == 1
    assert "bad: cannot write prediction.json" in messages[0]


def test_write_prediction__full_disk_leaves_no_file(tmp_path, monkeypatch):
    performance(tmp_path / "p", "cam1.mp4")
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    found, messages = watch_once(tmp_path)
    assert list(found) == ["p"]
    assert "No space left" in messages[0]
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["cam1.mp4"]


@pytest.mark.parametrize("replaced", [False, True])
def test_write_prediction__performance_was_removed_or_became_a_link(tmp_path, replaced):
    performance(tmp_path / "in/p", "cam1.mp4")
    performance(tmp_path / "in/q", "cam1.mp4")
    (tmp_path / "elsewhere").mkdir()
    messages = []

    def remove(one):
        if one.folder.name == "p":
            shutil.rmtree(one.folder)
            if replaced:
                one.folder.symlink_to(tmp_path / "elsewhere")

    done = predicting(tmp_path / "in", messages.append, once=True, before=remove)
    written = {one.folder.name: ok for one, ok in done}
    assert written == {"p": False, "q": True}
    assert "p: cannot write" in messages[0]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_watch__waits_for_a_folder_that_goes_away(tmp_path):
    folder = tmp_path / "in"
    performance(folder / "p", "cam1.mp4")
    messages, names = [], []

    def notify(message):
        messages.append(message)
        performance(folder / "again", "cam1.mp4")

    for one, _ in predicting(folder, notify):
        names.append(one.folder.name)
        if names == ["p"]:
            shutil.rmtree(folder)
        if one.folder.name == "again":
            break
    assert names == ["p", "again"]
    assert len(messages) == 1
    assert "waiting" in messages[0]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["videos", "cam1.mp4", "x"]), inner, max_size=3),
    max_leaves=12,
).map(lambda document: json.dumps(document).encode())))  # fmt: skip
def test_predicted_videos__any_content_is_accepted(tmp_path, content):
    folder = tmp_path / "p"
    folder.mkdir(exist_ok=True)
    (folder / PREDICTION).write_bytes(content)
    with nothing_outside():
        known = predicted_videos(folder)
    assert known is None or all(isinstance(value, int) for pair in known.values() for value in pair)


def test_predict_watch__internal_error_affects_one_performance(tmp_path, monkeypatch, capfd):
    for name in ("p", "q"):
        performance(tmp_path / name, "cam1.mp4")

    class Run:
        def predict(self, videos, **_):
            if videos[0].parent.name == "p":
                raise ZeroDivisionError("a bug")
            return api.Prediction(label="w\x1b[31m", probability=0.9, uncertainty=0.1, view_weights=(1.0,), probabilities={"w": 1})

    monkeypatch.setattr(api, "load", lambda run: Run())
    app(["predict", "--run", "r", "--watch", str(tmp_path), "--settle", "0.05", "--once", "--json"], standalone_mode=False)
    out, err = capfd.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert "ZeroDivisionError" in first["error"]
    assert second["label"] == "w\x1b[31m"
    assert "\x1b" not in out + err
    assert "1 performance predicted, 1 unusable" in err


HOSTILE = (
    *(("cam1.mp4", kind) for kind in ("pipe", "folder", "link", "garbage", "empty", "many")),
    *((PREDICTION, kind) for kind in ("pipe", "huge", "deep", "folder")),
)


@pytest.fixture
def small_run(dtsf, make_video, tmp_path):
    """A run that predicts in milliseconds: four frames of 96 pixels."""
    rows = ["path,label,group,view,split"]
    for k in range(4):
        make_video(tmp_path / f"v{k}.mp4", 12 + k, codec="libx264")
        rows.append(f"v{k}.mp4,{'ab'[k % 2]},g{k},1,{'train' if k < 2 else 'test'}")
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    words = ("preprocess", "manifest", "--root", "m.csv", "--frames", 4, "--size", 96, "--grid", 3, "--workers", 1)
    dtsf.said(*words, cwd=tmp_path)
    sizes = [f"--set=model.{key}" for key in ("patch=3", "frames=4", "width=16", "depth=1", "state=4")]
    dtsf.said("train", "--protocol", "split", "--epochs", 1, "--out", "run", *sizes, cwd=tmp_path)
    return tmp_path / "run"


@pytest.mark.slow
def test_predict_watch__a_thousand_performances_with_fifty_hostile_ones(small_run, tmp_path):
    video, victim = tmp_path / "v0.mp4", tmp_path / "victim"
    victim.write_text("precious")
    healthy, hostile = [], {}
    for k in range(1000):
        folder = tmp_path / "in" / (f"p{k:04d}" if k % 7 else f"p{k:04d} \x1b[31m\n挥")
        folder.mkdir(parents=True)
        shutil.copy(video, folder / "cam1.mp4")
        if k % 20 == 10:
            name, kind = hostile[folder] = HOSTILE[k // 20 % len(HOSTILE)]
            make_hostile(folder / name, kind, victim)
        else:
            healthy.append(folder)
    words = [DTSF, "predict", "--run", small_run, "--watch", tmp_path / "in", "--settle", "0.2", "--json"]
    log = tmp_path / "out.jsonl"
    with log.open("w") as out, (tmp_path / "err").open("w") as err:
        service = subprocess.Popen(words, stdout=out, stderr=err, env=os.environ | {"OMP_NUM_THREADS": "1"})
    sizes = []
    try:
        # Performances with an empty video get no prediction.
        expected = 1000 - sum(kind == "empty" for _, kind in hostile.values())
        while (done := len(log.read_bytes().splitlines())) < expected:
            assert service.poll() is None, (tmp_path / "err").read_text()
            if done >= 200:
                sizes.append(resident(service.pid))
            time.sleep(0.5)
        service.send_signal(signal.SIGINT)
        assert service.wait(timeout=60) == 0
    finally:
        service.kill()
    said = (tmp_path / "err").read_text()
    assert "\x1b" not in said
    answers = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(answers) == len({answer["performance"] for answer in answers}) == expected
    named = {answer["performance"] for answer in answers if "label" in answer}
    assert {folder.name for folder in healthy} <= named
    for folder in healthy:
        assert json.loads((folder / PREDICTION).read_text())["label"] in "ab"
    unusable = [folder for folder, (name, kind) in hostile.items() if name != PREDICTION and kind != "empty"]
    assert not {folder.name for folder in unusable} & named
    assert victim.read_text() == "precious"
    print(f"memory from {min(sizes) >> 20} to {max(sizes) >> 20} MB")
    assert max(sizes) - min(sizes) < 40_000 << 10
    assert listing(tmp_path / "in").keys() >= {str(folder / "cam1.mp4") for folder in healthy}


def seen_performance(folder):
    """Return a performance that the watcher has seen."""
    performance(folder, "cam1.mp4", "cam 2.mp4")
    return next(one for one, _ in predicting(folder.parent, print, once=True))


def test_performance_opened__reads_the_files_that_were_seen(tmp_path):
    one = seen_performance(tmp_path / "w/p1")
    (tmp_path / "secret.mp4").write_bytes(b"other")
    with one.opened() as folder:
        put_in_place(one.folder / "cam1.mp4", "link", tmp_path / "secret.mp4")
        shutil.move(one.folder, tmp_path / "gone")
        (tmp_path / "w/p1").symlink_to(tmp_path)
        assert folder.name == "p1"
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == dict.fromkeys(("cam1.mp4", "cam 2.mp4"), b"video")
    assert not folder.parent.exists()


@pytest.mark.parametrize("change", ["link", "folder", "pipe", "content", "nothing"])
def test_performance_opened__refuses_what_was_put_in_place_before(tmp_path, change):
    one = seen_performance(tmp_path / "w/p1")
    file = one.folder / "cam1.mp4"
    if change == "folder":
        shutil.move(one.folder, tmp_path / "gone")
        one.folder.symlink_to(tmp_path / "gone")
    elif change == "content":
        file.write_bytes(b"longer video")
    else:
        shutil.copy2(file, tmp_path / "same.mp4")
        put_in_place(file, change, tmp_path / "same.mp4")
    with pytest.raises(DataError, match=r"^cam1.mp4 c|^the folder cannot be opened"), one.opened():
        pass
