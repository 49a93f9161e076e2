"""Protocols: published splits have the published counts (reference/datasets.md), and splits describe their task."""

import csv
import re

import pytest
from make_cache import clip

from dtsf.cache.schema import Clip
from dtsf.errors import ConfigError
from dtsf.training.protocols import Split, parse_protocol, split_clips, suggested_protocol
from dtsf.training.recipe import TrainConfig
from dtsf.training.splits import limit_training


def split_of(clips, text, kind="manifest", names=("1", "2", "3"), **needed):
    return split_clips(clips, parse_protocol(text, kind), kind, names, **needed)


def numbered(*subjects):
    return [clip(f"{s}-{v}", group=f"g{s}", view=v, subject=s, split="train") for v in (1, 2) for s in subjects]


def test_protocols__divide_and_name_their_task():
    clips = [clip(f"{s}-{v}", group=f"s{s}", view=v, subject=str(s)) for v in (1, 2, 3) for s in (1, 5, 10)]
    assert {clip.subject for clip in split_of(clips, "cross-subject:05", "nucla").test} == {"5"}
    assert {clip.subject for clip in split_of(clips, "cross-subject", "nucla").test} == {"10"}
    assert {clip.view for clip in split_of(clips, None, "nucla").test} == {3}
    assert "unseen view alone" in split_of(clips, "cross-view:2", "nucla").task
    assert "no generalisation" in split_of(clips, "all", "nucla").task
    for text, message in {
        "cross-subject:7": "no subject 7; there are 1, 5, 10",
        "cross-view:4": "unknown view '4'",
        "cross-setup": "only NTU",
        "split": "column split",
        "xsub": "unknown protocol 'xsub'",
        **dict.fromkeys(("groups", "groups:2", "groups:0/2", "groups:3/2", "groups:1/1", "groups:1/2,2/2"), "one part of all"),
    }.items():
        with pytest.raises(ConfigError, match=message):
            split_of(clips, text, "nucla")


def test_protocol_groups__tests_each_group_once_and_spreads_the_classes():
    clips = [clip(f"{k}-{v}", group=f"g{k}", view=v, label=k % 2, subject="1") for k in range(10) for v in (1, 2)]
    parts = [split_of(clips, f"groups:{k}/5") for k in range(1, 6)]
    tests = [{one.group for one in part.test} for part in parts]
    assert sorted(group for test in tests for group in test) == sorted({one.group for one in clips})
    assert all({one.label for one in part.test} == {0, 1} for part in parts)
    assert all(not test & {one.group for one in part.train} for part, test in zip(parts, tests, strict=True))


def test_limit_training__keeps_people_takes_and_views():
    names = [(s, label, take) for s in ("1", "2", "2+3") for label in (0, 1) for take in range(3)]
    clips = [
        clip(f"{s}-{label}-{take}-{v}", group=f"{s}-{label}-{take}", view=v, label=label, subject=s)
        for s, label, take in names
        for v in (1, 2, 3)
    ]
    split = Split(train=clips, test=(), left_out={"bad": 1}, task="")

    def kept(**limits):
        return limit_training(split, TrainConfig(**limits))

    assert kept() == split
    assert {one.subject for one in kept(only_subjects="02").train} == {"2"}
    assert {one.subject for one in kept(only_subjects="2,3").train} == {"2", "2+3"}
    assert {one.group[-1] for one in kept(max_takes=2).train} == {"0", "1"}
    two = kept(max_views=2)
    assert len(two.train) == 36
    assert [sum(one.view == view for one in two.train) for view in (1, 2, 3)] == [12, 12, 12]
    assert two.left_out == {"bad": 1, "of the training, by train.only_subjects, max_takes or max_views": 18}
    with pytest.raises(ConfigError, match=r"only_subjects: 7 is not among the training subjects \(1, 2, 3\)"):
        kept(only_subjects="7")
    with pytest.raises(ConfigError, match="leaves no training clip"):
        kept(only_subjects="3")


def test_protocols__refuse_a_side_without_clips_where_it_is_needed():
    clips = [clip("5-1", view=1, subject="5"), clip("6-2", view=2, subject="6")]
    with pytest.raises(ConfigError, match=r"cross-subject:5,6 leaves no training clip of 2 \(subjects 5, 6; views 1, 2, 3\)"):
        split_of(clips, "cross-subject:5,6", "nucla")
    assert len(split_of(clips, "cross-subject:5,6", "nucla", needed=("test",)).test) == 2
    with pytest.raises(ConfigError, match="leaves no training clip"):
        split_of(clips, "cross-subject:5,6", "nucla", needed=("train",))
    with pytest.raises(ConfigError, match="leaves no test clip"):
        split_of(clips, "cross-view:3", "nucla", needed=("test",))


@pytest.mark.parametrize(("protocol", "views", "subjects"), [
    ("cross-view:02", {"02"}, None),
    ("cross-view:05", {"05"}, None),
    ("cross-view:2", {"02"}, None),
    ("cross-subject:03", None, {"03"}),
    ("cross-subject:3", None, {"03"}),
])
def test_protocol__words_are_names_before_they_are_numbers(protocol, views, subjects):
    clips = numbered("01", "02", "03")
    with pytest.raises(ConfigError, match="unknown view '1': there are 02, 05"):
        split_of(clips, "cross-view:1", names=("02", "05"))
    test = split_of(clips, protocol, names=("02", "05")).test
    assert views is None or {("02", "05")[clip.view - 1] for clip in test} == views
    assert subjects is None or {clip.subject for clip in test} == subjects


def test_protocol__refuses_ambiguous_words():
    clips = numbered("5", "05", "x")
    assert {clip.view for clip in split_of(clips, "cross-view:2", names=("left", "right")).test} == {2}
    assert {clip.subject for clip in split_of(clips, "cross-subject:05", names=("left", "right")).test} == {"05"}
    with pytest.raises(ConfigError, match="no subject 005"):
        split_of(clips, "cross-subject:005", names=("left", "right"))


@pytest.fixture(scope="module")
def reference(shared_data):
    return shared_data.parent / "reference"


def rows(file):
    with file.open(newline="") as open_file:
        return list(csv.DictReader(open_file))


@pytest.fixture(scope="module")
def ntu(reference):
    """Every video of NTU-120, from its published grid: 318 (setup, subject) pairs, all of their actions, three cameras."""
    clips = []
    for row in rows(reference / "ntu_setup_subject_rep.csv"):
        setup, subject = int(row["setup"]), int(row["subject"])
        for action in range(1, 61) if setup <= 17 else range(61, 121):
            words = {"label": action - 1, "raw_label": str(action), "subject": str(subject), "setup": setup}
            words |= {"path": "x", "split": None, "background": None}
            for repetition in row["replications"].split("+"):
                group = f"S{setup:03}P{subject:03}R{int(repetition):03}A{action:03}"
                clips += [
                    # Without validation, which is slow for a hundred thousand clips.
                    Clip.model_construct(id=f"{group}C{camera}", group=group, view=camera, **words)
                    for camera in (1, 2, 3)
                ]
    return clips


@pytest.mark.parametrize(("setups", "protocol", "train", "test", "task"), [
    (17, "cross-subject", 40_320, 16_560, "all views of unseen subjects (3, 6, 7, 10, 11"),
    (17, "cross-view", 37_920, 18_960, "an unseen view alone (view 1) of performances seen from others"),
    (32, "cross-subject", 63_360, 51_120, "all views of unseen subjects (3, 6, 7, 10, 11"),
    (32, "cross-setup", 54_720, 59_760, "all views of unseen setups (odd numbers)"),
])
def test_split_ntu__has_the_published_sizes(ntu, setups, protocol, train, test, task):
    clips = [clip for clip in ntu if clip.setup <= setups]
    split = split_of(clips, protocol, "ntu")
    assert (len(split.train), len(split.test)) == (train, test)
    assert split.task.startswith(task)
    assert not split.left_out
    sides = (split.train, split.test)
    groups = [len({clip.group for clip in side}) for side in sides]
    units = [{clip.setup if protocol == "cross-setup" else clip.subject for clip in side} for side in sides]
    if protocol == "cross-view":
        assert [{clip.view for clip in side} for side in sides] == [{2, 3}, {1}]
        assert groups == [18_960, 18_960]
    else:
        # Whole groups on one side.
        assert [3 * n for n in groups] == [train, test]
        assert not units[0] & units[1]
    if protocol == "cross-subject":
        assert [len(subjects) for subjects in units] == ([20, 20] if setups == 17 else [53, 53])


def nucla(reference, flag):
    return [
        clip(
            f"{r['action']}-{r['subject']}-{r['episode']}-{r['view']}", group=f"a{r['action']}s{r['subject']}e{r['episode']}",
            label=int(r["action"]), view=int(r["view"]), subject=str(int(r["subject"])),
        )  # fmt: skip
        for r in rows(reference / "nucla_ids.csv")
        if r[flag] == "1"
    ]


@pytest.mark.parametrize(("peer", "protocol", "train", "test"), [
    # VPN's training lists (968, 981, 1019) differ by one or two clips from its own test lists of the other views.
    ("in_vpn", "cross-view:1", 504 + 463, 516),
    ("in_vpn", "cross-view:2", 516 + 463, 504),
    ("in_vpn", "cross-view:3", 516 + 504, 463),
    ("in_ctrgcn", "cross-view", 1020, 464),
    ("in_dvanet", "cross-view", 1015, 460),
    ("in_dvanet", "cross-subject", 1328, 147),
])
def test_split_nucla__has_the_sizes_of_other_projects(reference, peer, protocol, train, test):
    split = split_of(nucla(reference, peer), protocol, "nucla")
    assert (len(split.train), len(split.test)) == (train, test)


def test_split_nucla__leave_one_subject_out_tests_every_clip_once(reference):
    clips = nucla(reference, "in_ctrgcn")
    splits = [split_of(clips, f"cross-subject:{subject:02}", "nucla") for subject in range(1, 11)]
    for subject, split in enumerate(splits, 1):
        assert split.task == f"all views of unseen subjects ({subject})"
        assert str(subject) not in {clip.subject for clip in split.train}
    assert sorted(clip.id for split in splits for clip in split.test) == sorted(clip.id for clip in clips)


@pytest.mark.parametrize(("word", "name"), [("1", "horizontal"), ("angle", "angle"), ("3", "topdown"), (None, "topdown")])
def test_split_casia__test_view_by_number_or_name(word, name):
    views = ("horizontal", "angle", "topdown")
    clips = [clip(f"{p}-{v}", group=f"p{p}", view=v, subject=str(p)) for p in (1, 2) for v in (1, 2, 3)]
    split = split_of(clips, word and f"cross-view:{word}", "casia", views)
    assert [views[clip.view - 1] for clip in split.test] == [name, name]
    assert {views[clip.view - 1] for clip in split.train} == {*views} - {name}
    assert split.task == f"an unseen view alone (view {name}) of performances seen from others"


def row(group, view, subject, side):
    return clip(f"{group}-{view}", group=group, view=view, subject=subject, split=side)


@pytest.mark.parametrize(("clips", "said"), [
    (
        [row("g1", 1, "1", "train"), row("g1", 2, "1", "test")],
        "an unseen view alone (view b), of subjects who trained too in performances seen from others",
    ),
    (
        [row("g1", 1, "1", "train"), row("g2", 1, "2", "test"), row("g3", 1, "1", "spare")],
        "views that trained too, of unseen subjects",
    ),
    ([row("g1", 1, None, "train"), row("g2", 2, None, "test")], "an unseen view alone (view b), of people it does not"),
])
def test_split_manifest__describes_what_test_and_training_share(clips, said):
    split = split_of(clips, "split", names=("a", "b"))
    assert re.match(rf"the manifest's test rows: {re.escape(said)}", split.task)
    assert split.left_out == ({"split spare": 1} if len(clips) == 3 else {})


@pytest.mark.parametrize(("subjects", "side", "kind", "protocol"), [
    (("1+2", "3+4"), None, "manifest", "cross-subject:1,2"),
    (("1+2", "2+3"), None, "manifest", "all"),
    (("5", "2+3"), None, "manifest", "cross-subject:5"),
    (("1+2", "3"), None, "manifest", "cross-subject:3"),
    (("anna b", "ben"), "train", "manifest", "cross-subject:anna b"),
    (("anna", None), None, "manifest", "all"),
    (("1", "2"), None, "nucla", None),
])
def test_suggested_protocol__is_one_that_the_clips_allow(subjects, side, kind, protocol):
    clips = [row(f"g{k}", 1, subject, side) for k, subject in enumerate(subjects)]
    assert suggested_protocol(clips, kind) == protocol
    if protocol is not None:
        assert split_of(clips, protocol).test
        with pytest.raises(ConfigError, match=rf"for example --protocol '?{re.escape(protocol)}"):
            split_of(clips, "split")
    assert suggested_protocol([row("a", 1, "1", "train"), row("b", 1, "2", "test")], "manifest") is None
