"""``dtsf sync``: offsets by sound and movement, and refusals. Most tests use tracks; one uses files."""

import csv
import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from dtsf.recordings.sync import SyncError, sync_recordings, sync_tracks
from dtsf.recordings.table import read_recordings, recording_of
from dtsf.recordings.tracks import RATE, make_track, read_track

RNG = np.random.default_rng


def events(seconds, seed, rows=1):
    """A common cause: bursts at random times, as people move and talk."""
    rng, values = RNG(seed), np.zeros((rows, int(seconds * RATE)))
    for begin in np.cumsum(rng.exponential(2.5, int(seconds))):
        first, length = int(begin * RATE), int(rng.uniform(0.2, 1.5) * RATE)
        if first + length < values.shape[1]:
            values[:, first : first + length] += rng.uniform(0.3, 1, (rows, 1)) * np.hanning(length)
    return values


def seen(cause, offset, seconds, noise=0.2, seed=0, rate=1.0):
    """What a camera that begins at ``offset`` has of a cause. ``rate``: of its clock."""
    at = (offset + np.arange(int(seconds * RATE)) / RATE * rate) * RATE
    values = np.array([np.interp(at, np.arange(len(row)), row) for row in cause])
    return np.abs(values + RNG(seed).normal(0, noise * cause.std(), values.shape))


def track(offset, seconds, cause=None, sound=None, **options):
    moved = seen(events(200, 1) if cause is None else cause, offset, seconds, **options)[0]
    heard = np.zeros((1, len(moved))) if sound is None else seen(sound, offset, seconds, **options)
    return make_track(moved, heard)


def test_sync_tracks__finds_offsets_before_and_behind_the_reference_by_movement():
    found = sync_tracks([track(30, 90, seed=1), track(2.34, 60, seed=2), track(71.2, 80, seed=3)])
    assert [camera.by for camera in found] == ["reference", "movement", "movement"]
    assert [camera.offset for camera in found] == pytest.approx([0, -27.66, 41.2], abs=0.03)


def test_sync_tracks__sound_comes_first_and_movement_helps_where_it_is_missing_or_only_noise():
    sound = events(200, 2, rows=3)
    noise = RNG(5).random((3, 4000))
    a, b = track(0, 80, sound=sound, seed=1), track(5.5, 80, sound=sound, seed=2)
    deaf, noisy = track(3.25, 80, seed=3), track(1.5, 80, seed=4)
    noisy = replace(noisy, sound=make_track(noise[0], noise).sound)
    found = sync_tracks([a, b, deaf, noisy])
    assert [camera.by for camera in found] == ["reference", "sound", "movement", "movement"]
    assert [camera.offset for camera in found] == pytest.approx([0, 5.5, 3.25, 1.5], abs=0.03)


def test_sync_tracks__camera_without_common_time_with_the_first_is_placed_by_the_others():
    found = sync_tracks([track(0, 60, seed=1), track(80, 60, seed=2), track(30, 80, seed=3)])
    assert [camera.offset for camera in found] == pytest.approx([0, 80, 30], abs=0.05)


SILENCE = np.zeros((1, 3000))
ONE_BANG = np.repeat([0.0, 50.0, 0.0], [1000, 20, 1980])
BEAT = np.tile(np.hanning(50), 60)
THREE_JOLTS = np.isin(np.arange(3000), np.add.outer([900, 955, 1055], np.arange(20))) * 5.0


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("another recording", track(0, 80, cause=events(200, 9))),
        ("nothing moves", make_track(np.zeros(3000), SILENCE)),
        ("too short", track(4, 8)),
        ("only noise", make_track(RNG(3).random(3000), SILENCE)),
    ],
)
def test_sync_tracks__refuses_without_agreement(name, other):
    camera = sync_tracks([track(0, 80, seed=1), other])[1]
    assert (camera.offset, camera.by) == (None, None)
    assert camera.trust < 1
    assert "trust" in camera.reason


@pytest.mark.parametrize("values", [ONE_BANG, BEAT, THREE_JOLTS], ids=["one bang", "a regular beat", "three jolts"])
def test_sync_tracks__one_bang_three_jolts_or_a_regular_beat_is_no_agreement(values):
    values = np.pad(values, (0, 3000), mode="wrap" if values is BEAT else "edge")
    first, second = (make_track(np.roll(values, 150 * k) + RNG(k).random(6000), np.zeros((1, 6000))) for k in (0, 1))
    camera = sync_tracks([first, second])[1]
    assert camera.offset is None


@pytest.mark.parametrize("seed", range(3))
def test_sync_tracks__where_a_file_begins_and_ends_is_nothing_that_is_heard(seed):
    heard = 1 + 0.3 * RNG(seed).random((2, 3, 1000))
    heard[..., :12] = heard[..., -12:] = 1e-4  # a codec begins and ends softly
    camera = sync_tracks([make_track(None, one, (0, 1000)) for one in heard])[1]
    assert camera.offset is None


def test_sync_tracks__different_recordings_are_never_trusted():
    tracks = [track(0, 40 + 5 * seed, cause=events(200, 100 + seed)) for seed in range(12)]
    trusts = [sync_tracks([a, b])[1].trust for k, a in enumerate(tracks) for b in tracks[:k]]
    assert max(trusts) < 1
    assert len(trusts) == 66


def test_sync_tracks__sound_and_movement_that_contradict_each_other_are_refused():
    sound = events(200, 2, rows=3)
    a, b, c = track(0, 80, sound=sound, seed=1, noise=0.5), track(5.5, 80, seed=2), track(8, 80, sound=sound, seed=2, noise=0.5)
    camera = sync_tracks([a, replace(b, sound=c.sound)])[1]
    assert camera.offset is None
    assert "sound says 8.00 s but movement says 5.50 s" in camera.reason


def test_sync_tracks__drift_is_measured_and_the_offset_is_right_in_the_middle():
    cause = events(900, 4)
    found = sync_tracks([track(0, 800, cause=cause, seed=1), track(6, 700, cause=cause, rate=1.0003, seed=2)])[1]
    assert found.drift == pytest.approx(3600 * 0.0003, abs=0.1)
    assert found.offset == pytest.approx(6 + 350 * 0.0003, abs=0.05)
    assert found.drift_error == pytest.approx(350 * 0.0003, abs=0.03)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Writes a video of a square that moves as a cause says, with clicks at the same times."""
    import av

    folder = tmp_path_factory.mktemp("film")

    def make(name, offset, seconds, fps, *, sound=False, seed=0):
        motion, rng = events(80, 11)[0], RNG(seed)
        heard = events(80, 12)[0]
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("mpeg4", rate=fps)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
            place = 0.0
            for k in range(int(seconds * fps)):
                place += 12 * motion[int((offset + k / fps) * RATE)] * 30 / fps
                picture = rng.normal(90, 2, (64, 96, 3)).clip(0, 255).astype(np.uint8)
                picture[20:44, int(place) % 70 : int(place) % 70 + 24] = 220
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
            if audio is not None:
                at = (offset + np.arange(int(seconds * 16000)) / 16000) * RATE
                loud = np.interp(at, np.arange(len(heard)), heard) + 0.02
                wave = (0.3 * loud * rng.normal(size=len(loud))).astype(np.float32)[None]
                for first in range(0, wave.shape[1] - 1024, 1024):
                    frame = av.AudioFrame.from_ndarray(wave[:, first : first + 1024], format="flt", layout="mono")
                    frame.sample_rate, frame.pts = 16000, first
                    container.mux(audio.encode(frame))
                container.mux(audio.encode())
        return folder / name

    return make


def test_sync__files_of_other_rates_with_sound_and_without_and_in_chapters(film, dtsf):
    first = film("a.mp4", 2, 36, 15, sound=True)
    film("b.mkv", 5.2, 36, 12, sound=True, seed=1)
    film("c1.mp4", 0.5, 20, 15, seed=2)
    film("c2.mp4", 20.5, 18, 15, seed=3)
    path = first.with_name("recordings.csv")
    path.write_text("note;View;recording;path\nx;door;lab;a.mp4\n;window;lab;b.mkv\n;roof;lab;c1.mp4\n;roof;lab;c2.mp4\n")
    answer = dtsf.json("sync", "--recordings", path, "--write", cwd=path.parent)
    (lab,) = answer["recordings"]
    assert [camera["by"] for camera in lab["cameras"]] == ["reference", "sound", "movement"]
    assert [camera["offset"] for camera in lab["cameras"]] == pytest.approx([0, 3.2, -1.5], abs=0.1)
    assert len(read_track([first.with_name("c1.mp4"), first.with_name("c2.mp4")]).movement[0]) == pytest.approx(38 * RATE, abs=2)
    with path.open() as file:
        rows = list(csv.DictReader(file, delimiter=";"))
    assert [row["note"] for row in rows] == ["x", "", "", ""]
    assert [camera.offset for camera in read_recordings(path)[0].cameras] == [row["offset"] for row in lab["cameras"]]
    assert rows[3]["offset"] == ""


def test_sync_recordings__a_camera_that_cannot_be_read_does_not_stop_the_others(film, make_video, tmp_path):
    a, b = film("a2.mp4", 2, 24, 10), film("b2.mp4", 5, 24, 10, seed=1)
    cut, short = tmp_path / "cut.mp4", make_video(tmp_path / "short.mp4", 9)
    cut.write_bytes(a.read_bytes()[:3000])
    with pytest.raises(SyncError, match=r"2 cameras: .*cut\.mp4 cannot be opened.*short\.mp4 has .* too few") as error:
        sync_recordings([recording_of([a, cut, b, short])])
    offsets = [camera.offset for camera in error.value.synced[0].cameras]
    assert offsets == [0, None, pytest.approx(3, abs=0.1), None]
    with pytest.raises(SyncError, match="camera '1', whose clock counts, cannot be read") as error:
        sync_recordings([recording_of([cut, a]), recording_of([a, b])])
    assert [camera.offset is None for one in error.value.synced for camera in one.cameras] == [True, True, False, False]


def test_sync_recordings__sound_that_is_sure_needs_no_picture(film):
    # Fewer than 25 pictures would be refused.
    a, b = film("g.mp4", 2, 24, 1, sound=True), film("h.mp4", 3, 24, 1, sound=True, seed=1)
    camera = sync_recordings([recording_of([a, b])])[0].cameras[1]
    assert (camera.by, camera.offset) == ("sound", pytest.approx(1, abs=0.05))


@pytest.mark.parametrize(("rate", "layout"), [(16000, "mono"), (22050, "stereo")])
def test_read_track__the_sound_of_a_stream_may_change_its_form(tmp_path, rate, layout):
    import av

    def noise(path, rate, layout, seed, seconds=4):
        with av.open(str(path), "w", format="mpegts") as container:
            video, audio = container.add_stream("mpeg2video", rate=25), container.add_stream("mp2", rate=rate, layout=layout)
            video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
            for k in range(seconds * 25):
                picture = np.full((48, 64, 3), 40 + k % 2, np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            channels, random = audio.layout.nb_channels, np.random.default_rng(seed)
            for k in range(seconds * rate // 1152):
                values = (random.normal(size=(1, 1152 * channels)) * 3000).astype(np.int16)
                frame = av.AudioFrame.from_ndarray(values, format="s16", layout=layout)
                frame.sample_rate, frame.pts, frame.time_base = rate, k * 1152, Fraction(1, rate)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
            container.mux(video.encode())
        return path.read_bytes()

    whole = tmp_path / "whole.ts"
    whole.write_bytes(noise(tmp_path / "a.ts", 16000, "stereo", 1) + noise(tmp_path / "b.ts", rate, layout, 2))
    alone = read_track([tmp_path / "a.ts"], pictures=False).sound
    both = read_track([whole], pictures=False).sound
    assert np.isfinite(both).all()
    assert both.shape[1] >= alone.shape[1]


def test_sync__one_camera_has_nothing_to_compare_with(film, dtsf):
    path = film("one.mp4", 2, 12, 15)
    failed = dtsf("sync", path, cwd=path.parent)
    assert failed.returncode == 2
    assert "one camera has nothing to compare with" in failed.stderr
    path.with_name("one.csv").write_text("recording,view,path\nlab,door,one.mp4\n")
    (camera,) = dtsf.json("sync", "--recordings", "one.csv", cwd=path.parent)["recordings"][0]["cameras"]
    assert (camera["offset"], camera["reason"]) == (0, "one camera has nothing to compare with")


def test_sync__without_trust_all_is_shown_and_the_exit_code_is_2(film, dtsf):
    a, b = film("d.mp4", 2, 15, 15), film("e.mp4", 40, 15, 15)
    failed = dtsf("sync", a, b, "--json", cwd=a.parent)
    assert failed.returncode == 2
    assert json.loads(failed.stdout)["recordings"][0]["cameras"][1]["offset"] is None
    assert "no offset for 1 camera: camera '2' of 'recording': trust" in failed.stderr
    with pytest.raises(SyncError) as error:
        sync_recordings([recording_of([a, b])])
    assert error.value.synced[0].cameras[1].by is None


@pytest.mark.slow
def test_sync__all_cameras_of_the_shared_sessions(shared_data, dtsf):
    folder = shared_data / "sessions"
    answer = dtsf.json("sync", "--recordings", folder / "recordings.csv", cwd=folder)
    with (folder / "cameras.csv").open() as file:
        truth = {(row["session"], f"cam{row['view']}"): float(row["offset"]) for row in csv.DictReader(file)}
    found = {(one["recording"], cam["view"]): cam["offset"] for one in answer["recordings"] for cam in one["cameras"]}
    assert found.keys() == truth.keys()
    assert max(abs(found[key] - truth[key]) for key in truth) < 0.1
