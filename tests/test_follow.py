"""``dtsf timeline --follow`` of a camera on the network: ``rtsp://`` against a sender on this machine."""

import socket

import numpy as np
import pytest
from rtsp_camera import Camera

from dtsf.errors import VideoError
from dtsf.pipeline.video.stream import live_frames

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
