"""VideoMamba as the encoder of one view, with its names and shapes of parameters (docs/paper.md).
Li et al. 2024; OpenGVLab/VideoMamba, ``videomamba/video_sm/models/videomamba.py`` and ``mamba_simple.py`` (flag ``bimamba``).
Letters: B clips, V views, C channels, T frames, H W side, P patches of a frame, L tokens, D width, I = 2 D, R rank of dt, N state
or number of norms, K classes, X all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dtsf.model.config import ModelConfig
from dtsf.model.scan import ScanInputs, causal_conv, choose_backend, selective_scan


class RMSNorm(nn.Module):
    """RMS norm ``x / sqrt(mean(x^2) + 1e-5) * weight`` of the last axis, without bias; computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise. The result has the weight's dtype."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-5)
        return (wide * scale).to(self.weight.dtype) * self.weight


class FeatureStatistics(nn.Module):
    """Mean and variance of each channel behind each norm of ``net`` over all training clips, for test-time adaptation."""

    mean_var_N2D: Tensor

    def __init__(self, net: nn.Module, width: int) -> None:
        super().__init__()
        self.register_buffer("mean_var_N2D", torch.zeros(len(_norms(net)), 2, width))

    @property
    def recorded(self) -> bool:
        """True once the statistics are set: a recorded variance is never 0."""
        return bool((self.mean_var_N2D[:, 1] > 0).any())


def _norms(net: nn.Module) -> list[RMSNorm]:
    return [module for module in net.modules() if isinstance(module, RMSNorm)]


@contextmanager
def record_norms(net: nn.Module) -> Iterator[list[list[Tensor]]]:
    """Collect the output of each norm while the context is open: a list for each norm, tokens flattened to (X, D)."""
    norms = _norms(net)
    numbers = {norm: k for k, norm in enumerate(norms)}
    outputs: list[list[Tensor]] = [[] for _ in norms]

    def record(norm: nn.Module, _: object, output: Tensor) -> None:
        outputs[numbers[cast("RMSNorm", norm)]].append(output.flatten(0, -2).float())

    hooks = [norm.register_forward_hook(record) for norm in norms]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


class BidirectionalMamba(nn.Module):
    """Two selective scans of one sequence, forward and reversed (suffix ``_b``), with shared ``in_proj`` and ``out_proj``.
    The directions are added, not averaged, as VideoMamba does and Vim does not.
    """

    def __init__(self, width: int, state: int = 16, conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        inner = expand * width
        self.rank = math.ceil(width / 16)
        self.state = state
        self.in_proj = nn.Linear(width, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, width, bias=False)
        A_log_IN = torch.arange(1, state + 1, dtype=torch.float32).log().repeat(inner, 1)
        # VideoMamba's names, so that its checkpoints load: A_log, D, conv1d ... and A_b_log, D_b, conv1d_b ...
        for suffix in ("", "_b"):
            self.register_parameter(f"A{suffix}_log", nn.Parameter(A_log_IN.clone()))
            self.register_parameter(f"D{suffix}", nn.Parameter(torch.ones(inner)))
            self.add_module(f"conv1d{suffix}", nn.Conv1d(inner, inner, conv, groups=inner, padding=conv - 1))
            self.add_module(f"x_proj{suffix}", nn.Linear(inner, self.rank + 2 * state, bias=False))
            self.add_module(f"dt_proj{suffix}", nn.Linear(self.rank, inner, bias=True))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Mix tokens. (B, L, D) -> (B, L, D)."""
        # Both directions read both halves, so each is copied once. Triton's kernels need no copy.
        halves = self.in_proj(x_BLD).chunk(2, dim=-1)
        x_BIL, z_BIL = (half.transpose(1, 2) if half.is_cuda else half.contiguous().transpose(1, 2) for half in halves)
        y_BIL = self._scan(x_BIL, z_BIL, "", reverse=False) + self._scan(x_BIL, z_BIL, "_b", reverse=True)
        out: Tensor = self.out_proj(y_BIL.transpose(1, 2))
        return out

    def _scan(self, x_BIL: Tensor, z_BIL: Tensor, suffix: str, *, reverse: bool) -> Tensor:
        """Run one direction: convolution, projections of each token, scan, gate."""
        conv = cast("nn.Conv1d", self.get_submodule(f"conv1d{suffix}"))
        dt_proj = cast("nn.Linear", self.get_submodule(f"dt_proj{suffix}"))
        x_BIL = causal_conv(x_BIL, conv.weight, cast("Tensor", conv.bias), reverse=reverse, n_states=self.state)
        projected_BLX = self.get_submodule(f"x_proj{suffix}")(x_BIL.transpose(1, 2))
        dt_BLR, B_BLN, C_BLN = projected_BLX.split([self.rank, self.state, self.state], dim=-1)
        # The bias is added inside the scan, in float32, once.
        dt_BIL = F.linear(dt_BLR, dt_proj.weight).transpose(1, 2)
        A_IN = -torch.exp(self.get_parameter(f"A{suffix}_log").to(torch.promote_types(x_BIL.dtype, torch.float32)))
        D_I, B_BNL, C_BNL = self.get_parameter(f"D{suffix}"), B_BLN.transpose(1, 2), C_BLN.transpose(1, 2)
        return selective_scan(ScanInputs(x_BIL, dt_BIL, A_IN, B_BNL, C_BNL, D_I, z_BIL, dt_proj.bias, reverse))


class Block(nn.Module):
    """Pre-norm block: add to the residual, normalise, mix. The residual stays in float32 under autocast."""

    def __init__(self, width: int, state: int, conv: int, expand: int) -> None:
        super().__init__()
        self.mixer = BidirectionalMamba(width, state, conv, expand)
        self.norm = RMSNorm(width)

    def forward(self, hidden_BLD: Tensor, residual_BLD: Tensor | None, drop: float) -> tuple[Tensor, Tensor]:
        """Return the mixed tokens and the residual before them; ``drop`` is what the previous output loses."""
        if self.training and drop > 0:
            hidden_BLD = drop_path(hidden_BLD, drop)
        wide = torch.promote_types(hidden_BLD.dtype, torch.float32)
        residual_BLD = hidden_BLD.to(wide) if residual_BLD is None else residual_BLD + hidden_BLD
        return self.mixer(self.norm(residual_BLD)), residual_BLD


def drop_path(x_BLD: Tensor, rate: float) -> Tensor:
    """Stochastic depth: drop whole sequences with probability ``rate`` and scale the others by ``1 / (1 - rate)``."""
    keep = 1.0 - rate
    mask_B11 = torch.rand(x_BLD.shape[0], 1, 1, device=x_BLD.device) < keep
    return x_BLD * mask_B11.to(x_BLD.dtype) / keep


class PatchEmbed(nn.Module):
    """Patch embedding: a 3-D convolution with kernel and stride 1 x patch x patch."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, kernel_size=(1, patch, patch), stride=(1, patch, patch))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Embed (B, C, T, H, W) -> (B, T, P, D), patches in raster order."""
        # One matrix product, because patches do not overlap. The backward of the convolution takes ten times as long.
        side = self.proj.kernel_size[1]
        B, C, T, H, W = x_BCTHW.shape
        x_BCThpwp = x_BCTHW.reshape(B, C, T, H // side, side, W // side, side)
        x_BTPX = x_BCThpwp.permute(0, 2, 3, 5, 1, 4, 6).reshape(B, T, -1, C * side * side)
        return F.linear(x_BTPX, self.proj.weight.flatten(1), self.proj.bias)


class VideoMamba(nn.Module):
    """Encoder of clips, one feature each, and the head that classifies features.

    ``channels``: C, 3 for pixels. ``side``: H = W, which ``config.patch`` divides. ``thumbnail``: numbers in the thumbnails of a
    frame, which become one more token of the frame; 0 for none. The class token of ``readout`` ``cls`` is first in the sequence.
    ``dt_init`` ``mamba`` keeps Mamba's initialisation of the step sizes (0.001 to 0.1), which trains better from scratch.
    ``videomamba`` sets them to about 0.69, as VideoMamba's code does, whose initialisation of linear layers overwrites Mamba's.
    """

    def __init__(self, config: ModelConfig, *, channels: int, side: int, n_classes: int, thumbnail: int = 0) -> None:
        super().__init__()
        width, depth = config.width, config.depth
        patches = (side // config.patch) ** 2
        self.readout = config.readout
        self.patch_embed = PatchEmbed(channels, width, config.patch)
        if self.readout == "cls":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + (self.readout == "cls"), width))
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, config.frames, width))
        if thumbnail:
            self.thumbnail_embed = nn.Linear(thumbnail, width)
            patches += 1
        self.layers = nn.ModuleList(Block(width, config.state, config.conv, config.expand) for _ in range(depth))
        self.norm_f = RMSNorm(width)
        if self.readout == "flatten":
            self.flatten = nn.Linear(config.frames * patches * width, width)
        self.head = nn.Linear(width, n_classes)
        # The output of block i is dropped where block i + 1 receives it, hence the shift by one.
        self.drop_rates = [0.0, *torch.linspace(0, config.drop_path, depth, device="cpu").tolist()]
        self.gradient_checkpointing = False  # compute blocks again in the backward instead of storing activations
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                _initialise(module, name, depth, config.dt_init)

    def forward(self, x_BCTHW: Tensor, thumbs_BTX: Tensor | None = None) -> Tensor:
        """Encode each clip: (B, C, T, H, W) -> (B, D), in float32 under autocast. ``thumbs_BTX``: thumbnails of each frame."""
        tokens_BTPD = self._tokens(x_BCTHW)
        if thumbs_BTX is not None:
            thumbs_BTD = self.thumbnail_embed(thumbs_BTX) + self.temporal_pos_embedding
            tokens_BTPD = torch.cat([tokens_BTPD, thumbs_BTD.unsqueeze(2)], 2)
        hidden_BLD = tokens_BTPD.flatten(1, 2)
        if self.readout == "cls":
            cls_B1D = (self.cls_token + self.pos_embed[:, :1]).expand(hidden_BLD.shape[0], -1, -1)
            hidden_BLD = torch.cat([cls_B1D.to(hidden_BLD.dtype), hidden_BLD], dim=1)
        normed_BLD = self._blocks(hidden_BLD)
        return normed_BLD[:, 0] if self.readout == "cls" else self._read(normed_BLD)

    def encode_sequence(self, x_BVCTHW: Tensor) -> Tensor:
        """Encode a group's views as one sequence, frame by frame: (B, V, C, T, H, W) -> (B, V, D). Not for readout ``cls``."""
        tokens_BVTPD = self._tokens(x_BVCTHW.flatten(0, 1)).unflatten(0, x_BVCTHW.shape[:2])
        _, V, T, P, _ = tokens_BVTPD.shape
        normed_BLD = self._blocks(tokens_BVTPD.transpose(1, 2).flatten(1, 3))
        return self._read(normed_BLD.unflatten(1, (T, V, P)).transpose(1, 2).flatten(2, 3))

    def compile_mixers(self, device: torch.device, backend: str = "inductor") -> None:
        """Compile the mixers with the Triton kernels, not a ``plain`` scan: one graph for all blocks, same names of weights."""
        for block in self.layers:
            mixer = cast("Block", block).mixer
            if choose_backend(device, mixer.state).name != "plain" or device.type != "cuda":
                mixer.compile(backend=backend, fullgraph=True)

    def _read(self, tokens__LD: Tensor) -> Tensor:
        """Reduce the tokens of a clip to one feature: (..., L, D) -> (..., D)."""
        feature__D: Tensor = self.flatten(tokens__LD.flatten(-2)) if self.readout == "flatten" else tokens__LD.mean(-2)
        return feature__D

    def _tokens(self, x_BCTHW: Tensor) -> Tensor:
        tokens_BTPD = self.patch_embed(x_BCTHW)
        positions_1PD = self.pos_embed[:, -tokens_BTPD.shape[2] :]
        out_BTPD: Tensor = tokens_BTPD + positions_1PD.unsqueeze(1) + self.temporal_pos_embedding.unsqueeze(2)
        return out_BTPD

    def _blocks(self, hidden_BLD: Tensor) -> Tensor:
        residual_BLD: Tensor | None = None
        for block, drop in zip(self.layers, self.drop_rates, strict=False):
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                hidden_BLD, residual_BLD = checkpoint(block, hidden_BLD, residual_BLD, drop, use_reentrant=False)
            else:
                hidden_BLD, residual_BLD = block(hidden_BLD, residual_BLD, drop)
        if self.training and self.drop_rates[-1] > 0:
            hidden_BLD = drop_path(hidden_BLD, self.drop_rates[-1])
        normed_BLD: Tensor = self.norm_f(hidden_BLD if residual_BLD is None else residual_BLD + hidden_BLD)
        return normed_BLD


@torch.no_grad()
def _initialise(linear: nn.Linear, name: str, depth: int, dt_init: str) -> None:
    """Initialise as VideoMamba. ``dt_init`` ``mamba``: step sizes log-uniform in [0.001, 0.1], by the bias before softplus."""
    if "dt_proj" in name and dt_init == "mamba":
        nn.init.uniform_(linear.weight, -(linear.in_features**-0.5), linear.in_features**-0.5)
        shortest, longest = math.log(1e-3), math.log(0.1)
        dt = torch.exp(torch.rand(linear.out_features) * (longest - shortest) + shortest).clamp(min=1e-4)
        linear.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
        return
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    if name.endswith("out_proj"):
        nn.init.kaiming_uniform_(linear.weight, a=math.sqrt(5))
        linear.weight /= math.sqrt(depth)
