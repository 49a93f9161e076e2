"""The decoder's process: whatever happens to it costs one clip, and nothing outlives the run."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from forked import alive, wait_until

from dtsf.cache.records import Status
from dtsf.errors import VideoError
from dtsf.pipeline.video.clip import Span
from dtsf.pipeline.video.decode import decode_clip
from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, decode_all, shared_decoders


@pytest.fixture(scope="module")
def videos(make_video, tmp_path_factory):
    root = tmp_path_factory.mktemp("decoder")
    return [make_video(root / f"c{k}.avi", 8 + k, 64 + 2 * k, 48) for k in range(4)]


@pytest.fixture
def hanging(tmp_path):
    """A pipe that nobody writes to: opening it never returns."""
    path = tmp_path / "hanging.avi"
    os.mkfifo(path)
    return path


def outcome(item):
    return item.verdict if isinstance(item, VideoError) else Status(item[1]["verdict"])


def child_of(decoder):
    return decoder._child.pid


def test_frames_and_facts_are_those_of_decoding_here(videos, tmp_path):
    missing = tmp_path / "missing.avi"
    requests = [DecodeRequest(path) for path in (*videos, missing)] + [DecodeRequest(videos[3], Span(start=0.1, end=0.2))]
    with Decoder(5, 96) as decoder:
        for request, item in zip(requests, decode_all(decoder, requests), strict=True):
            if request.path == missing:
                assert outcome(item) == Status.UNREADABLE
                assert str(missing) in str(item)
                continue
            expected = decode_clip(request.path, 5, 96, span=request.span)
            frames, facts = item
            np.testing.assert_array_equal(frames, expected.frames)
            assert facts["frame_index"] == expected.frame_index.tolist()
            assert (facts["declared_frames"], facts["decoded_frames"]) == (
                expected.declared_frames,
                expected.decoded_frames,
            )
            assert (facts["verdict"], facts["reason"]) == (expected.verdict.value, expected.reason)


def test_a_hang_costs_its_clip_and_no_other(videos, hanging):
    requests = [DecodeRequest(path) for path in (videos[0], hanging, videos[1], videos[2])]
    with Decoder(4, 96, deadline=2.0) as decoder:
        items = [outcome(item) for item in decode_all(decoder, requests)]
    assert items == [Status.OK, Status.TIMEOUT, Status.OK, Status.OK]


def kill_twice(decoder, how):
    """Kill the child that is at the hanging clip, and the one that replaces it there."""
    first = child_of(decoder)

    def kill():
        os.kill(first, how)
        while decoder._child is None or child_of(decoder) == first:
            time.sleep(0.01)
        os.kill(child_of(decoder), how)

    killer = threading.Thread(target=kill)
    killer.start()
    return killer


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_costs_its_clip_and_no_other(videos, hanging, how):
    requests = [DecodeRequest(path) for path in (videos[0], hanging, videos[1])]
    with Decoder(4, 96, deadline=60) as decoder:
        clips = decode_all(decoder, requests)
        assert outcome(next(clips)) == Status.OK
        killer = kill_twice(decoder, how)
        crashed = next(clips)
        killer.join()
        assert outcome(crashed) == Status.CRASHED
        assert how.name in str(crashed)
        assert outcome(next(clips)) == Status.OK


def test_a_clip_whose_child_was_killed_once_is_tried_again(videos, hanging):
    """It hangs until its child is gone, then there is a video in its place."""
    with Decoder(4, 96, deadline=60) as decoder:
        clips = decode_all(decoder, [DecodeRequest(path) for path in (videos[0], hanging, videos[1])])
        assert outcome(next(clips)) == Status.OK
        os.kill(child_of(decoder), signal.SIGKILL)
        hanging.unlink()
        hanging.symlink_to(videos[2])
        for path in (videos[2], videos[1]):
            frames, facts = next(clips)
            assert facts["verdict"] == "ok"
            np.testing.assert_array_equal(frames, decode_clip(path, 4, 96).frames)


def test_a_clip_past_its_deadline_is_not_tried_again(videos, hanging):
    with Decoder(4, 96, deadline=1.5) as decoder:
        begun = time.monotonic()
        assert outcome(next(decode_all(decoder, [DecodeRequest(hanging)]))) == Status.TIMEOUT
        assert time.monotonic() - begun < 2.9


def test_a_child_lost_between_clips_costs_nothing(videos):
    with Decoder(4, 96) as decoder:
        for path in videos[:2]:
            decoder.send(DecodeRequest(path))
            assert decoder.receive()[1]["verdict"] == "ok"
            os.kill(child_of(decoder), signal.SIGKILL)
            decoder._child.wait()


def test_an_answer_that_came_in_time_counts_however_late_it_is_fetched(videos):
    with Decoder(4, 96, deadline=3.0) as decoder:
        decoder.send(DecodeRequest(videos[0]))
        time.sleep(3.5)
        assert decoder.receive()[1]["verdict"] == "ok"


def test_frames_stay_while_the_next_clip_is_decoded(videos):
    with Decoder(4, 96) as decoder:
        decoder.send(DecodeRequest(videos[0]))
        frames, _ = decoder.receive()
        before = frames.copy()
        decoder.send(DecodeRequest(videos[3]))
        decoder.receive()
        np.testing.assert_array_equal(frames, before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child of its parent's death")
def test_a_hanging_child_dies_with_its_killed_parent(hanging):
    script = (
        "from pathlib import Path\n"
        "from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest\n"
        "decoder = Decoder(4, 96, deadline=600)\n"
        f"decoder.send(DecodeRequest(Path({str(hanging)!r})))\n"
        "print(decoder._child.pid, flush=True)\n"
        "decoder.receive()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        time.sleep(1.0)
        parent.kill()
    try:
        wait_until(lambda: not alive(child))
    finally:
        if alive(child):
            os.kill(child, signal.SIGKILL)


def first_of_its_container(command):
    """The command as process 1 of a process namespace of its own, as a container's is."""
    words = ["unshare", "--pid", "--fork", *([] if os.getuid() == 0 else ["--user", "--map-root-user"])]
    if subprocess.run([*words, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process namespaces here")
    return [*words, *command]


@pytest.mark.skipif(not shutil.which("unshare"), reason="without unshare no process of this test is process 1")
def test_a_run_that_is_process_1_of_its_container_decodes(videos):
    script = (
        "import os\n"
        "from pathlib import Path\n"
        "from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest\n"
        "with Decoder(4, 96) as decoder:\n"
        f"    decoder.send(DecodeRequest(Path({str(videos[0])!r})))\n"
        "    print(os.getpid(), decoder.receive()[1]['verdict'])\n"
    )
    done = subprocess.run(
        first_of_its_container([sys.executable, "-c", script]), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == ["1", "ok"], done.stderr


def test_the_child_takes_no_module_from_the_current_folder(videos, tmp_path, monkeypatch):
    (tmp_path / "mmap.py").write_text("raise SystemExit('hijacked')")
    (tmp_path / "decord.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    with Decoder(4, 96) as decoder:
        decoder.send(DecodeRequest(videos[0].absolute()))
        assert decoder.receive()[1]["verdict"] == "ok"


def test_the_kept_decoder_serves_shards_in_turn_even_after_one_that_broke_off(videos, monkeypatch):
    from dtsf.pipeline.video import decoder_process as module

    module._kept_decoders.cache_clear()
    with shared_decoders(4, 96, 60.0, "fast") as (kept,):
        clips = decode_all(kept, [DecodeRequest(path) for path in videos])
        assert outcome(next(clips)) == Status.OK
        first = child_of(kept)
    # The second clip was under way and never fetched: its answer must not be taken for the next shard's first.
    with shared_decoders(4, 96, 60.0, "fast") as (again,):
        assert again is kept
        [(frames, _)] = list(decode_all(again, [DecodeRequest(videos[3])]))
        np.testing.assert_array_equal(frames, decode_clip(videos[3], 4, 96).frames)
        second = child_of(again)
        assert second != first
        monkeypatch.setattr(module, "CLIPS_A_CHILD", 2)
        for _ in range(2):
            again.send(DecodeRequest(videos[0]))
            assert again.receive()[1]["verdict"] == "ok"
        assert child_of(again) != second
    kept.close()
    module._kept_decoders.cache_clear()
