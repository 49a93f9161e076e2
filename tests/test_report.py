"""The pages, as files and in a real browser."""

import csv
import json
import re
import shutil

import numpy as np
import pytest

from dtsf.api import load
from dtsf.errors import CheckpointError, ConfigError
from dtsf.report import svg
from dtsf.report.cache_page import report_cache
from dtsf.report.compare_page import compare_runs
from dtsf.report.probes import CollectionProbe, Probes, probe
from dtsf.report.run_data import open_cache_of, read_run
from dtsf.report.run_page import _pooled as run_page_words
from dtsf.report.run_page import report_run
from dtsf.report.strips import BORDERS, choose_frames, draw_snapshots

HOSTILE = {
    "class": "<script>window.broken = 1</script>",
    "view": '"><img src=http://127.0.0.1:9/x onerror="window.broken = 2">',
    "group": "</style><svg onload=window.broken=3>{{ 7 * 7 }}",
    "file": "<img src=y onerror=window.broken=4>.avi",
}


@pytest.fixture(scope="module")
def chromium(needed):
    """A headless browser."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    needed(found, "no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium):
    """Opens a page; gives it with the lists of what went to the console and of what was fetched."""
    pages = []

    def go(file, **options):
        page = chromium.new_page(**options)
        said, fetched = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: fetched.append(request.url))
        page.goto(file.absolute().as_uri())
        page.wait_for_load_state("networkidle")
        pages.append(page)
        return page, said, [url for url in fetched if not url.startswith("data:")]

    yield go
    for page in pages:
        page.close()


@pytest.fixture(scope="module")
def run_page(world):
    return report_run(world / "run", out=world / "pages" / "run.html", samples=3)


@pytest.fixture(scope="module")
def hostile(dtsf, make_video, tmp_path_factory):
    """A run whose every name is an attack, and its cache."""
    root = tmp_path_factory.mktemp("hostile")
    rows = []
    for label in (HOSTILE["class"], "wave & smile", "run"):
        for k, split in enumerate(("train", "train", "test")):
            for view in (HOSTILE["view"], "left"):
                name = f"v{len(rows)}.avi"
                make_video(root / name, 18)
                rows.append((name, label, f"{HOSTILE['group']} {label} {k}", view, split))
    (root / HOSTILE["file"]).write_bytes(b"no video")
    rows.append((HOSTILE["file"], "run", "late", "left", "test"))
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group", "view", "split"), *rows])
    dtsf.said("preprocess", "manifest", "--root", "manifest.csv", "--workers", 1, "--max-bad", "20%", cwd=root)
    dtsf.said("train", "--epochs", 1, "--out", "run", cwd=root)
    return root


def test_page_of_a_run_shows_its_numbers_in_a_browser(visit, run_page, world):
    page, said, fetched = visit(run_page)
    metrics = json.loads((world / "run/metrics.json").read_text())
    assert said == []
    assert fetched == [run_page.as_uri()]
    tiles = dict(
        zip(page.locator(".tile span").all_inner_texts(), page.locator(".tile b").all_inner_texts(), strict=True)
    )
    assert tiles["top-1"] == f"{metrics['top1']:.3f}"
    assert tiles["calibration error (ECE)"] == f"{metrics['ece']:.3f}"
    assert tiles["performances tested"] == str(metrics["n_groups"])
    assert metrics["task"] in page.locator(".lead").inner_text()
    origin = page.locator("#origin ~ .scroll").inner_text()
    assert metrics["fingerprint"] in origin
    recipe = page.locator("details")
    assert not recipe.locator("table").first.is_visible()
    recipe.locator("summary").click()
    assert "view_drop" in recipe.inner_text()
    assert "torch" in origin
    # Every figure has a size, every picture is one.
    assert page.locator("svg").count() >= 7
    assert page.evaluate("[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 20)")
    assert page.locator(".strip img").count() >= 9
    assert page.evaluate("[...document.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 100)")
    cells = page.locator("svg[aria-label='confusion matrix'] text.count").all_text_contents()
    assert sum(map(int, cells)) == metrics["n_groups"]


def test_table_of_classes_sorts_both_ways(visit, run_page):
    page, said, _ = visit(run_page)
    table = page.locator("#classes ~ .scroll table.sort").first
    heads = [text.strip() for text in table.locator("th").all_inner_texts()]
    column = heads.index("uncertainty") + 1
    for direction in (False, True):
        table.locator("th", has_text="uncertainty").locator("button").click()
        values = [float(text) for text in table.locator(f"tbody td:nth-child({column})").all_inner_texts()]
        assert len(set(values)) > 1
        assert values == sorted(values, reverse=direction)
    table.locator("th").first.locator("button").click()
    names = table.locator("tbody td:first-child").all_inner_texts()
    assert names == sorted(names, key=str.casefold)
    assert said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_in_light_and_dark(visit, run_page, scheme):
    page, _, _ = visit(run_page, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    sizes = page.evaluate("[...document.querySelectorAll('p, td')].map(x => parseFloat(getComputedStyle(x).fontSize))")
    assert min(sizes) >= 12
    bright = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")
    ink = page.evaluate("getComputedStyle(document.body).color.match(/\\d+/g).slice(0, 3).map(Number)")
    assert (sum(bright) > sum(ink)) == (scheme == "light")
    weights = page.locator("svg[aria-label='weights of single samples']")
    assert weights.evaluate("s => s.getBoundingClientRect().right") <= 360
    assert abs(sum(bright) - sum(ink)) > 500


def test_hostile_names_are_shown_and_never_run(visit, hostile):
    for file in (
        report_run(hostile / "run"),
        report_cache(hostile / "cache", hostile / "cache.html"),
        compare_runs([hostile / "run", shutil.copytree(hostile / "run", hostile / "run<b>2")], hostile / "cmp.html"),
    ):
        page, said, fetched = visit(file)
        assert said == []
        assert fetched == [file.as_uri()]
        assert page.evaluate("window.broken") is None
        assert HOSTILE["class"] in page.locator("body").inner_text()
        assert page.locator("script").count() == 1
    text = (hostile / "run/report.html").read_text()
    assert HOSTILE["class"] not in text
    assert HOSTILE["view"] not in text
    page, _, _ = visit(hostile / "run/report.html")
    words = page.locator("body").inner_text()
    assert HOSTILE["file"] in words, "the clip that was left out, with its status"
    assert "{{ 7 * 7 }}" in words


def test_probes_are_what_evaluate_says(world):
    facts = read_run(world / "run")
    data, _ = open_cache_of(facts, world / "cache")
    run = load(world / "run")
    steps = []
    probes = probe(facts, run.net, data, world / "cache", lambda *step: steps.append(step))
    assert [v.what for v in probes.views] == [f"{word} view {k}" for word in ("only", "without") for k in "123"]
    assert probes.views[1].top1 == run.evaluate(world / "cache", views="2").metrics.top1
    assert probes.views[5].top1 == run.evaluate(world / "cache", views="1,2").metrics.top1
    assert probes.views[1].uncertainty == run.evaluate(world / "cache", views="2").metrics.uncertainty
    assert [v.with_all for v in probes.views] == pytest.approx([facts.metrics.top1] * 6)
    assert steps[-1][:2] == (6, 6)


@pytest.mark.slow
def test_other_collections_are_asked_and_shared_subjects_named(dtsf, world, tmp_path):
    dtsf.said("synth", "nucla", "--out", "data", "--subjects", 2, "--episodes", 1, "--seed", 5, cwd=tmp_path)
    cache = shutil.copytree(world / "cache", tmp_path / "cache")
    words = ("preprocess", "nucla", "--root", "data", "--workers", 1)
    dtsf.said(*words, "--name", "other", "--limit", 30, cwd=tmp_path)
    dtsf.said(*words, "--name", "longer", "--frames", 8, "--limit", 3, cwd=tmp_path)
    facts = read_run(world / "run")
    data, _ = open_cache_of(facts, cache)
    run = load(world / "run")
    probes = probe(facts, run.net, data, cache, lambda *_: None)
    (other,) = probes.collections
    assert other.name == "other"
    assert other.top1 == run.evaluate(cache, dataset="other", protocol="all").metrics.top1
    assert other.shared_subjects == ("1",)
    assert probes.skipped == ("longer: was made with other settings",)


def test_without_its_cache_a_report_says_so_and_still_has_the_numbers(dtsf, world, tmp_path):
    done = dtsf("report", "run", "--cache", tmp_path / "gone", "--out", tmp_path / "r.html", "--json", cwd=world)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    text = (tmp_path / "r.html").read_text()
    assert said["bytes"] == len(text.encode())
    assert "No pictures and no probes: no cache at" in text
    assert "reliability diagram" in text
    assert "data:image" not in text


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("metrics.json", None, "finish it with the command that began it"),
        ("metrics.json", "{}", "dataset: Field required"),
        ("metrics.json", "[1]", "does not hold a JSON object"),
        ("metrics.json", '{"top1": ', "is not valid JSON"),
        ("metrics.json", '{"top1": NaN}', "NaN is no number of JSON"),
        ("last/state.json", "{}", "state.json"),
    ],
)
def test_damaged_run_is_refused_by_the_file_that_is_wrong(run_copy, name, change, message):
    (run_copy / name).unlink() if change is None else (run_copy / name).write_text(change)
    with pytest.raises(CheckpointError, match=re.escape(message)):
        report_run(run_copy)
    assert not (run_copy / "report.html").exists()


def test_metrics_of_another_run_are_refused(world, hostile, tmp_path):
    run = shutil.copytree(world / "run", tmp_path / "run")
    shutil.copy(hostile / "run/metrics.json", run)
    with pytest.raises(CheckpointError, match="does not fit the run's 10 classes"):
        report_run(run)


@pytest.mark.parametrize("name", ["view_weights", "view_top1"])
def test_metrics_of_fewer_views_are_refused(world, tmp_path, name):
    run = shutil.copytree(world / "run", tmp_path / "run")
    held = json.loads((run / "metrics.json").read_text())
    held[name].pop()
    (run / "metrics.json").write_text(json.dumps(held))
    with pytest.raises(CheckpointError, match="does not fit the run's 10 classes and 3 views"):
        report_run(run)


def test_log_that_was_cut_off_still_draws_its_whole_lines(world, tmp_path):
    run = shutil.copytree(world / "run", tmp_path / "run")
    whole = read_run(run).series
    text = (run / "log.jsonl").read_text()
    (run / "log.jsonl").write_text(text + text.splitlines()[-1][:20])
    assert read_run(run).series == whole
    assert len(whole["loss"]) == 2
    (run / "log.jsonl").unlink()
    assert "The run has no log.jsonl" in report_run(run).read_text()


def test_comparison_says_once_what_is_the_same(world, tmp_path):
    run = shutil.copytree(world / "run", tmp_path / "second")
    task = json.loads((run / "metrics.json").read_text())["task"]
    text = compare_runs([world / "run", run], tmp_path / "c.html").read_text()
    assert text.count(task[1:]) == 1
    assert "left out" not in text


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("default", "averages 3 branches: motion of each view; motion of all views together; dynamic of each view."),
        ("thumbnails", ""),
    ],
)
def test_opinions_that_are_pooled_are_named(recipe, words):
    from dtsf.training.recipe import load_recipe

    said = run_page_words(load_recipe(recipe).model)
    assert words in said
    assert bool(said) == bool(words)


def test_comparison_names_what_differs(world, hostile, tmp_path):
    run = shutil.copytree(world / "run", tmp_path / "second")
    metrics = json.loads((run / "metrics.json").read_text())
    first = metrics["predictions"][0]
    first["predicted"] = first["label"] if first["predicted"] != first["label"] else (first["label"] + 1) % 10
    other_task = {"protocol": "cross-subject:1", "task": "all views of unseen subjects (1)"}
    (run / "metrics.json").write_text(json.dumps(metrics | other_task))
    text = compare_runs([world / "run", run], tmp_path / "c.html").read_text()
    assert "different protocols: cross-subject:2; cross-subject:1" in text
    assert "different tasks: all views of unseen subjects (2); all views of unseen subjects (1)" in text
    for task in (metrics["task"], other_task["task"]):
        assert f'<td class="word task">{task}</td>' in text
    assert "1 of 10 performances are named right by some runs and wrong by others" in text
    assert first["group"] in text
    other = compare_runs([world / "run", hostile / "run"], tmp_path / "d.html").read_text()
    assert "the tested performances are not the same" in other
    with pytest.raises(ConfigError, match="named twice"):
        compare_runs([run, run], tmp_path / "e.html")
    with pytest.raises(ConfigError, match="needs two runs"):
        compare_runs([run], tmp_path / "e.html")


def test_cache_page_shows_clips_at_random_and_verdicts(dtsf, visit, world):
    done = dtsf("cache", "info", "--html", "cache.html", "--json", cwd=world)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["report"] == "cache.html"
    page, said, fetched = visit(world / "cache.html")
    assert said == []
    assert len(fetched) == 1
    assert page.locator(".sample").count() == 12
    assert page.locator(".sample img").count() == 36
    info = json.loads(dtsf("cache", "info", "--json", cwd=world).stdout)["datasets"][0]
    assert page.locator(".lead").inner_text().startswith(f"All {info['clips']} clips are usable: {info['groups']} perf")
    assert page.locator("table", has_text="status").count() == 0


def test_cache_page_lists_the_clips_that_are_not_usable(visit, hostile):
    page, _, _ = visit(report_cache(hostile / "cache", hostile / "cache.html"))
    assert re.match(r"18 of 19 clips are usable: 9 performances", page.locator(".lead").inner_text())
    assert "unreadable" in page.locator("table", has_text="share").inner_text()
    assert HOSTILE["file"] in page.locator("table", has_text="why").inner_text()


def test_snapshots_are_drawn_where_evaluation_pastes_them():
    pictures = np.zeros((3, 4, 48, 48, 3), np.uint8)
    pictures[0], pictures[1], pictures[2] = 50, 120, 220
    drawn = draw_snapshots(pictures, views=[1, 2, 3])
    # The next view's thumbnails in three corners, in that view's colour; the fourth corner is untouched.
    assert (drawn[0, :, 5, 5] == 120).all()
    assert (drawn[2, :, 5, 40] == 50).all()
    assert (drawn[1, :, 0, 3] == BORDERS[2]).all()
    assert (drawn[0, :, 40, 40] == 50).all()
    alone = draw_snapshots(pictures[:1], views=[2])
    assert (alone[0, :, 5, 5] == 50).all()
    assert (alone[0, :, 0, 0] == BORDERS[1]).all()


def test_frames_of_the_strip_are_those_that_the_network_reads():
    x = np.random.default_rng(0).normal(size=(2, 16, 36, 4)).astype(np.float16)
    assert choose_frames(x, 16, 0.0).tolist() == [list(range(16))] * 2
    assert choose_frames(x, 4, 0.0)[0].tolist() == [2, 6, 10, 14]
    x[:, :8] = x[:, :1]  # nothing moves in the first half
    paced = choose_frames(x, 4, 1.0)
    assert paced.min() >= 7


def test_static_bias_is_agreement_minus_conflict():
    asked = [
        CollectionProbe(n, 10, x, 0.5, (1.0,), ())
        for n, x in (("a-aligned", 0.9), ("a-conflict", 0.6), ("b-conflict", 0.5))
    ]
    assert Probes((), tuple(asked), (), None).static_bias == {"a": pytest.approx(0.3)}


def test_diagram_draws_the_table_of_metrics_json(visit, run_page, world):
    bins = [b for b in json.loads((world / "run/metrics.json").read_text())["reliability"] if b["n_groups"]]
    page, _, _ = visit(run_page)
    bars = page.locator("svg[aria-label='reliability diagram'] rect")
    assert bars.locator("title").all_text_contents() == [
        f"{b['n_groups']} groups: mean probability {b['probability']:.2f}, right in {b['accuracy']:.2f}"
        for b in bins
    ]
    # 240 units are the whole axis, from 44 on.
    places = [(float(bar.get_attribute("x")), float(bar.get_attribute("height"))) for bar in bars.all()]
    assert [x for x, _ in places] == pytest.approx([45 + 240 * b["low"] for b in bins], abs=0.1)
    assert [height for _, height in places] == pytest.approx([max(1.5, 240 * b["accuracy"]) for b in bins], abs=0.1)


def test_metrics_without_that_table_still_have_a_page(world, tmp_path):
    run = shutil.copytree(world / "run", tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["reliability"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    text = report_run(run, cache=tmp_path / "gone").read_text()
    assert "An older version of dtsf wrote this run" in text
    assert "reliability diagram" not in text


def test_view_without_part_in_the_fusion_is_shown_as_covered(world, tmp_path):
    run = shutil.copytree(world / "run", tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    for said in metrics["predictions"]:
        said["view_weights"] = [0.5, 0.0, 0.5]
    (run / "metrics.json").write_text(json.dumps(metrics))
    text = report_run(run, cache=world / "cache", samples=3).read_text()
    strips = re.findall(r'<figure class="strip">.*?</figcaption>', text, re.DOTALL)
    assert {"view 2" in strip for strip in strips} == {True, False}
    assert all(("taken as covered" in strip) == ("view 2" in strip) for strip in strips)
    assert f"{metrics['n_groups']} views were taken as covered" in text


def test_numbers_of_an_axis_fit_beside_it():
    assert svg._short(0.00025) == "2.5e-4"
    assert svg._short(0.0005) == "0.0005"
    assert svg._short(12.3) == "12"


@pytest.mark.parametrize(("most", "top"), [(11.8, 12), (0.83, 1), (5.9, 6), (4.7e-4, 5e-4), (1.0, 1), (100, 100), (0.3, 0.3)])
def test_axis_ends_at_a_round_number(most, top):
    assert svg._round_above(most) == pytest.approx(top)
