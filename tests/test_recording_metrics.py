"""Metrics of timelines, each against an independent implementation: scikit-learn, and the loops of MS-TCN's evaluation."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, precision_recall_curve

from dtsf.errors import DataError, VideoError
from dtsf.predict import score
from dtsf.recordings.metrics import FRAME_RATE, Scored, Segment, average_precision, frame_labels, measure, segment_f1

LABELS = "abc"
NOTHING = "nothing"


def draw(seed, n=25, seconds=100):
    """A recording of random marks on whole frames, and bouts that are marks with errors, wrong labels and inventions."""
    rng = np.random.default_rng(seed)
    limits = np.sort(rng.choice(np.arange(1, seconds * FRAME_RATE), 2 * n, replace=False)) / FRAME_RATE
    marks, bouts, end = [], [], 0.0
    for start, stop in limits.reshape(-1, 2):
        marks.append(Segment(start, stop, str(rng.choice(list(LABELS)))))
        if rng.random() < 0.8:
            begin, finish = (np.round((t + rng.normal(0, 0.4)) * FRAME_RATE) / FRAME_RATE for t in (start, stop))
            begin = max(begin, end + 1 / FRAME_RATE)
            if finish > begin:
                label = marks[-1].label if rng.random() < 0.7 else str(rng.choice(list(LABELS)))
                bouts.append(Segment(begin, min(finish, seconds), label, float(rng.random())))
                end = bouts[-1].stop
    return Scored(str(seed), 0.0, float(seconds), tuple(marks), tuple(bouts))


RECORDINGS = [draw(seed) for seed in range(4)]


def frames(which):
    return np.concatenate([frame_labels(one, getattr(one, which), NOTHING) for one in RECORDINGS])


def test_measure__frame_accuracy_and_macro_f1_are_scikit_learns():
    found = measure(RECORDINGS, NOTHING)
    assert found.frame_accuracy == pytest.approx(accuracy_score(frames("marks"), frames("bouts")))
    assert found.frame_f1 == pytest.approx(f1_score(frames("marks"), frames("bouts"), average="macro"))
    assert 0.4 < found.frame_accuracy < 0.95


def runs(labels):
    """Labels, starts and ends of the runs of equal frames, as MS-TCN's get_labels_start_end_time."""
    kept, starts, ends, last = [], [], [], labels[0]
    if last != NOTHING:
        kept, starts = [last], [0]
    for k, label in enumerate(labels):
        if label != last:
            if label != NOTHING:
                kept.append(label)
                starts.append(k)
            if last != NOTHING:
                ends.append(k)
            last = label
    if last != NOTHING:
        ends.append(len(labels))
    return kept, starts, ends


def mstcn_f_score(found, marked, overlap):
    """TP, FP and FN of one recording, as MS-TCN's f_score."""
    p_label, p_start, p_end = runs(found)
    y_label, y_start, y_end = runs(marked)
    hits, tp, fp = np.zeros(len(y_label)), 0, 0
    for j in range(len(p_label)):
        intersection = np.minimum(p_end[j], y_end) - np.maximum(p_start[j], y_start)
        union = np.maximum(p_end[j], y_end) - np.minimum(p_start[j], y_start)
        score = (1.0 * intersection / union) * [p_label[j] == label for label in y_label]
        k = np.array(score).argmax()
        if score[k] >= overlap and not hits[k]:
            tp, hits[k] = tp + 1, 1
        else:
            fp += 1
    return tp, fp, len(y_label) - sum(hits)


def mstcn_edit(found, marked):
    p, y = runs(found)[0], runs(marked)[0]
    table = np.zeros([len(p) + 1, len(y) + 1])
    table[:, 0], table[0] = np.arange(len(p) + 1), np.arange(len(y) + 1)
    for i in range(1, len(p) + 1):
        for j in range(1, len(y) + 1):
            step = table[i - 1, j - 1] + (p[i - 1] != y[j - 1])
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, step)
    return 1 - table[-1, -1] / max(len(p), len(y))


def test_measure__segmental_f1_and_edit_score_are_those_of_ms_tcn():
    found = measure(RECORDINGS, NOTHING)
    pairs = [tuple(frame_labels(one, segments, NOTHING) for segments in (one.bouts, one.marks)) for one in RECORDINGS]
    for name, overlap in (("f1_10", 0.1), ("f1_25", 0.25), ("f1_50", 0.5)):
        tp, fp, fn = np.sum([mstcn_f_score(*pair, overlap) for pair in pairs], axis=0)
        assert getattr(found, name) == pytest.approx(2 * tp / (2 * tp + fp + fn), abs=1e-9)
    assert found.edit == pytest.approx(np.mean([mstcn_edit(*pair) for pair in pairs]))
    assert 0.2 < found.f1_50 < found.f1_10 < 1


def overlap_of(a, b):
    frames_of = [set(range(int(s.start * FRAME_RATE + 0.5), int(s.stop * FRAME_RATE + 0.5))) for s in (a, b)]
    return len(frames_of[0] & frames_of[1]) / len(frames_of[0] | frames_of[1])


@pytest.mark.parametrize("overlap", [0.3, 0.5, 0.7])
def test_average_precision__is_the_area_below_scikit_learns_curve(overlap):
    for label in LABELS:
        right, scores, n_marks, taken = [], [], 0, set()
        pairs = [(bout, one) for one in RECORDINGS for bout in one.bouts if bout.label == label]
        for bout, one in sorted(pairs, key=lambda pair: pair[0].probability, reverse=True):
            best = (0.0, None)
            for mark in one.marks:
                if mark.label == label and (one.name, mark) not in taken:
                    best = max(best, (overlap_of(bout, mark), mark), key=lambda pair: pair[0])
            right.append(best[0] >= overlap)
            scores.append(bout.probability)
            if right[-1]:
                taken.add((one.name, best[1]))
        n_marks = sum(mark.label == label for one in RECORDINGS for mark in one.marks)
        precision, recall, _ = precision_recall_curve(right, scores)
        # Recall counts the marks without a bout too; precision is interpolated as in ActivityNet.
        recall = recall * sum(right) / n_marks
        area = -np.sum(np.diff(recall) * np.maximum.accumulate(precision)[:-1])
        assert average_precision(RECORDINGS, label, overlap) == pytest.approx(area)
        assert 0 < area < 1


def test_measure__of_perfect_empty_and_doubled_bouts():
    one = RECORDINGS[0]
    perfect = measure([Scored("x", one.start, one.stop, one.marks, one.marks)], NOTHING)
    assert set(perfect.model_dump(exclude={"map"}).values()) | set(perfect.map.values()) == {1.0}
    empty = measure([Scored("x", one.start, one.stop, one.marks, ())], NOTHING)
    assert (empty.f1_10, empty.edit, empty.map["mean"]) == (0, 0, 0)
    assert empty.frame_accuracy == pytest.approx(np.mean(frame_labels(one, one.marks, NOTHING) == NOTHING))
    doubled = [Scored("x", one.start, one.stop, one.marks, one.marks * 2)]
    assert segment_f1(doubled, 0.5) == pytest.approx(2 / 3)
    assert segment_f1([Scored("x", 0, 9, (), ())], 0.5) == 1


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Evaluates a run that trained on ann with bouts as given: recordings of ann, bob and of nobody known."""
    table = "recording,view,path,offset,subject,events\n"
    for name, subject in (("a", "ann"), ("b", "bob"), ("c", "")):
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
        (tmp_path / f"{name}.csv").write_text(
            f"recording,start,stop,label\n{name},1,3,kick\n{name},5,6,jump\n{name},8,12,kick\n{name},30,35,kick\n"
        )
        table += f"{name},1,{name}.mp4,0,{subject},{name}.csv\n"
    (tmp_path / "recordings.csv").write_text(table)

    def find_timelines(run, recordings, out, **options):
        bout = SimpleNamespace(start=1.0, stop=3.0, label="kick", probability=0.9)
        media = (SimpleNamespace(files=tuple(SimpleNamespace(start=start, stop=start + 10) for start in (0.0, 50.0))),)
        facts = {"start": 0.0, "stop": 60.0, "bouts": (bout,), "media": media, "notes": ()}
        for one in recordings:
            if one.name in broken:
                raise VideoError(f"1 of {len(recordings)} recordings have no timeline: {one.name}: damaged")
            yield SimpleNamespace(recording=one.name, subject=one.subject, **facts)

    monkeypatch.setattr(score, "find_timelines", find_timelines)
    info = SimpleNamespace(subjects=("ann",), class_names=("kick", "nothing"))
    run = SimpleNamespace(state=SimpleNamespace(info=info), folder="run")
    broken: list[str] = []

    def judge(damaged=(), **options):
        broken[:] = damaged
        return score.evaluate_recordings(run, tmp_path / "recordings.csv", tmp_path, **options)

    return judge


def test_evaluate_recordings__one_that_cannot_be_read_does_not_take_the_numbers_of_the_others(judged):
    found = judged(damaged=("c",))
    assert (found.recordings, found.subjects) == (("b",), ("bob",))
    assert found.left_out == {"of people who trained": 1, "that cannot be read": 1}
    assert any("c: damaged" in note for note in found.notes)
    with pytest.raises(VideoError, match="b: damaged"):
        judged(damaged=("b", "c"))


def test_evaluate_recordings__people_who_trained_do_not_count_and_what_is_left_out_is_named(judged):
    found = judged()
    assert found.recordings == ("b", "c")
    assert found.left_out == {"of people who trained": 1}
    assert (found.n_events, found.n_bouts) == (4, 2)
    assert found.f1_50 == pytest.approx(2 / 3)
    notes = " | ".join(found.notes)
    assert "1 recording has no subject" in notes
    assert "does not know are left out: 2 jump" in notes
    assert "2 marks are left out: no camera films at that time" in notes
    assert "marks begin before another" not in notes
    leaked = judged(allow_leak=True)
    assert leaked.recordings == ("a", "b", "c")
    assert "of people who trained" in leaked.notes[0]


def test_evaluate_recordings__the_same_person_has_many_spellings(judged, tmp_path):
    table = (tmp_path / "recordings.csv").read_text()
    (tmp_path / "recordings.csv").write_text(table.replace(",ann,", ",Ann,").replace(",bob,", ",bob+ANN,"))
    assert judged().recordings == ("c",)
    (tmp_path / "c.csv").write_text("recording,start,stop,label,subject\nc,1,3,kick,ann\n")
    with pytest.raises(DataError, match="3 of people who trained"):
        judged()


def test_evaluate_recordings__marks_of_people_who_trained_are_not_those_of_others(judged, tmp_path):
    table = (tmp_path / "recordings.csv").read_text().replace("a.csv", "all.csv").replace("b.csv", "all.csv")
    (tmp_path / "recordings.csv").write_text("".join(table.splitlines(keepends=True)[:3]))
    (tmp_path / "all.csv").write_text("recording,start,stop,label\na,1,3,kick\na,5,8,kick\nb,1,3,kick\n")
    found = judged()
    assert (found.recordings, found.n_events, found.f1_50) == (("b",), 1, 1.0)
    assert not any("no recording" in note for note in found.notes)


def test_evaluate_recordings__marks_of_one_time_are_named(judged, tmp_path):
    (tmp_path / "b.csv").write_text("start,stop,label\n1,5,kick\n2,3,kick\n4,6,kick\n")
    assert any("2 marks begin before another one ends" in note for note in judged().notes)


def test_evaluate_recordings__refuses_marks_that_are_all_of_other_classes(judged, tmp_path):
    for name in "bc":
        (tmp_path / f"{name}.csv").write_text("start,stop,label\n1,5,Kick\n6,7,nothing\n")
    with pytest.raises(DataError, match="no mark is of a class of run: the marks have Kick, nothing, the run has kick"):
        judged()
    for name in "bc":
        (tmp_path / f"{name}.csv").write_text("start,stop,label\n30,35,kick\n")
    with pytest.raises(DataError, match="no mark lies in the time that a camera films"):
        judged()


@pytest.mark.parametrize(
    ("row", "reason"), [("a,1,a.mp4,0,ann,a.csv", "1 of people who trained"), ("b,1,b.mp4,0,bob,", "1 without marks")]
)
def test_evaluate_recordings__refusal_says_why_no_recording_is_left(judged, tmp_path, row, reason):
    (tmp_path / "recordings.csv").write_text(f"recording,view,path,offset,subject,events\n{row}\n")
    with pytest.raises(DataError, match=f"recordings.csv: no recording can be evaluated: {reason}. Give"):
        judged()
