"""Marks of annotation tools: to which recording they belong, on whose clock they are, which clips are made of them."""

import csv
import itertools
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from dtsf.errors import ConfigError, DataError
from dtsf.recordings.clips import gaps, import_events
from dtsf.recordings.events import read_all_events, read_events
from dtsf.recordings.settings import ClipSettings
from dtsf.recordings.table import Camera, Recording, read_recordings

TABULAR = """Observation id\tobs 1\t\t\t\t\t\t\t
\t\t\t\t\t\t\t\t
Player #1\tlab_left.avi\t\t\t\t\t\t\t
Time offset (s)\t1.0\t\t\t\t\t\t\t
independent variables\t\t\t\t\t\t\t\t
Time\tMedia file path\tTotal length\tFPS\tSubject\tBehavior\tBehavioral category\tComment\tStatus
3.000\tlab_left.avi\t20\t5\tann\twave\t\t\tSTART
4.000\tlab_left.avi\t20\t5\tbob\tclap\t\t\tSTART
5.000\tlab_left.avi\t20\t5\tbob\tclap\t\t\tSTOP
6.500\tlab_left.avi\t20\t5\tann\twave\t\t\tSTOP
7.000\tlab_left.avi\t20\t5\tann\tjump\t\t\tPOINT
"""
AGGREGATED = """Observation id,Source,Time offset (s),Start time,label,Subject,Behavior,Behavior type,Start (s),Stop (s)
obs 1,player #1:C:\\films\\lab_left.avi,0,9,own,No focal subject,wave,STATE,2.0,5.5
"""


@pytest.fixture(scope="module")
def film(make_video, tmp_path_factory):
    """A video of 20 s, 5 pictures a second."""
    path = tmp_path_factory.mktemp("film") / "film.avi"
    make_video(path, 100, fps=5)
    return path


@pytest.fixture
def lab(tmp_path, film):
    """Two recordings of two cameras; the right one of `lab` begins 4 s later."""
    for name in ("lab_left", "lab_right", "yard_left", "yard_right"):
        os.link(film, tmp_path / f"{name}.avi")
    (tmp_path / "recordings.csv").write_text(
        "recording,view,path,offset,subject\nlab,left,lab_left.avi,0,\nlab,right,lab_right.avi,4,\n"
        "yard,left,yard_left.avi,0,cid\nyard,right,yard_right.avi,-2,cid\n"
    )
    return tmp_path


def marks(folder, text, name="marks.csv"):
    (folder / name).write_text(text)
    events, notes = read_events(folder / name, read_recordings(folder / "recordings.csv"))
    return [(e.recording, e.start, e.stop, e.label, e.subject, e.line) for e in events], notes


def rows(made):
    with open(made.manifest, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("text", [
    "recording,start,stop,label,subject\nlab,1.5,0:03,wave,ann\nyard,4,5,clap,\n",
    "Subject;End;Behaviour;Session;Time_Start\nann;3,0;wave;lab;1,5\n;5;clap;yard;4\n",
])
def test_read_events__reads_a_plain_table_by_its_header(lab, text):
    found, _ = marks(lab, text)
    assert found == [("lab", 1.5, 3, "wave", "ann", 2), ("yard", 4, 5, "clap", "cid", 3)]


def test_read_events__options_without_effect_are_named(lab):
    (lab / "m.csv").write_text("start,stop,label,recording\n1,2,wave,lab\n")
    _, notes = read_events(lab / "m.csv", read_recordings(str(lab / "recordings.csv")), ["acts"], 25.0)
    assert [note.partition(": ")[2].partition(",")[0] for note in notes] == ["--tier has no effect", "--fps has no effect"]


def test_read_events__pairs_the_states_of_boris_by_subject_and_takes_its_time_offset_back(lab):
    found, _ = marks(lab, TABULAR)
    assert found == [
        ("lab", 3, 4, "clap", "bob", 8), ("lab", 2, 5.5, "wave", "ann", 7), ("lab", 6, 6, "jump", "ann", 11),
    ]


def test_read_events__states_of_boris_may_cross_chapters_and_differ_by_modifier(lab):
    text = (
        "Observation id,Source,Subject,Behavior,Modifier #1,Behavior type,Time,Media file name\n"
        "o,player #1:lab_left.avi;yard_left.avi,,wave,left,START,1,lab_left.avi\n"
        "o,player #1:lab_left.avi;yard_left.avi,,wave,right,START,2,lab_left.avi\n"
        "o,player #1:lab_left.avi;yard_left.avi,,wave,left,STOP,3,yard_left.avi\n"
        "o,player #1:lab_left.avi;yard_left.avi,,wave,right,STOP,5,lab_left.avi\n"
    )
    (lab / "one.csv").write_text("recording,view,path\nlab,left,lab_left.avi\nlab,left,yard_left.avi\n")
    (lab / "marks.csv").write_text(text)
    events, _ = read_events(lab / "marks.csv", read_recordings(lab / "one.csv"))
    assert [(event.start, event.stop, event.line) for event in events] == [(1, 3, 2), (2, 5, 3)]


def test_read_events__columns_of_boris_are_not_taken_from_its_independent_variables(lab):
    found, _ = marks(lab, AGGREGATED)
    assert found == [("lab", 2, 5.5, "wave", None, 2)]


def test_read_events__a_tool_that_shows_a_camera_counts_from_its_beginning(lab):
    found, notes = marks(lab, "video,start,stop,label\nX:\\a\\lab_right.avi,1,2,wave\n")
    assert found == [("lab", 5, 6, "wave", None, 2)]
    assert any("from the beginning" in note and "+4 s" in note for note in notes)


def test_read_events__belong_to_the_recording_of_that_name_folder_or_column(lab):
    text = "start,stop,label\n1,2,wave\n"
    with pytest.raises(DataError, match=r"line 2: it may mean 2 recordings \(lab, yard"):
        marks(lab, text)
    assert marks(lab, text, "yard.csv")[0][0][0] == "yard"
    assert marks(lab, text, "LAB_RIGHT.csv")[0][0][:2] == ("lab", 1)
    (lab / "lab").mkdir()
    assert marks(lab, text, "lab/events.csv")[0][0][0] == "lab"
    owned = [Recording(one, None, (Camera("1", (Path("cam.avi"),)),), lab / f"{one}.txt") for one in ("a", "b")]
    for one in owned:
        one.events.write_text(text)
    events, _ = read_all_events(owned)
    assert [event.recording for event in events] == ["a", "b"]


@pytest.mark.parametrize(("text", "message"), [
    ("recording,start,stop,label\ncellar,1,2,wave\n", "line 2: there is no recording 'cellar'; .* lab, yard"),
    ("recording,start,stop,label\nlab,soon,2,wave\n", "line 2: start .'soon'. must be seconds"),
    ("recording,start,stop,label\nlab,1,,wave\n", "line 2: stop is empty"),
    ("recording,start,stop,label\nlab,1,2,\n", "line 2: label is empty"),
    ("recording,start,stop,label,class\nlab,1,2,wave,x\n", "line 1: the columns 'class' and 'label' both mean label"),
    ("recording,start,label\nlab,1,wave\n", "line 1: column 'stop' is missing"),
    ("recording,start,stop,label\n", "has no mark"),
    (TABULAR.replace("6.500\tlab_left.avi\t20\t5\tann", "6.500\tlab_left.avi\t20\t5\teve"), "line 10: 'wave' stops but did not"),
    (TABULAR.replace("\tSTOP", "\tSTART"), "line 9: 'clap' starts, but it runs since line 8"),
    ('{"a": 1}', "is JSON, but no export of Label Studio"),
    ("<html></html>", "XML of another form .<html>"),
])
def test_read_events__refuses_with_the_line(lab, text, message):
    with pytest.raises(DataError, match=message):
        marks(lab, text)


def test_read_events__marks_of_recordings_that_the_table_lacks_are_named(lab):
    found, notes = marks(lab, "recording,start,stop,label\nlab,1,2,wave\ncellar,1,2,wave\n")
    assert len(found) == 1
    assert any("line 3: the table has no recording 'cellar'" in note for note in notes)


@pytest.mark.parametrize("text", [
    "recording,start,stop,label\ncellar,1,2,wave\nyard,3,4,clap\n",
    "Observation id,Media file name,Subject,Behavior,Behavior type,Start (s),Stop (s)\n"
    "cellar,yard_left.avi,ann,wave,STATE,1,2\nyard,yard_left.avi,cid,clap,STATE,3,4\n",
])
@pytest.mark.parametrize("column", [True, False])
def test_read_all_events__marks_of_other_recordings_are_not_given_to_the_only_one(lab, text, column):
    (lab / "marks.csv").write_text(text)
    yard = next(one for one in read_recordings(lab / "recordings.csv") if one.name == "yard")
    yard = replace(yard, events=lab / "marks.csv" if column else None)
    events, notes = read_all_events([yard], () if column else [lab / "marks.csv"])
    assert [(event.label, event.recording) for event in events] == [("clap", "yard")]
    assert any("no recording 'cellar'" in note for note in notes)


def test_read_events__several_observations_of_names_that_the_table_lacks_are_found_by_their_videos(lab):
    head = "Observation id,Media file name,Subject,Behavior,Behavior type,Start (s),Stop (s)\n"
    (lab / "marks.csv").write_text(head + "one,yard_left.avi,,wave,STATE,1,2\ntwo,cellar.avi,,clap,STATE,3,4\n")
    events, notes = read_events(lab / "marks.csv", read_recordings(lab / "recordings.csv"))
    assert [(event.label, event.recording) for event in events] == [("wave", "yard")]
    assert any("no recording 'two'" in note for note in notes)


def test_import_events__only_marks_of_nothing_give_clips_of_nothing(tmp_path, film):
    (tmp_path / "r.csv").write_text(f"recording,view,path\nr,c,{film}\n")
    (tmp_path / "m.csv").write_text("start,stop,label\n1,2,nothing\n3,4,nothing\n")
    made = import_events([tmp_path / "m.csv"], tmp_path / "r.csv", tmp_path / "out.csv")
    assert {row["label"] for row in rows(made)} == {"nothing"}


def test_import_events__a_recording_may_lie_before_time_zero(tmp_path, film):
    (tmp_path / "r.csv").write_text(f"recording,view,path,offset\nr,c,{film},-40\n")
    (tmp_path / "m.csv").write_text("start,stop,label\n-38,-36,wave\n-30,-28,clap\n")
    made = import_events([tmp_path / "m.csv"], tmp_path / "r.csv", tmp_path / "out.csv")
    assert Counter(row["label"] for row in rows(made))["wave"] == 1


def test_import_events__one_clock_for_all_views(lab):
    (lab / "marks.csv").write_text("recording,start,stop,label\nlab,5,7,wave\nyard,1,3,clap\n")
    made = import_events([lab / "marks.csv"], lab / "recordings.csv", settings=ClipSettings(nothing=0))
    found = {(r["path"], r["label"], r["view"], r["start"], r["end"], r["offset"], r["subject"]) for r in rows(made)}
    assert found == {
        ("lab_left.avi", "wave", "left", "5", "7", "0", ""), ("lab_right.avi", "wave", "right", "1", "3", "4", ""),
        ("yard_left.avi", "clap", "left", "1", "3", "0", "cid"), ("yard_right.avi", "clap", "right", "3", "5", "-2", "cid"),
    }
    assert len({r["group"] for r in rows(made)}) == 2
    assert (made.events, made.nothing, made.left_out) == (2, 0, ())
    with pytest.raises(DataError, match="exists: remove it"):
        import_events([lab / "marks.csv"], lab / "recordings.csv")


def test_import_events__names_what_is_short_outside_or_overlaps(lab):
    text = (
        "recording,start,stop,label\nlab,5,7,wave\nlab,6,8,clap\nlab,9,9.1,tick\nlab,30,31,late\nlab,2,4.5,early\nlab,9,8,back\n"
        "lab,5,7,wave\nlab,19,21,end\n"
    )
    (lab / "marks.csv").write_text(text)
    made = import_events([lab / "marks.csv"], lab / "recordings.csv", settings=ClipSettings(nothing=0))
    for line, reason in ((4, "shorter than a frame"), (5, r"outside of its recording"), (7, "stops before it starts")):
        assert any(f"line {line}:" in text and reason in text for text in made.left_out)
    assert [text.split(": ")[0].rpartition(" ")[2] for text in made.overlaps] == ["3"]
    notes = "\n".join(made.notes)
    assert "line 6: 'early' is not filmed by camera right" in notes
    assert "line 8: the same mark as" in notes
    assert "line 9: 'end' is not filmed by camera left" in notes
    assert Counter(r["label"] for r in rows(made)) == {"wave": 2, "clap": 2, "early": 1, "end": 1}


@pytest.mark.parametrize("where", ["between", "all"])
def test_import_events__clips_of_nothing_keep_away_from_every_mark(lab, where):
    text = "recording,start,stop,label\nlab,5,6,wave\nlab,8,8,tick\nlab,13,14.5,clap\n"
    (lab / "marks.csv").write_text(text)
    made = import_events(
        [lab / "marks.csv"], lab / "recordings.csv", settings=ClipSettings(nothing=1.5, nothing_from=where, nothing_margin=0.5)
    )
    clips = [(float(r["start"]), float(r["end"])) for r in rows(made) if r["label"] == "nothing" and r["view"] == "left"]
    assert len(clips) == made.nothing == 3
    assert all(1 <= end - start <= 1.5 for start, end in clips)
    for (start, end), (low, high) in itertools.product(clips, [(5, 6), (8, 8), (13, 14.5)]):
        assert end <= low - 0.5 + 1e-6 or start >= high + 0.5 - 1e-6
    for one, two in itertools.pairwise(sorted(clips)):
        assert one[1] <= two[0] + 1e-6
    assert any(end > 14.5 for _, end in clips) == (where == "all")
    made = import_events([lab / "marks.csv"], lab / "recordings.csv", lab / "m.csv", ClipSettings(nothing=50))
    assert any("of nothing between the events, not" in note for note in made.notes)


def test_import_events__a_mark_in_the_second_chapter_is_read_from_it(tmp_path, film):
    for name in ("GH01.avi", "GH02.avi"):
        os.link(film, tmp_path / name)
    (tmp_path / "r.csv").write_text("recording,view,path\nlab,1,GH01.avi\nlab,1,GH02.avi\n")
    (tmp_path / "m.csv").write_text("start,stop,label,video\n21,23,wave,GH01.avi\n4,5,clap,GH02.avi\n19,21,split,GH01.avi\n")
    made = import_events([tmp_path / "m.csv"], tmp_path / "r.csv", tmp_path / "out.csv", ClipSettings(nothing=0))
    assert [(r["path"], r["label"], r["start"], r["end"], r["offset"]) for r in rows(made)] == [
        ("GH02.avi", "wave", "1", "3", "20"), ("GH02.avi", "clap", "4", "5", "20"),
    ]
    assert "line 4: 'split' (19 to 21 s) lies where no single file has all of it" in made.left_out[0]


def test_import_events__nothing_in_any_spelling_is_no_event(tmp_path, film):
    (tmp_path / "r.csv").write_text(f"recording,view,path\nday,a,{film}\n")
    (tmp_path / "m.csv").write_text("start,stop,label\n0,1,wave\n1.5,2,Nothing\n15,16,wave\n")
    made = import_events([str(tmp_path / "m.csv")], str(tmp_path / "r.csv"), str(tmp_path / "out.csv"), ClipSettings(nothing=1))
    assert made.labels == {"nothing": 3, "wave": 2}
    assert any("'Nothing' is read as the class nothing" in note for note in made.notes)
    with pytest.raises(ConfigError, match="--nothing-seconds 0.001 is less than a frame of 'day'"):
        import_events([tmp_path / "m.csv"], tmp_path / "r.csv", tmp_path / "o.csv", ClipSettings(nothing_seconds=0.001))


def test_import_events__cameras_that_share_no_time_are_named(tmp_path, film):
    os.link(film, tmp_path / "b.mp4")
    (tmp_path / "r.csv").write_text(f"recording,view,path,offset\nday,a,{film},0\nday,b,b.mp4,100\n")
    (tmp_path / "m.csv").write_text("start,stop,label\n0,0.5,wave\n")
    made = import_events([tmp_path / "m.csv"], tmp_path / "r.csv", tmp_path / "out.csv")
    assert any("the cameras of 'day' share no time: check the offsets" in note for note in made.notes)


@pytest.mark.parametrize("frames", [1, 10])
def test_import_events__a_camera_that_ended_early_does_not_take_the_pauses_of_the_others(tmp_path, film, make_video, frames):
    make_video(tmp_path / "short.avi", frames, fps=5)
    (tmp_path / "r.csv").write_text(f"recording,view,path,offset\nday,a,{film},0\nday,b,short.avi,0\n")
    (tmp_path / "m.csv").write_text("start,stop,label\n5,6,wave\n12,13,wave\n")
    made = import_events([tmp_path / "m.csv"], tmp_path / "r.csv", tmp_path / "out.csv")
    assert made.labels == {"nothing": 2, "wave": 2}
    assert {row["view"] for row in rows(made)} == {"a"}


def test_gaps__are_what_no_interval_covers():
    assert gaps([(1, 3), (2, 5), (7, 8)], 0, 10) == [(0, 1), (5, 7), (8, 10)]
    assert gaps([(-1, 12)], 0, 10) == []
    assert gaps([], 0, 10) == [(0, 10)]


def test_import_command__prints_what_was_made_and_needs_one_kind_of_file(dtsf, lab):
    (lab / "marks.csv").write_text("recording,start,stop,label\nlab,5,7,wave\nlab,9,9,tick\nlab,12,14,clap\n")
    words = ("import", "marks.csv", "--recordings", "recordings.csv", "--out", "m.csv", "--nothing", 0.5)
    made = dtsf.json(*words, cwd=lab)
    assert {key: made[key] for key in ("manifest", "recordings", "events", "nothing", "rows", "labels")} == {
        "manifest": "m.csv", "recordings": 1, "events": 2, "nothing": 1, "rows": 6, "labels": {"clap": 1, "nothing": 1, "wave": 1},
    }
    assert "line 3: 'tick'" in made["left_out"][0]
    assert "m.csv exists: remove it" in dtsf.refusal(*words, cwd=lab)
    assert "--root DIR for lists" in dtsf.refusal("import", "marks.csv", cwd=lab)
    for option in ("--fps", "--nothing"):
        assert "are for marks with --recordings" in dtsf.refusal("import", "marks.csv", "--root", ".", option, 3, cwd=lab)
