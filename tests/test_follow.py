"""Timelines under bad conditions: a camera on the network that stops (``rtsp://`` from a sender on this machine), a full disk."""

import resource
import socket

import av
import numpy as np
import pytest
from rtsp_camera import Camera

from dtsf.errors import DataError, VideoError
from dtsf.pipeline.video.stream import live_frames
from dtsf.recordings.windows import WindowBlock
from dtsf.recordings.work import WorkFile, only_one

PICTURES = np.random.default_rng(0).integers(0, 255, (30, 64, 96, 3), np.uint8)
RATE = 8


@pytest.mark.parametrize(("times", "stalls"), [(1, False), (1, True), (2, False)], ids=["off", "silent", "comes back"])
def test_live_frames__camera_that_sends_no_more_is_at_its_end_and_one_that_comes_back_goes_on(times, stalls):
    with Camera(PICTURES, 30, times, stalls) as camera:
        numbers = [number for number, _ in live_frames(camera.url, RATE, 2.0, 1.0, [])]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert numbers[0] == 2 * RATE
    assert len(numbers) >= times * 0.8 * RATE
    assert camera.times == 0


def test_live_frames__address_without_an_answer_is_said_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"rtsp://127.0.0.1:{server.getsockname()[1]}/live"
    with pytest.raises(VideoError, match=f"^{url} cannot be read: Connection refused; check the address") as error:
        next(live_frames(url, RATE, 0.0, 1.0, []))
    assert "\n" not in str(error.value)


def test_live_frames__damaged_frames_are_told_and_do_not_end_the_camera(make_video, tmp_path):
    whole, damaged = make_video(tmp_path / "whole.mkv", 96, fps=24, options={"g": "12"}), tmp_path / "damaged.mkv"
    garbage = np.random.default_rng(0)
    with av.open(str(whole)) as source, av.open(str(damaged), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(packet for packet in source.demux(video=0) if packet.dts is not None):
            kept = av.Packet(garbage.bytes(packet.size)) if 48 <= number < 52 else packet
            kept.pts, kept.dts, kept.time_base, kept.stream = packet.pts, packet.dts, packet.time_base, stream
            kept.is_keyframe = packet.is_keyframe
            out.mux(kept)
    found: set[int] = set()
    shown = [number for number, _ in live_frames(str(damaged), RATE, 0.0, 0.3, [], damaged=found)]
    assert shown == list(range(4 * RATE + 1))
    assert found
    assert found <= {2 * RATE - 1, 2 * RATE, 2 * RATE + 1}


def test_only_one__refuses_a_second_timeline_of_the_recording_in_the_folder(tmp_path):
    refused = pytest.raises(DataError, match="another dtsf process makes the timeline of lab in .*: wait for it, or choose another")
    others = only_one(tmp_path, "yard"), only_one(tmp_path / "b", "lab")
    with only_one(tmp_path, "lab"), others[0], others[1], refused, only_one(tmp_path, "lab"):
        pass
    with only_one(tmp_path, "lab"):
        pass


def test_work_file__goes_on_behind_the_last_whole_block_of_a_full_disk(tmp_path):
    def block(number):
        spans, random = np.zeros((4, 2), int), np.random.default_rng(number).random
        answers = random((4, 8)), random(4), random((4, 3)), random((3, 8))
        return WindowBlock(number, 0, 10, False, spans, *answers, (1, 2, 3), np.ones((4, 3)), (4, 5, 6))

    def fill():
        with WorkFile(path, {}) as work:
            for number in range(20):
                work.add(block(number))

    path, limits = tmp_path / "r.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, limits[1]))
    try:
        with pytest.raises(DataError, match=f"cannot write {path}: .*run it again with more space"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with WorkFile(path, {}) as work:
        kept = work.n_blocks
        work.add(block(kept))
        assert len(list(work.stored())) == kept + 1 > 1
