"""dtsf predict: views, the film, and the watched folder."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

import dtsf as package
from dtsf.cache.schema import ViewRegion
from dtsf.errors import ConfigError, DataError, DtsfError
from dtsf.pipeline.watch import PREDICTION, Watch
from dtsf.report.film import FOOT, GAP, HEAD, NO_FONT, Caption, find_font, write_film

CAPTION = {"label": "wave", "probabilities": {"wave": 0.9, "sit": 0.1}, "uncertainty": 0.1, "view_weights": [1.0]}


def _frames(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_film__shows_the_views_side_by_side_for_the_longest(dtsf, world, performance, make_video, tmp_path):
    long = make_video(tmp_path / "grey.mp4", 90, width=96, height=96, codec="libx264")
    words = ("predict", *performance[:2], long, "--run", "run")
    assert dtsf.json(*words, "--video", tmp_path / "film.mp4", cwd=world) == dtsf.json(*words, cwd=world)
    frames = _frames(tmp_path / "film.mp4")
    assert len(frames) == 90
    height, width, _ = frames[0].shape
    side = height - HEAD - FOOT
    assert width == 3 * side + 4 * GAP
    # The third view has a red top left quarter on a grey that brightens.
    x = 3 * GAP + 2 * side
    corner = frames[45][HEAD + 20, x + 20].astype(int)
    assert corner[0] > 150
    assert corner[1:].max() < 90
    grey = [int(frame[HEAD + side - 20, x + side - 20].mean()) for frame in (frames[2], frames[40])]
    assert grey[1] > grey[0] + 100
    # The class is written in a bright colour.
    assert frames[0][10:45, : width // 2].max() > 200


@pytest.mark.parametrize("n_views", [1, 5])
def test_write_film__fits_any_number_of_views_and_long_names(tmp_path, n_views):
    frames = np.full((n_views, 3, 64, 64, 3), 200, np.uint8)
    caption = Caption(
        names=[f"{k} {'long name ' * 9}" for k in range(n_views)],
        label="a class with a name that no screen is wide enough for, not even this one \U0001f600",
        probabilities={"one": 1.0},
        uncertainty=0.25,
        view_weights=[1 / n_views] * n_views,
    )
    shown = _frames(write_film(tmp_path / "f.mkv", frames, 7.3, caption))
    assert len(shown) == 3
    assert shown[0].shape[0] % 2 == shown[0].shape[1] % 2 == 0
    for name, message in (("f.gif", r"must end in \.mp4"), ("gone/f.mp4", "does not exist")):
        with pytest.raises(ConfigError, match=message):
            write_film(tmp_path / name, frames, 5, caption)


def test_write_film__takes_any_file_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("12:30:05 cam1.mp4", "pipe:1.mkv", "-.mov")
    for name in names:
        write_film(Path(name), np.zeros((1, 2, 64, 64, 3), np.uint8), 5, Caption([name], **CAPTION))
        assert len(_frames(tmp_path / name)) == 2
    assert {path.name for path in tmp_path.iterdir()} == {*names}


@pytest.mark.parametrize("label", ["wave", "жест", "挥手", "\U00030000", "\x1b\n"])
def test_write_film__draws_a_label_or_its_number_and_the_reason(tmp_path, label, monkeypatch):
    from PIL import ImageDraw

    drawn = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _, point, words, *rest: drawn.append(words))
    words = CAPTION | {"label": label, "probabilities": {"sit": 0.1, label: 0.9}}
    write_film(tmp_path / "f.mp4", np.zeros((1, 2, 64, 64, 3), np.uint8), 5, Caption(["cam1"], **words))
    shown = "".join(letter if letter.isprintable() else " " for letter in label)
    drawable = find_font(shown, 30) is not None and bool(shown.strip())
    assert ("class 2" in drawn, shown in drawn, NO_FONT in drawn) == (not drawable, drawable, not drawable)
    # Pillow's own font has Latin letters.
    assert drawable or label != "wave"


def test_predict_command__warns_about_many_videos_and_refuses_options_that_do_not_fit(dtsf, world, tmp_path):
    videos = sorted((world / "data/multiview_action_videos/a05").glob("*_e00.avi"))
    others = [shutil.copy(video, tmp_path / f"take{'abcdef'[k]}.avi") for k, video in enumerate(videos[:4])]
    few, many = dtsf("predict", videos[0], "--run", "run", cwd=world), dtsf("predict", *others, "--run", "run", cwd=world)
    assert few.returncode == many.returncode == 0, many.stderr
    assert "--watch" not in few.stderr
    assert "4 videos" in many.stderr
    assert "--watch FOLDER --once" in many.stderr
    assert "both of camera '1' by their names" in dtsf.refusal("predict", *videos, "--run", "run", cwd=world)
    with pytest.raises(DataError, match="gone"):
        next(iter(Watch(tmp_path / "gone")))
    assert "--watch" in dtsf.refusal("predict", "a.mp4", "--run", "run", "--watch", tmp_path, cwd=world)
    assert "no videos given" in dtsf.refusal("predict", "--run", "run", cwd=world)
    dtsf.refusal("predict", "a.mp4", "--run", "run", "--video", "film.gif", cwd=world)


def test_watch__predicts_once_and_again_after_a_new_view(dtsf, world, performance, tmp_path):
    *early, late = performance
    first = tmp_path / "in/first"
    first.mkdir(parents=True)
    for video in early:
        shutil.copy(video, first)
    for folder in ("broken", ".hidden"):
        (tmp_path / "in" / folder).mkdir()
        (tmp_path / "in" / folder / "cam1.mp4").write_bytes(b"no video")
    words = ("predict", "--run", world / "run", "--watch", "in", "--settle", "0.2", "--once", "--json")
    done = dtsf(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    broken, answered = (json.loads(line) for line in done.stdout.splitlines())
    assert (broken["performance"], answered["performance"]) == ("broken", "first")
    assert "cam1.mp4" in broken["error"]
    label = package.load(world / "run").predict(early).label
    written = json.loads((first / PREDICTION).read_text())
    assert answered["label"] == written["label"] == label
    assert len(written["view_weights"]) == 2
    assert not (tmp_path / "in/.hidden" / PREDICTION).exists()
    # The third view completes the performance. A fourth view, which the training did not have, is used too.
    for n_views, name in ((3, late.name), (4, "v10_again.avi")):
        shutil.copy(late, first / name)
        again = json.loads(dtsf(*words, cwd=tmp_path).stdout)
        assert again["performance"] == "first"
        assert len(again["view_weights"]) == n_views


def test_predict__uses_the_named_views(dtsf, world, performance, tmp_path):
    run = package.load(world / "run")
    whole = run.predict(performance)
    # The order of the videos does not matter if their views are named.
    turned = run.predict(performance[::-1], views="3,2,1")
    assert turned.probability == pytest.approx(whole.probability, abs=1e-5)
    assert turned.view_weights == pytest.approx(whole.view_weights[::-1], abs=1e-5)
    # The branch over all views is used only for named views: by the option, or by the name of the file or its folder.
    named, other = (run.predict(performance[1:2], views=views).probabilities for views in ("2", "3"))
    assert named != pytest.approx(other)
    for name, by in (("v02_x.avi", "name"), ("view_2/x.avi", "folder"), ("x.avi", "order")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        alone = run.predict([shutil.copy(performance[1], tmp_path / name)])
        assert (alone.views, alone.views_by) == (("1",) if by == "order" else ("2",), (by,))
        assert (alone.probabilities == pytest.approx(named, abs=1e-6)) == (by != "order")
        assert [note.endswith("--views names the cameras") for note in alone.notes] == [True] * (by == "order")
    shuffled = run.predict([performance[k] for k in (2, 0, 1)])
    assert shuffled.views == ("3", "1", "2")
    assert shuffled.probability == pytest.approx(whole.probability, abs=1e-5)
    words = ("predict", performance[1], "--run", "run", "--views")
    assert dtsf.json(*words, "2", cwd=world)["probabilities"] == pytest.approx(named, abs=1e-5)
    assert "unknown view '9'" in dtsf.refusal(*words, "9", cwd=world)
    for views, message in (("1,1,2", "3 different views"), ("1,2", "3 different views"), ("1,2,9", "unknown view '9'")):
        with pytest.raises(DtsfError, match=message):
            run.predict(performance, views=views)


def test_predict__uses_the_regions_of_the_training_clips(dtsf, world, tmp_path):
    words = ("--limit", 3, "--workers", 1, "--region", "0.3 0 0.4 1", "--ignore", "0.1 0 0.1 0.1", "--cache", "c")
    dtsf.said("preprocess", "nucla", "--root", world / "data", *words, cwd=tmp_path)
    data = package.open_cache(tmp_path / "c")
    ids = [clip.id for clip in data.clips]
    videos = [next((world / "data").rglob(clip.path)) for clip in data.clips]
    plain = package.load(world / "run")
    regions = {"view_regions": data.info.view_regions}
    state = plain.state.model_copy(update={"info": plain.state.info.model_copy(update=regions)})
    # The cache rounds to float16.
    expected = pytest.approx(plain.classify(data.embeddings(ids)).probabilities, abs=1e-4)
    assert replace(plain, state=state).predict(videos).probabilities == expected
    assert plain.predict(videos).probabilities != expected
    one = {"ignore": ["0.1 0 0.1 0.1"] * 3}
    assert plain.predict(videos, region=[(0.3, 0, 0.4, 1)], **one).probabilities == expected
    with pytest.raises(DataError, match="--region: 2 given for 3 videos"):
        plain.predict(videos, region=["0 0 1 1"] * 2)
    with pytest.raises(ConfigError, match="--ignore must be four numbers"):
        plain.predict(videos, ignore=["0 0"])
    varies = {"view_regions": (ViewRegion(varies=True),) * 3}
    state = plain.state.model_copy(update={"info": plain.state.info.model_copy(update=varies)})
    with pytest.raises(ConfigError, match="the training clips of view 1 have different regions"):
        replace(plain, state=state).predict(videos)


def test_watch__waits_until_files_no_longer_grow(tmp_path):
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
    found = next(iter(Watch(tmp_path, settle=0.5, poll=0.05)))
    assert grown.is_set()
    writer.join()
    assert [video.name for video in found.videos] == ["cam2.mp4", "cam10.mp4"]
    assert found.seen["cam2.mp4"][0] == 800


def test_watch__ends_cleanly_on_a_signal(world, tmp_path):
    command = [Path(sys.executable).with_name("dtsf"), "predict", "--run", world / "run", "--watch", tmp_path]
    options = {"stderr": subprocess.PIPE, "text": True, "env": os.environ | {"COLUMNS": "200"}}
    watches = {number: subprocess.Popen(command, **options) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, watch in watches.items():
            assert "watching" in watch.stderr.readline()
            watch.send_signal(number)
            _, rest = watch.communicate(timeout=60)
            assert watch.returncode == 0
            assert "stopped: 0 performances" in rest
            assert "Traceback" not in rest
    finally:
        for watch in watches.values():
            watch.kill()
