"""Everything about dtsf that only a card can tell, in under five minutes, without network: JSON and a page.

    python benchmarks/gpu.py --out gpu-results
    python benchmarks/gpu.py --out /tmp/quick --quick      on a CPU, tiny shapes, Triton's interpreter: proves that the script runs

Sections: machine, parity of every kernel against float64, scan (forward + backward against mamba-ssm where it is built,
and against chunked PyTorch), tune (block, step and occupancy of Triton's backward), steps (default, ntu60 and nucla-paper:
milliseconds, memory, clips a second, hours of a training), stage1 (encoders), resume. A section that fails is reported with
its error, the others go on.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

QUICK = "--quick" in sys.argv
if QUICK:
    os.environ["TRITON_INTERPRET"] = "1"  # read by Triton when it is imported

import torch  # noqa: E402

from dtsf.model.network.kernels import trial  # noqa: E402
from dtsf.model.network.kernels.choose import kernel_choice  # noqa: E402
from dtsf.model.network.kernels.mamba_ssm import kernel_status, scan_by_mamba_ssm  # noqa: E402
from dtsf.model.network.kernels.plain import conv_by_shifts, selective_scan_plain  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

BUDGET_S = 280.0
PAPER_HOURS, NUCLA_STEPS, NUCLA_GROUPS = 1.35, 3150, 504
"""The paper's training; 50 epochs of 63 steps of 8 of N-UCLA's some 504 groups."""
SHAPES = [(1, 4, 9, 8)] if QUICK else [(8, 768, 1569, 16), (64, 192, 145, 16)]
DEVICE = "cpu" if QUICK else "cuda"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="", help="sections joined by commas")
    options = parser.parse_args()
    if not QUICK and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no CUDA device here; --quick proves the script on a CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    document: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        if options.only and name not in options.only.split(","):
            continue
        left = BUDGET_S - (time.perf_counter() - begun)
        at = time.perf_counter()
        if left < 0:
            document[name] = {"error": "not begun: five minutes are over"}
            continue
        try:
            document[name] = section(left)
        except Exception as error:  # noqa: BLE001 - whatever a card, a driver or a compiler raises is a finding
            document[name] = {"error": f"{type(error).__name__}: {error}", "where": traceback.format_exc()[-1500:]}
        document[name]["seconds"] = round(time.perf_counter() - at, 1)
        print(f"{name}: {json.dumps(document[name])[:600]}", file=sys.stderr, flush=True)
        # After each section: what is known stays known if the next one brings the machine down.
        (options.out / "gpu.json").write_text(json.dumps(document, indent=1))
        (options.out / "gpu.html").write_text(page(document))
    if options.json:
        print(json.dumps(document))


def machine(left: float) -> dict[str, Any]:
    choice = kernel_choice(torch.device(DEVICE))
    found: dict[str, Any] = {"torch": torch.__version__, "python": platform.python_version(), "cores": os.cpu_count()}
    for package in ("dtsf", "triton", "mamba-ssm", "causal-conv1d"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if DEVICE == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "memory_gib": round(card.total_memory / 2**30, 1),
            "sms": card.multi_processor_count,
        }
    return found | {"scan": choice.name, "why": choice.reason}


def forms() -> dict[str, Callable[..., Any]]:
    """Every way to run the scan on this device."""
    from dtsf.model.network.kernels.triton_scan import scan_by_triton

    found: dict[str, Callable[..., Any]] = {"triton": scan_by_triton, "plain": selective_scan_plain}
    if kernel_status()[0] is not None:
        found["mamba-ssm"] = scan_by_mamba_ssm
    return found


def parity(left: float) -> dict[str, Any]:
    """Largest relative error of outputs and all gradients against float64 of the same numbers."""
    from dtsf.model.network.kernels.triton_conv import conv_by_triton

    if QUICK:
        trial.PARITY_SHAPE = (1, 4, 9, 8)
    result: dict[str, Any] = {}
    for name, function in forms().items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for reverse in (False, True):
                key = f"{name} {str(dtype)[6:]} {'reverse' if reverse else 'forward'}"
                try:
                    result[key] = trial.compare(function, DEVICE, reverse=reverse, dtype=dtype)
                except Exception as error:  # noqa: BLE001
                    result[key] = f"{type(error).__name__}: {error}"[:300]
    for reverse in (False, True):
        generator = torch.Generator().manual_seed(0)
        x, weight, bias = (torch.randn(*s, generator=generator) for s in ((2, 9 if QUICK else 131, 40), (4, 40), (40,)))
        wanted = gradients(conv_by_shifts, [a.double() for a in (x, weight, bias)], reverse)
        found = gradients(conv_by_triton, [a.to(DEVICE) for a in (x, weight, bias)], reverse)
        errors = [float((a.cpu().double() - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True)]
        result[f"conv triton float32 {'reverse' if reverse else 'forward'}"] = max(errors)
    return result


def gradients(function: Callable[..., Any], arguments: list[Any], reverse: bool) -> list[Any]:
    leaves = [x.requires_grad_() for x in arguments]
    y = function(*leaves, reverse=reverse)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves)]


def scan(left: float) -> dict[str, Any]:
    """Milliseconds of forward + backward and forward alone, and memory beside the inputs, bfloat16."""
    result: dict[str, Any] = {}
    for shape in SHAPES:
        given = [x.bfloat16() if k not in (2, 5, 7) else x for k, x in enumerate(trial.drawn_arguments(shape, DEVICE))]
        given = [x.requires_grad_() for x in given]
        inputs = sum(x.numel() * x.itemsize for x in given)
        times: dict[str, Any] = {}
        for name, function in forms().items():
            try:
                both = milliseconds(lambda f=function, g=given: torch.autograd.grad(f(*g).sum(), g))
                with torch.no_grad():
                    forward = milliseconds(lambda f=function, g=given: f(*g))
                memory = peak(lambda f=function, g=given: torch.autograd.grad(f(*g).sum(), g))
                times[name] = {"ms": both, "forward_ms": forward, "extra_memory_ratio": round(memory / inputs, 2)}
            except Exception as error:  # noqa: BLE001
                times[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        for rival in ("plain", "mamba-ssm"):
            if "ms" in times.get(rival, {}) and "ms" in times["triton"]:
                times[f"triton_over_{rival}"] = round(times[rival]["ms"] / times["triton"]["ms"], 2)
        result[" x ".join(map(str, shape))] = times
    return result


def tune(left: float) -> dict[str, Any]:
    """Triton's backward with other blocks: what the constants in triton_scan.py should be on this card."""
    from dtsf.model.network.kernels import triton_scan

    names = ("BLOCK", "STEP", "STEP_BACK", "WARPS", "WARPS_BACK")
    kept = {name: getattr(triton_scan, name) for name in names}
    tries = [{}, {"WARPS_BACK": 16}, {"WARPS_BACK": 4}, {"STEP_BACK": 4, "BLOCK": 16}, {"STEP": 8}, {"WARPS": 32}]
    result: dict[str, Any] = {}
    begun = time.perf_counter()
    try:
        for change in tries[:2] if QUICK else tries:
            for name, value in (kept | change).items():
                setattr(triton_scan, name, value)
            for shape in SHAPES:
                if time.perf_counter() - begun > left / 3:
                    return result | {"stopped": "a third of the time that was left is over"}
                given = [
                    (x.bfloat16() if k not in (2, 5, 7) else x).requires_grad_()
                    for k, x in enumerate(trial.drawn_arguments(shape, DEVICE))
                ]
                took = milliseconds(lambda g=given: torch.autograd.grad(triton_scan.scan_by_triton(*g).sum(), g))
                result[f"{shape} {change or 'as it is'}"] = took
    finally:
        for name, value in kept.items():
            setattr(triton_scan, name, value)
    return result


def steps(left: float) -> dict[str, Any]:
    """One optimiser step of each recipe."""
    cases: list[tuple[str, str, int, list[str]]] = [
        ("default", "default", 3, []),
        ("ntu60", "ntu60", 3, []),
        ("nucla-paper 2 views", "nucla-paper", 2, []),
        ("nucla-paper 3 views", "nucla-paper", 3, []),
        ("nucla-paper 2 views checkpointing", "nucla-paper", 2, ["train.checkpointing=true"]),
        ("nucla-paper 2 views compile", "nucla-paper", 2, ["train.compile=true"]),
    ]
    if QUICK:
        tiny = ["model.width=16", "model.depth=1", "train.batch_size=2", "model.frames=2"]
        cases = [(name, recipe, views, more + tiny) for name, recipe, views, more in cases[:3]]
    result: dict[str, Any] = {}
    begun = time.perf_counter()
    for name, recipe, views, changes in cases:
        if time.perf_counter() - begun > 0.8 * left:
            result[name] = {"error": "not begun: no time left"}
            continue
        try:
            result[name] = one_step(recipe, views, changes)
        except Exception as error:  # noqa: BLE001 - out of memory among others
            result[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    return result


def one_step(recipe_name: str, views: int, changes: list[str]) -> dict[str, Any]:
    from dtsf.model.network.dtsfnet import DTSFNet
    from dtsf.model.training.losses import dtsf_loss
    from dtsf.model.training.optimiser import parameter_groups
    from dtsf.model.training.recipe import load_recipe

    recipe = load_recipe(recipe_name, changes)
    pixels = recipe.model.normalise == "imagenet"
    side, channels, classes = (48 if QUICK else 224, 3, 10) if pixels else (6, 112, 60 if "ntu" in recipe_name else 10)
    net = DTSFNet(recipe.model, channels=channels, canvas=side, n_classes=classes, n_views=views).to(DEVICE).train()
    net.encoder.spare_memory = recipe.train.checkpointing
    if recipe.train.compile and DEVICE == "cuda":
        net.encoder.compile_mixers(torch.device(DEVICE))
    optimizer = torch.optim.AdamW(parameter_groups(net, recipe.train.weight_decay), lr=1e-5)
    B, T = recipe.train.batch_size, recipe.model.frames
    shape = (B, views, T, side, side, channels)
    on_cpu = torch.randint(0, 256, shape, dtype=torch.uint8) if pixels else torch.randn(shape).half()
    x = on_cpu.to(DEVICE)
    mask, label = torch.ones(B, views, dtype=torch.bool, device=DEVICE), torch.arange(B, device=DEVICE) % classes
    bfloat16 = recipe.train.precision == "bf16-mixed"

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bfloat16):
            loss = dtsf_loss(net(x.float(), mask), label, recipe.loss, 0)["loss"]
        loss.backward()
        optimizer.step()

    step()
    took = milliseconds(step, repeats=1 if QUICK else 5)
    memory = peak(step) / 1e9
    found = {
        "step_ms": took,
        "peak_gb": round(memory, 2),
        "clips_per_s": round(1000 * B * views / took, 1),
        "parameters": sum(p.numel() for p in net.parameters()),
        "shape": list(shape),
        "copy_ms": milliseconds(lambda: on_cpu.to(DEVICE)),
    }
    if pixels:
        found["hours_of_the_paper's_training"] = round(took * NUCLA_STEPS / 3.6e6, 3)
        found["share_of_the_paper's_1.35_h"] = round(took * NUCLA_STEPS / 3.6e6 / PAPER_HOURS, 3)
    elif recipe_name == "ntu60":
        found["hours_of_training"] = round(took * 210 * recipe.train.epochs / 3.6e6, 3)
    return found


def stage1(left: float) -> dict[str, Any]:
    """Frames embedded in batches of eight clips, host to host."""
    import numpy as np

    from dtsf.pipeline.encoders.choose import load_encoder

    clips, size = (1, 96) if QUICK else (8, 192)
    result: dict[str, Any] = {}
    for name in ("efficientnet-lite0", "efficientnet-lite2"):
        frames = np.random.default_rng(0).integers(0, 256, (16 * clips, size, size, 3), np.uint8)
        try:
            encoder = load_encoder(name, size, 6 if size == 192 else 3, "torch-cpu" if QUICK else "cuda")
            took = milliseconds(lambda e=encoder, f=frames: e.embed(f), repeats=1 if QUICK else 5)
            result[name] = {"ms": took, "clips_per_s": round(1000 * clips / took, 1)}
        except Exception as error:  # noqa: BLE001
            result[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    width, depth, patches = (32, 1, 16) if QUICK else (384, 12, 196)
    layer = torch.nn.TransformerEncoderLayer(
        width, width // 32, 4 * width, activation="gelu", batch_first=True, norm_first=True
    )
    vit = torch.nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).to(DEVICE).eval()
    patch = torch.nn.Conv2d(3, width, 16, 16).to(DEVICE)
    side = 16 * round(patches**0.5)
    pixels = torch.randint(0, 256, (16 * clips, 3, side, side), dtype=torch.uint8)

    def embed() -> Any:
        with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
            return vit(patch(pixels.to(DEVICE).float() / 255).flatten(2).transpose(1, 2)).float().cpu()

    took = milliseconds(embed, repeats=1 if QUICK else 5)
    return result | {"ViT-S of random weights": {"ms": took, "clips_per_s": round(1000 * clips / took, 1)}}


def resume(left: float) -> dict[str, Any]:
    """Three epochs at once, and with a kill after the first: how far the weights are apart."""
    from dtsf.cache.spec import CacheSpec, DatasetInfo
    from dtsf.model.training.data import Groups
    from dtsf.model.training.loop import fit
    from dtsf.model.training.recipe import load_recipe

    class Killed(Exception):
        pass

    def kill(report: object) -> None:
        raise Killed

    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(24, 16, 6, 6, 112, generator=generator).half()
    groups = Groups(embeddings, torch.arange(24).view(8, 3), torch.arange(8) % 3, tuple(map(str, range(8))))
    spec = CacheSpec(decoder="drawn", frames=16, size=192, grid=6, encoder="e", weights_hash="0", channels=112)
    info = DatasetInfo(dataset="nucla", name="a", class_names=("a", "b", "c"), view_names=("1", "2", "3"))
    recipe = load_recipe("default", ["train.epochs=2", "train.batch_size=4", "model.width=16", "model.depth=1"])
    common: dict[str, Any] = {"info": info, "spec": spec, "protocol": "", "device": DEVICE}
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as cut:
        right = fit(groups, recipe, run=Path(whole), **common).net.state_dict()
        with contextlib.suppress(Killed):
            fit(groups, recipe, run=Path(cut), on_epoch=kill, **common)
        found = fit(groups, recipe, run=Path(cut), resume=True, **common).net.state_dict()
    apart = max(float((x.double() - found[name].double()).abs().max()) for name, x in right.items())
    return {"largest_difference": apart, "bit_for_bit": all(torch.equal(x, found[name]) for name, x in right.items())}


SECTIONS: dict[str, Callable[[float], dict[str, Any]]] = {
    "machine": machine,
    "parity": parity,
    "scan": scan,
    "steps": steps,
    "stage1": stage1,
    "resume": resume,
    "tune": tune,
}


def milliseconds(function: Callable[[], Any], repeats: int = 7) -> float:
    """Median, after two that do not count."""
    times = []
    for _ in range(1 if QUICK else repeats + 2):
        wait()
        begun = time.perf_counter()
        function()
        wait()
        times.append(1000 * (time.perf_counter() - begun))
    counted = sorted(times[2:] or times)
    return round(counted[len(counted) // 2], 3)


def peak(function: Callable[[], Any]) -> float:
    """Bytes allocated beyond what is held already; 0 on a CPU, where nobody counts."""
    if DEVICE != "cuda":
        function()
        return 0.0
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - held)


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def page(document: dict[str, Any]) -> str:
    """All numbers as tables."""

    def rows(value: Any, name: str = "") -> list[tuple[str, str]]:
        if isinstance(value, dict):
            return [row for key, inner in value.items() for row in rows(inner, f"{name} / {key}" if name else str(key))]
        return [(name, f"{value:.4g}" if isinstance(value, float) else str(value))]

    parts = []
    for section, found in document.items():
        lines = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows(found))
        parts.append(f"<h2>{html.escape(section)}</h2><table>{lines}</table>")
    style = "body{font:15px sans-serif;margin:2em}td{padding:2px 14px 2px 0;border-bottom:1px solid #ddd}"
    head = f"<!doctype html><meta charset=utf-8><title>dtsf on a card</title><style>{style}</style>"
    return f"{head}<h1>dtsf on a card</h1>{''.join(parts)}"


if __name__ == "__main__":
    main()
