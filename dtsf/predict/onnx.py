"""Export of a run to one ONNX file with metadata, and prediction with this file alone.
The graph reads the embeddings of all cached frames, samples the frames of the network as an evaluation does, and has the network in
evaluation mode. It is traced for one group, with a mixer as one operator, and a node ``Scan`` runs it for each group of a batch:
tracing with a free number of groups takes 2.5 times as long. A second file has the frame encoder.
Letters: B groups, V views, F cached frames, T frames of the network, H W grid, C channels, K classes,
X numbers of a frame.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dtsf.cache.schema import CacheSpec, DatasetInfo
from dtsf.errors import CheckpointError, ConfigError
from dtsf.files.read import first_line, parse_model, read_file
from dtsf.files.write import check_targets, write_atomically
from dtsf.pipeline.encoders.efficientnet_lite import quiet_export
from dtsf.predict.onnx_mixer import translations, with_exported_mixers
from dtsf.settings import Frozen
from dtsf.training.frame_sampling import cumulative_motion, uniform_times

if TYPE_CHECKING:
    import onnx

    from dtsf.model.network import DTSFNet
    from dtsf.training.checkpoint import RunState

METADATA_KEY = "dtsf"
OUTPUTS = ("probabilities", "uncertainty", "view_weights")
MAX_BYTES = 1 << 31  # of an ONNX file, fixed by the format


class OnnxMetadata(Frozen):
    """Metadata of an exported file: its input, and the run that it is from."""

    spec: CacheSpec
    info: DatasetInfo
    views: int = Field(ge=1, le=1024)
    protocol: str
    fingerprint: str


class _Float32(TorchFunctionMode):
    """Conversions of float32 to float32 are left out: each costs the exporter three operators."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator of PyTorch."""
        asked = func is Tensor.float or (func is Tensor.to and len(args) == 2 and args[1] is torch.float32)
        return args[0] if asked and not kwargs and args[0].dtype == torch.float32 else func(*args, **(kwargs or {}))


class _Graph(nn.Module):
    """Sampling of frames and network for one group, with :data:`OUTPUTS`: means over ``draws`` sets of frames."""

    def __init__(self, net: DTSFNet, draws: int) -> None:
        super().__init__()
        self.net, self.draws = with_exported_mixers(net), draws

    def forward(self, x_VFHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        config = self.net.config
        times = [uniform_times(config.frames, (draw + 0.5) / self.draws) for draw in range(self.draws)]
        # Every set of frames is a group: the graph has the network once.
        with _Float32():
            x_BVTHWC = torch.stack([_sample_frames(x_VFHWC, time_T, config.motion_sampling) for time_T in times])
            output = self.net(x_BVTHWC)
        found = output.probabilities_BK, output.uncertainty_B, output.view_weights_BV
        probabilities_K, uncertainty, weights_V = (x.mean(0) for x in found)
        return probabilities_K, uncertainty, weights_V


def _sample_frames(x_VFHWC: Tensor, time_T: Tensor, motion_sampling: float) -> Tensor:
    """Return the frames of :func:`dtsf.training.frame_sampling.read_frames` for an evaluation, by operations that ONNX has."""
    F = x_VFHWC.shape[1]
    if motion_sampling == 0 or F == 1:
        return x_VFHWC[:, (time_T * F).long().clamp(0, F - 1)]
    x_VFX = x_VFHWC.flatten(2)
    step_VS = (x_VFX[:, 1:] - x_VFX[:, :-1]).square().sum(-1).sqrt()
    clock_VF = cumulative_motion(step_VS, motion_sampling)
    after_VT = (clock_VF.unsqueeze(1) < time_T.unsqueeze(1)).long().sum(-1).clamp(1, F - 1)
    begin_VT, end_VT = clock_VF.gather(1, after_VT - 1), clock_VF.gather(1, after_VT)
    share_VT1 = ((time_T - begin_VT) / (end_VT - begin_VT).clamp(min=1e-9)).clamp(0, 1).unsqueeze(-1)
    number_F = torch.arange(F)
    before_VTF, after_VTF = ((number_F == k_VT.unsqueeze(-1)).float() for k_VT in (after_VT - 1, after_VT))
    x_VTX = (before_VTF * (1 - share_VT1) + after_VTF * share_VT1) @ x_VFX
    x_VTHWC: Tensor = x_VTX.unflatten(2, x_VFHWC.shape[2:])
    return x_VTHWC


def export_onnx(
    net: DTSFNet,
    state: RunState,
    file: Path,
    *,
    views: int | None = None,
    on_progress: Callable[[int, int, str], None] = lambda *_: None,
) -> OnnxMetadata:
    """Write a network (evaluation mode, CPU) as ONNX: input ``embeddings`` (B, V, F, H, W, C) float32, outputs :data:`OUTPUTS`.
    ``views``: V. Default: all views of the dataset. ``on_progress``: called with the numbers of the step and of all steps, and what
    it does. Raises ConfigError: V is out of range, or the file cannot be written.
    """
    from onnxscript import optimizer

    check_export(state, file, views=views)
    known = {name: getattr(state, name) for name in ("spec", "info", "protocol", "fingerprint")}
    metadata = OnnxMetadata(views=views or len(state.info.view_names), **known)
    spec = state.spec
    example_VFHWC = torch.zeros(metadata.views, spec.frames, spec.grid, spec.grid, spec.channels)
    graph = _Graph(net, state.recipe.train.draws).eval()
    on_progress(0, 3, "tracing the network")
    with _exporting():
        traced = torch.export.export(graph, (example_VFHWC,), strict=False)
    on_progress(1, 3, "translating its operators")
    with _exporting():
        program: Any = torch.onnx.export(
            traced,
            dynamo=True,
            input_names=["group"],
            output_names=[f"group_{name}" for name in OUTPUTS],
            custom_translation_table=translations(),
            optimize=False,
            verbose=False,
        )
    on_progress(2, 3, "simplifying the graph")
    with _exporting():
        # Not program.optimize(): it searches for patterns that ONNX Runtime fuses itself, and takes three seconds.
        optimizer.fold_constants(program.model)
        optimizer.remove_unused_nodes(program.model)
    data = _for_each_group(program.model_proto, metadata).SerializeToString()
    write_atomically(file, data, error=lambda why: ConfigError(f"--onnx {file} cannot be written: {why}"))
    on_progress(3, 3, "")
    return metadata


def check_export(state: RunState, file: Path, encoder: Path | None = None, views: int | None = None) -> None:
    """Raise ConfigError if an export of a run is refused: the number of views, or one of its files."""
    n_views = len(state.info.view_names)
    if views is not None and not 1 <= views <= n_views:
        raise ConfigError(f"--views {views}: {state.info.name} has 1 to {n_views} views")
    check_targets({"--onnx": file} | ({"--encoder": encoder} if encoder is not None else {}), "net.onnx")


@contextmanager
def _exporting() -> Iterator[None]:
    """Hide the exporter's messages, and do not search its millions of objects for garbage, a sixth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        with quiet_export():
            yield
    finally:
        if enabled:
            gc.enable()


def _for_each_group(model: onnx.ModelProto, metadata: OnnxMetadata) -> onnx.ModelProto:
    """Return the graph of one group as a graph of any number of groups, one after another, with the metadata."""
    from onnx import helper

    def of_all(name: str, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        kind = value.type.tensor_type
        return helper.make_tensor_value_info(name, kind.elem_type, ["groups", *(d.dim_value for d in kind.shape.dim)])

    body = model.graph
    for node in body.node:
        node.ClearField("metadata_props")  # traces of PyTorch: a third of the bytes, with paths of this machine
    each = helper.make_node("Scan", ["embeddings"], OUTPUTS, body=body, num_scan_inputs=1)
    outputs = [of_all(name, value) for name, value in zip(OUTPUTS, body.output, strict=True)]
    graph = helper.make_graph([each], "dtsf", [of_all("embeddings", body.input[0])], outputs)
    made = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    helper.set_model_props(made, {METADATA_KEY: metadata.model_dump_json()})
    return made


def export_encoder(state: RunState, file: Path, weights: Path | None = None) -> None:
    """Write the frame encoder of a run as ONNX: ``frames`` (N, size, size, 3) uint8 RGB -> ``cells`` (N, G * G, C) float16.

    ``weights``: file of custom encoder weights. Raises ConfigError: another encoder than that of the run, one that cannot be
    exported, or the file cannot be written.
    """
    from dtsf.pipeline.encoders.choose import encoder_onnx

    check_targets({"--encoder": file}, "encoder.onnx")
    data = encoder_onnx(state.spec, weights)
    write_atomically(file, data, error=lambda why: ConfigError(f"--encoder {file} cannot be written: {why}"))


class ExportedNetwork(NamedTuple):
    """An ONNX file, loaded into ONNX Runtime."""

    file: Path
    metadata: OnnxMetadata
    session: Any

    def __call__(self, x_BVFHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities (B, K), uncertainty (B,) and view weights (B, V) for the embeddings of all cached frames."""
        try:
            found = self.session.run(list(OUTPUTS), {"embeddings": x_BVFHWC.float().contiguous().numpy()})
        except Exception as error:  # noqa: BLE001  ONNX Runtime's errors share only this base
            raise CheckpointError(f"ONNX Runtime cannot run {self.file}: {first_line(error)}") from error
        probabilities_BK, uncertainty_B, weights_BV = map(torch.from_numpy, found)
        return probabilities_BK, uncertainty_B, weights_BV


def read_onnx(file: Path) -> ExportedNetwork:
    """Load a file of :func:`export_onnx`. Raises CheckpointError: it is missing or damaged, or dtsf did not write it."""
    import onnx
    import onnxruntime

    if not file.exists():
        raise CheckpointError(f"{file} does not exist: dtsf export RUN --onnx {file}")
    data = read_file(file, limit=MAX_BYTES, error=CheckpointError, follow=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        _refuse_foreign(file, onnx.load_model_from_string(data))
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001  errors of ONNX share only this base
        raise CheckpointError(f"{file} is not a valid ONNX file: {first_line(error)}") from error
    if text is None:
        raise CheckpointError(f"{file} was not written by dtsf: dtsf export RUN --onnx FILE")

    def damaged(why: str) -> CheckpointError:
        return CheckpointError(f"{why}: export it again")

    metadata = parse_model(OnnxMetadata, text, f"metadata of {file}", error=damaged)
    spec, views = metadata.spec, metadata.views
    expected = {
        "embeddings": [views, spec.frames, spec.grid, spec.grid, spec.channels],
        "probabilities": [len(metadata.info.class_names)],
        "uncertainty": [],
        "view_weights": [views],
    }
    # Before memory is allocated by the metadata.
    for name, shape in expected.items():
        if name not in shapes or shapes[name][1:] != shape:
            found = f"{name} is {shapes.get(name, 'missing')} in the graph, groups x {shape} in the metadata"
            raise damaged(f"metadata and graph of {file} differ: {found}")
    return ExportedNetwork(file, metadata, session)


def _refuse_foreign(file: Path, model: onnx.ModelProto) -> None:
    """Refuse ONNX features that an export of dtsf never uses, such as weights in other files, or any subgraph but a ``Scan``."""
    import onnx

    graphs, nodes = [model.graph], []
    for graph in graphs:  # grows by the bodies of its nodes
        nodes += graph.node
        graphs += [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    initializers = [x for graph in graphs for x in graph.initializer]
    tensors = [*initializers, *(a.t for node in nodes for a in node.attribute if a.HasField("t"))]
    kinds = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    bodies = {(node.op_type, a.name, a.type) for node in nodes for a in node.attribute if a.type in kinds}
    features = {
        "weights in another file": any(x.data_location == onnx.TensorProto.EXTERNAL for x in tensors),
        "functions": bool(model.functions),
        "custom operators": any(node.domain not in ("", "ai.onnx") for node in nodes),
        "subgraphs": bool(bodies - {("Scan", "body", onnx.AttributeProto.GRAPH)}),
        "sparse weights": any(graph.sparse_initializer for graph in graphs),
    }
    foreign = [name for name, found in features.items() if found]
    if foreign:
        raise CheckpointError(f"{file} was not written by dtsf: it has {', '.join(foreign)}")
