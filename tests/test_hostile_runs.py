"""Hostile run folders, ONNX files, caches and lists: a result or a DtsfError; no write outside, no hang, no foreign code."""

import contextlib
import json
import os
import pickle
import re
import shutil
import signal

import onnx
import pytest
import torch
from hostile import VALUES, forged, listing, nothing_outside, places, put, put_in_place, spoiled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_cache import draw, forge, make
from make_groups import run_state, toy, train
from safetensors.torch import load_file, save_file

from dtsf import api
from dtsf.cache.check import verify
from dtsf.cache.reader import open_dataset
from dtsf.errors import CacheError, CheckpointError, DtsfError
from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.network import DTSFNet
from dtsf.pipeline.datasets import scan_source
from dtsf.pipeline.datasets.import_lists import import_lists
from dtsf.predict.onnx import export_onnx, read_onnx
from dtsf.report.run_page import report_run
from dtsf.training.data import load_groups
from dtsf.training.evaluate import predict_groups
from dtsf.training.recipe import load_recipe
from dtsf.training.tensor_files import save_state

SIZES = ("model.width=16", "model.depth=1", "model.state=4", "model.reduce=4")
WORK_S, WAIT_S = 10, 120  # seconds that count as a hang; a busy machine waits
few = settings(max_examples=int(os.environ.get("EXAMPLES", 20)), deadline=None, suppress_health_check=list(HealthCheck))
some_or_many = pytest.mark.parametrize("n", [20, pytest.param(300, marks=pytest.mark.slow)])


def drawn(n):
    """Run the decorated ``check(data)`` on ``n`` examples."""
    n_examples = settings(few, max_examples=int(os.environ.get("EXAMPLES", n)))
    return lambda check: given(st.data())(n_examples(lambda data: check(data)))()


@contextlib.contextmanager
def no_hang():
    def late(*_):
        raise AssertionError(f"no result after {WORK_S} s of work or {WAIT_S} s of waiting")

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, WORK_S), (signal.SIGALRM, signal.ITIMER_REAL, WAIT_S))
    before = [signal.signal(number, late) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A drawn cache, a run trained from it, and a network of one branch as ONNX."""
    root = tmp_path_factory.mktemp("made")
    draw(root / "cache")
    api.train(root / "cache", protocol="split", run=root / "run", overrides=["train.epochs=1", *SIZES], device="cpu")
    config = ModelConfig(branch=(BranchConfig(input="motion"),), width=8, depth=1, frames=3, state=4, reduce=4)
    net = DTSFNet(config, channels=5, side=6, n_classes=4, n_views=3).eval()
    export_onnx(net, run_state(net), root / "net.onnx")
    return root


FILES = ("last/state.json", "metrics.json", "environment.json", "config.toml", "log.jsonl", "last/model.safetensors")
KINDS = st.sampled_from(["pipe", "folder", "link", "loop", "nothing"])


@some_or_many
def test_load__survives_hostile_runs(made, tmp_path_factory, n):
    def use(run):
        with contextlib.suppress(DtsfError):
            opened = api.load(run)
            spec = opened.state.spec
            if spec.frames * spec.grid**2 * spec.channels < 1e7:
                n_views = min(len(opened.state.info.view_names), 3)
                answer = opened.classify(torch.zeros(n_views, spec.frames, spec.grid**2, spec.channels).numpy())
                assert answer.label in opened.state.info.class_names
                assert 0 <= answer.probability <= 1 + 1e-5
            opened.evaluate(made / "cache")
        with contextlib.suppress(DtsfError):
            report_run(run, cache=made / "cache", samples=1)

    @drawn(n)
    def check(data):
        root = tmp_path_factory.mktemp("sandbox")
        (root / "victim").write_text("precious")
        run = shutil.copytree(made / "run", root / "run")
        name = data.draw(st.sampled_from(FILES))
        how = data.draw(st.sampled_from(["forge"] * 5 + ["spoil"] * 3 + ["kind"]))
        path = run / name
        if how == "forge" and name.endswith(".json"):
            path.write_bytes(forged(path.read_text(), data))
        elif how == "kind":
            put_in_place(path, data.draw(KINDS), root / "victim")
        else:
            path.write_bytes(spoiled(path.read_bytes(), data))
        before = listing(root)
        with no_hang(), nothing_outside(root):
            use(run)
        after = listing(root)
        assert {key: after.get(key) for key in before} == before
        assert set(after) - set(before) <= {str(run / "report.html")}
        shutil.rmtree(root)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("recipe", "model", "depth"), 10**7, "depth 10000000: input should be less than or equal to"),
        (("recipe", "model", "frames"), 10**6, "frames 1000000"),
        (("recipe", "train", "threads"), 10**6, "threads 1000000"),
        (("spec", "frames"), 10**6, "frames 1000000"),
        (("recipe", "model", "width"), 8192, "do not fit its recipe"),
    ],
)
def test_load__refuses_numbers_out_of_range(made, tmp_path, where, value, message):
    run = shutil.copytree(made / "run", tmp_path / "run")
    state = json.loads((run / "last/state.json").read_text())
    put(state, where, value)
    (run / "last/state.json").write_text(json.dumps(state))
    with no_hang(), pytest.raises(CheckpointError, match=message):
        api.load(run)


def test_load__refuses_weights_that_are_not_finite(made, tmp_path):
    run = shutil.copytree(made / "run", tmp_path / "run")
    weights = load_file(run / "last/model.safetensors")
    weights["branches.0.encoder.head.bias"][0] = float("nan")
    save_file(weights, run / "last/model.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        api.load(run)
    # Finite weights that are too large for finite predictions.
    weights["branches.0.encoder.head.bias"][0] = 0
    weights["branches.0.encoder.head.weight"][:] = 3e38
    save_file(weights, run / "last/model.safetensors")
    with pytest.raises(CheckpointError, match="not finite"):
        api.load(run).evaluate(made / "cache")


@pytest.mark.parametrize("rate", ["1e12", "1e6"])
def test_train__divergence_keeps_the_last_checkpoint(made, tmp_path, rate):
    rate_shown = re.escape(f"{float(rate):g}")
    with pytest.raises(DtsfError, match=rf"diverged .*step \d+.*learning rate {rate_shown}.*train\.lr") as caught:
        api.train(
            made / "cache", protocol="split", run=tmp_path / "run", device="cpu",
            overrides=["train.epochs=3", f"train.lr={rate}", "train.warmup=0", "model.width=16", "model.depth=1"],
        )  # fmt: skip
    assert caught.value.exit_code == 2
    api.load(tmp_path / "run").evaluate(made / "cache")
    for line in (tmp_path / "run/log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} in the log"))


def test_fit_and_predict_groups__name_the_group_whose_embeddings_are_not_finite(tmp_path):
    sound, broken = toy(), toy()
    broken.embeddings_NFHWC[broken.row_GV[3, 1], 0, 0, 0, 0] = float("nan")
    net = train(tmp_path / "sound", sound, "train.epochs=1")[0].net
    for use in (lambda: predict_groups(net, broken, 1), lambda: train(tmp_path / "broken", broken, "train.epochs=1")):
        with pytest.raises(CacheError, match="embeddings of the group g03 that are not finite"):
            use()


def test_resume__refuses_a_hostile_optimizer(made, tmp_path):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    run = shutil.copytree(made / "run", tmp_path / "run")
    words = {"protocol": "split", "overrides": ["train.epochs=2", *SIZES], "device": "cpu", "resume": True}
    # A tensor of 4 GB in a file of 100 bytes.
    header = json.dumps({"structure": {"dtype": "U8", "shape": [1 << 32], "data_offsets": [0, 1 << 32]}}).encode()
    bomb = len(header).to_bytes(8, "little") + header
    for content in (pickle.dumps(Harm()), b"", b"PK\x03\x04", bomb, {"optimizer": 7}, [1], {"raw": {}}):
        (run / "last/optimizer.safetensors").write_bytes(content if isinstance(content, bytes) else save_state(content))
        assert api.load(run).state.epoch == 1
        with pytest.raises(DtsfError):
            api.train(made / "cache", run=run, **words)
    assert not (tmp_path / "harm").exists()


def _metadata(path):
    return next(prop.value for prop in onnx.load(path).metadata_props if prop.key == "dtsf")


def _with_metadata(path, text):
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"dtsf": text})
    return model.SerializeToString()


@some_or_many
def test_onnx__survives_hostile_files(made, tmp_path_factory, n):
    @drawn(n)
    def check(data):
        path = tmp_path_factory.mktemp("onnx") / "net.onnx"
        how = data.draw(st.sampled_from(["forge"] * 3 + ["spoil"] * 3 + ["kind"]))
        shutil.copy(made / "net.onnx", path)
        if how == "forge":
            text = forged(_metadata(made / "net.onnx"), data).decode("utf-8", "replace")
            path.write_bytes(_with_metadata(made / "net.onnx", text))
        elif how == "spoil":
            path.write_bytes(spoiled(path.read_bytes(), data))
        else:
            put_in_place(path, data.draw(KINDS), path)
        before = listing(path.parent)
        with no_hang(), nothing_outside(), contextlib.suppress(DtsfError):
            network = read_onnx(path)
            known = network.metadata
            x = torch.zeros(1, known.views, known.spec.frames, known.spec.grid, known.spec.grid, known.spec.channels)
            network(x)
        assert listing(path.parent) == before


def test_onnx__refuses_metadata_that_do_not_match_the_graph(made, tmp_path):
    held = json.loads(_metadata(made / "net.onnx"))
    for change in ({"spec": held["spec"] | {"frames": 4096}}, {"views": 2}, {"info": held["info"] | {"class_names": ["a"]}}):
        (tmp_path / "n.onnx").write_bytes(_with_metadata(made / "net.onnx", json.dumps(held | change)))
        with pytest.raises(CheckpointError, match="metadata and graph of .* differ"):
            read_onnx(tmp_path / "n.onnx")
    (tmp_path / "n.onnx").write_bytes(_with_metadata(made / "net.onnx", json.dumps(held | {"views": 10**6})))
    with pytest.raises(CheckpointError, match="views 1000000"):
        read_onnx(tmp_path / "n.onnx")


def outside_weights(body):
    tensor = body.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def other_domain(body):
    body.node[0].domain = "evil"


def other_subgraph(body):
    branch = onnx.helper.make_graph([], "g", [], [])
    body.node.append(onnx.helper.make_node("If", ["c"], [], then_branch=branch, else_branch=branch))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("change", "reason"), [
    (outside_weights, "weights in another file"), (other_domain, "custom operators"), (other_subgraph, "subgraphs"),
])
def test_onnx__refuses_what_an_export_never_has_also_within_a_scan(made, tmp_path, change, reason, depth):
    model = onnx.load(made / "net.onnx")
    body = model.graph
    for _ in range(depth):  # the network, then its first selective scan
        body = next(a.g for node in body.node if node.op_type == "Scan" for a in node.attribute if a.name == "body")
    if not body.initializer:
        body.initializer.append(onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], b"0000", raw=True))
    change(body)
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=reason):
        read_onnx(tmp_path / "n.onnx")


@some_or_many
def test_open_dataset__survives_hostile_caches(tmp_path_factory, n):
    cache = tmp_path_factory.mktemp("cache")
    make(cache / "a")

    @drawn(n)
    def check(data):
        root = shutil.copytree(cache, tmp_path_factory.mktemp("sandbox") / "cache")
        names = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.name != ".lock")
        path = root / data.draw(st.sampled_from(names))
        how = data.draw(st.sampled_from(["forge"] * 4 + ["spoil"] * 2 + ["kind"]))
        text = path.read_bytes()
        if how == "kind":
            put_in_place(path, data.draw(KINDS), root / "a")
        elif how == "forge" and b'"checksum"' in text:
            ways = [place for place in places(json.loads(text)) if place and place[0] != "checksum"]
            way = data.draw(st.sampled_from(ways))
            value = data.draw(st.sampled_from([v for v in VALUES if not (isinstance(v, str) and "\udcb6" in v)]))
            forge(path, lambda document: put(document, way, value))
        else:
            path.write_bytes(spoiled(text, data))
        before = listing(root)
        with no_hang(), nothing_outside(root):
            with contextlib.suppress(DtsfError):
                opened = open_dataset(root)
                load_groups(opened, opened.clips)
            with contextlib.suppress(DtsfError):
                verify(root / "a", deep=True)
        assert listing(root) == before
        shutil.rmtree(root.parent)


@few
@given(
    content=st.one_of(
        st.binary(max_size=200),
        st.text(st.characters(codec="utf-8"), max_size=200).map(str.encode),
        st.lists(st.sampled_from(["v1.mp4", "a,b", "\u00b2", "9" * 5000, "../x.mp4", '"', "video_id,action", "\x1b", " "])).map(
            lambda words: "\n".join(words).encode()
        ),
        st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=6).map(pickle.dumps),
        st.dictionaries(
            st.sampled_from(["split", "annotations"]),
            st.lists(st.dictionaries(st.sampled_from(["frame_dir", "label"]), st.integers() | st.just("v1"))) | st.none(),
        ).map(pickle.dumps),
    ),
    ending=st.sampled_from([".pkl", ".txt", ".csv"]),
)
def test_import_lists__survive_hostile_files(tmp_path_factory, content, ending):
    root = tmp_path_factory.mktemp("lists")
    (root / "videos").mkdir()
    (root / "videos/v1.mp4").touch()
    (root / f"list{ending}").write_bytes(content)
    with no_hang(), nothing_outside(root), contextlib.suppress(DtsfError):
        import_lists([root / f"list{ending}"], root / "videos")
    with no_hang(), nothing_outside(), contextlib.suppress(DtsfError):
        scan_source("manifest", root / f"list{ending}")


def test_import_lists__refuse_a_pickle_bomb(tmp_path):
    held = ["x"]
    for _ in range(60):
        held = [held, held]
    (tmp_path / "v").mkdir()
    (tmp_path / "l.pkl").write_bytes(pickle.dumps({"split": {"a_train": [held]}, "annotations": [{"frame_dir": held, "label": 1}]}))
    with no_hang(), pytest.raises(DtsfError, match="a name is not text but list"):
        import_lists([tmp_path / "l.pkl"], tmp_path / "v")


@few
@given(content=st.binary(max_size=100) | st.text(max_size=100).map(lambda t: t.encode("utf-8", "replace")))
def test_load_recipe__survives_hostile_files(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("recipe") / "r.toml"
    file.write_bytes(content)
    with no_hang(), nothing_outside(), contextlib.suppress(DtsfError):
        load_recipe(str(file))
