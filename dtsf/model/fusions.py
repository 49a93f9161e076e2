"""What ``model.fusion`` may name: the paper's MSF, and its peers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtsf.model.fusion import Fused, fuse_mean, fuse_msf
from dtsf.model.fusion_concat import ConcatFusion
from dtsf.model.fusion_sfm import SemanticCorrection
from dtsf.model.fusion_tmc import fuse_tmc

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

FUSIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Fused]] = {
    "msf": fuse_msf,
    "mean": fuse_mean,
    "tmc": fuse_tmc,
}
FUSIONS_WITH_WEIGHTS: dict[str, Callable[[int, int], nn.Module]] = {
    "concat": ConcatFusion,
    "sfm": SemanticCorrection,
}
