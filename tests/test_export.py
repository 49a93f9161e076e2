"""Exported networks: ONNX Runtime returns the outputs of PyTorch."""

import pytest
import torch
from make_groups import EXPORT_SPEC, assert_same_outputs, run_state

from dtsf.errors import CheckpointError, ConfigError
from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.network import DTSFNet
from dtsf.predict.onnx import export_onnx, read_onnx

PASTED = BranchConfig(paste="thumbnails")
MOTION, MOTION_ALL = BranchConfig(input="motion"), BranchConfig(input="motion", views="all")
DYNAMIC = BranchConfig(input="dynamic", channels=2)
SEVERAL = {"principal": 4, "lags": (1,), "flow": 0.2, "exponent": 1.5, "motion_sampling": 1.0, "readout": "flatten"}


def network(*branch, **keys):
    torch.manual_seed(0)
    config = ModelConfig(branch=branch or (PASTED,), width=16, depth=1, frames=3, state=4, reduce=4, **keys)
    net = DTSFNet(config, channels=5, side=6, n_classes=4, n_views=3).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=1.0)
    return net, run_state(net)


@pytest.mark.slow
@pytest.mark.parametrize(("branch", "keys", "views"), [
    ((PASTED,), {"readout": "cls", "patch": 2, "fusion": "concat"}, 2),
    ((BranchConfig(input="frames", paste="thumbnails"),), {"readout": "cls", "normalise": "data"}, 1),
    ((BranchConfig(msm=True),), {"fusion": "tmc"}, 3),
    ((BranchConfig(views="sequence"),), {"fusion": "sfm"}, 3),
    ((MOTION, MOTION_ALL, DYNAMIC), SEVERAL | {"occlusion_threshold": 0.95}, 2),  # the default recipe's
    ((BranchConfig(input="motion", paste="tokens"), DYNAMIC), SEVERAL | {"fusion": "mean"}, 2),
    ((BranchConfig(input="motion", paste="thumbnails"),), {"fusion": "tmc"}, 2),
])
def test_export_onnx__gives_the_outputs_of_pytorch_for_any_batch(tmp_path, capfd, branch, keys, views):
    net, state = network(*branch, **keys)
    made = export_onnx(net, state, tmp_path / "net.onnx", views=views)
    assert (made.views, made.frames, made.spec) == (views, 3, EXPORT_SPEC)
    assert read_onnx(tmp_path / "net.onnx").metadata == made
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert capfd.readouterr() == ("", "")
    for n_groups in (1, 2, 7):
        torch.manual_seed(n_groups)
        output = assert_same_outputs(tmp_path / "net.onnx", net, torch.randn(n_groups, views, 3, 6, 6, 5))
    assert output.probabilities_BK.std(0).max() > 1e-3  # the output depends on the input


def test_onnx__names_the_wrong_value_or_file(tmp_path):
    import onnx

    net, state = network()
    with pytest.raises(ConfigError, match="toy has 1 to 3 views"):
        export_onnx(net, state, tmp_path / "net.onnx", views=4)
    with pytest.raises(ConfigError, match="does not exist"):
        export_onnx(net, state, tmp_path / "absent" / "net.onnx")
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
