"""Exported networks: ONNX Runtime returns the outputs of PyTorch."""

import json
import os
import re
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import onnx
import pytest
import torch
from make_groups import assert_same_outputs, run_state

from dtsf import api
from dtsf.errors import CheckpointError, ConfigError
from dtsf.files.write import check_targets
from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.network import DTSFNet
from dtsf.pipeline.preprocess import make_spec
from dtsf.pipeline.settings import PreprocessSettings
from dtsf.predict.onnx import export_encoder, export_onnx, read_onnx
from dtsf.predict.prediction import predict_onnx

ROOT = Path(__file__).resolve().parents[1]
PASTED = BranchConfig(paste="thumbnails")
MOTION, MOTION_ALL = BranchConfig(input="motion"), BranchConfig(input="motion", views="all")
DYNAMIC = BranchConfig(input="dynamic", channels=2)
SEVERAL = {"principal": 4, "lags": (1,), "flow": 0.2, "exponent": 1.5, "motion_sampling": 1.0, "readout": "flatten"}


def network(*branch, draws=1, **keys):
    torch.manual_seed(0)
    config = ModelConfig(branch=branch or (PASTED,), **{"width": 16, "depth": 1, "frames": 3, "state": 4, "reduce": 4} | keys)
    channels = 3 if "pixels" in config.inputs else 5
    net = DTSFNet(config, channels=channels, side=6, n_classes=4, n_views=3).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    state = run_state(net, draws=draws)
    return net, state.model_copy(update={"spec": state.spec.model_copy(update={"channels": channels})})


@pytest.mark.slow
@pytest.mark.parametrize(("branch", "keys", "views"), [
    ((PASTED,), {"readout": "cls", "patch": 2, "fusion": "concat"}, 2),
    ((BranchConfig(input="frames", paste="thumbnails"),), {"readout": "cls", "normalise": "data"}, 1),
    ((BranchConfig(msm=True),), {"fusion": "tmc"}, 3),
    ((BranchConfig(views="sequence"),), {"fusion": "sfm"}, 3),
    ((BranchConfig(),), {"fusion": "mixer"}, 2),
    ((BranchConfig(input="pixels", paste="thumbnails"),), {"readout": "cls", "patch": 2, "depth": 3, "reduce": 0}, 2),
    ((MOTION, MOTION_ALL, DYNAMIC), SEVERAL | {"occlusion_threshold": 0.95}, 2),  # the default recipe's
    ((BranchConfig(input="motion", paste="tokens"), DYNAMIC), SEVERAL | {"fusion": "mean", "draws": 3}, 2),
    ((BranchConfig(input="motion", paste="thumbnails"),), {"fusion": "tmc"}, 2),
])
def test_export_onnx__gives_the_outputs_of_pytorch_for_any_batch(tmp_path, capfd, branch, keys, views):
    net, state = network(*branch, **keys)
    made = export_onnx(net, state, tmp_path / "net.onnx", views=views)
    assert (made.views, made.spec) == (views, state.spec)
    assert read_onnx(tmp_path / "net.onnx").metadata == made
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert capfd.readouterr() == ("", "")
    assert str(ROOT).encode() not in (tmp_path / "net.onnx").read_bytes()  # the exporter notes the files of this machine
    for n_groups in (1, 2, 7):
        torch.manual_seed(n_groups)
        x_BVFHWC = torch.randn(n_groups, views, 5, 6, 6, state.spec.channels)
        output = assert_same_outputs(tmp_path / "net.onnx", net, x_BVFHWC, keys.get("draws", 1))
    if "draws" in keys:
        with pytest.raises(AssertionError):
            assert_same_outputs(tmp_path / "net.onnx", net, x_BVFHWC)
    assert output.probabilities_BK.std(0).max() > 1e-3  # the output depends on the input


def test_onnx__names_the_wrong_value_or_file(tmp_path):
    net, state = network()
    with pytest.raises(ConfigError, match="toy has 1 to 3 views"):
        export_onnx(net, state, tmp_path / "net.onnx", views=4)
    with pytest.raises(ConfigError, match="does not exist"):
        export_onnx(net, state, tmp_path / "absent" / "net.onnx")
    with pytest.raises(ConfigError, match="is a folder: name a file in it"):
        export_onnx(net, state, tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        read_onnx(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_bytes(b"not a network")
    with pytest.raises(CheckpointError, match="is not a valid ONNX file"):
        read_onnx(tmp_path / "net.onnx")
    identity = onnx.helper.make_node("Identity", ["x"], ["y"])
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([identity], "g", value[:1], value[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(CheckpointError, match="not written by dtsf"):
        read_onnx(tmp_path / "other.onnx")
    onnx.helper.set_model_props(model, {"dtsf": "{}"})
    onnx.save(model, tmp_path / "old.onnx")
    with pytest.raises(CheckpointError, match="export it again"):
        read_onnx(tmp_path / "old.onnx")


@pytest.mark.slow
def test_export_command__writes_a_file_for_predict(world, dtsf, performance, tmp_path):
    made = dtsf.json("export", world / "run", "--onnx", "net.onnx", cwd=tmp_path)
    assert made == {"onnx": "net.onnx", "views": 3, "frames": 16, "bytes": (tmp_path / "net.onnx").stat().st_size}
    found = dtsf.json("predict", *performance, "--onnx", "net.onnx", cwd=tmp_path)
    wanted = dtsf.json("predict", *performance, "--run", world / "run", cwd=tmp_path)
    assert found["label"] == wanted["label"]
    assert found["probabilities"] == pytest.approx(wanted["probabilities"], rel=1e-4, abs=1e-5)
    assert found["view_weights"] == pytest.approx(wanted["view_weights"], rel=1e-4, abs=1e-5)
    assert found["uncertainty"] == pytest.approx(wanted["uncertainty"], rel=1e-4)
    two = dtsf.refusal("predict", *performance[:2], "--onnx", "net.onnx", cwd=tmp_path)
    assert "exported for 3 views, 2 videos given" in two
    assert "--run RUN or --onnx FILE" in dtsf.refusal("predict", *performance, cwd=tmp_path)
    dtsf.refusal("predict", *performance, "--run", world / "run", "--onnx", "net.onnx", cwd=tmp_path)


BLOCKED = "import sys\nfor name in ('PIL', 'torch', 'dtsf', 'onnx'): sys.modules[name] = None\n"


def film(path, width, height, times, codec="libx264"):
    """Write a person-sized block that moves and changes in front of a still texture. ``times``: milliseconds."""
    still = np.random.default_rng(0).integers(60, 120, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for k, time in enumerate(times):
            picture = still.copy()
            left = width // 3 + 3 * (k % 9)
            picture[height // 3 : height // 3 + 60, left : left + 24] = (200, 9 * k % 250, 40)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = int(time), stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.slow
def test_page_about_export__its_program_answers_as_predict(tmp_path):
    spec = make_spec(PreprocessSettings(size=96, grid=3, frames=6, crop="motion"))
    torch.manual_seed(0)
    config = ModelConfig(branch=(PASTED,), width=8, depth=1, frames=3, state=2, patch=3, motion_sampling=1.0)
    net = DTSFNet(config, channels=spec.channels, side=3, n_classes=4, n_views=3).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    state = run_state(net).model_copy(update={"spec": spec})
    export_onnx(net, state, tmp_path / "net.onnx")
    export_encoder(state, tmp_path / "encoder.onnx")
    # Landscape, portrait, and a variable frame rate: two seconds at 25 frames a second, then three at 5.
    videos = [film(tmp_path / "a.mp4", 320, 240, np.arange(40) * 40), film(tmp_path / "b.mp4", 144, 192, np.arange(33) * 40)]
    videos.append(film(tmp_path / "c.mkv", 256, 192, [*range(0, 2000, 40), *range(2000, 5000, 200)]))
    [program] = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs/export.md").read_text(), re.MULTILINE | re.DOTALL)
    # Its imports are the three packages that the page names, and a copy of one file.
    (tmp_path / "classify.py").write_text(BLOCKED + program)
    shutil.copy(ROOT / "dtsf/pipeline/video/motion.py", tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    answers = []
    for crop in ("motion", "centre"):
        model = onnx.load(tmp_path / "net.onnx")
        metadata = json.loads(model.metadata_props[0].value)
        model.metadata_props[0].value = json.dumps(metadata | {"spec": metadata["spec"] | {"crop": crop}})
        onnx.save(model, tmp_path / f"{crop}.onnx")
        wanted = predict_onnx(tmp_path / f"{crop}.onnx", videos)
        command = [sys.executable, "classify.py", "encoder.onnx", f"{crop}.onnx", *map(str, videos)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["label"] == wanted.label
        assert found["uncertainty"] == pytest.approx(wanted.uncertainty, abs=3e-4)
        assert found["view_weights"] == pytest.approx(list(wanted.view_weights), abs=3e-4)
        assert found["probabilities"] == pytest.approx(wanted.probabilities, abs=3e-4)
        answers.append(found["probabilities"])
    assert answers[0] != pytest.approx(answers[1], abs=1e-3)  # the answer hangs on the crop


@pytest.mark.parametrize(("file", "views", "message"), [
    ("gone/net.onnx", None, "--onnx .*the folder .* does not exist"),
    (".", None, "--onnx .*is a folder"),
    ("e.onnx", None, "--onnx and --encoder name the same file"),
    ("net.onnx", 99, "--views 99"),
])
def test_export__refuses_before_it_writes_the_first_file(world, tmp_path, file, views, message):
    with pytest.raises(ConfigError, match=message):
        api.export(world / "run", tmp_path / file, views=views, encoder=tmp_path / "e.onnx")
    assert not list(tmp_path.iterdir())


def test_check_targets__needs_a_folder_that_takes_files(tmp_path, monkeypatch):
    check_targets({"--onnx": tmp_path / "a", "--encoder": tmp_path / "b"})
    monkeypatch.setattr(os, "access", lambda folder, mode: False)  # root may write everywhere
    with pytest.raises(ConfigError, match="--onnx .*nothing can be written to"):
        check_targets({"--onnx": tmp_path / "a"})
    with pytest.raises(ConfigError, match=f"--out .*nothing can be written to {tmp_path}:"):
        check_targets({"--out": tmp_path / "absent" / "further" / "a"}, parents=True)


def test_export_encoder__names_the_wrong_value(tmp_path):
    net, state = network()
    pixels = state.model_copy(update={"spec": make_spec(PreprocessSettings(encoder="pixels", size=96))})
    with pytest.raises(ConfigError, match="pixels has no network"):
        export_encoder(pixels, tmp_path / "e.onnx")
    with pytest.raises(ConfigError, match="the folder .* does not exist"):
        export_encoder(state, tmp_path / "absent" / "e.onnx")
    lite = make_spec(PreprocessSettings(size=96, grid=3)).model_copy(update={"weights_hash": "0"})
    with pytest.raises(ConfigError, match="its weights have the hash"):
        export_encoder(state.model_copy(update={"spec": lite}), tmp_path / "e.onnx")
    assert list(tmp_path.iterdir()) == []
