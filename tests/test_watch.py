"""A watched folder is filled by others: each performance is its own, whatever lies there."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile import listing, nothing_outside, put_in_place
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dtsf.pipeline import watch as watcher
from dtsf.pipeline.watch import ANSWER, Watch

DTSF = Path(sys.executable).with_name("dtsf")


def watch_once(folder, **options):
    """All arrivals, answered at once; and what was said."""
    said = []
    watch = Watch(folder, settle=0.05, poll=0.03, once=True, say=said.append, **options)
    taken = {}
    for arrival in watch:
        taken[arrival.folder.name] = arrival
        watch.answer(arrival, {"label": "x"})
    return taken, said


def performance(folder, *names):
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(b"video")
    return folder


def test_all_kinds_of_videos_are_taken(tmp_path):
    performance(tmp_path / "p1", "cam1.webm", "cam2.MTS", "cam10.h264", "cam3.ts", "notes.txt", "poster.jpg", "x.mp4.part")
    taken, said = watch_once(tmp_path)
    assert [video.name for video in taken["p1"].videos] == ["cam1.webm", "cam2.MTS", "cam3.ts", "cam10.h264"]
    assert (taken["p1"].left, said) == ((), [])


def test_what_is_not_taken_is_said_once(tmp_path):
    performance(tmp_path / "p1", "cam1.mp4", "cam2.xyz")
    performance(tmp_path / "p2/camA", "a.mp4")
    performance(tmp_path / "p3", "cam1.mp4")
    (tmp_path / "p3/cam2.mp4").touch()
    (tmp_path / "loose.mp4").write_bytes(b"video")
    (tmp_path / "linked").symlink_to(tmp_path / "p1")
    taken, said = watch_once(tmp_path)
    assert list(taken) == ["p1"]
    assert taken["p1"].left == ("cam2.xyz has no ending of a video",)
    text = "\n".join(sorted(said))
    for words in (
        "linked: is a link",
        "loose.mp4: lies in the watched folder itself",
        "p2: no video to ask about: 1 videos in the folder camA below",
        "p3: cam2.mp4 is empty; waiting",
    ):
        assert text.count(words) == 1, text


@pytest.mark.parametrize("kind", ["pipe", "folder", "link", "loop"])
def test_a_view_that_is_no_file_is_said_of_that_performance_alone(tmp_path, kind):
    performance(tmp_path / "in/bad", "cam1.mp4", "cam2.mp4")
    performance(tmp_path / "in/good", "cam1.mp4")
    (tmp_path / "secret.mp4").write_bytes(b"private")
    put_in_place(tmp_path / "in/bad/cam2.mp4", kind, tmp_path / "secret.mp4")
    taken, _ = watch_once(tmp_path / "in")
    assert "cam2.mp4 is" in taken["bad"].problem
    assert taken["good"].problem == ""
    assert watch_once(tmp_path / "in") == ({}, [])


@pytest.mark.parametrize("kind", ["pipe", "link", "loop", "huge", "deep", "noise", "nan"])
def test_an_answer_of_others_is_replaced_and_not_believed(tmp_path, kind):
    file = performance(tmp_path / "in/p", "cam1.mp4", ANSWER) / ANSWER
    (tmp_path / "victim").write_text("precious")
    if kind == "huge":
        os.truncate(file, 1 << 42)
    elif kind in ("deep", "noise", "nan"):
        content = {"deep": "[" * 300_000, "noise": "\x00\xff", "nan": '{"videos": {"cam1.mp4": [NaN, 1e999]}}'}
        file.write_text(content[kind])
    else:
        put_in_place(file, kind, tmp_path / "victim")
    taken, _ = watch_once(tmp_path / "in")
    assert list(taken) == ["p"]
    assert json.loads(file.read_text())["label"] == "x"
    assert (tmp_path / "victim").read_text() == "precious"


def test_an_answer_that_cannot_be_written_is_said_and_not_tried_again(tmp_path):
    performance(tmp_path / "bad", "cam1.mp4")
    (tmp_path / "bad" / ANSWER / "kept").mkdir(parents=True)
    performance(tmp_path / "good", "cam1.mp4")
    said, rounds = [], []
    watch = Watch(tmp_path, settle=0.05, poll=0.03, say=said.append)
    for arrival in watch:
        rounds.append(arrival.folder.name)
        watch.answer(arrival, {})
        if arrival.folder.name == "late":
            break
        if rounds == ["bad", "good"]:
            time.sleep(0.3)
            performance(tmp_path / "late", "cam1.mp4")
    assert rounds == ["bad", "good", "late"]
    assert len(said) == 1
    assert "bad: cannot write prediction.json" in said[0]


def test_a_full_disk_costs_the_answer_and_not_the_watch(tmp_path, monkeypatch):
    from dtsf.files import write as commit

    performance(tmp_path / "p", "cam1.mp4")
    monkeypatch.setattr(commit, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    taken, said = watch_once(tmp_path)
    assert list(taken) == ["p"]
    assert "No space left" in said[0]
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["cam1.mp4"]


def test_a_performance_that_is_removed_while_it_is_asked_about(tmp_path):
    performance(tmp_path / "p", "cam1.mp4")
    performance(tmp_path / "q", "cam1.mp4")
    said, names = [], []
    watch = Watch(tmp_path, settle=0.05, poll=0.03, once=True, say=said.append)
    for arrival in watch:
        names.append(arrival.folder.name)
        if arrival.folder.name == "p":
            shutil.rmtree(arrival.folder)
        watch.answer(arrival, {})
    assert names == ["p", "q"]
    assert not (tmp_path / "p").exists()
    assert "p: cannot write" in said[0]


def test_a_performance_that_becomes_a_link_is_not_written_through(tmp_path):
    performance(tmp_path / "in/p", "cam1.mp4")
    (tmp_path / "elsewhere").mkdir()
    watch = Watch(tmp_path / "in", settle=0.05, poll=0.03, once=True)
    for arrival in watch:
        shutil.rmtree(arrival.folder)
        arrival.folder.symlink_to(tmp_path / "elsewhere")
        assert not watch.answer(arrival, {})
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_watched_folder_that_goes_away_is_waited_for(tmp_path):
    folder = tmp_path / "in"
    performance(folder / "p", "cam1.mp4")
    said, names = [], []

    def say(words):
        said.append(words)
        performance(folder / "again", "cam1.mp4")

    watch = Watch(folder, settle=0.05, poll=0.03, say=say)
    for arrival in watch:
        names.append(arrival.folder.name)
        watch.answer(arrival, {})
        if names == ["p"]:
            shutil.rmtree(folder)
        if arrival.folder.name == "again":
            break
    assert names == ["p", "again"]
    assert [words for words in said if "waiting" in words]
    assert len(said) == 1


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=200), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["videos", "cam1.mp4", "x"]), inner, max_size=3),
    max_leaves=12,
).map(lambda document: json.dumps(document).encode())))  # fmt: skip
def test_no_answer_of_others_is_trouble(tmp_path, content):
    folder = tmp_path / "p"
    folder.mkdir(exist_ok=True)
    (folder / ANSWER).write_bytes(content)
    with nothing_outside():
        known = watcher._answered(folder)
    assert known is None or all(isinstance(value, int) for pair in known.values() for value in pair)


def test_a_defect_of_ours_costs_one_performance(tmp_path, monkeypatch, capfd):
    from dtsf.api import Prediction
    from dtsf.cli.predict import _watch

    for name in ("p", "q"):
        performance(tmp_path / name, "cam1.mp4")

    class Run:
        def predict(self, videos, **_):
            if videos[0].parent.name == "p":
                raise ZeroDivisionError("of ours")
            return Prediction(label="w\x1b[31m", probability=0.9, uncertainty=0.1, view_weights=(1.0,), probabilities={"w": 1})

    _watch(Run(), tmp_path, 0.05, None, once=True, json_=True)
    out, err = capfd.readouterr()
    first, second = map(json.loads, out.splitlines())
    assert "ZeroDivisionError" in first["error"]
    assert second["label"] == "w\x1b[31m"
    assert "\x1b" not in out + err
    assert "1 performances named, 1 unusable" in err


HOSTILE = ("pipe", "folder", "link", "garbage", "empty", "answer-pipe", "answer-huge", "answer-deep", "answer-folder", "many")


def _hostile(folder, kind, video, victim):
    name = folder / "cam1.mp4"
    shutil.copy(video, name)
    if kind in ("pipe", "folder", "link"):
        put_in_place(name, kind, victim)
    elif kind == "garbage":
        name.write_bytes(os.urandom(3000))
    elif kind == "empty":
        name.write_bytes(b"")
    elif kind == "many":
        for k in range(2, 90):
            (folder / f"cam{k}.mp4").write_bytes(b"none")
    else:
        answer = folder / ANSWER
        answer.touch()
        if kind == "answer-huge":
            os.truncate(answer, 1 << 42)
        elif kind == "answer-deep":
            answer.write_text("[" * 500_000)
        elif kind == "answer-pipe":
            put_in_place(answer, "pipe", victim)
        else:
            put_in_place(answer, "folder", victim)
            (answer / "kept").touch()


def _memory(process):
    return int(next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if "VmRSS" in line).split()[1])


@pytest.fixture
def small_run(dtsf, make_video, tmp_path):
    """A run that answers in milliseconds: four frames of 96 pixels."""
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
def test_a_thousand_performances_of_which_one_in_twenty_is_hostile(small_run, tmp_path):
    video, victim = tmp_path / "v0.mp4", tmp_path / "victim"
    victim.write_text("precious")
    healthy, hostile = [], {}
    for k in range(1000):
        folder = tmp_path / "in" / (f"p{k:04d}" if k % 7 else f"p{k:04d} \x1b[31m\n挥")
        folder.mkdir(parents=True)
        if k % 20 == 10:
            hostile[folder] = HOSTILE[k // 20 % len(HOSTILE)]
            _hostile(folder, hostile[folder], video, victim)
        else:
            shutil.copy(video, folder / "cam1.mp4")
            healthy.append(folder)
    words = [DTSF, "predict", "--run", small_run, "--watch", tmp_path / "in", "--settle", "0.2", "--json"]
    log = tmp_path / "out.jsonl"
    with log.open("w") as out, (tmp_path / "err").open("w") as err:
        service = subprocess.Popen(words, stdout=out, stderr=err, env=os.environ | {"OMP_NUM_THREADS": "1"})
    sizes = []
    try:
        # Those with an empty video are waited for, and have no answer.
        expected = 1000 - sum(kind == "empty" for kind in hostile.values())
        while (done := len(log.read_bytes().splitlines())) < expected:
            assert service.poll() is None, (tmp_path / "err").read_text()
            if done >= 200:
                sizes.append(_memory(service.pid))
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
        assert json.loads((folder / ANSWER).read_text())["label"] in "ab"
    unusable = [folder for folder, kind in hostile.items() if not kind.startswith("answer") and kind != "empty"]
    assert not {folder.name for folder in unusable} & named
    assert victim.read_text() == "precious"
    print(f"memory from {min(sizes) >> 10} to {max(sizes) >> 10} MB")
    assert max(sizes) - min(sizes) < 40_000
    assert listing(tmp_path / "in").keys() >= {str(folder / "cam1.mp4") for folder in healthy}
