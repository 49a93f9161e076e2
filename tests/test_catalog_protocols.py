"""File names -> clips -> train and test, with the special cases of each dataset."""

import pytest
from helpers import touch

from dtsf.errors import ConfigError, DataError
from dtsf.pipeline.datasets import scan_source
from dtsf.training.protocols import parse_protocol, split_clips


def test_scan_nucla__action_is_the_folder_and_labels_sort_as_numbers(tmp_path):
    names = [f"multiview_action_videos/a{a:02d}/v01_s01_e00.avi" for a in (1, 2, 3, 4, 5, 6, 8, 9, 11, 12)]
    catalog = scan_source("nucla", touch(tmp_path, *names))
    assert [(clip.raw_label, clip.label) for clip in catalog.clips][-2:] == [("11", 8), ("12", 9)]
    assert len({clip.group for clip in catalog.clips}) == 10


def test_scan_nucla__reads_three_layouts(tmp_path):
    root = touch(
        tmp_path, "view_2/a02_s03_e01/frame_1_tc_2_rgb.jpg", "view1/v01_s04_e00_a12.avi", "x/a01/v03_s10_e02.avi"
    )
    found = [clip.id for clip in scan_source("nucla", root).clips]
    assert found == ["a01_s10_e02_v03", "a02_s03_e01_v02", "a12_s04_e00_v01"]


def test_scan_source__refuses_two_files_for_the_same_clip(tmp_path):
    root = touch(tmp_path, "one/a01/v01_s01_e00.avi", "two/a01/v01_s01_e00.avi")
    with pytest.raises(DataError, match=r"one/a01/v01_s01_e00\.avi and .*two/a01/v01_s01_e00\.avi"):
        scan_source("nucla", root)


def test_scan_ntu__groups_by_setup_and_notes_missing_cameras(tmp_path):
    names = ["S001C001P001R001A060_rgb.avi", "deep/S002C001P001R001A060.mp4", "S001C004P001R001A001_rgb.avi"]
    catalog = scan_source("ntu", touch(tmp_path, *names, "S001C001P001R001A001.skeleton"))
    assert [clip.group for clip in catalog.clips] == ["S001P001R001A060", "S002P001R001A060"]
    assert [clip.label for clip in catalog.clips] == [59, 59]
    assert len(catalog.class_names) == 60
    assert "lack a camera" in " ".join(catalog.notes)
    assert len(scan_source("ntu", touch(tmp_path, "S018C001P041R001A061_rgb.avi")).class_names) == 120


def test_scan_ntu__refuses_a_video_and_its_renamed_copy(tmp_path):
    with pytest.raises(DataError, match="two files are the clip S001C001P001R001A001"):
        scan_source("ntu", touch(tmp_path, "S001C001P001R001A001_rgb.avi", "S001C001P001R001A001.mp4"))


def test_scan_casia__reads_pairs_and_both_spellings_of_wander(tmp_path):
    root = touch(
        tmp_path, "casia_angleview_p01_wonder_a1.mp4", "TopDownView_p02_wander_a2.avi", "angleview_p01p02_fight_a1.avi"
    )
    clips = scan_source("casia", root).clips
    assert {clip.raw_label for clip in clips} == {"wonder", "fight"}
    assert {clip.subject for clip in clips} == {"1", "2", "1+2"}
    assert {clip.view for clip in clips} == {2, 3}


def test_scan_source__errors_name_what_exists(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        scan_source("nucla", tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no nucla video under .* found 1 \.txt"):
        scan_source("nucla", touch(tmp_path, "readme.txt"))
    with pytest.raises(ConfigError, match="unknown view '7'"):
        scan_source("nucla", touch(tmp_path, "a01/v01_s01_e00.avi"), views="7")


def test_protocols_divide_and_name_their_task(tmp_path):
    names = [f"a01/v{v:02d}_s{s:02d}_e00.avi" for v in (1, 2, 3) for s in (1, 5, 10)]
    clips = scan_source("nucla", touch(tmp_path, *names)).clips

    def split(text):
        return split_clips(clips, parse_protocol(text, "nucla"), "nucla", ("1", "2", "3"))

    assert {clip.subject for clip in split("cross-subject:05").test} == {"5"}
    assert {clip.subject for clip in split("cross-subject").test} == {"10"}
    assert {clip.view for clip in split(None).test} == {3}
    assert "unseen view alone" in split("cross-view:2").task
    assert "no generalisation" in split("all").task
    for text, message in {
        "cross-subject:7": "no subject 7; there are 1, 5, 10",
        "cross-view:4": "unknown view '4'",
        "cross-setup": "only NTU",
        "split": "column split",
    }.items():
        with pytest.raises(ConfigError, match=message):
            split(text)
    with pytest.raises(ConfigError, match="unknown protocol 'xsub'"):
        parse_protocol("xsub", "nucla")


def test_a_side_without_clips_is_refused_where_it_is_needed(tmp_path):
    clips = scan_source("nucla", touch(tmp_path, "a01/v01_s05_e00.avi", "a01/v02_s06_e00.avi")).clips

    def split(subjects, **needed):
        rule = parse_protocol(f"cross-subject:{subjects}", "nucla")
        return split_clips(clips, rule, "nucla", ("1", "2", "3"), **needed)

    with pytest.raises(ConfigError, match=r"cross-subject:5,6 leaves no training clip of 2 \(subjects 5, 6; views 1, 2, 3\)"):
        split("5,6")
    assert len(split("5,6", needed=("test",)).test) == 2
    with pytest.raises(ConfigError, match="leaves no training clip"):
        split("5,6", needed=("train",))
    with pytest.raises(ConfigError, match="leaves no test clip"):
        split_clips(clips, parse_protocol("cross-view:3", "nucla"), "nucla", ("1", "2", "3"), needed=("test",))
