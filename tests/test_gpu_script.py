"""benchmarks/gpu.py is for a machine that is not here: what can be tried of it without a card."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


def errors(value, where=""):
    if isinstance(value, dict):
        found = [f"{where}: {value['error']}"] if "error" in value else []
        return found + [line for key, inner in value.items() for line in errors(inner, f"{where}/{key}")]
    return []


@pytest.mark.slow
def test_every_section_runs_and_both_files_are_written(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--quick", "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert errors(document) == []
    assert list(document) == ["machine", "parity", "scan", "steps", "stage1", "resume", "tune"]
    assert all(value < 1e-2 for name, value in document["parity"].items() if name != "seconds")
    assert document["resume"]["bit_for_bit"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == document
    assert "nucla-paper 2 views / clips_per_s" in (tmp_path / "gpu.html").read_text()


def test_a_section_that_fails_is_said_and_the_others_go_on(tmp_path):
    code = (
        "import sys; sys.argv = ['gpu.py', '--out', sys.argv[1], '--quick', '--only', 'machine,scan']; "
        f"sys.path.insert(0, {str(SCRIPT.parent)!r}); import gpu\n"
        "def broken(left): raise RuntimeError('no kernel image')\n"
        "gpu.SECTIONS = {'scan': broken, 'machine': gpu.machine}\n"
        "gpu.main()"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads((tmp_path / "gpu.json").read_text())
    assert document["scan"]["error"] == "RuntimeError: no kernel image"
    assert document["machine"]["torch"]


def test_without_a_card_it_says_what_to_do(tmp_path):
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path)], capture_output=True, text=True, check=False,
        env=environment | {"PYTHONPATH": str(SCRIPT.parents[1])},
    )  # fmt: skip
    assert done.returncode == 1
    assert "--quick proves the script on a CPU" in done.stderr
