"""The pages, as files and in a real browser."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from make_cache import SMALL_NETWORK

from dtsf.api import load
from dtsf.cache.reader import open_dataset
from dtsf.errors import CheckpointError, ConfigError
from dtsf.report.cache_page import report_cache
from dtsf.report.compare_page import compare_runs
from dtsf.report.gallery import VIEW_COLOURS, choose_frames, draw_thumbnails
from dtsf.report.probes import DatasetProbe, Probes, probe
from dtsf.report.run_data import open_run_cache, read_run
from dtsf.report.run_page import report_run
from dtsf.training.probes import InputProbes
from dtsf.training.splits import draw_groups

HOSTILE = {
    "class": "<script>window.broken = 1</script>",
    "view": '"><img src=http://127.0.0.1:9/x onerror="window.broken = 2">',
    "group": "</style><svg onload=window.broken=3>{{ 7 * 7 }}",
    "file": "<img src=y onerror=window.broken=4>.avi",
}


@pytest.fixture(scope="module")
def visit(needed):
    """Opens a page in a headless browser; returns it with the lists of console messages and of loaded URLs."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    needed(found, "no chromium: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    def go(file, **options):
        page = browser.new_page(**options)
        messages, loaded = [], []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: loaded.append(request.url))
        page.goto(file.absolute().as_uri())
        page.wait_for_load_state("networkidle")
        return page, messages, [url for url in loaded if not url.startswith("data:")]

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield go
        browser.close()


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
                make_video(root / name, 18 + len(rows))
                rows.append((name, label, f"{HOSTILE['group']} {label} {k}", view, split))
    (root / HOSTILE["file"]).write_bytes(b"no video")
    rows.append((HOSTILE["file"], "run", "late", "left", "test"))
    with (root / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group", "view", "split"), *rows])
    dtsf.said("preprocess", "manifest", "--root", "manifest.csv", "--workers", 1, "--max-bad", "20%", cwd=root)
    dtsf.said("train", "--epochs", 1, "--out", "run", cwd=root)
    return root


def test_run_page__shows_the_numbers_of_metrics_json(visit, run_page, world):
    page, messages, loaded = visit(run_page)
    metrics = json.loads((world / "run/metrics.json").read_text())
    assert messages == []
    assert loaded == [run_page.as_uri()]
    tiles = dict(zip(page.locator(".tile span").all_inner_texts(), page.locator(".tile b").all_inner_texts(), strict=True))
    assert tiles["top-1"] == f"{metrics['top1']:.3f}"
    assert tiles["calibration error (ECE)"] == f"{metrics['ece']:.3f}"
    assert tiles["performances tested"] == str(metrics["n_groups"])
    assert metrics["task"] in page.locator(".lead").inner_text()
    branches = "averages 3 branches: motion of each view; motion of all views together; dynamic of each view."
    assert branches in page.locator("main").inner_text()
    origin = page.locator("#origin ~ .scroll").inner_text()
    assert metrics["fingerprint"] in origin
    assert "torch" in origin
    recipe = page.locator("details")
    assert not recipe.locator("table").first.is_visible()
    recipe.locator("summary").click()
    assert "view_drop" in recipe.inner_text()
    cells = page.locator("svg[aria-label='confusion matrix'] text.count").all_text_contents()
    assert sum(map(int, cells)) == metrics["n_groups"]
    bins = [b for b in metrics["reliability"] if b["n_groups"]]
    bars = page.locator("svg[aria-label='reliability diagram'] rect")
    assert bars.locator("title").all_text_contents() == [
        f"{b['n_groups']} groups: mean probability {b['probability']:.2f}, accuracy {b['accuracy']:.2f}" for b in bins
    ]
    # The axis starts at 44 and is 240 units long.
    shapes = [(float(bar.get_attribute("x")), float(bar.get_attribute("height"))) for bar in bars.all()]
    wanted = [(45 + 240 * b["low"], max(1.5, 240 * b["accuracy"])) for b in bins]
    assert np.array(shapes) == pytest.approx(np.array(wanted), abs=0.1)


def test_run_page__draws_every_figure_and_sorts_its_table(visit, run_page):
    page, messages, _ = visit(run_page)
    assert page.locator("svg").count() >= 7
    assert page.evaluate("[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 20)")
    assert page.locator(".strip img").count() >= 9
    assert page.evaluate("[...document.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 100)")
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
    assert messages == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_run_page__fits_a_phone_in_light_and_dark(visit, run_page, scheme):
    page, _, _ = visit(run_page, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    sizes = page.evaluate("[...document.querySelectorAll('p, td')].map(x => parseFloat(getComputedStyle(x).fontSize))")
    assert min(sizes) >= 12
    rgb = "getComputedStyle(document.body).%s.match(/\\d+/g).slice(0, 3).map(Number)"
    bright, ink = page.evaluate(rgb % "backgroundColor"), page.evaluate(rgb % "color")
    assert (sum(bright) > sum(ink)) == (scheme == "light")
    assert abs(sum(bright) - sum(ink)) > 500
    weights = page.locator("svg[aria-label='view weights of single performances']")
    assert weights.evaluate("s => s.getBoundingClientRect().right") <= 360


def test_pages__show_hostile_names_and_never_run_them(visit, hostile):
    for file in (
        report_run(hostile / "run"),
        report_cache(hostile / "cache", hostile / "cache.html"),
        compare_runs([hostile / "run", shutil.copytree(hostile / "run", hostile / "run<b>2")], hostile / "cmp.html"),
    ):
        page, messages, loaded = visit(file)
        assert messages == []
        assert loaded == [file.as_uri()]
        assert page.evaluate("window.broken") is None
        assert HOSTILE["class"] in page.locator("body").inner_text()
        assert page.locator("script").count() == 1
        text = file.read_text()
        assert HOSTILE["class"] not in text
        assert HOSTILE["view"] not in text
    page, _, _ = visit(hostile / "run/report.html")
    words = page.locator("body").inner_text()
    assert HOSTILE["file"] in words, "the bad clip, with its status"
    assert "{{ 7 * 7 }}" in words
    page, _, _ = visit(hostile / "cache.html")
    assert page.locator(".lead").inner_text().startswith("18 of 19 clips are usable: 9 performances")
    assert "unreadable" in page.locator("table", has_text="share").inner_text()
    assert HOSTILE["file"] in page.locator("table", has_text="reason").inner_text()


def test_probe__agrees_with_evaluate(world):
    data_of_run = read_run(world / "run")
    data, _ = open_run_cache(data_of_run, world / "cache")
    run = load(world / "run")
    steps = []
    probes = probe(data_of_run, run.net, data, world / "cache", lambda *step: steps.append(step))
    views = probes.inputs.of("views")
    assert [v.name for v in views] == [f"{word} view {k}" for word in ("only", "without") for k in "123"]
    alone = run.evaluate(world / "cache", views="2").metrics
    assert (views[1].top1, views[1].uncertainty) == (alone.top1, pytest.approx(alone.uncertainty))
    assert views[5].top1 == run.evaluate(world / "cache", views="1,2").metrics.top1
    assert [v.top1_unchanged for v in views] == pytest.approx([data_of_run.metrics.top1] * 6)
    assert steps[-1][:2] == (12, 12)
    assert run.evaluate(world / "cache", probes=True).probes == probes.inputs


def test_run_page__shows_the_probes_and_shares(visit, run_page):
    page, _, _ = visit(run_page)
    table = page.locator("table", has_text="random order").first
    assert table.locator("tbody tr").count() == 5
    assert page.locator("svg[aria-label='static shares of the features'] rect").count() == 4 * 3


@pytest.mark.slow
def test_probe__evaluates_other_datasets_and_names_shared_subjects(dtsf, world, tmp_path):
    dtsf.said("synth", "nucla", "--out", "data", "--subjects", 2, "--episodes", 1, "--seed", 5, cwd=tmp_path)
    cache = shutil.copytree(world / "cache", tmp_path / "cache")
    words = ("preprocess", "nucla", "--root", "data", "--workers", 1)
    dtsf.said(*words, "--name", "other", "--limit", 30, cwd=tmp_path)
    dtsf.said(*words, "--name", "longer", "--frames", 8, "--limit", 3, cwd=tmp_path)
    data_of_run = read_run(world / "run")
    data, _ = open_run_cache(data_of_run, cache)
    run = load(world / "run")
    probes = probe(data_of_run, run.net, data, cache, lambda *_: None)
    (other,) = probes.datasets
    assert other.name == "other"
    assert other.metrics.top1 == run.evaluate(cache, dataset="other", protocol="all").metrics.top1
    assert other.shared_subjects == ("1",)
    assert probes.skipped == ("longer: it has other settings",)


def test_draw_groups__keeps_whole_groups_and_chooses_by_their_names():
    clips = [SimpleNamespace(group=f"g{k // 3}", view=k % 3 + 1) for k in range(30)]
    assert draw_groups(clips, 10) == (clips, 0)
    drawn, number = draw_groups(clips, 4)
    assert number == len({clip.group for clip in drawn}) == 4
    assert len(drawn) == 12
    other, _ = draw_groups([SimpleNamespace(group=clip.group, view=9) for clip in clips[::-3]], 4)
    assert {clip.group for clip in other} == {clip.group for clip in drawn}


def test_static_bias__is_agreement_minus_conflict():
    numbers = (("a-aligned", 0.9), ("a-conflict", 0.6), ("b-conflict", 0.5))
    datasets = tuple(DatasetProbe(name, SimpleNamespace(top1=top1), (), 0) for name, top1 in numbers)
    assert Probes(InputProbes(inputs=(), static_shares=()), datasets, (), None).static_bias == {"a": pytest.approx(0.3)}


def test_run_page__without_its_cache_still_has_the_numbers(dtsf, world, tmp_path):
    answer = dtsf.json("report", "run", "--cache", tmp_path / "gone", "--out", tmp_path / "r.html", cwd=world)
    text = (tmp_path / "r.html").read_text()
    assert answer["bytes"] == len(text.encode())
    assert re.search("This page has no pictures and no probes: [^<]*gone", text)
    assert "reliability diagram" in text
    assert "data:image" not in text


def test_run_page__of_a_run_without_some_classes_has_its_pictures_and_probes(dtsf, world, tmp_path):
    cache = world / "cache"
    name = open_dataset(cache, None).info.class_names[0]
    words = [word for change in (*SMALL_NETWORK, "train.calibrate=0") for word in ("--set", change)]
    words += ["--set", f"train.exclude_classes=['{name}']", "--protocol", "cross-subject:2", "--epochs", 1, "--out", "run"]
    dtsf.said("train", "--cache", cache, *words, cwd=tmp_path)
    dtsf.said("report", "run", cwd=tmp_path)
    text = (tmp_path / "run/report.html").read_text()
    assert "data:image" in text
    assert "random order" in text
    run = read_run(tmp_path / "run")
    net, (data, _) = load(tmp_path / "run").net, open_run_cache(run, cache)
    alone = probe(run, net, data, cache, lambda *_: None).inputs.of("views")
    assert [v.top1_unchanged for v in alone] == pytest.approx([run.metrics.top1] * 6)


def test_report_run__names_the_damaged_file(world, hostile, run_copy):
    good, other = ((run / "metrics.json").read_text() for run in (world / "run", hostile / "run"))
    unfit = "does not fit the run's 10 classes and"
    for name, content, message in (
        ("metrics.json", None, "repeat its command with --resume"),
        ("metrics.json", "{}", "dataset: field required"),
        ("metrics.json", "[1]", "is not a JSON object"),
        ("metrics.json", '{"top1": ', "metrics.json"),
        ("metrics.json", '{"top1": NaN}', "metrics.json"),
        ("metrics.json", other, unfit),
        ("metrics.json", json.dumps(json.loads(good) | {"view_weights": [0.5, 0.5]}), f"{unfit} 3 views"),
        ("metrics.json", json.dumps(json.loads(good) | {"view_top1": [0.5, 0.5]}), f"{unfit} 3 views"),
        ("last/state.json", "{}", "state.json"),
    ):
        (run_copy / name).unlink() if content is None else (run_copy / name).write_text(content)
        with pytest.raises(CheckpointError, match=re.escape(message)):
            report_run(run_copy)
    assert not (run_copy / "report.html").exists()


def test_read_run__skips_incomplete_lines_of_the_log(run_copy):
    whole = read_run(run_copy).series
    text = (run_copy / "log.jsonl").read_text()
    (run_copy / "log.jsonl").write_text(text + text.splitlines()[-1][:20])
    assert read_run(run_copy).series == whole
    assert len(whole["loss"]) == 2
    (run_copy / "log.jsonl").unlink()
    assert read_run(run_copy).series == {}


def test_compare_page__prints_common_values_once_and_lists_differences(world, hostile, run_copy, tmp_path):
    metrics = json.loads((run_copy / "metrics.json").read_text())
    text = compare_runs([world / "run", run_copy], tmp_path / "c.html").read_text()
    assert text.count(metrics["task"][1:]) == 1
    assert "left out" not in text
    first = metrics["predictions"][0]
    first["predicted"] = first["label"] if first["predicted"] != first["label"] else (first["label"] + 1) % 10
    other_task = "all views of unseen subjects (1)"
    changes = {"predictions": metrics["predictions"], "protocol": "cross-subject:1", "task": other_task}
    (run_copy / "metrics.json").write_text(json.dumps(metrics | changes))
    text = compare_runs([world / "run", run_copy], tmp_path / "c.html").read_text()
    assert "different protocol: cross-subject:2; cross-subject:1" in text
    assert f"different task: {metrics['task']}; {other_task}" in text
    for task in (metrics["task"], other_task):
        assert f'<td class="word task">{task}</td>' in text
    assert "others are wrong on 1 of 10 performances" in text
    assert first["group"] in text
    other = compare_runs([world / "run", hostile / "run"], tmp_path / "d.html").read_text()
    assert "<td>train.epochs</td><td><code>2</code></td><td><code>1</code></td>" in other
    assert "the tested performances are not the same" in other
    for n, message in ((1, "needs two runs"), (2, "given twice")):
        with pytest.raises(ConfigError, match=message):
            compare_runs([run_copy] * n, tmp_path / "e.html")


def test_cache_page__shows_random_performances(dtsf, visit, world):
    assert dtsf.json("cache", "info", "--html", "cache.html", cwd=world)["report"] == "cache.html"
    page, messages, loaded = visit(world / "cache.html")
    assert messages == []
    assert len(loaded) == 1
    assert page.locator(".sample").count() == 12
    assert page.locator(".sample img").count() == 36
    info = dtsf.json("cache", "info", cwd=world)["datasets"][0]
    assert page.locator(".lead").inner_text().startswith(f"All {info['clips']} clips are usable: {info['groups']} perf")
    assert page.locator("table", has_text="status").count() == 0


def test_gallery__draws_frames_and_thumbnails_of_the_network():
    pictures = np.zeros((3, 4, 48, 48, 3), np.uint8)
    pictures[0], pictures[1], pictures[2] = 50, 120, 220
    drawn = draw_thumbnails(pictures, views=[1, 2, 3])
    assert (drawn[0, :, 5, 5] == 120).all()
    assert (drawn[2, :, 5, 40] == 50).all()
    assert (drawn[1, :, 0, 3] == VIEW_COLOURS[2]).all()
    assert (drawn[0, :, 40, 40] == 50).all()
    alone = draw_thumbnails(pictures[:1], views=[2])
    assert (alone[0, :, 5, 5] == 50).all()
    assert (alone[0, :, 0, 0] == VIEW_COLOURS[1]).all()
    x = np.random.default_rng(0).normal(size=(2, 16, 36, 4)).astype(np.float16)
    assert choose_frames(x, 16, 0.0).tolist() == [list(range(16))] * 2
    assert choose_frames(x, 4, 0.0)[0].tolist() == [2, 6, 10, 14]
    x[:, :8] = x[:, :1]  # nothing moves in the first half
    assert choose_frames(x, 4, 1.0).min() >= 7


def test_run_page__marks_a_view_with_weight_zero_as_occluded(world, run_copy):
    metrics = json.loads((run_copy / "metrics.json").read_text())
    for prediction in metrics["predictions"]:
        prediction["view_weights"] = [0.5, 0.0, 0.5]
    (run_copy / "metrics.json").write_text(json.dumps(metrics))
    text = report_run(run_copy, cache=world / "cache", samples=3).read_text()
    strips = re.findall(r'<figure class="strip">.*?</figcaption>', text, re.DOTALL)
    assert {"view 2" in strip for strip in strips} == {True, False}
    assert all(("excluded as occluded" in strip) == ("view 2" in strip) for strip in strips)
    assert f"{metrics['n_groups']} views were excluded from the fusion as occluded" in text
