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
    assert list(document) == ["machine", "parity", "scan", "steps", "batches", "stage1", "resume", "tune"]
    assert all(value < 1e-2 for name, value in document["parity"].items() if name != "seconds")
    assert all(facts["largest_difference"] == 0 for name, facts in document["batches"].items() if name != "seconds")
    assert document["resume"]["bit_for_bit"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == document
    assert "nucla-paper 2 views / clips_per_s" in (tmp_path / "gpu.html").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gpu.html", "gpu.json"]


def run_sections(tmp_path, sections, budget=280):
    """The script with other sections, given as the bodies of functions of ``figures``."""
    script = tmp_path / "other.py"
    lines = [f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})", "import gpu, os, signal, time", f"gpu.BUDGET_S = {budget}"]
    for name, body in sections.items():
        lines += [f"def {name}(figures):", *(f"    {line}" for line in body)]
    lines += [f"gpu.SECTIONS = {{{', '.join(f'{name!r}: {name}' for name in sections)}}}", "gpu.main()"]
    script.write_text("\n".join(lines))
    command = [sys.executable, str(script), "--out", str(tmp_path / "out"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((tmp_path / "out/gpu.json").read_text())


FIRST = "figures['first'] = 1"


@pytest.mark.slow
def test_a_crash_takes_no_figure_and_no_other_section_along(tmp_path):
    crash = [FIRST, "os.kill(os.getpid(), signal.SIGSEGV)"]
    found = run_sections(tmp_path, {"crash": crash, "after": ["gpu.machine(figures)"]})
    assert found["crash"].pop("seconds") > 0
    assert found["crash"] == {"first": 1, "error": "its process ended with -11"}
    assert found["after"]["torch"]


@pytest.mark.slow
def test_what_hangs_is_stopped_and_the_next_section_has_time_left(tmp_path):
    sections = {"hang": [FIRST, "time.sleep(1000)"], "after": [FIRST]}
    found = run_sections(tmp_path, sections, budget=40)
    assert found["hang"]["first"] == found["after"]["first"] == 1
    assert found["hang"]["error"] == "stopped after 24 s"


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return __import__("gpu")


def test_what_fails_is_said_and_all_other_figures_stay(tmp_path, monkeypatch, gpu):
    def broken():
        raise RuntimeError("no kernel image")

    def section(figures):
        figures["first"] = 1
        figures.part("part", broken)
        figures.part("last", lambda x: x, 3)
        raise KeyError("gone")

    monkeypatch.setattr(gpu, "SECTIONS", {"a": section})
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    gpu.section_here("a", tmp_path, 60)
    found = json.loads((tmp_path / "a.part").read_text())
    assert "in section" in found.pop("where")
    assert found == {"first": 1, "part": {"error": "RuntimeError: no kernel image"}, "last": 3, "error": "KeyError: 'gone'"}


def test_no_part_begins_when_a_sections_time_is_over(tmp_path, gpu):
    figures = gpu.Figures(tmp_path / "a.part", seconds=-1)
    figures.part("a", lambda: 1)
    assert json.loads((tmp_path / "a.part").read_text()) == {"a": {"error": "not begun: no time left"}}


def test_without_a_card_it_says_what_to_do(tmp_path):
    environment = {"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path)], capture_output=True, text=True, check=False,
        env=environment | {"PYTHONPATH": str(SCRIPT.parents[1])},
    )  # fmt: skip
    assert done.returncode == 1
    assert "--quick proves the script on a CPU" in done.stderr
