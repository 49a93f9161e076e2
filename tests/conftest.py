"""Fixtures for all tests: real video files, the shared data, and the command line."""

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

# Without a GPU, Triton runs in its interpreter. It reads this variable at import.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A shared machine can be slow, so no test asserts a time.
settings.register_profile("dtsf", deadline=None)
settings.load_profile("dtsf")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


def pytest_configure(config):
    # A shell starts background jobs with Ctrl-C ignored. The processes of a test would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def needed():
    """Skips if something is missing. In CI it fails."""

    def check(there, message):
        if not there:
            pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)

    return check


@pytest.fixture(scope="session")
def shared_data(needed):
    needed(SHARED.is_dir(), f"no shared test data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def make_video():
    """Writes a video: a red top left quarter on a grey that brightens by 5 per frame. Returns its path."""
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
    """Copies the first part of a file, as after an interrupted download."""

    def cut(source, target, share):
        target.write_bytes(source.read_bytes()[: int(source.stat().st_size * share)])
        return target

    return cut


class CommandLine:
    """Runs ``dtsf`` in a process that is forked from one with PyTorch; see helpers.py."""

    USUAL = {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}  # noqa: RUF012

    def __init__(self, folder):
        self.folder = folder
        self.server = None

    def json(self, *words, **options):
        """Return the printed object; the command must succeed."""
        done = self(*words, "--json", **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def said(self, *words, code=0, **options):
        """Return stderr in one line; the command must succeed."""
        done = self(*words, **options)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return " ".join(done.stderr.split())

    def refusal(self, *words, **options):
        """Return stderr in one line; the exit code must be 2."""
        return self.said(*words, code=2, **options)

    def __call__(self, *words, cwd, **environment):
        words = [str(word) for word in words]
        environment = {name: str(value) for name, value in {**os.environ, **self.USUAL, **environment}.items()}
        if any(environment.get(name) != os.environ.get(name) for name in environment if name.startswith("PYTHON")):
            # The interpreter reads these variables when it starts, so a fork does not see them.
            program = Path(sys.executable).with_name("dtsf")
            return subprocess.run(
                [program, *words], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False
            )
        if self.server is None:
            program = [sys.executable, "-P", Path(__file__).with_name("helpers.py")]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.server = subprocess.Popen(program, text=True, env=os.environ | self.USUAL, **pipes)
        out, err = self.folder / "out", self.folder / "err"
        files = {"cwd": str(cwd), "out": str(out), "err": str(err)}
        self.server.stdin.write(json.dumps(files | {"words": words, "environment": environment, "timeout": 300}) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return subprocess.CompletedProcess(words, code, out.read_text("utf-8"), err.read_text("utf-8"))


@pytest.fixture(scope="session")
def dtsf(tmp_path_factory):
    command_line = CommandLine(tmp_path_factory.mktemp("cli"))
    yield command_line
    if command_line.server is not None:
        command_line.server.communicate()


@pytest.fixture(scope="session")
def world(dtsf, tmp_path_factory):
    """A synthetic dataset in ``data``, its cache in ``cache``, and a run of two epochs in ``run``. Tests must not change it."""
    base = tmp_path_factory.getbasetemp()
    # Of several test processes, the first one makes the world, and each one works in a copy.
    made = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-world"
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "run/metrics.json").is_file():
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            dtsf.said("synth", "nucla", "--out", "data", "--subjects", 2, "--episodes", 1, cwd=made)
            done = dtsf.json("preprocess", "nucla", "--root", "data", "--workers", 1, cwd=made)
            assert done["verdicts"] == {"ok": 60}
            dtsf.said("train", "--protocol", "cross-subject:2", "--epochs", 2, "--out", "run", cwd=made)
    return shutil.copytree(made, base / "world")


@pytest.fixture(scope="session")
def videomamba(tmp_path_factory):
    """A checkpoint of a VideoMamba of width 16."""
    import torch

    from dtsf.model.config import ModelConfig
    from dtsf.model.videomamba import VideoMamba

    config = ModelConfig(patch=16, frames=2, width=16, depth=1, state=4, readout="cls")
    file = tmp_path_factory.mktemp("weights") / "videomamba.pth"
    torch.save({"model": VideoMamba(config, channels=3, side=224, n_classes=400).state_dict()}, file)
    return file


@pytest.fixture
def run_copy(world, tmp_path):
    """A copy of the world's run, to change or to damage."""
    return shutil.copytree(world / "run", tmp_path / "run")


@pytest.fixture
def performance(world):
    """Three views of one test performance of the world's run."""
    return sorted((world / "data/multiview_action_videos/a05").glob("v0*_s02_e00.avi"))


@pytest.fixture(scope="session")
def copy_checkout():

    def copy(target):
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, target / name)
        return target

    return copy
