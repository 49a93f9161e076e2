"""A run as one ONNX file that needs no PyTorch: any number of groups, a fixed number of views and frames.

The graph is the network in evaluation mode with the plain scan by chunks, all views present. Beside it the file
carries, as metadata, what ``predict`` needs to make its input from videos: encoder, frames, class names.
Letters: B groups, V views, T frames, H W grid, C channels, K classes.
"""

from __future__ import annotations

import io
import logging
import warnings
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import nn

from dtsf.cache.records import Frozen
from dtsf.cache.spec import CacheSpec, DatasetInfo
from dtsf.errors import CheckpointError, ConfigError
from dtsf.files.read import first_line, parse_model, read_file
from dtsf.files.write import write_atomically

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import Tensor

    from dtsf.model.network import DTSFNet
    from dtsf.training.checkpoint import RunState

METADATA_KEY = "dtsf"
OUTPUTS = ("probabilities", "uncertainty", "view_weights")
ONNX_LIMIT = 1 << 31
"""Bytes of an ONNX file: the format has no larger ones."""


class OnnxMetadata(Frozen):
    """What the file knows of itself beside the graph."""

    spec: CacheSpec
    """How its input is made."""
    info: DatasetInfo
    """Classes and views."""
    views: int = Field(ge=1, le=1024)
    """V."""
    frames: int = Field(ge=1, le=4096)
    """T."""
    pace: float = Field(ge=0, le=1)
    """See :mod:`dtsf.training.frame_sampling`."""
    protocol: str
    fingerprint: str
    """Of the cache the run was trained from."""


class _Graph(nn.Module):
    """The network from canvases to the three outputs of :data:`OUTPUTS`."""

    def __init__(self, net: DTSFNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, embeddings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.net(embeddings)
        return output.probabilities_BK, output.uncertainty_B, output.view_weights_BV


def export_onnx(net: DTSFNet, state: RunState, file: Path, *, views: int | None = None) -> OnnxMetadata:
    """Write a network as ONNX: input ``embeddings`` (B, V, T, H, W, C) float32, outputs :data:`OUTPUTS`.

    ``net``: the network, in evaluation mode, on the CPU. ``views``: V; all views of the data set if left out. Raises
    ConfigError: no such number of views, or the file cannot be written.
    """
    most = len(state.info.view_names)
    if views is not None and not 1 <= views <= most:
        raise ConfigError(f"--views {views}: {state.info.name} has 1 to {most} views")
    if not file.parent.is_dir():
        raise ConfigError(f"--onnx {file}: there is no folder {file.parent}")
    metadata = OnnxMetadata(
        spec=state.spec,
        info=state.info,
        views=views or most,
        frames=net.config.frames,
        pace=net.config.pace,
        protocol=state.protocol,
        fingerprint=state.fingerprint,
    )
    grid = state.spec.grid
    # Two groups: the exporter takes an axis of length one for a constant.
    example_BVTHWC = torch.zeros(2, metadata.views, metadata.frames, grid, grid, state.spec.channels)
    with _quiet():
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


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's exporter warns of its own internals and prints; none of it is for our user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class ExportedNetwork:
    """An ONNX file, open in ONNX Runtime."""

    file: Path
    metadata: OnnxMetadata
    session: Any

    def __call__(self, x_BVTHWC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities (B, K), uncertainty (B,) and view weights (B, V)."""
        try:
            found = self.session.run(list(OUTPUTS), {"embeddings": x_BVTHWC.float().contiguous().numpy()})
        except Exception as error:  # noqa: BLE001  its errors have no common base but Exception
            raise CheckpointError(f"{self.file} cannot be run: {first_line(error)}") from error
        probabilities_BK, uncertainty_B, weights_BV = map(torch.from_numpy, found)
        return probabilities_BK, uncertainty_B, weights_BV


def read_onnx(file: Path, threads: int = 1) -> ExportedNetwork:
    """Open a file that :func:`export_onnx` wrote. Raises CheckpointError: missing, damaged, or not written by dtsf."""
    import onnxruntime

    if not file.exists():
        raise CheckpointError(f"no file {file}: dtsf export RUN --onnx {file}")
    data = read_file(file, limit=ONNX_LIMIT, error=CheckpointError, follow=True)
    _refuse_foreign(file, data)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        held = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
    except Exception as error:  # noqa: BLE001  its errors have no common base but Exception
        raise CheckpointError(f"{file} is no ONNX file that can be run: {first_line(error)}") from error
    if held is None:
        raise CheckpointError(f"{file} was not written by dtsf: dtsf export RUN --onnx FILE")
    metadata = parse_model(
        OnnxMetadata, held, f"{file}, its metadata", error=lambda why: CheckpointError(f"{why}: export it again")
    )
    _check_fits(file, metadata, shapes)
    return ExportedNetwork(file, metadata, session)


def _refuse_foreign(file: Path, data: bytes) -> None:
    """Refuse what no export of dtsf has: weights in other files, operators of other makers, graphs in graphs."""
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # noqa: BLE001  protobuf's errors have no common base but Exception
        raise CheckpointError(f"{file} is no ONNX file that can be run: {first_line(error)}") from error
    nodes = model.graph.node
    inner = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    tensors = [*model.graph.initializer, *(a.t for node in nodes for a in node.attribute if a.HasField("t"))]
    found = {
        "weights in another file": any(x.data_location == onnx.TensorProto.EXTERNAL for x in tensors),
        "functions of its own": bool(model.functions),
        "operators of another maker": any(node.domain not in ("", "ai.onnx") for node in nodes),
        "a graph within its graph": any(a.type in inner for node in nodes for a in node.attribute),
        "sparse weights": bool(model.graph.sparse_initializer),
    }
    foreign = [what for what, there in found.items() if there]
    if foreign:
        raise CheckpointError(f"{file} was not written by dtsf: it has {', '.join(foreign)}")


def _check_fits(file: Path, known: OnnxMetadata, shapes: dict[str, list[Any]]) -> None:
    """Compare what the file says of itself with its graph: memory is taken by what it says."""
    grid, k = known.spec.grid, len(known.info.class_names)
    wanted = {
        "embeddings": [known.views, known.frames, grid, grid, known.spec.channels],
        "probabilities": [k],
        "uncertainty": [],
        "view_weights": [known.views],
    }
    for name, shape in wanted.items():
        if name not in shapes or shapes[name][1:] != shape:
            raise CheckpointError(
                f"{file}: its metadata and its graph differ: {name} is {shapes.get(name, 'not there')} in the graph, "
                f"groups x {shape} by its metadata"
            )
    if known.frames > known.spec.frames:
        raise CheckpointError(f"{file}: its graph takes {known.frames} frames of {known.spec.frames}")
