"""VideoMamba as the encoder of one view: patch embedding, positions, bidirectional Mamba blocks, readout.

Li et al. 2024; OpenGVLab/VideoMamba, ``videomamba/video_sm/models/videomamba.py``. Names and shapes of the parameters are
VideoMamba's; docs/paper.md has the details.
Letters: B clips, V views, C channels, T frames, H W side of the input, P patches of a frame, L tokens, D width, K classes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from dtsf.model.mamba import Block, RMSNorm, drop_path
from dtsf.model.scan import choose_backend

if TYPE_CHECKING:
    from torch import Tensor

    from dtsf.model.config import ModelConfig


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

    With ``readout`` ``cls`` the class token is first in the sequence, as in VideoMamba. ``dt_init`` ``mamba`` keeps Mamba's
    initialisation of the step sizes (0.001 to 0.1), which trains better from scratch. ``videomamba`` sets them to about 0.69, as
    VideoMamba's code does, whose initialisation of linear layers overwrites Mamba's.

    ``channels``: C, 3 for pixels. ``side``: H = W, which ``config.patch`` divides. ``thumbnail``: numbers in the thumbnails of a
    frame, which become one more token of the frame; 0 for none.
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
        self.gradient_checkpointing = False
        """Compute each block again in the backward pass instead of storing its activations."""
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
        """Encode the views of a group as one sequence: the tokens of all views of frame 1, then of frame 2, and so on.

        Needs ``readout`` ``mean`` or ``flatten``. (B, V, C, T, H, W) -> (B, V, D), the feature of a view from its own tokens.
        """
        tokens_BVTPD = self._tokens(x_BVCTHW.flatten(0, 1)).unflatten(0, x_BVCTHW.shape[:2])
        _, V, T, P, _ = tokens_BVTPD.shape
        normed_BLD = self._blocks(tokens_BVTPD.transpose(1, 2).flatten(1, 3))
        return self._read(normed_BLD.unflatten(1, (T, V, P)).transpose(1, 2).flatten(2, 3))

    def compile_mixers(self, device: torch.device, backend: str = "inductor") -> None:
        """Compile the mixer of every block with ``torch.compile``. All blocks share one graph; names of weights do not change.

        Skip it if the scan's backend is ``plain``, because the graph takes the Triton kernels.
        """
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
    """Initialise as VideoMamba: truncated normal, Kaiming / sqrt(depth) for ``out_proj``.

    ``dt_init`` ``mamba``: step sizes log-uniform in [0.001, 0.1], through the inverse of softplus in the bias.
    """
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
