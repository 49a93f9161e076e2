"""dtsf doctor: correct results, and advice for each missing part."""

import json
import os

import pytest
import torch

from dtsf import doctor
from dtsf.model.scan import choose_backend


def test_checks__name_the_scan_and_give_advice_for_each_missing_part(tmp_path):
    (scan,) = doctor.check_scan()
    assert scan.value == choose_backend(torch.device("cuda" if torch.cuda.is_available() else "cpu")).name
    assert scan.ok
    assert "against float64" in scan.found
    checks = [*doctor.check_packages(), *doctor.check_torch(), *doctor.check_encoder()]
    assert {"python", "decord", "dask", "zarr", "torch", "cuda", "encoder", "timm"} <= {c.name for c in checks}
    for check in checks:
        assert check.ok or len(check.how) > 10, check.name
        assert check.ok == ("not available" not in check.found), check.name
    # The nearest folder that exists.
    (check,) = doctor.check_disk(tmp_path / "not" / "yet" / "cache")
    assert f"GB free at {tmp_path}," in check.found
    stat = os.statvfs(tmp_path)
    assert check.value == pytest.approx(stat.f_bavail * stat.f_frsize / 1e9, rel=0.05)


@pytest.mark.slow
def test_doctor__passes_on_a_working_machine(dtsf, world):
    found = dtsf.json("doctor", cwd=world)
    info = dtsf.json("cache", "info", cwd=world)["datasets"][0]
    assert found["ok"]
    assert found["cuda"] == torch.cuda.is_available()
    assert found["encoder"] == info["spec"]["encoder"]
    assert found["encoder_weights"] == info["spec"]["weights_hash"]
    assert "clips/s" in found["stage_1"]
    assert "ms a step" in found["stage_2"]
    assert {"h264", "mpeg4"} <= set(found["codecs"].replace(",", "").split())
    assert all(check["ok"] or check["how"] for check in found["checks"])


@pytest.mark.slow
def test_doctor__goes_on_after_a_broken_package(dtsf, tmp_path):
    """PyAV cannot be imported, as after an update of the system."""
    (tmp_path / "av").mkdir()
    (tmp_path / "av/__init__.py").write_text("raise ImportError('libavcodec.so.58: cannot open shared object file')\n")
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    done = dtsf("doctor", "--json", cwd=tmp_path, PYTHONPATH=path)
    assert done.returncode == 2
    found = json.loads(done.stdout)
    broken = {check["name"]: check for check in found["checks"] if check["needed"] and not check["ok"]}
    assert set(broken) == {"codecs", "stage 1"}
    assert all(check["how"] for check in broken.values())
    assert "ms a step" in found["stage_2"], "the check of stage 2 does not need PyAV"
