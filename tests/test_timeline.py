"""Timelines: frames on a grid, windows, bouts, what an interruption leaves, and the files for other programs."""

import csv
import json
import os
import pkgutil
import threading
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest

from dtsf.cache.schema import CacheSpec
from dtsf.errors import ConfigError, DataError, VideoError
from dtsf.pipeline.encoders.choose import Encoder, Identity
from dtsf.pipeline.video import stream
from dtsf.pipeline.video.frames import frames_from
from dtsf.pipeline.video.stretches import LONGEST, cut_stretches
from dtsf.predict.promised import make_question
from dtsf.predict.recordings import find_timelines, plan_recording
from dtsf.recordings.bouts import Bout, BoutFinder, BoutOptions, Media, MediaFile, Timeline
from dtsf.recordings.cameras import CameraStream, EmbeddedCamera, Source
from dtsf.recordings.events import Event, read_events
from dtsf.recordings.movements import find_movements, rest_level, strength
from dtsf.recordings.needed import AsNeeded
from dtsf.recordings.outputs import WRITERS
from dtsf.recordings.page import clock, overlap, render_page
from dtsf.recordings.settings import TimelineSettings
from dtsf.recordings.table import Camera, Recording
from dtsf.recordings.timeline import Model, Plan, find_timeline, write_files
from dtsf.recordings.windows import Grid, WindowBlock, plan_grid
from dtsf.recordings.work import only_one

SIDE = 32
SPEC = CacheSpec(decoder="pyav", frames=8, size=SIDE, crop="centre", encoder="x", grid=3, weights_hash="x", channels=2)
NAMES = ("jump", "nothing", "wave")


def _film(path, n_frames, fps=10, first=0):
    """A video whose eight stripes are the bits of the number of the frame."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"qp": "0", "g": "25", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for k in range(first, first + n_frames):
            bits = [255 * (k >> bit & 1) for bit in range(8)]
            picture = np.ascontiguousarray(np.broadcast_to(np.repeat(bits, 8)[:, None], (64, 64, 3)).astype(np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def _numbers(frames):
    stripes = frames.mean(1).reshape(len(frames), 8, -1).mean(2) > 128
    return (stripes @ (1 << np.arange(8))).tolist()


def _read(source, first, last, rate=10.0, **options):
    with CameraStream(source, SPEC, rate, [(first, last)], **options) as stream:
        stretches = list(iter(stream.read, None))
    moments = [stretch.first + k for stretch in stretches for k in range(len(stretch.frames_FSSC))]
    return moments, [number for stretch in stretches for number in _numbers(stretch.frames_FSSC)]


class _Counter:
    """Encoder that keeps the number of each frame, and how many it was given."""

    def __init__(self):
        self.n = 0

    def __call__(self, frames_FHWC):
        self.n += len(frames_FHWC)
        number_F = np.array(_numbers(frames_FHWC), np.float16)
        return np.broadcast_to(number_F[:, None, None], (len(number_F), 9, 2))


def _classify(x_NVFPC, cameras):
    """A window that begins at frame 30 to 33, or 100 to 103, is an event, and surer the nearer to 30 and 100."""
    first_N = x_NVFPC[:, 0, 0, 0, 0].astype(float)
    p_NK = np.full((len(first_N), 3), 0.02)
    p_NK[:, 1] = 0.96
    for k, event in ((0, 30), (2, 100)):
        near = np.abs(first_N - event) <= 3
        p_NK[near, k], p_NK[near, 1] = 0.9 - 0.02 * np.abs(first_N[near] - event), 0.06
    V = len(cameras)
    return p_NK / p_NK.sum(1, keepdims=True), np.full(len(first_N), 0.25), np.full((len(first_N), V), 1 / V)


AS_NEEDED = AsNeeded((0, 1), 0.5, ((0, 116), (10, 115)))


def _unsure_alone(x_NVFPC, cameras):
    """One camera alone is not sure of an event that begins behind frame 60."""
    p_NK, u_N, w_NV = _classify(x_NVFPC, cameras)
    late_N = (x_NVFPC[:, 0, 0, 0, 0] > 60) & (p_NK[:, 1] < 0.5)
    return p_NK, np.where(late_N & (len(cameras) == 1), 0.8, u_N), w_NV


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Two cameras of one recording; the second began 1 s later, has 20 frames a second, and two chapters."""
    folder = tmp_path_factory.mktemp("films")
    return (
        _film(folder / "a.mp4", 116),
        _film(folder / "b1.mp4", 100, fps=20, first=10),
        _film(folder / "b2.mp4", 110, fps=20, first=110),
    )


def _plan(films, **options):
    a, b1, b2 = map(str, films)
    sources = (
        Source("cam1", 0, ((a, 0.0, 11.6),)),
        Source("cam2", 1, ((b1, 1.0, 6.0), (b2, 6.0, 11.5)), 1.0),
    )
    media = tuple(
        Media(
            view=source.view,
            offset=source.offset,
            files=tuple(MediaFile(path=p, start=x, stop=y) for p, x, y in source.chapters),
        )
        for source in sources
    )
    chosen = {"threshold": 0.5, "shortest": 0.2, "gap": 0.1, "no_event": frozenset({"nothing"})} | options
    return Plan("r1", "s1", sources, media, Grid(10.0, 10, 114, (8, 12), 1), BoutOptions(**chosen))


def _model(counter=None):
    encoder = Encoder(Identity("x", "x", 3, 2, "float16"), counter or _Counter())
    return Model(SPEC, encoder, _classify, NAMES, {"run": "x"})


def _timeline(**changes):
    bouts = (
        Bout(label="wave <b>", start=1.5, stop=3.25, probability=0.9, uncertainty=0.2, view_weights=(0.6, 0.4)),
        Bout(label="jump, high", start=4.0, stop=5.0, probability=0.4, uncertainty=0.7, view_weights=(0.5, 0.5)),
    )
    media = tuple(
        Media(view=name, offset=k, files=(MediaFile(path=f"/films/{name} 1.mp4", start=k, stop=9),))
        for k, name in enumerate(("cam1", "cam2"))
    )
    known = {"recording": "r1", "subject": "s1", "views": ("cam1", "cam2"), "start": 1, "stop": 9, "bouts": bouts}
    return Timeline(**known | {"media": media} | changes)


def test_cut_stretches__end_where_least_moves_and_begin_anew_anywhere():
    pictures = []
    for k in range(200):
        picture = np.full((96, 96, 3), 90, np.uint8)
        if k % 40 >= 14:  # it moves for 2.6 s, then rests for 1.4 s
            picture[20 + 10 * (k % 5) :, 30:60] = 200
        pictures.append(picture)
    stretches = list(cut_stretches(enumerate(pictures), 10, 64, "motion"))
    assert [k for s in stretches for k in range(s.first, s.first + len(s.frames_FSSC))] == list(range(200))
    assert max(len(stretch.frames_FSSC) for stretch in stretches) <= 10 * LONGEST
    inner = [stretch.first for stretch in stretches[1:]]
    assert inner
    assert all(k % 40 <= 15 for k in inner[:-1]), inner
    again = list(cut_stretches(((k, pictures[k]) for k in range(inner[1], 200)), 10, 64, "motion"))
    assert [stretch.first for stretch in again] == inner[1:]
    assert all(np.array_equal(a.frames_FSSC, b.frames_FSSC) for a, b in zip(again, stretches[2:], strict=True))


def test_camera__gives_the_frame_that_is_shown_at_each_moment_of_the_grid(films):
    a, b1, b2 = map(str, films)
    moments, numbers = _read(Source("a", 0, ((a, 0.0, 11.6),)), 5, 114)
    assert moments == list(range(5, 115))
    assert numbers == list(range(5, 115))
    # 20 frames a second from 1 s on, in two files: every second frame.
    moments, numbers = _read(Source("b", 1, ((b1, 1.0, 6.0), (b2, 6.0, 11.5)), 1.0), 10, 114)
    assert moments == list(range(10, 115))
    assert numbers == [10 + 2 * k for k in range(105)]


def test_camera__gives_ranges_each_with_its_end(films):
    a, b1, b2 = map(str, films)
    source = Source("b", 1, ((b1, 1.0, 6.0), (b2, 6.0, 11.5)), 1.0)
    # Over a chapter, next to one another, beyond a key frame (every 2.5 s of a file), before the film and behind it.
    ranges = [(0, 5), (12, 14), (16, 17), (55, 62), (100, 103), (200, 210)]
    with CameraStream(source, SPEC, 10.0, ranges) as stream:
        for asked in (ranges, [(30, 31)], ranges[1:3]):
            if asked is not ranges:
                stream.ask(asked)
            for first, last in asked:
                stretches = list(iter(stream.read, None))
                numbers = [number for stretch in stretches for number in _numbers(stretch.frames_FSSC)]
                assert numbers == [2 * k - 10 for k in range(max(10, first), min(last, 114) + 1)]
                assert [stretch.first for stretch in stretches] == ([first] if numbers else [])


@pytest.mark.parametrize(
    ("ranges", "begins"), [([(0, 3), (10, 12), (20, 30)], [0]), ([(0, 3), (26, 30), (55, 57), (58, 90)], [0, 26, 55])]
)
def test_shown_frames__decoding_leaves_out_what_is_before_a_key_frame(films, monkeypatch, ranges, begins):
    began = []

    def record(source, index, first, needed):
        began.append(first)
        return frames_from(source, index, first, needed)

    monkeypatch.setattr(stream, "frames_from", record)
    found = [moment for moment, _ in stream.shown_frames([{"path": films[0], "start": 0, "stop": 11.6}], 10.0, ranges)]
    assert found == [k for first, last in ranges for k in range(first, last + 1)]
    assert began == begins


def _damage(film, path, frames):
    """A copy of a film with zeros in place of the packets of these frames."""
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[frames]:
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("ranges", [[(0, 115)], [(30, 45), (90, 99)], [(90, 115)]])
def test_shown_frames__damage_in_the_middle_is_noted_at_its_moments(films, tmp_path, ranges):
    broken = _damage(films[0], tmp_path / "a.mp4", slice(38, 42))
    for film, frames in ((films[0], []), (broken, [38, 39, 40, 41])):
        damaged = set()
        shown = stream.shown_frames([{"path": film, "start": 0, "stop": 11.6}], 10.0, ranges, damaged)
        assert [moment for moment, _ in shown] == [k for first, last in ranges for k in range(first, last + 1)]
        assert sorted(damaged) == [k for k in frames if any(first <= k <= last for first, last in ranges)]


def test_camera__a_chapter_that_does_not_decode_does_not_move_the_ones_behind_it(films, tmp_path):
    chapters = [_film(tmp_path / f"{k}.mp4", 30, first=30 * k) for k in range(3)]
    chapters[1] = _damage(chapters[1], tmp_path / "broken.mp4", slice(None))
    source = Source("a", 0, tuple((str(path), 3.0 * k, 3.0 * k + 3) for k, path in enumerate(chapters)))
    moments, numbers = _read(source, 0, 89)
    assert moments == list(range(90))
    assert numbers == [*range(30), *[29] * 30, *range(60, 90)]
    damaged = set()
    parts = [{"path": str(path), "start": start, "stop": stop} for path, start, stop in source.chapters]
    assert [moment for moment, _ in stream.shown_frames(parts, 10.0, [(0, 89)], damaged)] == list(range(90))
    assert damaged == set(range(30, 60))


@pytest.mark.parametrize("asked", [[], [(0, 5)]])
def test_shown_frames__a_part_that_does_not_decode_is_the_same_whatever_was_asked_before(films, tmp_path, asked):
    broken = _damage(films[0], tmp_path / "broken.mp4", slice(None))
    parts = [{"path": str(films[0]), "start": 0.0, "stop": 11.6}, {"path": str(broken), "start": 11.6, "stop": 23.2}]
    damaged = set()
    moments = [moment for moment, _ in stream.shown_frames(parts, 10.0, [*asked, (130, 140)], damaged)]
    assert moments == [k for first, last in asked for k in range(first, last + 1)]
    assert damaged == set(range(130, 141))


def test_camera__has_any_number_of_chapters(films):
    chapters = tuple((str(films[0]), 11.6 * k, 11.6 * k + 11.6) for k in range(3000))
    assert _read(Source("a", 0, chapters), 0, 20) == ([*range(21)], [*range(21)])


def test_embedded_camera__films_no_window_without_a_moment():
    camera = EmbeddedCamera(SimpleNamespace(), None, "float32", 5)
    camera._parts, camera._begins, camera._moved = [np.zeros((10, 2, 3))], [0], [np.zeros(10)]
    assert camera.films(5, 10)
    assert not camera.films(10, 10)


def test_camera__more_moments_than_frames_repeat_the_frame(films):
    moments, numbers = _read(Source("a", 0, ((str(films[0]), 0.0, 11.6),)), 0, 99, rate=25.0)
    assert moments == list(range(100))
    assert numbers == [k * 10 // 25 for k in range(100)]


def test_camera__a_damaged_file_is_named(tmp_path, films):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(films[0].read_bytes()[:2000])
    with pytest.raises(VideoError, match="camera a: .*broken.mp4"):
        _read(Source("a", 0, ((str(broken), 0.0, 9.0),)), 0, 50)


def test_find_timeline__embeds_every_frame_once_and_finds_the_events(films, tmp_path):
    counter = _Counter()
    timeline, _ = find_timeline(_plan(films), _model(counter), tmp_path)
    assert counter.n == 2 * 105
    assert [bout.label for bout in timeline.bouts] == ["jump", "wave"]
    assert [bout.start for bout in timeline.bouts] == pytest.approx([3.0, 10.0], abs=0.15)
    assert timeline.views == ("cam1", "cam2")
    assert timeline.bouts[0].view_weights == (0.5, 0.5)
    best = int(np.argmax(timeline.curve.probability))
    assert abs(timeline.curve.times[best] - 3.4) < 1.5 or abs(timeline.curve.times[best] - 10.4) < 1.5


@pytest.mark.parametrize("needed", [None, AS_NEEDED])
@pytest.mark.parametrize("share", [0.3, 0.62, 0.95])
def test_find_timeline__goes_on_where_a_kill_left_it(films, tmp_path, share, needed):
    def run(out, counter):
        plan = replace(_plan(films), needed=needed)
        timeline, work = find_timeline(plan, replace(_model(counter), classify=_unsure_alone), out)
        return write_files(timeline, work, plan, (), out, "run")

    counter = _Counter()
    files = run(tmp_path / "whole", counter)
    n_whole = counter.n
    work = tmp_path / "cut/.work/r1.jsonl"
    work.parent.mkdir(parents=True)
    whole = (tmp_path / "whole/.work/r1.jsonl").read_bytes()
    work.write_bytes(whole[: int(share * len(whole))])
    counter = _Counter()
    again = run(tmp_path / "cut", counter)
    for file, other in zip(files, again, strict=True):
        if file.suffix in (".csv", ".json", ".vtt"):
            assert file.read_bytes() == other.read_bytes()
    assert share < 0.5 or counter.n < n_whole - 10
    assert work.read_bytes() == whole
    # Done: nothing is decoded, other settings of bouts are a matter of seconds.
    done = _Counter()
    plan = replace(_plan(films, threshold=0.95), needed=needed)
    find_timeline(plan, replace(_model(done), classify=_unsure_alone), tmp_path / "cut")
    assert done.n == 0
    # Another limit is another question.
    find_timeline(replace(plan, needed=replace(AS_NEEDED, limit=0.9)), _model(done), tmp_path / "cut")
    assert done.n


@pytest.mark.parametrize("needed", [None, AS_NEEDED])
def test_find_timeline__damage_is_said_once_for_each_camera(films, tmp_path, needed):
    # As needed, the second camera is read around frame 100 only.
    a, b2 = (_damage(films[k], tmp_path / f"{k}.mp4", where) for k, where in ((0, slice(50, 54)), (2, slice(88, 90))))
    plan = replace(_plan((a, films[1], b2)), needed=needed)
    for out in ("whole", "again", "again"):
        timeline, work = find_timeline(plan, replace(_model(), classify=_unsure_alone), tmp_path / out)
        if needed is None:
            assert [note.split(":")[1].strip() for note in timeline.notes] == [
                "the film is damaged from 5.0 to 5.4 s", "the film is damaged from 10.4 to 10.5 s"
            ]
        assert [note.split(":")[0] for note in timeline.notes] == ["camera cam1 of 'r1'", "camera cam2 of 'r1'"]
        # An interrupted one says the same.
        path = tmp_path / "again/.work/r1.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = work.path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-2]))


def test_find_timeline__another_file_or_offset_begins_again(films, tmp_path):
    find_timeline(_plan(films), _model(), tmp_path)
    plan = _plan(films)
    moved = replace(plan, sources=(plan.sources[0], replace(plan.sources[1], offset=1.1)))
    counter = _Counter()
    find_timeline(moved, _model(counter), tmp_path)
    assert counter.n == 2 * 105


@pytest.mark.parametrize("name", ["movements.REST", "windows.STOPS", "cameras.COVERED"])
def test_find_timeline__another_rule_for_windows_begins_again(films, tmp_path, monkeypatch, name):
    find_timeline(_plan(films), _model(), tmp_path)
    value = pkgutil.resolve_name(f"dtsf.recordings.{name}")
    monkeypatch.setattr(f"dtsf.recordings.{name}", value[::-1] if isinstance(value, tuple) else value * 0.99)
    counter = _Counter()
    find_timeline(_plan(films), _model(counter), tmp_path)
    assert counter.n == 2 * 105


@pytest.mark.parametrize("needed", [None, AsNeeded((1, 0), 0.5, ((0, 116), (410, 460)))])
def test_find_timeline__a_camera_may_begin_after_the_others_end(films, tmp_path, needed):
    plan = replace(_plan(films), needed=needed)
    late = replace(plan.sources[1], chapters=((str(films[1]), 41.0, 46.0),), offset=41.0)
    plan = replace(plan, sources=(plan.sources[0], late), grid=replace(plan.grid, first=0, last=459, lengths=(20,), longest=40))
    counter = _Counter()
    timeline, _ = find_timeline(plan, replace(_model(counter), classify=_classify), tmp_path)
    assert counter.n == 116 + 50
    assert (timeline.start, timeline.stop) == (0, 46)


def _blocks(events, grid, n=400):
    """Blocks of windows that are surer the more they have in common with an event."""
    for number, begin in enumerate(range(0, n, 8 * grid.hop)):
        starts = range(begin, begin + 8 * grid.hop, grid.hop)
        spans = [(start, start + length) for start in starts for length in grid.lengths if start + length <= n]
        values = np.full((len(spans), 3), [0.04, 0.92, 0.04])
        for row, span in zip(values, spans, strict=True):
            for label, *event in events:
                common = overlap(span, event)
                if common > 0.5:
                    row[:] = (1 - common / 1.1) / 2
                    row[NAMES.index(label)] = common / 1.1
        ones_NV = np.ones((len(spans), 1))
        answers = np.array(spans, int).reshape(-1, 2), values, np.full(len(spans), 0.3), ones_NV, np.zeros((1, 0))
        yield WindowBlock(number, begin, begin + 8 * grid.hop, False, *answers, (0,), ones_NV, (0,))


def _bouts(events, grid, **options):
    finder = BoutFinder(NAMES, ("cam1",), grid, BoutOptions(**{"threshold": 0.5, "shortest": 0.0, "gap": 0.0} | options))
    found = []
    for block in _blocks(events, grid):
        found += finder.add(block)
    return found + finder.finish()


def test_bouts__are_the_likeliest_windows_without_overlap():
    grid = Grid(10.0, 0, 399, (20, 30), 2)
    found = _bouts([("jump", 40, 60), ("wave", 100, 130), ("wave", 320, 340)], grid, no_event=frozenset({"nothing"}))
    assert [bout.label for bout in found] == ["jump", "wave", "wave"]
    for bout, (start, stop) in zip(found, ((4, 6), (10, 13), (32, 34)), strict=True):
        assert abs(bout.start - start) <= 0.4
        assert abs(bout.stop - stop) <= 0.6
    assert all(a.stop <= b.start for a, b in zip(found, found[1:], strict=False))
    # The class of pauses is no bout only if it is named.
    assert "nothing" in {bout.label for bout in _bouts([("jump", 40, 60)], grid)}


def test_bouts__options_join_drop_and_doubt():
    grid = Grid(10.0, 0, 399, (20,), 2)
    events = [("jump", 40, 60), ("jump", 66, 86), ("wave", 200, 220)]
    rules = {"no_event": frozenset({"nothing"})}
    assert [b.label for b in _bouts(events, grid, **rules)] == ["jump", "jump", "wave"]
    joined = _bouts(events, grid, gap=1.5, **rules)
    assert [(b.label, b.stop - b.start > 4) for b in joined] == [("jump", True), ("wave", False)]
    assert [b.label for b in _bouts(events, grid, gap=1.5, shortest=3.0, **rules)] == ["jump"]
    assert _bouts(events, grid, threshold=0.97, **rules) == []


def test_plan_grid__takes_the_time_that_a_camera_films():
    grid = plan_grid([(0.0, 20.0), (3.33, 22.0), (1.0, 18.05)], (2.0, 2.5, 4.0), 16, 0.25)
    assert grid.first == 0
    assert grid.last / grid.rate < 22 <= (grid.last + 1) / grid.rate
    assert grid.lengths == tuple(round(seconds * grid.rate) for seconds in (2.0, 2.5, 4.0))


def _moved(spans, n=1200, seed=0):
    """How much moves of a camera at 10 moments a second: more in the spans."""
    moved_T = np.random.default_rng(seed).normal(0, 0.3, n)
    for start, stop in spans:
        moved_T[start:stop] += 3
    return moved_T


def test_movements__from_rest_to_rest():
    spans = [
        (100, 130),
        (200, 260),
        (265, 290),
        (700, 720),
        (900, 902),
    ]  # the third is too near, the last one too short
    moved_VT = np.stack([_moved(spans), _moved(spans, seed=1) - 40])
    moved_VT[1, :400] = np.nan  # this camera begins later
    strength_T = strength(moved_VT)
    level = rest_level(strength_T, 25)
    found = find_movements(strength_T, level, 25)
    assert np.abs(np.array(found) - [(100, 130), (200, 290), (700, 720)]).max() <= 3


@pytest.mark.parametrize("values", ["noise", "still"])
def test_rest_level__nobody_rests(values):
    made = {"noise": _moved([]), "still": np.zeros(1200)}[values]
    assert rest_level(strength(made[None]), 25) is None


class _Moves:
    """Encoder whose embeddings change in these frames."""

    def __init__(self, *spans):
        self._moving = np.concatenate([np.arange(*span) for span in spans])

    def __call__(self, frames_FHWC):
        number_F = np.array(_numbers(frames_FHWC))
        moving_F = np.isin(number_F, self._moving)
        random = np.random.default_rng(0).normal(size=(256, 9, 2))
        made = (0.01 + moving_F[:, None, None]) * random[number_F]
        made[:, 0, 0] = number_F
        return made.astype(np.float32)


@pytest.mark.parametrize(
    ("order", "films", "leads"),
    [
        ((1, 0, 2), ((0, 90), (0, 90), (0, 90)), [(1, 0, 89)]),
        ((1, 0, 2), ((0, 99), (20, 60), (50, 120)), [(1, 20, 59), (0, 0, 19), (0, 60, 98), (2, 99, 119)]),
        ((0, 1), ((0, 20), (50, 60)), [(0, 0, 19), (1, 50, 59)]),
    ],
)
def test_as_needed__at_each_time_the_first_camera_that_films_leads(order, films, leads):
    assert AsNeeded(order, 0.5, films).leads() == leads


@pytest.mark.parametrize(("limit", "opened"), [(0.1, (2, 2)), (0.5, (1, 2)), (0.9, (1, 1))])
def test_find_timeline__opens_the_next_camera_where_a_movement_is_not_sure(films, tmp_path, limit, opened):
    asked, moves, counter = [], _Moves((30, 50), (90, 110)), _Counter()

    def classify(x_NVFPC, cameras):
        asked.append((len(x_NVFPC), cameras))
        p_NK = np.tile([0.1, 0.1, 0.8], (len(x_NVFPC), 1))
        u_N = np.where((x_NVFPC[:, 0, 0, 0, 0] > 60) & (len(cameras) == 1), 0.8, 0.2)
        return p_NK, u_N, np.full((len(x_NVFPC), len(cameras)), 1 / len(cameras))

    def embed(frames_FHWC):
        counter(frames_FHWC)
        return moves(frames_FHWC)

    plan = replace(_plan(films), needed=replace(AS_NEEDED, limit=limit))
    plan = replace(plan, grid=replace(plan.grid, first=0, last=115, lengths=(20,), longest=40))
    timeline, work = find_timeline(plan, replace(_model(embed), classify=classify), tmp_path)
    views = ("cam1", "cam2")
    assert [bout.opened for bout in timeline.bouts] == [views[:n] for n in opened]
    assert [bout.view_weights[1] > 0 for bout in timeline.bouts] == [n == 2 for n in opened]
    # All nine readings of a movement have the same cameras.
    assert all(n % 9 == 0 for n, _ in asked)
    further = counter.n - 116
    assert timeline.decoded == (1.0, pytest.approx(further / 105))
    assert 20 * (sum(opened) - 2) <= further <= 30 * (sum(opened) - 2)
    written = json.loads(WRITERS["json"](timeline))
    assert [bout["opened"] for bout in written["bouts"]] == [list(bout.opened) for bout in timeline.bouts]


def test_find_timeline__as_needed_a_camera_that_is_not_opened_may_be_broken(films, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(films[0].read_bytes()[:2000])
    plan = replace(_plan((films[0], broken, broken)), needed=AS_NEEDED)
    timeline, _ = find_timeline(plan, _model(), tmp_path)
    assert [bout.label for bout in timeline.bouts] == ["jump", "wave"]
    with pytest.raises(VideoError, match=r"camera cam2: .*broken.mp4"):
        find_timeline(plan, replace(_model(), classify=_unsure_alone), tmp_path / "b")


def test_find_timeline__an_error_of_the_caller_ends_the_cameras(films, tmp_path):
    def children():
        return {pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()}

    def fail(_):
        seen.append(children() - before)
        raise ValueError

    before, seen = children(), []
    with pytest.raises(ValueError):  # noqa: PT011
        find_timeline(_plan(films), _model(), tmp_path, on_progress=fail)
    # pytest keeps the traceback, and so the generators.
    assert len(seen[0]) == 2
    assert children() == before


def test_write_files__as_needed_pictures_are_of_the_cameras_that_are_read(films, tmp_path):
    plan = replace(_plan(films), needed=AsNeeded((1, 0), 1.0, ((10, 115), (10, 115))))
    timeline, work = find_timeline(plan, _model(), tmp_path)
    assert timeline.decoded == (0.0, 1.0)
    page = write_files(timeline, work, plan, (), tmp_path, "run")[-1].read_text()
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["bouts"]
    assert all(bout["pictures"] for bout in data["bouts"])


@pytest.mark.parametrize("cut", [None, 0.6])
def test_find_timeline__a_movement_is_one_window_of_the_cameras_that_film_it(films, tmp_path, cut):
    asked = []

    def classify(x_NVFPC, cameras):
        asked.append((len(x_NVFPC), cameras))
        V = len(cameras)
        return (
            np.full((len(x_NVFPC), 3), [0.1, 0.1, 0.8]),
            np.full(len(x_NVFPC), 0.2),
            np.full((len(x_NVFPC), V), 1 / V),
        )

    plan = _plan(films)
    late = replace(plan.sources[1], chapters=((plan.sources[1].chapters[1]),))  # its first chapter is missing
    plan = replace(
        plan, sources=(plan.sources[0], late), grid=replace(plan.grid, first=0, last=115, lengths=(20,), longest=40)
    )
    model = replace(_model(_Moves((30, 50), (90, 110))), classify=classify)
    timeline, work = find_timeline(plan, model, tmp_path)
    if cut:
        whole = work.path.read_bytes()
        work.path.write_bytes(whole[: int(cut * len(whole))])
        again, _ = find_timeline(plan, model, tmp_path)
        assert again == timeline
        assert work.path.read_bytes() == whole
        return
    assert [bout.label for bout in timeline.bouts] == ["wave", "wave"]
    assert [bout.view_weights for bout in timeline.bouts] == [(1.0, 0.0), (0.5, 0.5)]
    for bout, (start, stop) in zip(timeline.bouts, ((3, 5), (9, 11)), strict=True):
        assert abs(bout.start - start) <= 0.3
        assert abs(bout.stop - stop) <= 0.4
    assert asked == [(9, (0,)), (9, (0, 1))]
    assert (timeline.start, timeline.stop) == (0, 11.6)


def test_find_timeline__an_event_may_rest_in_its_middle(films, tmp_path):
    def classify(x_NVFPC, cameras):
        """Only all of frames 30 to 60 is an event."""
        number_NF = x_NVFPC[:, 0, :, 0, 0]
        p_N1 = np.where(number_NF.max(1) - number_NF.min(1) > 18, 0.9, 0.05)[:, None]
        return np.hstack([p_N1, 0.95 - p_N1, 0 * p_N1 + 0.05]), 0 * p_N1[:, 0], np.ones((len(p_N1), len(cameras)))

    plan = _plan(films)
    plan = replace(plan, grid=replace(plan.grid, first=0, last=115, lengths=(20,), longest=40))
    timeline, _ = find_timeline(plan, replace(_model(_Moves((30, 40), (50, 60))), classify=classify), tmp_path)
    (bout,) = timeline.bouts
    assert overlap((bout.start, bout.stop), (3, 6)) > 0.7


def test_csv__is_read_again_by_import(tmp_path):
    file = tmp_path / "r1.csv"
    file.write_text(WRITERS["csv"](_timeline()))
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["Behavior"] for row in rows] == ["wave <b>", "jump, high"]
    assert rows[0]["Weight cam2"] == "0.4000"
    recording = Recording("r1", "s1", (Camera("cam1", (Path("/films/a.mp4"),), 0.0),))
    events, _ = read_events(file, (recording,))
    assert [(event.label, event.start, event.stop) for event in events] == [
        ("wave <b>", 1.5, 3.25),
        ("jump, high", 4.0, 5.0),
    ]


def test_vtt_json_eaf__hold_the_bouts():
    timeline = _timeline()
    vtt = WRITERS["vtt"](timeline)
    assert vtt.startswith("WEBVTT\n")
    assert "00:00:01.500 --> 00:00:03.250\nwave &lt;b&gt;\n" in vtt
    document = json.loads(WRITERS["json"](timeline))
    assert set(document["bouts"][0]) >= {"label", "start", "stop", "probability", "uncertainty", "view_weights"}
    root = ET.fromstring(WRITERS["eaf"](timeline))  # noqa: S314
    slots = {slot.get("TIME_SLOT_ID"): int(slot.get("TIME_VALUE")) for slot in root.iter("TIME_SLOT")}
    found = [
        (slots[one.get("TIME_SLOT_REF1")], slots[one.get("TIME_SLOT_REF2")], one.findtext("ANNOTATION_VALUE"))
        for one in root.iter("ALIGNABLE_ANNOTATION")
    ]
    assert found == [(1500, 3250, "wave <b>"), (4000, 5000, "jump, high")]


@pytest.mark.parametrize("form", ["vtt", "eaf"])
def test_outputs__without_a_time_before_zero_begin_there(form):
    bouts = tuple(
        Bout(label=label, start=start, stop=stop, probability=0.9, uncertainty=0.2, view_weights=(0.6, 0.4))
        for label, start, stop in (("early", -3.0, -1.0), ("at zero", -1.0, 1.0), ("late", 2.0, 3.0))
    )
    text = WRITERS[form](_timeline(start=-3, bouts=bouts))
    assert [label in text for label in ("early", "at zero", "late")] == [False, True, True]
    assert ("00:00:00.000 --> 00:00:01.000" if form == "vtt" else 'TIME_VALUE="0"') in text
    assert all(label in WRITERS["csv"](_timeline(bouts=bouts)) for label in ("early", "at zero", "late"))
    assert (clock(-61.2), clock(-0.2), clock(3599.6)) == ("\u22121:01", "0:00", "1:00:00")


def test_eaf__names_every_chapter_with_its_beginning():
    timeline = _timeline()
    parts = tuple(
        MediaFile(path=f"/films/{name}.mp4", start=start, stop=start + 5) for name, start in (("a", -1), ("b", 4))
    )
    chapters = timeline.model_copy(update={"media": (Media(view="cam1", offset=-1, files=parts),)})
    media = list(ET.fromstring(WRITERS["eaf"](chapters)).iter("MEDIA_DESCRIPTOR"))  # noqa: S314
    assert [(one.get("MEDIA_URL"), one.get("TIME_ORIGIN")) for one in media] == [
        ("file:///films/a.mp4", "1000"),
        ("file:///films/b.mp4", "-4000"),
    ]


@pytest.mark.parametrize("form", sorted(WRITERS))
def test_outputs__a_camera_without_a_file(form, tmp_path):
    """A pipe or an address."""
    timeline = _timeline()
    live = timeline.model_copy(update={"media": tuple(one.model_copy(update={"files": ()}) for one in timeline.media)})
    assert "wave" in WRITERS[form](live)
    assert "wave" in render_page(live, (), lambda _: {}, tmp_path / "r1.html", "run")


def test_page__shows_the_doubtful_bouts_first_and_loads_only_the_video(tmp_path):
    marks = (Event("r1", 1.4, 3.2, "wave <b>", "s1", 2, "m.csv, line 2"),)
    file = tmp_path / "out/r1.html"
    text = render_page(_timeline(), marks, lambda _: {}, file, "run")
    assert '<b>"' not in text.split('id="data">')[1]
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [bout["doubtful"] for bout in data["bouts"]] == [False, True]
    for trusted, doubtful in ((0.0, [False, False]), (1.0, [True, True])):
        known = render_page(_timeline().model_copy(update={"trusted": trusted}), marks, lambda _: {}, file, "run")
        bouts = json.loads(known.split('id="data">')[1].split("</script>")[0])["bouts"]
        assert [bout["doubtful"] for bout in bouts] == doubtful
    assert data["bouts"][0]["mark"].startswith("marked too")
    assert data["bouts"][1]["mark"] == "no mark here"
    url = data["media"][0]["files"][0]["url"]
    assert url == f"{os.path.relpath('/films', file.parent)}/cam1%201.mp4"
    assert "media-src file: &#39;self&#39;" in text
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


@pytest.mark.parametrize(
    ("mark", "missed"),
    [
        ((1.4, 3.2, "wave <b>"), ""),
        ((1.4, 3.2, "jump, high"), "found as wave <b>"),
        ((8.0, 9.0, "jump, high"), "no bout here"),
        ((8.0, 9.0, "swim"), "the run does not know this class"),
        ((90.0, 91.0, "jump, high"), "outside of the timeline"),
        ((8.0, 9.0, "nothing"), ""),
    ],
)
def test_page__a_mark_without_a_bout_of_its_class_says_why(tmp_path, mark, missed):
    timeline = _timeline().model_copy(update={"classes": ("wave <b>", "jump, high")})
    text = render_page(
        timeline, (Event("r1", *mark, "s1", 2, "m.csv, line 2"),), lambda _: {}, tmp_path / "r1.html", "run"
    )
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [one["missed"] for one in data["marks"]] == [missed]
    assert f"{int(bool(missed))} of them {'has' if missed else 'have'} no bout" in text


def test_page__of_many_bouts_and_marks_has_pictures_of_the_most_doubtful(tmp_path):
    numbers = range(3000)
    bouts = tuple(
        Bout(label="a", start=3 * k, stop=3 * k + 2, probability=1 - k / 9000, uncertainty=0.1, view_weights=(1.0,))
        for k in numbers
    )
    marks = [Event("r1", 3 * k + 1, 3 * k + 2.5, "a" if k % 1000 else "b", None, k, "m") for k in numbers]
    timeline = _timeline(bouts=bouts, start=0, stop=9000)
    text = render_page(timeline, marks, lambda seconds: dict.fromkeys(seconds, b"jpeg"), tmp_path / "r1.html", "run")
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [one["start"] for one in data["marks"] if one["missed"] == "found as a"] == [1, 3001, 6001]
    assert {one["mark"] for one in data["bouts"]} == {"marked b", "marked too, 40% in common"}
    shown = [bool(one["pictures"]) for one in data["bouts"]]
    assert (sum(shown), shown[0], shown[-1]) == (997, False, True)
    assert sum(bool(one["pictures"]) for one in data["marks"]) == 3


def _live(source, tmp_path, **options):
    """The timeline of one camera that is still filming."""
    plan = _plan((source, source, source))
    camera = Source("cam1", 0, live=str(source))
    live = replace(plan, sources=(camera,), media=(), grid=replace(plan.grid, first=0, last=1 << 40), idle=1.5)
    bouts = []
    timeline, _ = find_timeline(live, _model(), tmp_path, on_bout=bouts.append, **options)
    assert tuple(bouts) == timeline.bouts
    return timeline


def test_follow__reads_a_file_while_it_grows(tmp_path):
    whole = _film(tmp_path / "whole.ts", 116).read_bytes()
    growing = tmp_path / "growing.ts"
    growing.write_bytes(whole[: len(whole) // 5])

    def write():
        with growing.open("ab") as file:
            for k in range(1, 5):
                time.sleep(0.2)
                file.write(whole[k * len(whole) // 5 : (k + 1) * len(whole) // 5])
                file.flush()

    writer = threading.Thread(target=write)
    writer.start()
    timeline = _live(growing, tmp_path / "out")
    writer.join()
    assert [bout.label for bout in timeline.bouts] == ["jump", "wave"]
    assert [bout.start for bout in timeline.bouts] == pytest.approx([3.0, 10.0], abs=0.15)
    assert timeline.stop > 11


def test_follow__ends_when_it_is_told_to(tmp_path):
    growing = _film(tmp_path / "growing.ts", 80)
    began = time.monotonic()
    stop = threading.Event()
    threading.Timer(3.0, stop.set).start()
    plan = _plan((growing,) * 3)
    live = replace(
        plan,
        sources=(Source("cam1", 0, live=str(growing)),),
        media=(),
        grid=replace(plan.grid, first=0, last=1 << 40),
        idle=600.0,
    )
    timeline, _ = find_timeline(live, _model(), tmp_path / "out", stopped=stop.is_set)
    assert time.monotonic() - began < 60
    assert [bout.label for bout in timeline.bouts] == ["jump"]


def test_follow__a_file_with_its_index_at_the_end_is_refused(tmp_path):
    part = tmp_path / "part.mp4"
    part.write_bytes(_film(tmp_path / "whole.mp4", 100).read_bytes()[:-3000])
    with pytest.raises(VideoError, match=r"part\.mp4.*\.mkv, \.ts"):
        _live(part, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--recordings FILE, or --video"),
        (("--video", "a.mp4", "--video", "b.mp4"), "dtsf sync"),
        (("--recordings", "none.csv"), "none.csv"),
        (("--recordings", "none.csv", "--offset", "1"), "--offset and --views are for --video"),
        (("--recordings", "none.csv", "--wait", "1"), "--wait needs --follow"),
        (("--follow", "--recordings", "none.csv"), "--follow needs --video"),
        (("--video", "a.mp4", "--windows", "2,x"), "--windows"),
        (("--video", "a.mp4", "--threshold", "1.5"), "--threshold"),
        (("--video", "a.mp4", "--as-needed", "2"), "--as-needed 2: give auto"),
    ],
)
def test_timeline__refuses_wrong_words(dtsf, world, words, message):
    assert message in dtsf.refusal("timeline", "run", *words, cwd=world)


def _run(calibration=None):
    """What a plan needs of a run."""
    info = SimpleNamespace(view_names=("cam1", "cam2"), view_regions=(), class_names=NAMES, clip_seconds=[(1.0,) * 7] * 3)
    return SimpleNamespace(folder="run", held_out=None, state=SimpleNamespace(info=info, spec=SPEC, calibration=calibration))


@pytest.mark.parametrize(("offset", "note"), [(2.0, False), (6.0, True), (50.0, True)])
def test_plan_recording__cameras_that_share_no_window_are_named(films, offset, note):
    cameras = Camera("cam1", films[:1], 0.0), Camera("cam2", films[1:2], offset + 5)
    plan = plan_recording(_run(), Recording("r", None, cameras), TimelineSettings(), "table.csv")
    assert any("share less than a window" in one and "cam2" in one for one in plan.notes) == note
    assert plan.grid.last / plan.grid.rate == pytest.approx(max(11.6, offset + 10), abs=0.2)


def test_plan_recording__a_camera_with_few_pictures_is_named(films, tmp_path):
    slow = _film(tmp_path / "slow.mp4", 12, fps=1)
    cameras = Camera("cam1", films[:1], 0.0), Camera("cam2", (slow,), 0.0)
    (note,) = plan_recording(_run(), Recording("r", None, cameras), TimelineSettings(), "table.csv").notes
    assert "camera cam2 of 'r' has 1.0 pictures a second, so most of the 8 frames of an event are repeated" in note


def test_plan_recording__a_film_shorter_than_a_window_is_refused(tmp_path):
    camera = Camera("cam1", (_film(tmp_path / "one.mp4", 1),), 0.0)
    with pytest.raises(DataError, match=r"table.csv: no camera of 'r' films as long as a window \(1 s\): cam1 0.0 to 0.1 s"):
        plan_recording(_run(), Recording("r", None, (camera,)), TimelineSettings(), "table.csv")


@pytest.mark.parametrize(("calibration", "given", "threshold"), [(None, None, 0.25), ("fitted", None, 0.4), ("fitted", 0.7, 0.7)])
def test_plan_recording__threshold_depends_on_the_calibration(films, calibration, given, threshold):
    recording = Recording("r", None, (Camera("cam1", films[:1], 0.0),))
    plan = plan_recording(_run(calibration), recording, TimelineSettings.of(threshold=given), "table.csv")
    assert plan.options.threshold == threshold


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"as_needed": "auto"}, r"--as-needed: run has no answers of held-out groups .*: train again"),
        ({"as_needed": 1.5}, "--as-needed 1.5: give auto, or an uncertainty from 0 to 1"),
        ({"as_needed": 0.5, "live": ("-",)}, "--as-needed 0.5: it is for finished files.*--follow"),
    ],
)
def test_find_timelines__cameras_as_needed_are_refused(films, tmp_path, options, message):
    run = SimpleNamespace(**vars(_run()), question=partial(make_question, None, Path("run")))
    table = [Recording("r", None, (Camera("cam1", films[:1], 0.0),))]
    with pytest.raises(ConfigError, match=message):
        next(find_timelines(run, table, tmp_path, **options))


def test_find_timelines__names_that_are_one_file_on_other_systems_are_refused(films, tmp_path):
    table = [Recording(name, None, (Camera("cam1", films[:1], 0.0, line),)) for line, name in ((2, "Day"), (4, "day"))]
    with pytest.raises(DataError, match="line 4: the results of recording 'day' would replace those of 'Day'"):
        next(find_timelines(_run(), table, tmp_path))


def test_find_timelines__a_broken_recording_is_named_after_all_others(tmp_path, monkeypatch):
    from dtsf.predict import recordings as module

    plan = _plan((Path("a.mp4"),) * 3)

    def find(plan, *_, **__):
        with pytest.raises(DataError, match="another dtsf process"), only_one(tmp_path, plan.name):
            pass
        if plan.name == "b":
            raise VideoError("camera cam1: damaged")
        return _timeline(recording=plan.name), None

    fakes = {
        "plan_recording": lambda _, one, *__: replace(plan, name=one.name),
        "open_model": lambda *_: None,
        "find_timeline": find,
        "write_files": lambda *_: None,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(module, name, fake)
    table = [Recording(name, None, (Camera("cam1", (Path("a.mp4"),), 0.0),)) for name in "abc"]
    found = []
    with pytest.raises(
        VideoError, match="1 of 3 recordings have no timeline, the others have: b: camera cam1: damaged"
    ):
        found.extend(
            one.recording
            for one in module.find_timelines(SimpleNamespace(folder="run", held_out=None), table, tmp_path)
        )
    assert found == ["a", "c"]


@pytest.mark.slow
def test_timeline__of_a_run_from_the_terminal_and_from_python(dtsf, world, tmp_path):
    import dtsf as package

    films = sorted((world / "data").rglob("v0[12]_s01_e00.avi"))[:2]
    options = [word for film in films for word in ("--video", film)]
    words = ("timeline", "run", *options, "--offset", 0, "--offset", 0, "--views", "1,2", "--windows", "0.8")
    answer = dtsf.json(*words, "--out", tmp_path / "a", cwd=world)
    (one,) = answer["recordings"]
    assert set(one) >= {"recording", "bouts", "views", "start", "stop", "files"}
    assert all(Path(file).is_file() for file in one["files"])
    run = package.load(world / "run")
    recording = Recording("r", None, tuple(Camera(str(k + 1), (film,), 0.0) for k, film in enumerate(films)))
    windows = list(run.windows(recording, windows="0.8"))
    assert windows
    assert abs(sum(windows[0].probabilities.values()) - 1) < 1e-4
    (timeline,) = run.timeline((recording,), tmp_path / "b", windows="0.8")
    assert [bout.label for bout in timeline.bouts] == [bout["label"] for bout in one["bouts"]]
