"""The package: its dependencies, a wheel that works without the checkout, and benchmarks/gpu.py on the CPU."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_dependencies__declare_every_package_that_dtsf_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    declared = {re.split(r"[<>=!;\[ ]", line)[0].lower().replace("_", "-") for line in lines}
    imported = set()
    for file in (ROOT / "dtsf").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    installed = packages_distributions()
    missing = set()
    # PyTorch installs Triton where it works.
    for name in {module.split(".")[0] for module in imported} - sys.stdlib_module_names - {"dtsf", "triton"}:
        packages = {package.lower().replace("_", "-") for package in installed.get(name, [name])}
        missing |= packages if packages.isdisjoint(declared) else set()
    assert missing == set()


def _run(*words, cwd):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = clean | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_wheel__works_in_an_empty_environment(copy_checkout, tmp_path):
    source = copy_checkout(tmp_path / "source")
    # Without an option, build makes the wheel from the sdist, so this tests both.
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ".", cwd=source)
    shutil.rmtree(source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")

    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    # A .pth file adds the dependencies of this environment, but not its editable install of dtsf.
    python = home / "bin/python"
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    _run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path)

    work = tmp_path / "work"
    work.mkdir()
    assert _run(python, "-c", "import dtsf; print(dtsf.__file__)", cwd=work).startswith(str(site))
    dtsf = home / "bin/dtsf"
    _run(dtsf, "synth", "nucla", "--out", "drawn", "--subjects", 2, "--episodes", 1, "-q", cwd=work)
    _run(dtsf, "preprocess", "nucla", "--root", "drawn", "--workers", 1, "-q", cwd=work)
    _run(dtsf, "train", "--protocol", "cross-subject:2", "--epochs", 1, "--out", "run", "-q", cwd=work)
    _run(dtsf, "report", "run", "-q", cwd=work)
    assert "data:image" in (work / "run/report.html").read_text()
    assert '"scan"' in _run(dtsf, "doctor", "--json", cwd=work)


def _gpu_script(out, *options, **environment):
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--out", out, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


@pytest.mark.slow
def test_gpu_script__runs_every_section_and_writes_both_files(tmp_path):
    done = _gpu_script(tmp_path, "--quick", "--json")
    assert done.returncode == 0, done.stderr[-2000:]
    document = json.loads(done.stdout)
    assert "error" not in done.stdout
    assert list(document) == ["machine", "parity", "scan", "steps", "batches", "stage1", "resume", "tune"]
    assert document["resume"]["bit_for_bit"]
    assert json.loads((tmp_path / "gpu.json").read_text()) == document
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gpu.html", "gpu.json"]


def test_gpu_script__prints_the_next_step_without_a_gpu(tmp_path):
    done = _gpu_script(tmp_path, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "--quick" in done.stderr
