"""Export of a run to one ONNX file with metadata, and prediction with this file alone.
The graph has the network in evaluation mode and the plain scan, for any number of groups and fixed views and frames.
Letters: B groups, V views, T frames, H W grid, C channels, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from dtsf.cache.schema import CacheSpec, DatasetInfo
from dtsf.errors import CheckpointError, ConfigError
from dtsf.files.read import first_line, parse_model, read_file
from dtsf.files.write import write_atomically
from dtsf.pipeline.encoders.efficientnet_lite import quiet_export
from dtsf.settings import Frozen

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
    frames: int = Field(ge=1, le=4096)
    motion_sampling: float = Field(ge=0, le=1)
    protocol: str
    fingerprint: str


class _Graph(nn.Module):
    """Network with the three outputs of :data:`OUTPUTS`."""

    def __init__(self, net: DTSFNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.net(embeddings)
        return output.probabilities_BK, output.uncertainty_B, output.view_weights_BV


def export_onnx(net: DTSFNet, state: RunState, file: Path, *, views: int | None = None) -> OnnxMetadata:
    """Write a network (evaluation mode, CPU) as ONNX: input ``embeddings`` (B, V, T, H, W, C) float32, outputs :data:`OUTPUTS`.
    ``views``: V. Default: all views of the dataset. Raises ConfigError: V is out of range, or the file cannot be written.
    """
    n_views = len(state.info.view_names)
    if views is not None and not 1 <= views <= n_views:
        raise ConfigError(f"--views {views}: {state.info.name} has 1 to {n_views} views")
    if not file.parent.is_dir():
        raise ConfigError(f"--onnx {file}: the folder {file.parent} does not exist")
    metadata = OnnxMetadata(
        spec=state.spec,
        info=state.info,
        views=views or n_views,
        frames=net.config.frames,
        motion_sampling=net.config.motion_sampling,
        protocol=state.protocol,
        fingerprint=state.fingerprint,
    )
    grid = state.spec.grid
    # Two groups: the exporter treats an axis of length one as a constant.
    example_BVTHWC = torch.zeros(2, metadata.views, metadata.frames, grid, grid, state.spec.channels)
    with quiet_export():
        program: Any = torch.onnx.export(
            _Graph(net).eval(),
            (example_BVTHWC,),
            dynamo=True,
            input_names=["embeddings"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"embeddings": {0: torch.export.Dim("groups", min=1)}},
            verbose=False,
        )
        program.model.metadata_props[METADATA_KEY] = metadata.model_dump_json()
        data = program.model_proto.SerializeToString()
    write_atomically(file, data, error=lambda why: ConfigError(f"--onnx {file} cannot be written: {why}"))
    return metadata


class ExportedNetwork(NamedTuple):
    """An ONNX file, loaded into ONNX Runtime."""

    file: Path
    metadata: OnnxMetadata
    session: Any

    def __call__(self, x_BVTHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return probabilities (B, K), uncertainty (B,) and view weights (B, V)."""
        try:
            found = self.session.run(list(OUTPUTS), {"embeddings": x_BVTHWC.float().contiguous().numpy()})
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
        "embeddings": [views, metadata.frames, spec.grid, spec.grid, spec.channels],
        "probabilities": [len(metadata.info.class_names)],
        "uncertainty": [],
        "view_weights": [views],
    }
    # Before memory is allocated by the metadata.
    for name, shape in expected.items():
        if name not in shapes or shapes[name][1:] != shape:
            found = f"{name} is {shapes.get(name, 'missing')} in the graph, groups x {shape} in the metadata"
            raise damaged(f"metadata and graph of {file} differ: {found}")
    if metadata.frames > spec.frames:
        raise damaged(f"{file} takes {metadata.frames} frames, but its cache has {spec.frames}")
    return ExportedNetwork(file, metadata, session)


def _refuse_foreign(file: Path, model: onnx.ModelProto) -> None:
    """Refuse ONNX features that an export of dtsf never uses, such as weights in other files."""
    import onnx

    nodes = model.graph.node
    graphs = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    tensors = [*model.graph.initializer, *(a.t for node in nodes for a in node.attribute if a.HasField("t"))]
    features = {
        "weights in another file": any(x.data_location == onnx.TensorProto.EXTERNAL for x in tensors),
        "functions": bool(model.functions),
        "custom operators": any(node.domain not in ("", "ai.onnx") for node in nodes),
        "subgraphs": any(a.type in graphs for node in nodes for a in node.attribute),
        "sparse weights": bool(model.graph.sparse_initializer),
    }
    foreign = [name for name, found in features.items() if found]
    if foreign:
        raise CheckpointError(f"{file} was not written by dtsf: it has {', '.join(foreign)}")
