"""Read and write tensors. No file takes more memory than a small multiple of its size: the files may be untrusted."""

from __future__ import annotations

import argparse
import io
import json
import pickletools
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

STRUCTURE = "structure"  # name of the tensor with the bytes of a state's JSON
MAX_STRUCTURE = 1 << 26
# Names in the pickles of weights. Others, for example bytearray, make objects of any size.
PLAIN = re.compile(
    r"collections (OrderedDict|Counter)|torch\._utils _rebuild_(tensor_v2|parameter)|torch (\w+Storage|Size|device|[a-z]+\d+)"
    r"|torch\.storage \w+Storage|_codecs encode|(__builtin__|builtins) (set|complex)|argparse Namespace"
)


def save_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Return tensors as safetensors. They may share memory."""
    return save({name: x.detach().contiguous().clone() for name, x in tensors.items()})


def save_state(state: Any) -> bytes:
    """Return a state (dictionaries and lists of tensors, numbers and texts) as safetensors. Tuples become lists."""
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_take_tensors(state, tensors)).encode()
    return save_tensors({**tensors, STRUCTURE: torch.frombuffer(bytearray(structure), dtype=torch.uint8)})


def load_state(data: bytes) -> Any:
    """Return a state that :func:`save_state` wrote. A damaged or forged file raises an error of any kind."""
    tensors = load(data)
    structure = tensors.pop(STRUCTURE)
    if structure.numel() > MAX_STRUCTURE:
        raise ValueError(f"its structure has {structure.numel()} bytes, more than the limit of {MAX_STRUCTURE}")
    return _put_tensors(json.loads(structure.numpy().tobytes()), tensors)


def load_foreign(data: bytes) -> Any:
    """Return the content of a ``torch.save`` file of another project, as tensors and plain data, never as code.

    Raises ValueError: the file has another form, or would take much more memory than its size. Other errors: it is damaged.
    """
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise ValueError("it has the form of PyTorch before 1.6: load it there, and save it again as safetensors")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(p.file_size for p in parts) > len(
            data
        ):
            raise ValueError("its parts are compressed or overlap, and torch.save does neither")
        for part in parts:
            if part.filename.endswith(".pkl"):
                for opcode, argument, _ in pickletools.genops(archive.read(part)):
                    if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST") and not PLAIN.fullmatch(str(argument)):
                        raise ValueError(f"it contains {argument}, and weights do not need it")
    # Training scripts store their arguments beside the weights, as plain data of this class.
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def first_unfit(weights: Mapping[str, Tensor], n_bytes: int) -> str | None:
    """Return the name of the first tensor that is not dense, or larger than its file of ``n_bytes``. Computing with it takes more
    memory than reading it: a stride of 0 makes one number as large as any tensor.
    """
    dense = {name: x.layout == torch.strided and not x.is_quantized for name, x in weights.items()}
    return next(
        (name for name, x in weights.items() if not dense[name] or x.numel() * x.element_size() > n_bytes), None
    )


def _take_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a state as JSON, and move its tensors into ``tensors``. Dictionaries become pairs: their keys may be numbers."""
    if isinstance(value, Tensor):
        tensors[name := str(len(tensors))] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"pairs": [[key, _take_tensors(inner, tensors)] for key, inner in value.items()]}
    return [_take_tensors(inner, tensors) for inner in value] if isinstance(value, list | tuple) else value


def _put_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_put_tensors(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    return tensors[value["tensor"]] if "tensor" in value else {k: _put_tensors(v, tensors) for k, v in value["pairs"]}
