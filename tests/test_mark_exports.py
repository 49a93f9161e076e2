"""Marks in files of annotation tools: ELAN, CVAT, Label Studio, WebVTT and SRT become events on the recording's clock."""

import json
import os

import pytest

from dtsf.errors import DataError
from dtsf.recordings.bouts import Bout, Media, MediaFile, Timeline
from dtsf.recordings.events import read_events
from dtsf.recordings.outputs import WRITERS
from dtsf.recordings.table import read_recordings


@pytest.fixture(scope="module")
def lab(make_video, tmp_path_factory):
    """One recording: two cameras of 4 s and 10 pictures a second; the right one begins 2 s later."""
    folder = tmp_path_factory.mktemp("lab")
    make_video(folder / "left.mp4", 40, fps=10)
    os.link(folder / "left.mp4", folder / "right.mp4")
    (folder / "recordings.csv").write_text("recording,view,path,offset,subject\nlab,l,left.mp4,0,ann\nlab,r,right.mp4,2,ann\n")
    return folder


@pytest.fixture
def read(lab, tmp_path):
    def read(text, tier=(), fps=None):
        path = tmp_path / "marks.txt"
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        events, notes = read_events(path, read_recordings(lab / "recordings.csv"), tier, fps)
        return [(event.label, event.start, event.stop) for event in events], notes

    return read


@pytest.mark.parametrize("text", [
    "WEBVTT - a title\n\nNOTE made --> by hand\n\nSTYLE\n::cue {}\n\n"
    "one\n00:01.000 --> 00:02.500 align:left\n<v bob>wa<i>v</i>e\n\n"
    "01:00:03.000 --> 01:00:03.500\nturn\naround\n",
    "1\r\n00:00:01,000 --> 00:00:02,500\r\nwave\r\n\r\n2\r\n01:00:03,000 --> 01:00:03,500\r\nturn\r\naround\r\n",
])
def test_read_events__cues_are_marks_of_their_text(read, text):
    assert read(text)[0] == [("wave", 1, 2.5), ("turn around", 3603, 3603.5)]


def test_read_events__cues_with_whole_seconds_tags_of_a_place_and_two_voices(read):
    assert read("1\n00:00:01 --> 00:00:02\n{\\an8}wave\n")[0] == [("wave", 1, 2)]
    assert read("WEBVTT\n\n00:01.000 --> 00:02.000\n<v ann>wave</v>\n<v bob>clap</v>\n")[0] == [("wave", 1, 2), ("clap", 1, 2)]


def test_read_events__refuses_a_cue_without_text_or_time(read):
    with pytest.raises(DataError, match="line 3: the cue has no text"):
        read("WEBVTT\n\n00:01.000 --> 00:02.500\n\n")
    with pytest.raises(DataError, match="line 3: 'soon --> later' is no time of a cue"):
        read("WEBVTT\n\nsoon --> later\nwave\n")


@pytest.mark.parametrize("form", ["csv", "vtt", "eaf"])
def test_read_events__what_a_timeline_writes_comes_back(read, lab, form):
    times = {"label": "wave & <turn>", "start": 2.5, "stop": 3.25}, {"label": "clap", "start": 4.0, "stop": 5.125}
    bouts = tuple(Bout(**one, probability=0.875, uncertainty=0.25, view_weights=(0.5, 0.5)) for one in times)
    media = tuple(
        Media(view=view, offset=offset, files=(MediaFile(path=str(lab / f"{name}.mp4"), start=offset, stop=offset + 4),))
        for view, name, offset in (("r", "right", 2.0), ("l", "left", 0.0))
    )
    known = {"recording": "lab", "subject": "ann", "views": ("r", "l"), "start": 2.0, "stop": 6.0}
    text = WRITERS[form](Timeline(**known, bouts=bouts, media=media))
    assert read(text)[0] == [tuple(one.values()) for one in times]


def test_read_events__elan_as_pympi_writes_it(read, tmp_path):
    pympi = pytest.importorskip("pympi")
    document = pympi.Eaf()
    document.remove_tier("default")
    document.add_linked_file(str(tmp_path / "right.mp4"), mimetype="video/mp4")
    for tier, person in (("acts", "ann"), ("notes", "")):
        document.add_tier(tier, part=person)
    document.add_annotation("acts", 1000, 2500, "wave")
    document.add_annotation("acts", 3000, 3500, "")
    document.add_annotation("notes", 500, 900, "look here")
    document.to_file(str(tmp_path / "pympi.eaf"))
    text = (tmp_path / "pympi.eaf").read_text()
    expected = [("wave", 3, 4.5), ("acts", 5, 5.5)]
    assert read(text, ["acts"])[0] == expected
    assert read(text)[0] == [*expected, ("look here", 2.5, 2.9)]
    with pytest.raises(DataError, match="no tier 'act'; it has acts, notes"):
        read(text, ["act"])


EAF = """<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT><HEADER><MEDIA_DESCRIPTOR MEDIA_URL="file:///x/right.mp4" TIME_ORIGIN="500"/></HEADER>
<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="t1" TIME_VALUE="1000"/><TIME_SLOT TIME_SLOT_ID="t2"/>
<TIME_SLOT TIME_SLOT_ID="t3" TIME_VALUE="2000"/></TIME_ORDER>
<TIER TIER_ID="acts"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="t1" TIME_SLOT_REF2="t2">
<ANNOTATION_VALUE>wave</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
<TIER TIER_ID="hand" PARENT_REF="acts"><ANNOTATION><REF_ANNOTATION ANNOTATION_ID="a2" ANNOTATION_REF="a1">
<ANNOTATION_VALUE>left</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION></TIER></ANNOTATION_DOCUMENT>"""


def test_read_events__elan_with_an_origin_a_slot_without_time_and_a_child_tier(read):
    found, notes = read(EAF)
    assert found == [("wave", 3.5, 4)]
    assert any("tiers without use: hand: choose with --tier" in note for note in notes)
    assert read(EAF, ["hand"])[0] == [("left", 3.5, 4)]


@pytest.mark.parametrize(("tiers", "named"), [
    ({"acts": ["wave", "clap"] * 3, "notes": [f"look {k}" for k in range(6)]}, "notes"),
    ({"acts": [f"the light at the door is {k}" for k in range(6)]}, "acts"),
    ({"acts": ["kick", "sit down and up", "raise the arm", "circle the arms forwards", "circle the arms backwards"]}, ""),
    ({"ann": ["wave", "clap", "turn", "jump", "walk"], "bob": ["Clap", "wave", "turn", "walk", "jump"]}, ""),
    ({"acts": ["wave"] * 6, "notes": ["look here"]}, ""),
])
@pytest.mark.parametrize("listed", [False, True])
def test_read_events__a_tier_of_remarks_is_no_class_in_silence(read, tiers, named, listed):
    """A controlled vocabulary has labels, even if each is used once."""
    slots, body, number = "", "", 0
    for tier, texts in tiers.items():
        marks = ""
        for text in texts:
            number += 1
            slots += f'<TIME_SLOT TIME_SLOT_ID="s{number}" TIME_VALUE="{100 * number}"/>'
            slots += f'<TIME_SLOT TIME_SLOT_ID="e{number}" TIME_VALUE="{100 * number + 50}"/>'
            ends = f'ANNOTATION_ID="a{number}" TIME_SLOT_REF1="s{number}" TIME_SLOT_REF2="e{number}"'
            marks += f"<ANNOTATION><ALIGNABLE_ANNOTATION {ends}><ANNOTATION_VALUE>{text}</ANNOTATION_VALUE>"
            marks += "</ALIGNABLE_ANNOTATION></ANNOTATION>"
        body += f'<TIER TIER_ID="{tier}" LINGUISTIC_TYPE_REF="t">{marks}</TIER>'
    kind = '<LINGUISTIC_TYPE LINGUISTIC_TYPE_ID="t"' + (' CONTROLLED_VOCABULARY_REF="v"/>' if listed else "/>")
    text = f"<ANNOTATION_DOCUMENT><TIME_ORDER>{slots}</TIME_ORDER>{body}{kind}</ANNOTATION_DOCUMENT>"
    if named and not listed:
        with pytest.raises(DataError, match=f"tier '{named}' has remarks and not labels .6 of 6.*with --tier"):
            read(text)
        assert len(read(text, [named])[0]) == 6
    else:
        found, notes = read(text)
        assert len(found) == number
        assert any("marks are those of the tiers" in note for note in notes) == (len(tiers) > 1)


def cvat(body, task="<source>right.mp4</source>"):
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><meta><task><id>7</id>{task}</task></meta>{body}</annotations>'


BOX = '<box frame="{}" outside="{}" xtl="1" ytl="1" xbr="2" ybr="2"><attribute name="act">{}</attribute></box>'
TRACK = '<track id="0" label="person">' + "".join(
    BOX.format(*row) for row in ((3, 0, "walk"), (5, 0, "walk"), (8, 0, "run"), (12, 1, "run"), (20, 0, "run"))
) + "</track>"


def test_read_events__cvat_tracks_end_where_they_are_outside(read):
    found, notes = read(cvat(TRACK))
    assert found == [("person", 2.3, 3.2), ("person", 4.0, 4.1)]
    assert any("--tier (act)" in note for note in notes)
    assert read(cvat(TRACK), ["act"])[0] == [("walk", 2.3, 2.8), ("run", 2.8, 3.2), ("run", 4.0, 4.1)]
    with pytest.raises(DataError, match="no attribute act2; it has act"):
        read(cvat(TRACK), ["act2"])


def test_read_events__cvat_shapes_may_have_other_attributes(read):
    more = TRACK.replace("</track>", '<box frame="24" outside="0"><attribute name="mood">glad</attribute></box></track>')
    assert any("--tier (act, mood)" in note for note in read(cvat(more))[1])
    assert read(cvat(more), ["mood"])[0] == [("glad", 4.4, 4.5)]


def test_read_events__cvat_tags_are_runs_of_frames_with_the_first_frame_and_step_of_the_task(read):
    tags = "".join(f'<image id="{k}" name="f"><tag label="wave"/></image>' for k in (0, 1, 2, 6))
    assert read(cvat(tags))[0] == [("wave", 2, 2.3), ("wave", 2.6, 2.7)]
    task = "<source>C:\\x\\left.mp4</source><start_frame>4</start_frame><frame_filter>step=5</frame_filter>"
    assert read(cvat(tags, task))[0] == [("wave", 0.4, 1.9), ("wave", 3.4, 3.9)]


def studio(regions, **task):
    return [{"id": 1, "data": {"video": "/data/upload/1/0a1b2c3d-right.mp4"}, "annotations": [{"result": regions}], **task}]


def timeline(start, end, *labels):
    return {"type": "timelinelabels", "value": {"ranges": [{"start": start, "end": end}], "timelinelabels": list(labels)}}


def test_read_events__label_studio_counts_frames_from_one(read):
    found, notes = read(studio([timeline(1, 10, "wave"), timeline(11, 15, "clap", "jump")]))
    assert found == [("wave", 2, 3), ("clap", 3, 3.5), ("jump", 3, 3.5)]
    assert any("give it as --fps" in note for note in notes)
    assert read(studio([timeline(1, 10, "wave")]), fps=20)[0] == [("wave", 2, 2.5)]
    with pytest.raises(DataError, match=r"mark 1: it is at frames 0 to 900, but .*right.mp4 has 40: .*--fps"):
        read(studio([timeline(1, 900, "wave")]))


def test_read_events__label_studio_spans_in_seconds_boxes_and_json_min(read):
    box = {
        "type": "videorectangle",
        "value": {
            "framesCount": 80, "duration": 4.0, "labels": ["dog"],
            "sequence": [{"frame": 1, "enabled": True}, {"frame": 41, "enabled": False}, {"frame": 61, "enabled": True}],
        },
    }
    seconds = {"type": "labels", "value": {"start": 0.5, "end": 1.25, "labels": ["bark"]}}
    choice = {"type": "choices", "value": {"choices": ["good"]}}
    found, notes = read(studio([timeline(1, 20, "run"), box, seconds, choice]))
    assert found == [("run", 2, 3), ("dog", 2, 4), ("dog", 5, 5.05), ("bark", 2.5, 3.25)]
    assert any("1 choices" in note for note in notes)
    small = [{"id": 3, "video": "/data/local-files/?d=a%20b/left.mp4", "tl": [timeline(1, 5, "x")["value"]]}]
    assert read(small)[0] == [("x", 0, 0.5)]


@pytest.mark.parametrize(("text", "message"), [
    (studio([], annotations=[{"result": []}, {"result": []}]), "task 1: it has 2 annotations: mark one as ground truth"),
    (studio([]) + studio([]), "2 entries are of task 1"),
    (studio([timeline(1, 5, "x")], data={"video": "other.mp4"}), "counts the frames of other.mp4, which is no camera of 'lab'"),
    (studio([]), "has no mark"),
    ({"images": [], "annotations": [{"id": 1}]}, "no export of Label Studio"),
    ("[1", "is not valid JSON"),
    ("<a", "is not valid XML"),
    ('<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>', "defines entities"),
    (cvat(TRACK.replace('frame="5"', 'frame="x"')), "has a part of a wrong form"),
    (EAF.replace('TIME_VALUE="1000"', 'TIME_VALUE="soon"'), "has a part of a wrong form"),
    (EAF.replace('REF2="t2"', 'REF2="t9"'), "annotation a1: its time slot is missing"),
    (EAF.replace("TIME_VALUE", "TIME"), "has no time slot"),
    (cvat(TRACK.replace("person", "\u200b")), "track 0, frame 3: the label is empty"),
])
def test_read_events__refuses_an_export_that_it_cannot_place(read, text, message):
    with pytest.raises(DataError, match=message):
        read(text)
