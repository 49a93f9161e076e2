"""Names as people see them: in tables, on the command line and on the disk."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from make_cache import draw

from dtsf.cache.catalog import view_number
from dtsf.cache.reader import open_dataset
from dtsf.errors import ConfigError
from dtsf.names import by_number, counted, find_path, has_unseen, persons, similar_names, tidy
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.training.protocols import parse_protocol, split_clips
from dtsf.training.recipe import load_recipe
from dtsf.training.splits import hold_out

NFD = unicodedata.normalize("NFD", "Jörg é")


@pytest.mark.parametrize(("text", "name"), [
    (NFD, "Jörg é"),
    ("sit\u00a0 down\u3000", "sit down"),
    ("sit\ndown", "sit down"),
    ("r\u200bu\u2060n\ufeff", "run"),
    ("\u200ego\u202c\u00ad", "go"),
    ("a\u3164\ufe0f", "a"),
    (" plain  name ", "plain name"),
])  # fmt: skip
def test_tidy__gives_texts_that_look_the_same_one_form(text, name):
    assert tidy(text) == name


@given(st.text(max_size=12))
def test_tidy__is_stable(text):
    assert tidy(tidy(text)) == tidy(text)
    assert tidy(unicodedata.normalize("NFD", text)) == tidy(unicodedata.normalize("NFC", text))
    assert not has_unseen(tidy(text))


@pytest.mark.parametrize("names", [
    ("Run", "run"), ("1", "1.0"), ("01", "1"), ("1,50", "1.5"), ("cam01", "cam1"),
    ("sit_down", "sit down", "Sit-Down"), ("cam1", "cam 1", "cam_01"),
    ("\uff52un", "run"), ("\u0441\u0430m", "cam"), ("don’t", "don't"), ("straße", "STRASSE"),
])  # fmt: skip
def test_similar_names__finds_names_that_differ_only_in_how_they_are_written(names):
    assert similar_names([*names, "other", names[0]]) == [names]


def test_counted__one_has_no_s_and_the_verb_of_one():
    assert [counted(n, "clip") for n in (0, 1, 2)] == ["0 clips", "1 clip", "2 clips"]
    assert [counted(n, "entry is", "entries are") for n in (1, 2)] == ["1 entry is", "2 entries are"]


def test_similar_names__keeps_other_names_apart():
    names = ["p1_12", "p11_2", "v1.1", "v1.10", "S001P010", "S001P001"]
    assert not similar_names([*names, "1", "10", "-1", "cam1", "cam10", "run", "runs", "a"])


def test_find_path__finds_names_of_another_unicode_form(tmp_path):
    (tmp_path / NFD).mkdir()
    (tmp_path / NFD / "10\u202fAM.mp4").touch()
    found = tmp_path / NFD / "10\u202fAM.mp4"
    assert find_path(str(tmp_path / "Jörg é" / "10 AM.mp4")) == str(found)
    assert find_path(str(tmp_path / "Jörg é" / "none.mp4")) == str(tmp_path / NFD / "none.mp4")
    (tmp_path / NFD / "10\u00a0AM.mp4").touch()
    assert not find_path(str(tmp_path / "Jörg é" / "10 AM.mp4")).endswith("\u202fAM.mp4")


def table(folder, *rows, header="path,label,group,view,subject,split"):
    (folder / "m.csv").write_text("\n".join([header, *rows]) + "\n", "utf-8")
    return folder / "m.csv"


def test_scan_manifest__a_name_is_what_people_see(tmp_path):
    for name in (f"{NFD}.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).touch()
    rows = ["Jörg é.mp4,Jörg é,g\u00a01,cam,Jörg é,train", f"b.mp4,{NFD},g 1,c\u200bam 2,{NFD},train"]
    made = table(tmp_path, *rows, "c.mp4,x,g2,cam,y,train")
    catalog = scan_source("manifest", made)
    assert (catalog.class_names, catalog.view_names) == (("Jörg é", "x"), ("cam", "cam 2"))
    assert [(clip.group, clip.subject, clip.line) for clip in catalog.clips] == [
        ("g 1", "Jörg é", 2), ("g 1", "Jörg é", 3), ("g2", "y", 4)
    ]  # fmt: skip
    assert [(catalog.root / clip.path).exists() for clip in catalog.clips] == [True] * 3
    (note,) = catalog.notes
    assert "1 name has invisible characters, which are left out; the first is view on line 3" in note


def test_options__find_names_in_any_unicode_form():
    assert view_number(NFD, ("a", "Jörg é"), "test") == 2
    with pytest.raises(ConfigError, match="unknown view"):
        view_number("Jorg e", ("a", "Jörg é"), "test")
    assert parse_protocol(f"cross-subject: {NFD} ,b", "manifest").argument == ("Jörg é", "b")
    assert PreprocessSettings.of(name=NFD).name == "Jörg é"
    recipe = load_recipe("thumbnails", [f'train.exclude_classes=["{NFD}"]', "train.held_out_subjects=03"])
    assert (recipe.train.exclude_classes, recipe.train.held_out_subjects) == (("Jörg é",), ("03",))


def test_train__subjects_are_named_as_the_table_writes_them(tmp_path):
    data = open_dataset(draw(tmp_path, subjects=("03", "4", "5"), classes=2, takes=1))
    split = split_clips(data.clips, parse_protocol("all", "manifest"), "manifest", data.info.view_names)
    for word, name in (("03", "03"), ("3", "03"), ("04", "4")):
        config = load_recipe("thumbnails", [f"train.held_out_subjects={word}"]).train
        assert {clip.subject for clip in hold_out(split, config, 0).held_out} == {name}


def test_persons__a_subject_names_several():
    assert persons("3+4", None, "", "12", "3") == ["3", "4", "12", "3"]
    assert sorted({"12", "3", "ann"}, key=by_number) == ["3", "12", "ann"]
