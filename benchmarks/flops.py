"""Parameters and FLOPs of VideoMamba-S in DTSFNet for 1, 2 and 3 views, beside those of the paper.

Counting rule: one multiply-accumulate is 2 FLOPs. Counted for one group in evaluation: the patch embedding, all linear
layers of all blocks, the head, the causal convolution (4 MACs per channel and token), and the scan with 9 FLOPs per token,
channel and state (VMamba's convention). Convolution and scan run in two directions. Norms, additions and activations are
not counted. The network runs under torch.utils.flop_counter, which counts the linear layers. The scan is counted by formula.
The paper gives 725.08 GFLOPs and 25.4 M parameters, without a rule, frames or number of views.
"""

from __future__ import annotations

import argparse
import json
import sys
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from dtsf.model.config import BranchConfig, ModelConfig
from dtsf.model.network import DTSFNet

PAPER = {"gflops": 725.08, "parameters_m": 25.4}
SCAN = 9


def count(views: int, frames: int, side: int = 224) -> dict[str, float]:
    """Count one group of ``views`` views x ``frames`` frames x ``side`` x ``side`` pixels, 10 classes."""
    branch = BranchConfig(input="pixels", paste="thumbnails")
    config = ModelConfig(branch=(branch,), width=384, depth=24, patch=16, reduce=0, frames=frames, readout="cls")
    # The meta device computes shapes only.
    with torch.device("meta"):
        net = DTSFNet(config, channels=3, side=side, n_classes=10).eval()
        x_BVTHWC = torch.empty(1, views, frames, side, side, 3)
        without_scan = patch("dtsf.model.videomamba.selective_scan", lambda inputs: inputs.u_BDL)
        with without_scan, FlopCounterMode(display=False) as counter, torch.no_grad():
            net(x_BVTHWC)
    tokens = 1 + frames * (side // config.patch) ** 2
    inner = config.expand * config.width
    each = views * config.depth * 2 * tokens * inner
    return {
        "views": views,
        "frames": frames,
        "side": side,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "linear_gflops": counter.get_total_flops() / 1e9,
        "conv_gflops": each * 2 * config.conv / 1e9,
        "scan_gflops": each * config.state * SCAN / 1e9,
    }


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 32])
    arguments = parser.parse_args()
    rows = []
    for frames in arguments.frames:
        for views in (1, 2, 3):
            row = count(views, frames)
            total = row["linear_gflops"] + row["conv_gflops"] + row["scan_gflops"]
            rows.append(row | {"gflops": total, "paper_over_ours": PAPER["gflops"] / total})
    if arguments.json:
        sys.stdout.write(json.dumps({"paper": PAPER, "rows": rows}) + "\n")
        return
    sys.stdout.write("views frames  parameters   linear    conv    scan     all GFLOPs   paper's 725.08 over it\n")
    for row in rows:
        sys.stdout.write(
            f"{row['views']:5} {row['frames']:6} {row['parameters']:11,} {row['linear_gflops']:8.1f} {row['conv_gflops']:7.1f} "
            f"{row['scan_gflops']:7.1f} {row['gflops']:14.1f} {row['paper_over_ours']:14.2f}\n"
        )


if __name__ == "__main__":
    main()
