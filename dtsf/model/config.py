"""Settings of the network: the keys of a recipe's ``[model]`` and of each ``[[model.branch]]``."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _lags(given: object) -> object:
    """Accept ``[1, 3]``, ``"1,3"`` and ``2``; 0 is the empty tuple."""
    if isinstance(given, str):
        return tuple(word.strip() for word in given.split(","))
    if isinstance(given, int) and not isinstance(given, bool):
        return (given,) if given else ()
    return given


# ``auto`` is stored as 0: dtsf.training.recipe.resolve_auto chooses it by the number of clips.
Auto = Annotated[int, BeforeValidator(lambda given: 0 if given == "auto" else given), Field(ge=0)]


class BranchConfig(BaseModel):
    """One branch of the network. Recipes list branches as ``[[model.branch]]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    input: Literal["motion", "dynamic", "frames", "pixels"] = "dynamic"
    """``motion``: magnitude of motion in each cell, for fixed cameras and few clips, because it hides backgrounds and clothes.
    ``dynamic``: embedding minus the clip's temporal mean. ``frames``: embedding. ``pixels``: RGB, normalised as for ImageNet."""
    views: Literal["each", "sequence", "all"] = "each"
    """``each`` encodes every view separately (the paper). ``sequence`` encodes all views of a group as one sequence; it needs
    readout ``mean`` or ``flatten``. ``all`` stacks the channels of all views of training: one feature a group."""
    weight: float = Field(default=1.0, gt=0, le=1e6)
    """Share of the branch in the average. The shares are divided by their sum."""
    channels: int = Field(default=0, ge=0, le=4096)
    """For ``dynamic``: number of principal channels, scaled by their mean length in the clip. 0 uses ``normalise``, ``reduce``."""
    paste: Literal["none", "thumbnails", "tokens"] = "none"
    """TSM. ``thumbnails`` pastes three thumbnails of another view over cells of each frame (the paper). ``tokens`` adds the
    thumbnails of a frame as one more token; it needs views ``each``."""
    msm: bool = False
    """Apply the Motion Sense Module of MS-SC, a peer of TSM; see :func:`dtsf.model.motion.sense_motion`."""

    @property
    def words(self) -> str:
        """Input and views in words."""
        of_views = {"each": "each view", "sequence": "all views as a sequence", "all": "all views together"}
        return f"{self.input} of {of_views[self.views]}"


class ModelConfig(BaseModel):
    """Settings of the network. Recipes store them as ``[model]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    branch: tuple[BranchConfig, ...] = Field(default=(BranchConfig(paste="thumbnails"),), min_length=1, max_length=16)
    """Branches. The network averages their evidence. ``--set model.branch.0.weight=0.5`` changes one key of the first."""
    width: Annotated[Auto, Field(le=8192)] = 96
    """D, the size of a token. 96 for a hundred groups on a CPU; VideoMamba-S has 384."""
    depth: Annotated[Auto, Field(le=1024)] = 2
    """Bidirectional Mamba blocks. 2 for a hundred groups; VideoMamba-S has 24."""
    state: int = Field(default=16, ge=1, le=1024)
    """N, the state size of each channel in the scan."""
    expand: int = Field(default=2, ge=1, le=64)
    """Inner width of a block divided by D."""
    conv: int = Field(default=4, ge=2, le=4)
    """Width of the causal convolution; CUDA kernels accept 2 to 4."""
    patch: int = Field(default=6, ge=1, le=4096)
    """Side of a patch. On a 6 x 6 grid, 6 gives one token a frame (best on little data, and 8 times cheaper); 2 gives nine
    tokens, so a pasted thumbnail is one token. 16 for pixels."""
    reduce: int = Field(default=24, ge=0, le=4096)
    """Channels of each cell after a 1 x 1 map, for inputs that keep all channels; 0 keeps their number."""
    frames: int = Field(default=16, ge=1, le=4096)
    """T, frames of each clip; at most the cache's."""
    motion_sampling: float = Field(default=0.0, ge=0, le=1)
    """Positions of the frames. 0 samples at equal distances in time, as the paper. 1 samples at equal shares of the clip's motion,
    which aligns performances of different speed. Values between mix both."""
    principal: int = Field(default=0, ge=0, le=4096)
    """Principal channels of the training clips' motion that embeddings are projected to; 0 keeps all channels. A step is then
    several times faster, and training can swap backgrounds in every step."""
    lags: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], Field(max_length=64), BeforeValidator(_lags)] = ()
    """For ``motion``: one more channel for each lag, the distance of a cell from itself so many frames before. ``[1, 3]``
    separates fast from slow motion. ``--set model.lags=1,3``"""
    exponent: float = Field(default=1.0, gt=0, le=16)
    """For ``motion``: power of the distances before they are divided by their mean. 1.5 reduces noise and small motions: choose
    it for few people (docs/results/network.md)."""
    flow: float = Field(default=0.0, ge=0, le=1e6)
    """For ``motion``: weight of two more channels, the motion to the right and downwards; 0 omits them. 0.2 separates actions
    that move in the same cells; larger values favour people over actions (docs/results/network.md)."""
    readout: Literal["cls", "mean", "flatten"] = "mean"
    """``cls`` is the class token of VideoMamba and the paper. ``mean`` averages the tokens and trains faster on little data.
    ``flatten`` is a linear map of all tokens in order; choose it with ``motion_sampling`` 1."""
    normalise: Literal["data", "clip"] = "clip"
    """For ``dynamic`` with all channels, and ``frames``. ``data`` divides each channel by its deviation over the training clips.
    ``clip`` divides also by the deviation of the clip's dynamic part, which reduces the contrast of clothes and background."""
    occlusion_threshold: float = Field(default=0.0, ge=0, le=1)
    """Exclude a view from the fusion in evaluation if its motion share (see :func:`dtsf.model.motion.motion_share`) is below this
    factor times the smallest share of that view in training. 0 excludes no view; choose 0.95 for fixed cameras."""
    fusion: Literal["msf", "mean", "concat", "tmc", "sfm", "mixer"] = "msf"
    """Fusion of the views' features. ``msf`` is the paper's. ``mean`` and ``concat`` are baselines without evidence. ``tmc``
    combines the views' evidence by Dempster's rule. ``sfm`` is the cross-attention of MS-SC, ``mixer`` the recurrent unit of
    M-Mixer. See :mod:`dtsf.model.fusion`."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth at the last block; it grows linearly from 0."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the input of each encoder and on the features."""
    dt_init: Literal["mamba", "videomamba"] = "mamba"
    """Initialisation of the scan's step sizes; see :class:`dtsf.model.videomamba.VideoMamba`."""

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if all(branch.views == "all" for branch in self.branch):
            raise ValueError('model.branch needs a branch with views "each" or "sequence": MSF weighs views there')
        for k, branch in enumerate(self.branch):
            if branch.views == "sequence" and self.readout == "cls":
                raise ValueError(f'model.branch.{k}.views "sequence" needs readout "mean" or "flatten", not "cls"')
            if branch.paste == "tokens" and branch.views != "each":
                raise ValueError(f'model.branch.{k}.paste "tokens" needs views "each", not "{branch.views}"')
            if branch.channels and (branch.input != "dynamic" or not self.principal):
                raise ValueError(f'model.branch.{k}.channels needs input "dynamic" and model.principal above 0')
            if branch.input == "pixels" and self.principal:
                raise ValueError(f'model.branch.{k}.input "pixels" needs model.principal = 0')
        return self

    @property
    def inputs(self) -> frozenset[str]:
        """Inputs of all branches."""
        return frozenset(branch.input for branch in self.branch)

    @property
    def uses_motion(self) -> bool:
        """True if a branch removes the static part of a clip."""
        return not self.inputs.isdisjoint(("motion", "dynamic"))

    @property
    def motion_channels(self) -> int:
        """E, channels of ``motion``."""
        return 1 + len(self.lags) + (2 if self.flow else 0)
