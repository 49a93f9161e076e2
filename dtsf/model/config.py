"""Everything that decides the network: the keys of a recipe's ``[model]``, each with its default and when to choose another."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _lags(given: object) -> object:
    """Frames may come as [1, 3], "1,3" or 2; 0 is none. Older runs have one number."""
    if isinstance(given, str):
        return tuple(word.strip() for word in given.split(","))
    if isinstance(given, int) and not isinstance(given, bool):
        return (given,) if given else ()
    return given


def _auto(given: object) -> object:
    """``auto`` in a recipe is 0 here."""
    return 0 if given == "auto" else given


Auto = Annotated[int, BeforeValidator(_auto), Field(ge=0)]
"""A number, or ``auto`` (0): it follows from the number of training clips, by :func:`dtsf.training.auto_size.sized`."""


class ModelConfig(BaseModel):
    """Everything that decides the network's shape and maths. Recipes hold it as ``[model]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    width: Annotated[Auto, Field(le=8192)] = 96
    """D, the length of a token. 96 for a hundred groups on a CPU; VideoMamba-S has 384."""
    depth: Annotated[Auto, Field(le=1024)] = 2
    """Bidirectional Mamba blocks. 2 for a hundred groups; VideoMamba-S has 24."""
    state: int = Field(default=16, ge=1, le=1024)
    """N, the state of each channel in the scan."""
    expand: int = Field(default=2, ge=1, le=64)
    """Inner width of a block over D."""
    conv: int = Field(default=4, ge=2, le=4)
    """Width of the causal convolution; the CUDA kernel takes 2 to 4."""
    patch: int = Field(default=6, ge=1, le=4096)
    """Side of a patch of the canvas. On a 6 x 6 grid, 6 makes one token a frame (best on little data, and 8 times
    cheaper), 2 makes nine, so that a pasted thumbnail is one token. 16 for pixels."""
    reduce: int = Field(default=24, ge=0, le=4096)
    """Each cell's channels are first reduced to this many by a 1 x 1 map; 0 leaves them. Keeps a one-token patch
    embedding small: 6 x 6 x 24 inputs instead of 6 x 6 x 112."""
    frames: int = Field(default=16, ge=1, le=4096)
    """T, frames the network sees of each clip; at most the cache's."""
    pace: float = Field(default=0.0, ge=0, le=1)
    """Where those frames lie: 0 at equal distances in time, as the paper; 1 at equal shares of the clip's motion, so
    that performances of different speeds and pauses line up; between, a mixture that still knows tempo."""
    canvas: Literal["embedding", "energy", "both"] = "embedding"
    """What the network looks at: the embeddings, or each cell's motion energy (one number a cell: see
    :func:`dtsf.model.tsm.motion_energy`). Choose ``energy`` for a camera that stands still and few
    performances: rooms and clothes vanish. Then ``anchor`` is ``frame``, and ``pasted`` is ``frame`` or ``none``.
    ``both`` has an encoder for each, and their opinions are pooled: they err on different clips."""
    signed: float = Field(default=0.5, ge=0, le=1)
    """For ``canvas`` ``both``: share of the moving part's opinion in the pool; the energies' is the rest."""
    signed_channels: int = Field(default=8, ge=1, le=4096)
    """For ``canvas`` ``both``: principal channels of the moving part. Few: the others tell clothes and rooms."""
    principal: int = Field(default=0, ge=0, le=4096)
    """Channels are first turned to the directions in which training clips move most, and this many kept; 0 keeps all as
    they are. Energies and moving parts are then of these: a step costs a fraction, and rooms can be exchanged afresh."""
    change: Annotated[
        tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(max_length=64), BeforeValidator(_lags)
    ] = ()
    """For ``canvas`` ``energy``: further numbers a cell, how far it is from itself these many frames before, one for each;
    0 leaves them out. ``[1, 3]`` tells quick from slow; 2 is nearly as good. ``--set model.change=1,3``"""
    power: float = Field(default=1.0, gt=0, le=16)
    """For ``canvas`` ``energy``: what the distances are raised to before they are divided by their mean. 1 takes them as they
    are, 2 their squares. 1.5 lets swaying and noise count for less: choose it for few people (docs/results/network.md)."""
    direction: float = Field(default=0.0, ge=0, le=1e6)
    """For ``canvas`` ``energy``: two further numbers a cell, how much goes right and how much goes down through it, times
    this; 0 leaves them out. See :mod:`.direction`. 0.2 tells actions apart that move in the same places; much more, and
    people count for more than actions (docs/results/network.md)."""
    readout: Literal["cls", "mean", "ordered"] = "mean"
    """``cls`` is the paper's (and VideoMamba's) class token; ``mean`` of the tokens learns faster from little data;
    ``ordered`` is a linear map of all tokens in their order, best with ``pace`` 1, where frame t of every clip means the
    same share of the motion."""
    anchor: Literal["frame", "dynamic"] = "dynamic"
    """What TSM leaves of a frame: itself, or itself minus the clip's temporal mean. See :mod:`.snapshots`."""
    pasted: Literal["frame", "dynamic", "tokens", "none"] = "dynamic"
    """What TSM pastes; ``none`` turns the pasting off. ``tokens``, for ``canvas`` ``both``, covers nothing: the thumbnails of a
    frame are a token of their own, behind the frame's."""
    places: Literal["random", "corners"] = "random"
    """Where training pastes: ``random``, as the figure says; ``corners`` never hides an actor in the middle (measured
    on motion energy: docs/results/network.md)."""
    normalise: Literal["data", "clip", "imagenet"] = "clip"
    """Embeddings are divided by each channel's deviation over the training clips (``data``); ``clip`` then also by the
    deviation of the clip's own dynamic part, so that contrast of clothes and room weighs less. ``imagenet`` is for
    pixels: minus ImageNet's mean, over its deviation, which is what VideoMamba's checkpoints were trained with."""
    views: Literal["apart", "together", "merged", "both"] = "apart"
    """``apart`` encodes each view by itself, whichever camera it is; ``together`` all views of a group as one sequence,
    frame by frame, so that the state sees a moment from all sides (needs readout ``mean`` or ``ordered``). ``merged``
    has a patch embedding for each camera and one token for all of them: it reads each camera alone and all as one, and
    the fused feature is the mean of MSF's and of that (``fusion`` ``tmc`` has no fused feature: each camera alone).
    Choose it where training and test have the same cameras. ``both`` encodes each view by itself and, with a second encoder,
    all as one; the two opinions are pooled. Where other than training's cameras are given (more of them; or fewer, and not
    named), the first alone answers."""
    joint: float = Field(default=0.5, ge=0, le=1)
    """For ``views`` ``both``: share in the pool of all cameras as one; that of each by itself is the rest."""
    covered: float = Field(default=0.0, ge=0, le=1)
    """A camera whose sight is blocked takes no part in the fusion: in evaluation, one that sees less move than this times
    the least that it saw in training, as a share of what the group's liveliest camera sees. 0 never; just under 1 where
    cameras stand still. Where training clips have blocked cameras the least is small, and none is left out: the network
    has learnt from them. A camera that no one trained with is never left out."""
    motion: Literal["tsm", "msm", "none"] = "tsm"
    """``tsm`` is the paper's and does what ``pasted`` says; ``msm`` is MS-SC's, see :mod:`.motion_msm`; ``none`` leaves
    the canvas as ``anchor`` says."""
    fusion: Literal["msf", "mean", "concat", "tmc", "sfm"] = "msf"
    """``msf`` is the paper's; ``mean`` and ``concat`` are baselines without evidence; ``tmc`` joins the views' evidence
    by Dempster's rule; ``sfm`` is MS-SC's cross-attention. See the ``fusion_*`` modules."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth at the last block."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the embedding cells' reduced channels and on the feature of each view."""
    dt_init: Literal["mamba", "videomamba"] = "mamba"
    """Start of the scan's step sizes; see :class:`dtsf.model.videomamba.VideoMamba`."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.views == "together" and self.readout == "cls":
            raise ValueError(
                'views "together" needs readout "mean" or "ordered": one class token cannot stand for several views'
            )
        if self.canvas == "energy" and (self.anchor != "frame" or self.pasted == "dynamic"):
            raise ValueError('canvas "energy" is dynamic already: it needs anchor "frame" and pasted "frame" or "none"')
        if self.canvas == "both" and (
            self.anchor != "dynamic"
            or self.pasted not in ("none", "tokens")
            or not self.principal
            or self.views not in ("apart", "both")
            or self.motion == "msm"
        ):
            raise ValueError(
                'canvas "both" needs anchor "dynamic", pasted "tokens" or "none" and principal channels; it takes views "apart" '
                'or "both", and no motion "msm"'
            )
        if self.pasted == "tokens" and (self.canvas != "both" or self.views != "apart"):
            raise ValueError('pasted "tokens" needs canvas "both" and views "apart"')
        if self.change and self.canvas == "embedding":
            raise ValueError(
                f'change {list(self.change)} asks for more of motion energy: it needs canvas "energy", or change 0'
            )
        if self.direction and self.canvas == "embedding":
            raise ValueError(
                f'direction {self.direction:g} asks for more of motion energy: it needs canvas "energy", or direction 0'
            )
        if self.canvas != "embedding" and self.normalise == "imagenet":
            raise ValueError('normalise "imagenet" is for pixels, canvas "energy" for embeddings: normalise "data"')
        return self

    @property
    def energies(self) -> int:
        """E, numbers a cell of ``canvas`` ``energy``."""
        return 1 + len(self.change) + (2 if self.direction else 0)
