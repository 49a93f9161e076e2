"""Aligned views, and decoding again for a comparison with the cache."""

import json

import numpy as np
import pytest

from dtsf.api import open_cache, preprocess, verify_source
from dtsf.cache.reader import summarise
from dtsf.pipeline.preprocess import make_spec
from dtsf.pipeline.settings import PreprocessSettings

SMALL = {"encoder": "pixels", "frames": 4, "size": 32, "grid": 4, "workers": 1, "max_bad": 1.0}


@pytest.fixture
def cameras(make_video, tmp_path):
    """Group g: 2 s at 30 fps, and 3 s at 10 fps that started 0.5 s later. Group h: no common time. Group k: one view."""
    root = tmp_path / "v"
    make_video(root / "a.mp4", 60, codec="libx264")
    make_video(root / "b.mp4", 30, codec="libx264", fps=10)
    make_video(root / "c.avi", 20)
    rows = ["a.mp4,x,g,1,0", "b.mp4,x,g,2,0.5", "a.mp4,y,h,1,0", "c.avi,y,h,2,10", "c.avi,x,k,1,3"]
    (root / "m.csv").write_text("path,label,group,view,offset\n" + "\n".join(rows) + "\n")
    return root


def test_align_group__views_have_the_same_frame_times(cameras, tmp_path):
    result = preprocess("manifest", cameras / "m.csv", tmp_path / "c", align="group", **SMALL)
    assert result.verdicts == {"ok": 3, "unreadable": 2}
    data = open_cache(tmp_path / "c")
    assert data.spec.align == "group"
    # Both views show 0.5 to 2 s of the performance: 0.5 to 2 s of file a, 0 to 1.5 s of file b.
    first, second, alone = data.frame_time(["g_v01", "g_v02", "k_v01"])
    moments = 0.5 + 1.5 * (np.arange(4) + 0.5) / 4
    assert (np.abs(first - moments) < 1 / 30 + 1e-6).all()
    assert (np.abs(second + 0.5 - moments) < 1 / 10 + 1e-6).all()
    assert (first <= moments + 1e-6).all()
    assert alone[-1] > 0.5
    again = preprocess("manifest", cameras / "m.csv", tmp_path / "c", align="group", **SMALL)
    assert again.already_done == 5


def test_align_own__views_keep_their_own_time_and_fingerprint(cameras, tmp_path):
    own, group = (make_spec(PreprocessSettings(**SMALL, align=align)) for align in ("own", "group"))
    assert own.fingerprint() != group.fingerprint()
    assert own.fingerprint() == own.model_copy(update={"align": "own"}).fingerprint()
    preprocess("manifest", cameras / "m.csv", tmp_path / "c", **SMALL)
    data = open_cache(tmp_path / "c")
    assert data.frame_time(["g_v02"])[0, -1] > 2.5
    lengths = summarise(tmp_path / "c/manifest")["views_differ_by"]
    assert lengths["groups"] == 2
    assert lengths["largest"] == pytest.approx(2 / 3, abs=0.01)


def test_verify_source__names_clips_with_different_pictures(cameras, make_video, tmp_path, dtsf):
    preprocess("manifest", cameras / "m.csv", tmp_path / "c", **SMALL)
    assert verify_source(tmp_path / "c", cameras).ok
    make_video(cameras / "b.mp4", 29, codec="libx264", fps=10)
    (cameras / "c.avi").unlink()
    found = verify_source(tmp_path / "c", cameras)
    assert [(one.clip, one.reason.split(":")[0]) for one in found.mismatches] == [
        ("g_v02", "different pictures"),
        ("h_v02", "unreadable"),
        ("k_v01", "unreadable"),
    ]
    said = dtsf("cache", "verify", "c", "--source", "--root", cameras, "--sample", "50%", "--json", cwd=tmp_path)
    assert said.returncode == 2, said.stderr
    assert json.loads(said.stdout)["source"]["manifest"]["checked"] == 3
    assert dtsf("cache", "verify", "c", "--source", "--sample", "none", "--root", cameras, cwd=tmp_path).returncode == 2
