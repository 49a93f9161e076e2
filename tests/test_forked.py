"""Forked processes of stage 1, and the foreman that they come from."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dtsf.cli import _will_want_a_crew
from dtsf.errors import DataError
from dtsf.pipeline.crew import Crew, crew_for
from dtsf.pipeline.forked import can_fork

pytestmark = pytest.mark.skipif(not can_fork(), reason="stage 1 forks on Linux alone")


def answer_of(work, **settings):
    """What a fork writes, and how it ended. In a process of one thread, which pytest's is not."""
    code = f"""
import json, os, signal, sys, time
sys.path[:0] = {sys.path!r}
from dtsf.pipeline.forked import Fork
held = os.pipe()
def work():
{work}
fork = Fork("dtsf-test", work, **{settings!r})
fork.stdin.write(b"a line\\n")
fork.stdin.close()
said = fork.stdout.read().decode()
fork.wait()
print(json.dumps([said, fork.returncode]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said, code = json.loads(done.stdout)
    return said, code, done.stderr


def test_a_fork_talks_over_its_stdin_and_stdout_and_has_a_name():
    said, code, errors = answer_of(
        "    line = open(0, closefd=False).readline()\n"
        "    os.write(1, (line + open('/proc/self/comm').read()).encode())"
    )
    assert (said, code, errors) == ("a line\ndtsf-test\n", 0, "")


@pytest.mark.parametrize(
    ("work", "code", "error"),
    [
        ("raise ValueError('broken here')", 1, "broken here"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("raise KeyboardInterrupt", 1, ""),
        ("sys.exit(0)", 1, ""),
    ],
)
def test_how_a_fork_ended_is_known_and_it_never_goes_on_as_its_parent(work, code, error):
    said, ended, errors = answer_of(f"    {work}")
    assert (said, ended) == ("", code)
    assert error in errors
    assert bool(error) == bool(errors)


def test_a_fork_has_the_descriptors_that_it_was_given_and_no_other():
    work = (
        "    os.write(1, ' '.join(sorted(set(os.listdir('/proc/self/fd')) & {'3', '4', '5', '6', '7', '8'})).encode())"
    )
    # The one more is that of the listing itself, the lowest that is free.
    assert answer_of(work)[0] == "3"
    assert answer_of(work, keep=(4,))[0] == "3 4"


def test_a_fork_that_is_waited_for_with_a_limit():
    script = """
import signal, time
from dtsf.pipeline.forked import Fork
fork = Fork("dtsf-test", lambda: time.sleep(60))
begun = time.monotonic()
assert fork.wait(timeout=0.2) is None
assert 0.2 <= time.monotonic() - begun < 5
fork.kill()
assert fork.wait() == fork.poll() == -signal.SIGKILL
fork.kill()  # nothing is there, and no other process has its number
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_a_decoder_forks_its_first_child_where_it_may_and_starts_the_next_anew(make_video, tmp_path):
    video = make_video(tmp_path / "v.avi", 20, 96, 96)
    script = f"""
import os, sys, threading
from pathlib import Path
from dtsf.pipeline.video.child import Decoder, DecodeRequest, decode_all
for threads in (0, 1):
    if threads:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    with Decoder(4, 96, fork=True) as decoder:
        for _ in range(2):
            comm = Path(f"/proc/{{decoder._child.pid}}/comm")
            [(frames, facts)] = decode_all(decoder, [DecodeRequest(Path({str(video)!r}))])
            print(comm.read_text().strip() == "dtsf-decoder", facts["verdict"], int(frames.sum()))
            os.kill(decoder._child.pid, 9)
            decoder._child.wait()
            decoder._stop()
            decoder.prepare()
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False, env=environment
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["True", "ok"], *[["False", "ok"]] * 3], done.stderr
    assert len({line[2] for line in lines}) == 1


def test_a_crew_is_started_where_it_may_be_used():
    assert crew_for(1, None).__enter__() is None
    assert crew_for(2, "tcp://127.0.0.1:9").__enter__() is None
    with crew_for(2, None) as crew:
        assert isinstance(crew, Crew)
        foreman = crew._foreman.pid
        assert os.path.exists(f"/proc/{foreman}")
    assert not os.path.exists(f"/proc/{foreman}")


def test_a_foreman_that_cannot_start_is_an_error_in_words(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Crew() as crew, pytest.raises(DataError, match=r"exit code 1\)\. What is committed is safe"):
        crew.run([], lambda done, bad: None)


def test_an_interrupt_at_the_foremans_start_leaves_no_traceback():
    """Ctrl-C in a terminal goes to every process: at any moment of its imports."""
    script = "from dtsf.pipeline.crew import Crew; import time\nwith Crew(): print(flush=True); time.sleep(60)"
    for delay in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # A shell starts what it puts in the background with SIGINT ignored, and so would this whole test run.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        process.stdout.readline()
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert errors.count("Traceback") == 1, errors  # that of the script
        assert "foreman" not in errors


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("preprocess nucla --workers 2", True),
        ("preprocess nucla", True),
        ("preprocess nucla --workers 1", False),
        ("preprocess nucla --workers=1", False),
        ("preprocess nucla --scheduler tcp://127.0.0.1:9", False),
        ("preprocess --help", False),
        ("train --cache preprocess", False),
        ("", False),
    ],
)
def test_the_command_line_starts_a_crew_only_for_what_may_use_it(words, wanted):
    assert _will_want_a_crew(words.split()) == wanted


def test_a_command_that_needs_no_crew_after_all_leaves_none(tmp_path):
    words = [sys.executable, "-m", "dtsf", "preprocess", "nucla", "--root", str(tmp_path / "missing")]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert errors.startswith("error: ")
    assert not [pid for pid in filter(str.isdigit, os.listdir("/proc")) if session_of(pid) == process.pid]


def session_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return int(stat.read().rsplit(")", 1)[1].split()[3])
    except OSError:
        return 0
