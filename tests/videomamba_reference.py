"""VideoMamba's forward in float64, written from its description alone: slow, no module of dtsf, one token at a time.

Source: Li et al. 2024, and docs/paper.md (VideoMamba's conventions). ``state`` holds tensors by VideoMamba's own names.
"""

import math

import torch


def silu(x):
    return x / (1 + torch.exp(-x))


def rms_norm(x, weight):
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5) * weight


def direction(x, z, state, prefix, suffix):
    """One sequence, one direction: x and z are (L, inner), in the order in which the scan reads them."""
    weight, bias = state[f"{prefix}conv1d{suffix}.weight"], state[f"{prefix}conv1d{suffix}.bias"]
    A = -torch.exp(state[f"{prefix}A{suffix}_log"])
    rank = state[f"{prefix}dt_proj{suffix}.weight"].shape[1]
    n_state = A.shape[1]
    hidden, outputs = torch.zeros_like(A), []
    for t in range(len(x)):
        past = [x[t - 3 + k] if t - 3 + k >= 0 else torch.zeros_like(x[0]) for k in range(4)]
        u = silu(sum(weight[:, 0, k] * past[k] for k in range(4)) + bias)
        projected = state[f"{prefix}x_proj{suffix}.weight"] @ u
        dt, B, C = projected[:rank], projected[rank : rank + n_state], projected[rank + n_state :]
        delta = torch.log1p(torch.exp(state[f"{prefix}dt_proj{suffix}.weight"] @ dt + state[f"{prefix}dt_proj{suffix}.bias"]))
        hidden = torch.exp(delta[:, None] * A) * hidden + (delta * u)[:, None] * B
        outputs.append((hidden @ C + state[f"{prefix}D{suffix}"] * u) * silu(z[t]))
    return torch.stack(outputs)


def mixer(tokens, state, prefix):
    both = tokens @ state[f"{prefix}in_proj.weight"].T
    inner = both.shape[1] // 2
    x, z = both[:, :inner], both[:, inner:]
    forward = direction(x, z, state, prefix, "")
    backward = direction(x.flip(0), z.flip(0), state, prefix, "_b").flip(0)
    return (forward + backward) @ state[f"{prefix}out_proj.weight"].T


def features(video, state, depth):
    """The class token's feature of one video (3, T, H, W), in float64."""
    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    side = kernel.shape[-1]
    _, n_frames, height, width = video.shape
    tokens = [state["cls_token"][0, 0] + state["pos_embed"][0, 0]]
    for t in range(n_frames):
        for row in range(height // side):
            for column in range(width // side):
                patch = video[:, t, row * side : (row + 1) * side, column * side : (column + 1) * side]
                token = (kernel[:, :, 0] * patch).sum((1, 2, 3)) + bias
                place = 1 + row * (width // side) + column
                tokens.append(token + state["pos_embed"][0, place] + state["temporal_pos_embedding"][0, t])
    hidden, residual = torch.stack(tokens), 0
    for i in range(depth):
        residual = residual + hidden
        hidden = mixer(rms_norm(residual, state[f"layers.{i}.norm.weight"]), state, f"layers.{i}.mixer.")
    return rms_norm(residual + hidden, state["norm_f.weight"])[0]


def shapes(width, depth, places, frames, classes, side=16, n_state=16, channels=3):
    """Names and shapes of VideoMamba's tensors; ``frames`` None is the image model. 17 a block and 8 besides."""
    inner, rank = 2 * width, math.ceil(width / 16)
    table = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, places + 1, width),
        "patch_embed.proj.weight": (width, channels, *([1] if frames else []), side, side),
        "patch_embed.proj.bias": (width,),
    }
    if frames:
        table["temporal_pos_embedding"] = (1, frames, width)
    for i in range(depth):
        block = f"layers.{i}."
        for suffix in ("", "_b"):
            table |= {
                f"{block}mixer.A{suffix}_log": (inner, n_state),
                f"{block}mixer.D{suffix}": (inner,),
                f"{block}mixer.conv1d{suffix}.weight": (inner, 1, 4),
                f"{block}mixer.conv1d{suffix}.bias": (inner,),
                f"{block}mixer.x_proj{suffix}.weight": (rank + 2 * n_state, inner),
                f"{block}mixer.dt_proj{suffix}.weight": (inner, rank),
                f"{block}mixer.dt_proj{suffix}.bias": (inner,),
            }
        table |= {
            f"{block}mixer.in_proj.weight": (2 * inner, width),
            f"{block}mixer.out_proj.weight": (width, inner),
            f"{block}norm.weight": (width,),
        }
    return table | {"norm_f.weight": (width,), "head.weight": (classes, width), "head.bias": (classes,)}


def draw(table, seed=0):
    """Random weights that keep signals at a sensible size."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in table.items():
        x = torch.randn(shape, generator=generator)
        if name.endswith(("A_log", "A_b_log")):
            x = torch.log(1 + 15 * torch.rand(shape, generator=generator))
        elif "norm" in name:
            x = 1 + 0.2 * x
        elif len(shape) > 1 and "token" not in name and "embed" not in name.split(".")[-1]:
            x = x / math.sqrt(math.prod(shape[1:]))
        state[name] = x
    return state
