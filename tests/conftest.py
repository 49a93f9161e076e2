"""Fixtures for all tests: real video files, and the shared data where they are."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

# Without a card Triton's loops run in its interpreter; it reads this when it is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shared machine is slow at times; a test never asserts a time.
settings.register_profile("dtsf", deadline=None)
settings.load_profile("dtsf")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_configure(config):
    # What a shell starts in the background ignores Ctrl-C, and so would every process of a test.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data():
    """The folder of shared test data. Skips without it, except in CI, where its absence is a failure."""
    if SHARED.is_dir():
        return SHARED
    message = f"no shared test data at {SHARED}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def make_video():
    """Writes a video: red top left quarter on a grey that brightens by 5 a frame. Returns its path."""
    import av

    def make(path, n_frames, width=64, height=48, *, codec="mpeg4", fps=30, options=None, rotation=0):
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=fps, options=options or {})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            if rotation:
                stream.set_display_rotation(rotation)
            for k in range(n_frames):
                picture = np.full((height, width, 3), 5 * k % 250, np.uint8)
                picture[: height // 2, : width // 2] = [250, 0, 0]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return path

    return make


@pytest.fixture(scope="session")
def cut_file():
    """Copies the first part of a file, as an interrupted download leaves it."""

    def cut(source, target, share):
        data = source.read_bytes()
        target.write_bytes(data[: int(len(data) * share)])
        return target

    return cut


@pytest.fixture(scope="session")
def dtsf(tmp_path_factory):
    """Runs the command line as a process of its own, forked from one that has imported PyTorch: see forked_cli.py."""
    folder = tmp_path_factory.mktemp("cli")
    usual = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    server = None

    def run(*words, cwd, **environment):
        nonlocal server
        words = [str(word) for word in words]
        environment = {name: str(value) for name, value in {**os.environ, **usual, **environment}.items()}
        if any(environment.get(name) != os.environ.get(name) for name in environment if name.startswith("PYTHON")):
            # Read when the interpreter starts: a fork would come too late.
            program = Path(sys.executable).with_name("dtsf")
            return subprocess.run(
                [program, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
            )
        if server is None:
            server = subprocess.Popen(
                [sys.executable, "-P", Path(__file__).with_name("forked_cli.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | usual,
            )
        out, err = folder / "out", folder / "err"
        job = {
            "words": words,
            "cwd": str(cwd),
            "environment": environment,
            "out": str(out),
            "err": str(err),
            "timeout": 300,
        }
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read_text("utf-8"), err.read_text("utf-8"))

    yield run
    if server is not None:
        server.communicate()


def _make_world(dtsf, root):
    root.mkdir()
    drawn = dtsf("synth", "nucla", "--out", "data", "--subjects", 2, "--episodes", 1, "--json", cwd=root)
    assert drawn.returncode == 0, drawn.stderr
    made = dtsf("preprocess", "nucla", "--root", "data", "--workers", 1, "--json", cwd=root)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["verdicts"] == {"ok": 60}
    trained = dtsf("train", "--protocol", "cross-subject:2", "--epochs", 2, "--out", "run", "--json", cwd=root)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["epochs"] == 2


@pytest.fixture(scope="session")
def world(dtsf, tmp_path_factory):
    """A small drawn data set in ``data``, its cache in ``cache``, and a run of two epochs in ``run``. Add, do not change."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" not in os.environ:
        _make_world(dtsf, base / "world")
        return base / "world"
    # Several processes of one test run: the first one makes it, each works in a copy.
    made = base.parent / "made-world"
    with (base.parent / "made-world.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "run/metrics.json").is_file():
            shutil.rmtree(made, ignore_errors=True)
            _make_world(dtsf, made)
    return shutil.copytree(made, base / "world")
