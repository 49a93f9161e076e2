"""dtsf predict: the film, and the folder that is watched."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import dtsf as package
from dtsf.errors import ConfigError, DataError, DtsfError
from dtsf.pipeline.watch import PREDICTION, Watch
from dtsf.report.film import FOOT, GAP, HEAD, write_film


def _frames(path):
    import av

    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_film_shows_the_views_side_by_side_and_lasts_as_long_as_the_longest(
    dtsf, world, performance, make_video, tmp_path
):
    long = make_video(tmp_path / "grey.mp4", 90, width=96, height=96, codec="libx264")
    words = ("predict", *performance[:2], long, "--run", "run")
    said = dtsf.json(*words, "--video", tmp_path / "film.mp4", cwd=world)
    assert said == dtsf.json(*words, cwd=world)
    frames = _frames(tmp_path / "film.mp4")
    assert len(frames) == 90
    height, width, _ = frames[0].shape
    side = height - HEAD - FOOT
    assert width == 3 * side + 4 * GAP
    # The third view: red in its top left quarter, and a grey that brightens.
    x = 3 * GAP + 2 * side
    corner = frames[45][HEAD + 20, x + 20].astype(int)
    assert corner[0] > 150
    assert corner[1:].max() < 90
    grey = [int(frame[HEAD + side - 20, x + side - 20].mean()) for frame in (frames[2], frames[40])]
    assert grey[1] > grey[0] + 100
    # The words: bright ink where the class is written.
    assert frames[0][10:45, : width // 2].max() > 200


def test_more_videos_than_cameras_are_one_performance_and_that_is_said(dtsf, world):
    videos = sorted((world / "data/multiview_action_videos/a05").glob("*_e00.avi"))
    few, many = dtsf("predict", videos[0], "--run", "run", cwd=world), dtsf("predict", *videos, "--run", "run", cwd=world)
    assert few.returncode == many.returncode == 0, many.stderr
    assert "cameras of one performance" not in few.stderr
    assert f"Treating {len(videos)} videos as {len(videos)} cameras of one performance, but training had" in many.stderr
    assert "--watch FOLDER --once" in many.stderr


@pytest.mark.parametrize("n_views", [1, 5])
def test_film_has_room_for_any_number_of_views_and_any_words(tmp_path, n_views):
    frames = np.full((n_views, 3, 64, 64, 3), 200, np.uint8)
    said = {
        "names": [f"{k} {'long name ' * 9}" for k in range(n_views)],
        "label": "a class with a name that no screen is wide enough for, not even this one \U0001f600",
        "probabilities": {"one": 1.0},
        "uncertainty": 0.25,
        "view_weights": [1 / n_views] * n_views,
    }
    film = write_film(tmp_path / "f.mkv", frames, 7.3, **said)
    shown = _frames(film)
    assert len(shown) == 3
    assert shown[0].shape[0] % 2 == shown[0].shape[1] % 2 == 0
    with pytest.raises(ConfigError, match="must end in .mp4"):
        write_film(tmp_path / "f.gif", frames, 5, **said)
    with pytest.raises(ConfigError, match="there is no folder"):
        write_film(tmp_path / "gone" / "f.mp4", frames, 5, **said)


@pytest.mark.parametrize("name", ["12:30:05 cam1.mp4", "pipe:1.mkv", "-.mov"])
def test_a_film_may_have_any_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_film(Path(name), np.zeros((1, 2, 64, 64, 3), np.uint8), 5, names=[name], **SAID)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(_frames(tmp_path / name)) == 2


SAID = {"label": "wave", "probabilities": {"wave": 0.9, "sit": 0.1}, "uncertainty": 0.1, "view_weights": [1.0]}


@pytest.mark.parametrize("label", ["wave", "жест", "挥手", "\U00030000", "\x1b\n"])
def test_a_label_in_any_letters_is_drawn_or_has_a_number_and_the_reason(tmp_path, label, monkeypatch):
    from PIL import ImageDraw

    from dtsf.report.letters import NO_FONT, font_for

    drawn = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _, place, words, *rest: drawn.append(words))
    said = SAID | {"label": label, "probabilities": {"sit": 0.1, label: 0.9}}
    write_film(tmp_path / "f.mp4", np.zeros((1, 2, 64, 64, 3), np.uint8), 5, names=["cam1"], **said)
    shown = "".join(letter if letter.isprintable() else " " for letter in label)
    if font_for(shown, 30) is None or not shown.strip():
        assert "class 2" in drawn
        assert NO_FONT in drawn
    else:
        assert shown in drawn
        assert NO_FONT not in drawn
    # The built-in font has Latin letters and draws nothing sensible for others.
    assert (label == "wave") <= (NO_FONT not in drawn)


def test_watched_folder_is_answered_once_and_again_when_a_view_is_added(dtsf, world, performance, tmp_path):
    *early, late = performance
    first = tmp_path / "in/first"
    first.mkdir(parents=True)
    for video in early:
        shutil.copy(video, first)
    (tmp_path / "in/broken").mkdir()
    (tmp_path / "in/broken/cam1.mp4").write_bytes(b"no video")
    (tmp_path / "in/.hidden").mkdir()
    (tmp_path / "in/.hidden/cam1.mp4").write_bytes(b"no video")
    words = ("predict", "--run", world / "run", "--watch", "in", "--settle", "0.2", "--once", "--json")
    done = dtsf(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    broken, answered = (json.loads(line) for line in done.stdout.splitlines())
    assert (broken["performance"], answered["performance"]) == ("broken", "first")
    assert "cam1.mp4" in broken["error"]
    assert "1 performances predicted, 1 unusable" in done.stderr
    named = package.load(world / "run").predict(early)
    assert answered["label"] == named.label
    kept = json.loads((first / PREDICTION).read_text())
    assert kept["label"] == named.label
    assert len(kept["view_weights"]) == 2
    assert not (tmp_path / "in/.hidden" / PREDICTION).exists()
    shutil.copy(late, first)
    again = json.loads(dtsf(*words, cwd=tmp_path).stdout)
    assert again["performance"] == "first"
    assert len(again["view_weights"]) == 3
    # Each camera is encoded by itself: of a fourth, which nobody trained with, the run knows something too.
    shutil.copy(late, first / "v10_again.avi")
    assert len(json.loads(dtsf(*words, cwd=tmp_path).stdout)["view_weights"]) == 4


def test_cameras_can_be_named(world, performance):
    run = package.load(world / "run")
    whole = run.predict(performance)
    # Named in another order the same videos are the same performance.
    turned = run.predict(performance[::-1], views="3,2,1")
    assert turned.probability == pytest.approx(whole.probability, abs=1e-5)
    assert turned.view_weights == pytest.approx(whole.view_weights[::-1], abs=1e-5)
    # Of a camera that is not named the picture of all cameras as one says nothing; of one that is, it does.
    alone, named, other = (run.predict(performance[1:2], views=views).probabilities for views in (None, "2", "3"))
    assert named != pytest.approx(alone)
    assert named != pytest.approx(other)
    for views, message in (
        ("1,1,2", "3 different views"),
        ("1,2", "must name 3 different views"),
        ("1,2,9", "unknown view '9'"),
    ):
        with pytest.raises(DtsfError, match=message):
            run.predict(performance, views=views)


def test_the_command_line_hands_the_named_cameras_on(dtsf, world, performance):
    run, words = package.load(world / "run"), ("predict", performance[1], "--run", "run")
    for views in (None, "2"):
        answer = dtsf.json(*words, *(("--views", views) if views else ()), cwd=world)
        said = run.predict(performance[1:2], views=views)
        assert answer["probabilities"] == pytest.approx(said.probabilities, abs=1e-5)
    assert "unknown view '9'" in dtsf.refusal(*words, "--views", "9", cwd=world)


def test_performance_is_taken_only_when_its_files_no_longer_grow(tmp_path):
    (tmp_path / "p").mkdir()
    growing = tmp_path / "p/cam2.mp4"
    (tmp_path / "p/cam10.mp4").write_bytes(b"x" * 10)
    grown = threading.Event()

    def grow():
        for _ in range(8):
            with growing.open("ab") as file:
                file.write(b"x" * 100)
            time.sleep(0.1)
        grown.set()

    writer = threading.Thread(target=grow)
    writer.start()
    watch = Watch(tmp_path, settle=0.5, poll=0.05)
    arrival = next(iter(watch))
    assert grown.is_set()
    writer.join()
    assert [video.name for video in arrival.videos] == ["cam2.mp4", "cam10.mp4"]
    assert arrival.seen["cam2.mp4"][0] == 800
    assert watch.write_prediction(arrival, {"label": "x"})
    assert list(Watch(tmp_path, settle=0.1, poll=0.05, once=True)) == []
    (tmp_path / "p" / PREDICTION).write_text("[]")
    again = Watch(tmp_path, settle=0.1, poll=0.05, once=True)
    assert [again.write_prediction(arrival, {}) for arrival in again] == [True]


def test_watch_refuses_what_it_cannot_do(dtsf, world, tmp_path):
    with pytest.raises(DataError, match="cannot read the folder"):
        next(iter(Watch(tmp_path / "gone")))
    refused = dtsf.refusal("predict", "a.mp4", "--run", "run", "--watch", tmp_path, cwd=world)
    assert "--watch takes the videos from its folder" in refused
    assert "no videos given" in dtsf.refusal("predict", "--run", "run", cwd=world)
    dtsf.refusal("predict", "a.mp4", "--run", "run", "--video", "film.gif", cwd=world)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watch_ends_cleanly_when_asked(world, tmp_path, number):
    words = ["predict", "--run", str(world / "run"), "--watch", str(tmp_path)]
    watch = subprocess.Popen(
        [Path(sys.executable).with_name("dtsf"), *words],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    try:
        assert "watching" in watch.stderr.readline()
        watch.send_signal(number)
        _, rest = watch.communicate(timeout=60)
        assert watch.returncode == 0
    finally:
        watch.kill()
    assert "stopped: 0 performances predicted" in rest
    assert "Traceback" not in rest
