"""A smoke test of benchmarks/gpu.py on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


def run(tmp_path, *options, **environment):
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.mark.slow
def test_gpu_script__runs_every_section_and_writes_both_files(tmp_path):
    done = run(tmp_path, "--quick", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert "error" not in done.stdout
    assert list(document) == ["machine", "parity", "scan", "steps", "batches", "stage1", "resume", "tune"]
    assert document["resume"]["bit_for_bit"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == document
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gpu.html", "gpu.json"]


def test_gpu_script__prints_the_next_step_without_a_gpu(tmp_path):
    done = run(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "--quick" in done.stderr
