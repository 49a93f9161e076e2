"""Files below a root: links are followed, unreadable folders and other names are counted in notes."""

import errno
import os

import pytest
from helpers import touch

from dtsf.errors import DataError, SourceError
from dtsf.pipeline import source
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.source import VIDEO_ENDINGS, SkippedFiles, walk_files

GBK = b"\xb6\xaf\xd7\xf7"


def walked(root):
    skipped = SkippedFiles()
    return [f"{folder}/{name}".lstrip("/") for folder, name in walk_files(root, skipped)], skipped.notes()


def test_walk_files__follows_links_and_ends_loops(tmp_path):
    touch(tmp_path / "data", "a/1.avi")
    touch(tmp_path / "disk2", "b/2.avi")
    (tmp_path / "data/second").symlink_to(tmp_path / "disk2")
    (tmp_path / "disk2/b/up").symlink_to(tmp_path / "disk2")
    (tmp_path / "data/a/again").symlink_to(tmp_path / "data/a")
    (tmp_path / "data/gone.avi").symlink_to(tmp_path / "nowhere.avi")
    found, notes = walked(tmp_path / "data")
    assert found == ["a/1.avi", "second/b/2.avi"]
    assert sorted(notes) == [
        "1 links lead nowhere and were left out; the first is gone.avi",
        "2 links lead to a folder that is read already and were not followed; the first is a/again",
    ]


def test_scan_source__root_may_contain_only_links(tmp_path):
    names = [f"S001C00{camera}P001R001A001_rgb.avi" for camera in (1, 2, 3)]
    touch(tmp_path / "nas/nturgb+d_rgb", *names)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/nturgb+d_rgb").symlink_to(tmp_path / "nas/nturgb+d_rgb")
    assert len(scan_source("ntu", tmp_path / "data").clips) == 3
    touch(tmp_path / "nas/second", *(name.replace("S001", "S002") for name in names))
    (tmp_path / "data/more").symlink_to(tmp_path / "nas/second")
    assert len(scan_source("ntu", tmp_path / "data").groups) == 2


def test_walk_files__notes_names_that_are_not_utf8(tmp_path):
    touch(tmp_path, "ok/angleview_p01_walk_a1.avi")
    bad = os.path.join(os.fsencode(tmp_path), GBK)
    os.mkdir(bad)
    for name in (b"angleview_p09_walk_a1.avi", b"x.avi"):
        with open(os.path.join(bad, name), "w"):
            pass
    catalog = scan_source("casia", tmp_path)
    assert len(catalog.clips) == 1
    assert catalog.notes == (r"1 names are not UTF-8 and were left out: rename them; the first is \xb6\xaf\xd7\xf7",)


def test_walk_files__notes_unreadable_folders_and_raises_if_the_disk_fails(tmp_path, monkeypatch):
    touch(tmp_path, "a/angleview_p01_walk_a1.avi", "locked/angleview_p02_walk_a1.avi")
    scan = os.scandir

    def refuse(code):
        def scandir(path):
            if str(path).endswith("locked"):
                raise OSError(code, os.strerror(code))
            return scan(path)

        monkeypatch.setattr(source.os, "scandir", scandir)

    refuse(errno.EACCES)
    catalog = scan_source("casia", tmp_path)
    assert [clip.subject for clip in catalog.clips] == ["1"]
    assert catalog.notes == ("1 folders cannot be read (Permission denied) and were left out; the first is locked",)
    for code in (errno.EIO, errno.ESTALE):
        refuse(code)
        with pytest.raises(SourceError, match=r"locked.*Finished work is safe: run the same command again"):
            scan_source("casia", tmp_path)


@pytest.mark.parametrize("ending", VIDEO_ENDINGS)
def test_scan_source__takes_videos_of_every_ending(tmp_path, ending):
    touch(tmp_path / "n", f"S001C001P001R001A001{ending.upper()}")
    touch(tmp_path / "c", f"angleview_p01_walk_a1{ending}")
    touch(tmp_path / "u", f"a02/v01_s03_e00{ending}")
    for kind, folder in (("ntu", "n"), ("casia", "c"), ("nucla", "u")):
        assert len(scan_source(kind, tmp_path / folder).clips) == 1


def test_scan_source__counts_videos_with_other_names(tmp_path):
    touch(tmp_path, "S001C001P001R001A001.avi", "holiday.mov", "S001C001P001R001A001.skeleton")
    assert any(note.startswith("1 video files do not have NTU's names") for note in scan_source("ntu", tmp_path).notes)
    with pytest.raises(DataError, match=r"no casia video under .*2 video files do not have CASIA's names"):
        scan_source("casia", tmp_path)
