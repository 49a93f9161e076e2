"""What every launch of Triton needs: the right card; and, in tests, an interpreter that bears this NumPy."""

from __future__ import annotations

import importlib
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def on_device(x: torch.Tensor) -> AbstractContextManager[Any]:
    """Launch on the card where ``x`` is, whichever is the current one. Nothing to do in the interpreter, on a CPU."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _mend_interpreter() -> None:
    """Triton's interpreter makes loop bounds of arrays of one element, which NumPy takes for no number from 2.4 on."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any = None) -> None:
        original(tensor, scope) if scope is not None else original(tensor)
        tensor.__index__ = lambda self: int(self.handle.data.reshape(-1)[0])

    interpreter._patch_lang_tensor = patch


if os.environ.get("TRITON_INTERPRET") == "1":
    _mend_interpreter()
