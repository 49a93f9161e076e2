"""VideoMamba as an encoder of one view: patch embedding, positions, bidirectional Mamba blocks, readout.

Li et al. 2024 (VideoMamba); all details in model-facts 1.4-1.7. Names and shapes of the parameters are VideoMamba's.
Letters: B clips, C channels, T frames, H W canvas, P patches of a frame, L tokens, D width, K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from dtsf.model.mamba import Block, RMSNorm, drop_path
from dtsf.model.scan.dispatch import kernel_choice

if TYPE_CHECKING:
    from torch import Tensor


class PatchEmbed(nn.Module):
    """Cuts every frame into patches: a 3-D convolution whose kernel is its stride, 1 x patch x patch."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, kernel_size=(1, patch, patch), stride=(1, patch, patch))

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, T, P, D), patches in raster order."""
        # Patches do not overlap, so this is one matrix product; as a convolution its backward takes ten times as long.
        side = self.proj.kernel_size[1]
        B, C, T, H, W = x_BCTHW.shape
        x_BCThpwp = x_BCTHW.reshape(B, C, T, H // side, side, W // side, side)
        x_BTPX = x_BCThpwp.permute(0, 2, 3, 5, 1, 4, 6).reshape(B, T, -1, C * side * side)
        return F.linear(x_BTPX, self.proj.weight.flatten(1), self.proj.bias)


class VideoMamba(nn.Module):
    """Encode clips to one feature vector each, and classify features with the shared head.

    Args:
        channels: Channels of the canvas (3 for pixels).
        canvas: Height and width of the canvas.
        patch: Side of a patch; divides ``canvas``.
        frames: Frames T of the temporal position table.
        expand: Inner width over D.
        readout: ``cls`` reads the class token, first in the sequence, as VideoMamba does; ``mean`` averages the tokens and
            has no class token: choose it when training from scratch on little data. ``ordered`` is a linear map of all
            tokens in their order: choose it where frame t means the same in every clip (``pace`` 1).
        drop_path_rate: Stochastic depth at the last block; grows linearly from 0.
        dt_init: ``mamba`` keeps Mamba's own start of the step sizes (0.001 to 0.1), better from scratch; ``videomamba``
            overwrites it with zeros (about 0.69), as VideoMamba's code does.
        snapshot: Numbers of a frame's thumbnails of another view, which get a token of their own behind the frame's; 0:
            none.
    """

    def __init__(
        self,
        *,
        channels: int,
        canvas: int,
        patch: int,
        frames: int,
        n_classes: int,
        width: int = 384,
        depth: int = 24,
        state: int = 16,
        conv: int = 4,
        expand: int = 2,
        readout: Literal["cls", "mean", "ordered"] = "cls",
        drop_path_rate: float = 0.0,
        dt_init: Literal["mamba", "videomamba"] = "mamba",
        snapshot: int = 0,
    ) -> None:
        super().__init__()
        patches = (canvas // patch) ** 2
        self.readout = readout
        self.patch_embed = PatchEmbed(channels, width, patch)
        if readout == "cls":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + (readout == "cls"), width))
        self.temporal_pos_embedding = nn.Parameter(torch.zeros(1, frames, width))
        if snapshot:
            self.snapshot_embed = nn.Linear(snapshot, width)
            patches += 1
        self.layers = nn.ModuleList(Block(width, state, conv, expand) for _ in range(depth))
        self.norm_f = RMSNorm(width)
        if readout == "ordered":
            self.in_order = nn.Linear(frames * patches * width, width)
        self.head = nn.Linear(width, n_classes)
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        # What block i adds is dropped where block i + 1 receives it, hence the shift by one.
        self.drop_rates = [0.0, *rates]
        self.spare_memory = False
        """Compute each block again in the backward pass instead of keeping what is inside it."""
        self._initialise(depth, dt_init)

    def _initialise(self, depth: int, dt_init: str) -> None:
        """VideoMamba's initialisation (model-facts 1.7)."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            if "dt_proj" in name and dt_init == "mamba":
                _initialise_step_sizes(module)
                continue
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
            if name.endswith("out_proj"):
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
                with torch.no_grad():
                    module.weight /= math.sqrt(depth)

    def forward(self, x_BCTHW: Tensor, thumbs_BTX: Tensor | None = None) -> Tensor:
        """Encode clips one by one. (B, C, T, H, W) -> features (B, D), in float32 under autocast."""
        tokens_BTPD = self._tokens(x_BCTHW)
        if thumbs_BTX is not None:
            seen_BTD = self.snapshot_embed(thumbs_BTX) + self.temporal_pos_embedding
            tokens_BTPD = torch.cat([tokens_BTPD, seen_BTD.unsqueeze(2)], 2)
        hidden_BLD = tokens_BTPD.flatten(1, 2)
        if self.readout == "cls":
            cls_B1D = (self.cls_token + self.pos_embed[:, :1]).expand(hidden_BLD.shape[0], -1, -1)
            hidden_BLD = torch.cat([cls_B1D.to(hidden_BLD.dtype), hidden_BLD], dim=1)
        normed_BLD = self._blocks(hidden_BLD)
        return normed_BLD[:, 0] if self.readout == "cls" else self._read(normed_BLD)

    def encode_together(self, x_BVCTHW: Tensor) -> Tensor:
        """Encode the views of a group as one sequence: all views' tokens of frame 1, then of frame 2, and so on.

        Needs ``readout`` ``mean`` or ``ordered``. (B, V, C, T, H, W) -> a feature for each view, from its own tokens: (B, V, D).
        """
        B, V = x_BVCTHW.shape[:2]
        tokens_BVTPD = self._tokens(x_BVCTHW.flatten(0, 1)).unflatten(0, (B, V))
        _, _, T, P, _ = tokens_BVTPD.shape
        normed_BLD = self._blocks(tokens_BVTPD.transpose(1, 2).flatten(1, 3))
        return self._read(normed_BLD.unflatten(1, (T, V, P)).transpose(1, 2).flatten(2, 3))

    def compile_mixers(self, device: torch.device, backend: str = "inductor") -> None:
        """Let ``torch.compile`` join what stands around the scans. All blocks share the one graph; names of weights stay."""
        for block in self.layers:
            mixer = cast("Block", block).mixer
            kernel_choice(device, mixer.state)  # imported and tried before a graph is traced through it
            mixer.compile(backend=backend, fullgraph=True)

    def _read(self, tokens__LD: Tensor) -> Tensor:
        """A clip's tokens to one feature: (..., L, D) -> (..., D)."""
        feature__D: Tensor = self.in_order(tokens__LD.flatten(-2)) if self.readout == "ordered" else tokens__LD.mean(-2)
        return feature__D

    def _tokens(self, x_BCTHW: Tensor) -> Tensor:
        tokens_BTPD = self.patch_embed(x_BCTHW)
        positions_1PD = self.pos_embed[:, -tokens_BTPD.shape[2] :]
        out_BTPD: Tensor = tokens_BTPD + positions_1PD.unsqueeze(1) + self.temporal_pos_embedding.unsqueeze(2)
        return out_BTPD

    def _blocks(self, hidden_BLD: Tensor) -> Tensor:
        residual_BLD: Tensor | None = None
        for block, drop in zip(self.layers, self.drop_rates, strict=False):
            if self.spare_memory and self.training and torch.is_grad_enabled():
                hidden_BLD, residual_BLD = checkpoint(block, hidden_BLD, residual_BLD, drop, use_reentrant=False)
            else:
                hidden_BLD, residual_BLD = block(hidden_BLD, residual_BLD, drop)
        if self.training and self.drop_rates[-1] > 0:
            hidden_BLD = drop_path(hidden_BLD, self.drop_rates[-1])
        normed_BLD: Tensor = self.norm_f(hidden_BLD if residual_BLD is None else residual_BLD + hidden_BLD)
        return normed_BLD


def _initialise_step_sizes(dt_proj: nn.Linear, shortest: float = 1e-3, longest: float = 0.1) -> None:
    """Mamba's own start: step sizes log-uniform in [0.001, 0.1] through the inverse of softplus in the bias."""
    nn.init.uniform_(dt_proj.weight, -(dt_proj.in_features**-0.5), dt_proj.in_features**-0.5)
    with torch.no_grad():
        span = math.log(longest) - math.log(shortest)
        dt = torch.exp(torch.rand(dt_proj.out_features) * span + math.log(shortest)).clamp(min=1e-4)
        dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))
