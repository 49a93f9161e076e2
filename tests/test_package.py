"""The sdist builds the wheel, and the wheel works in an empty environment, without the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest


def _run(*words, cwd):
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = clean | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [str(word) for word in words]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_wheel_from_the_sdist_works_in_an_empty_environment(copy_checkout, tmp_path):
    source = copy_checkout(tmp_path / "source")
    # Without a kind named, the wheel is built from the sdist: what the sdist lacks, the wheel lacks.
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", ".", cwd=source)
    shutil.rmtree(source)
    (wheel,) = (tmp_path / "dist").glob("*.whl")

    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    # The packages it depends on are those of this environment, by a path: gigabytes are not fetched again, and an
    # editable install of dtsf is not seen.
    python = home / "bin/python"
    site = Path(_run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
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
