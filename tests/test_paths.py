"""Paths of the user: the home folder, file:///, and addresses that are no files of this machine."""

import os
from pathlib import Path

import pytest

from dtsf.cache.store import open_store
from dtsf.errors import CacheError, DataError, DtsfError
from dtsf.names import local_path, user_path
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.datasets.manifest import catalog_manifest
from dtsf.predict.videos import check_videos

ADDRESSES = [
    ("http://cam.example/a.mp4", "download it"),
    ("HTTPS://cam.example/a.mp4", "download it"),
    ("s3://bucket/a.mp4", "only a cache can be on an object store"),
    ("rtsp://10.0.0.7:554/stream", "record it to a file"),
    ("odd+kind://x/y", "give a file or a folder"),
]


@pytest.mark.parametrize(("address", "advice"), ADDRESSES)
@pytest.mark.parametrize("as_path", [False, True])
def test_addresses__are_refused_by_their_kind_wherever_a_path_is_given(tmp_path, address, advice, as_path):
    given = str(Path(address)) if as_path else address  # Path makes one slash of two
    for refuse in (user_path, lambda path: check_videos([path]), lambda path: scan_source("nucla", Path(path))):
        with pytest.raises(DtsfError, match=advice) as refused:
            refuse(given)
        assert address.split(":")[0].lower() + "://" in str(refused.value)
    (tmp_path / "m.csv").write_text(f"path,label,group,view\n{given},x,g,1\n")
    with pytest.raises(DataError, match=rf"m.csv, line 2: .*{advice}"):
        catalog_manifest(tmp_path / "m.csv")


def test_tables__take_the_home_folder_and_file_addresses(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a b.mp4").touch()
    (tmp_path / "c.mp4").touch()
    rows = [f"file://{tmp_path}/a%20b.mp4,x,g,1", "~/c.mp4,x,g,2", f"file://localhost{tmp_path}/c.mp4,y,h,1"]
    (tmp_path / "m.csv").write_text("path,label,group,view\n" + "\n".join(rows) + "\n")
    catalog = catalog_manifest(tmp_path / "m.csv")
    assert [clip.path for clip in catalog.clips] == ["a b.mp4", "c.mp4", "c.mp4"]
    assert not catalog.notes
    assert user_path("~/c.mp4") == tmp_path / "c.mp4"


@pytest.mark.parametrize("name", ["take: one.mp4", "http:", "s3:", "~odd", "C:"])
def test_local_path__a_file_of_such_a_name_is_a_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    assert local_path(name) == name


@pytest.mark.parametrize("url", ["s3://", "s3:", "gs:///", "memory://"])
def test_open_store__a_url_without_a_bucket_is_refused_and_writes_no_folder(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    for given in (url, Path(url)):
        with pytest.raises(CacheError, match="has no bucket"):
            open_store(given)
    assert os.listdir() == []


def test_open_store__names_the_kind_and_keeps_both_slashes(tmp_path):
    with pytest.raises(CacheError, match=r"https://a/b: https cannot store files"):
        open_store("https://a/b")
    assert str(open_store(Path("s3://bucket/folder"))) == "s3://bucket/folder"
    assert str(open_store(f"file://{tmp_path}/a")) == f"{tmp_path}/a"


def test_commands__print_the_url_of_a_cache_with_both_slashes(dtsf, tmp_path):
    for words in (["cache", "info", "s3://"], ["preprocess", "nucla", "--root", ".", "--cache", "s3://"]):
        assert "s3:// has no bucket" in dtsf.refusal(*words, cwd=tmp_path)
    assert "rtsp://10.0.0.7/x is an address" in dtsf.refusal("predict", "rtsp://10.0.0.7/x", "--run", ".", cwd=tmp_path)
    assert list(tmp_path.iterdir()) == []
