"""The decoder's process: a fault in it costs one clip, and no process outlives the run."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers import alive, wait_until

from dtsf.errors import VideoError
from dtsf.pipeline.video import decoder_process
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.decode import decode_clip
from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, DecodeSettings, decode_all, shared_decoders

SMALL = DecodeSettings(4, 96)
SEND = """
import os, pathlib, sys
from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, DecodeSettings
decoder = Decoder(DecodeSettings(4, 96, deadline=600))
decoder.send(DecodeRequest(pathlib.Path(sys.argv[1])))
"""


@pytest.fixture(scope="module")
def videos(make_video, tmp_path_factory):
    root = tmp_path_factory.mktemp("decoder")
    return [make_video(root / f"c{k}.avi", 8 + k, 64 + 2 * k, 48) for k in range(4)]


@pytest.fixture
def hanging(tmp_path):
    """A pipe without a writer: opening it never returns."""
    path = tmp_path / "hanging.avi"
    os.mkfifo(path)
    return path


def outcome(item):
    return item.status if isinstance(item, VideoError) else item[1]["status"]


def requests_of(*paths):
    return [DecodeRequest(path) for path in paths]


def decode_one(decoder, path):
    decoder.send(DecodeRequest(path))
    return decoder.receive()


def test_decode_all__gives_frames_and_facts_of_decode_clip(videos, tmp_path):
    missing = tmp_path / "missing.avi"
    requests = [*requests_of(*videos), DecodeRequest(videos[3], Span(start=0.1, end=0.2))]
    with Decoder(DecodeSettings(5, 96)) as decoder:
        for request, (frames, facts) in zip(requests, decode_all(decoder, requests), strict=True):
            expected = decode_clip(request.path, 5, 96, span=request.span)
            np.testing.assert_array_equal(frames, expected.frames)
            assert facts == expected.facts()
        before = frames.copy()
        decode_one(decoder, videos[0])
        np.testing.assert_array_equal(frames, before)
        refused = decode_one(decoder, missing)
    assert outcome(refused) == "unreadable"
    assert str(missing) in str(refused)


def test_decode_all__hang_costs_only_its_clip_and_is_not_tried_again(videos, hanging):
    with Decoder(DecodeSettings(4, 96, deadline=3.0)) as decoder:
        items = decode_all(decoder, requests_of(videos[0], hanging, videos[1], videos[2]))
        assert outcome(next(items)) == "ok"
        start = time.monotonic()
        assert outcome(next(items)) == "timeout"
        assert time.monotonic() - start < 5.8
        assert [outcome(item) for item in items] == ["ok", "ok"]


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL])
def test_decode_all__crash_costs_only_its_clip(videos, hanging, how):
    with Decoder(SMALL) as decoder:
        clips = decode_all(decoder, requests_of(videos[0], hanging, videos[1]))
        assert outcome(next(clips)) == "ok"
        first = decoder.pid

        def kill_twice():
            os.kill(first, how)
            wait_until(lambda: decoder.pid != first)
            os.kill(decoder.pid, how)

        killer = threading.Thread(target=kill_twice)
        killer.start()
        crashed = next(clips)
        killer.join()
        assert outcome(crashed) == "crashed"
        assert how.name in str(crashed)
        assert outcome(next(clips)) == "ok"


def test_decode_all__tries_a_clip_again_after_one_crash(videos, hanging):
    """The clip hangs until its child is killed. Then there is a video under its name."""
    with Decoder(SMALL) as decoder:
        clips = decode_all(decoder, requests_of(videos[0], hanging, videos[1]))
        assert outcome(next(clips)) == "ok"
        os.kill(decoder.pid, signal.SIGKILL)
        hanging.unlink()
        hanging.symlink_to(videos[2])
        for path in (videos[2], videos[1]):
            frames, facts = next(clips)
            assert facts["status"] == "ok"
            np.testing.assert_array_equal(frames, decode_clip(path, 4, 96).frames)


def test_decoder__child_that_dies_between_clips_costs_nothing(videos):
    with Decoder(SMALL) as decoder:
        for path in videos[:2]:
            assert outcome(decode_one(decoder, path)) == "ok"
            child = decoder.pid
            os.kill(child, signal.SIGKILL)
            wait_until(lambda child=child: not alive(child))


def test_receive__answer_in_time_counts_however_late_it_is_read(videos):
    with Decoder(DecodeSettings(4, 96, deadline=3.0)) as decoder:
        decoder.send(DecodeRequest(videos[0]))
        time.sleep(3.5)
        assert outcome(decoder.receive()) == "ok"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux ends a child with its parent")
def test_decoder__hanging_child_dies_with_its_killed_parent(hanging):
    script = SEND + "print(decoder.pid, flush=True)\ndecoder.receive()\n"
    with subprocess.Popen([sys.executable, "-c", script, hanging], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        time.sleep(1.0)
        parent.kill()
    try:
        wait_until(lambda: not alive(child))
    finally:
        if alive(child):
            os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs the program unshare")
def test_decoder__works_if_the_parent_is_process_1(videos):
    namespace = ["unshare", "--pid", "--fork", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]
    if subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process namespaces here")
    script = SEND + "print(os.getpid(), decoder.receive()[1]['status'])\ndecoder.close()\n"
    command = [*namespace, sys.executable, "-c", script, videos[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["1", "ok"], done.stderr


def test_decoder__imports_nothing_from_the_current_folder(videos, tmp_path, monkeypatch):
    for name in ("mmap.py", "decord.py"):
        (tmp_path / name).write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    with Decoder(SMALL) as decoder:
        assert outcome(decode_one(decoder, videos[0].absolute())) == "ok"


def test_shared_decoders__serve_the_next_shard_after_one_that_stopped_early(videos, monkeypatch):
    # A deadline that no other test has, so that the decoder is new.
    settings = DecodeSettings(4, 96, deadline=61.0)
    with shared_decoders(settings) as (kept,):
        clips = decode_all(kept, requests_of(*videos))
        assert outcome(next(clips)) == "ok"
        first = kept.pid
    # The second clip was sent and not received: its answer must not count as the first answer of the next shard.
    with shared_decoders(settings) as (again,):
        assert again is kept
        [(frames, _)] = list(decode_all(again, requests_of(videos[3])))
        np.testing.assert_array_equal(frames, decode_clip(videos[3], 4, 96).frames)
        second = again.pid
        assert second != first
        monkeypatch.setattr(decoder_process, "CLIPS_A_CHILD", 2)
        for _ in range(2):
            assert outcome(decode_one(again, videos[0])) == "ok"
        assert again.pid != second
    kept.close()
