"""Measurements of dtsf on a GPU, in less than five minutes, without network: JSON and a page.

    python benchmarks/gpu.py --out gpu-results
    python benchmarks/gpu.py --out /tmp/quick --quick      on a CPU, tiny shapes, Triton's interpreter: tests the script

Sections: machine; parity of every kernel against float64; scan (forward + backward, against mamba-ssm if it is built, and
against chunked PyTorch); steps (default, ntu60 and nucla-paper: milliseconds, memory, clips per second, hours of a training);
batches (made on the GPU, or made on the CPU and sent); stage1 (encoders); resume; tune (block, step and occupancy of the
scan's loops). Each section is a separate process and writes every figure at once. A failure, a crash of the driver or a hang
is reported with its error. Earlier figures and other sections stay.
"""

from __future__ import annotations

import argparse
import contextlib
import html
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

QUICK = "--quick" in sys.argv
if QUICK:
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it at its import

import torch  # noqa: E402

from dtsf.model.scan import ScanInputs, choose_backend, parity, plain  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

BUDGET_S = 280.0
SHARE = 0.6
"""Largest share of the remaining time for one section."""
PAPER_HOURS, NUCLA_STEPS, NUCLA_GROUPS = 1.35, 3150, 504
"""The paper's training: 50 epochs of 63 steps of 8 of N-UCLA's about 504 groups."""
SHAPES = [(1, 4, 9, 8)] if QUICK else [(8, 768, 1569, 16), (64, 192, 145, 16)]
DEVICE = "cpu" if QUICK else "cuda"


class Figures(dict[str, Any]):
    """Results of a section, written to the disk at once."""

    def __init__(self, file: Path, seconds: float) -> None:
        super().__init__()
        self._file, self._end = file, time.perf_counter() + 0.8 * seconds

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        self._file.write_text(json.dumps(self))

    def part(self, key: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Record the result of ``function``, or its error."""
        if time.perf_counter() > self._end:
            self[key] = {"error": "not started: no time left"}
            return
        try:
            self[key] = function(*arguments)
        except Exception as error:  # noqa: BLE001 - every error of a GPU, a driver or a compiler is a result
            self[key] = {"error": f"{type(error).__name__}: {error}"[:300]}
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections joined by commas")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=BUDGET_S, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not QUICK and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device; --quick tests the script on a CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    if options.here:
        section_here(options.here, options.out, options.seconds)
        return
    end = time.perf_counter() + BUDGET_S
    document: dict[str, Any] = {}
    for name in [name for name in SECTIONS if name in options.only.split(",")]:
        document[name] = section_apart(name, options.out, end - time.perf_counter())
        print(f"{name}: {json.dumps(document[name])[:600]}", file=sys.stderr, flush=True)
        (options.out / "gpu.json").write_text(json.dumps(document, indent=1))
        (options.out / "gpu.html").write_text(page(document))
    if options.json:
        print(json.dumps(document))


def section_here(name: str, out: Path, seconds: float) -> None:
    figures = Figures(out / f"{name}.part", seconds)
    try:
        if QUICK:
            mend_interpreter()
        SECTIONS[name](figures)
    except Exception as error:  # noqa: BLE001 - as above
        figures["error"] = f"{type(error).__name__}: {error}"
        figures["where"] = traceback.format_exc()[-1500:]


def section_apart(name: str, out: Path, left: float) -> dict[str, Any]:
    """Run a section in a separate process, so that an illegal address or an endless loop does not affect other sections."""
    if left < 0:
        return {"error": "not started: five minutes are over"}
    begun, file = time.perf_counter(), out / f"{name}.part"
    file.write_text("{}")
    command = [sys.executable, sys.argv[0], "--out", str(out), "--here", name, "--seconds", str(SHARE * left)]
    child = subprocess.Popen([*command, *["--quick"] * QUICK], stdout=sys.stderr, start_new_session=True)
    try:
        code = child.wait(SHARE * left)
        why = f"its process ended with {code}" if code else ""
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        why = f"stopped after {SHARE * left:.0f} s"
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        found = {"error": f"its figures cannot be read: {error}"}
    file.unlink()
    return ({"error": why} if why else {}) | found | {"seconds": round(time.perf_counter() - begun, 1)}


def machine(figures: Figures) -> None:
    figures["torch"], figures["python"], figures["cores"] = torch.__version__, platform.python_version(), os.cpu_count()
    for package in ("dtsf", "triton", "mamba-ssm", "causal-conv1d"):
        try:
            figures[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            figures[package] = None
    if DEVICE == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        figures["gpu"], figures["sms"] = gpu.name, gpu.multi_processor_count
        figures["memory_gib"] = round(gpu.total_memory / 2**30, 1)
    choice = choose_backend(torch.device(DEVICE))
    figures["scan"], figures["why"] = choice.name, choice.reason


def mend_interpreter() -> None:
    """Give tensors of Triton's interpreter an ``__index__``: it makes loop bounds of arrays, which NumPy 2.4 refuses as numbers."""
    interpreter: Any = importlib.import_module("triton.runtime.interpreter")
    original = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any = None) -> None:
        original(tensor, scope) if scope is not None else original(tensor)
        tensor.__index__ = lambda self: int(self.handle.data.reshape(-1)[0])

    interpreter._patch_lang_tensor = patch


def forms() -> dict[str, Callable[[ScanInputs], Any]]:
    """Return every implementation of the scan on this device."""
    from dtsf.model.scan import triton_scan

    found: dict[str, Callable[[ScanInputs], Any]] = {"triton": triton_scan.scan, "plain": plain.scan}
    with contextlib.suppress(ImportError):
        found["mamba_ssm"] = importlib.import_module("dtsf.model.scan.mamba_ssm_scan").scan
    return found


def errors(figures: Figures) -> None:
    """Compute the largest relative error of outputs and all gradients against float64 of the same numbers."""
    shape = (1, 4, 9, 8) if QUICK else parity.SHAPE
    for reverse in (False, True):
        way = "reverse" if reverse else "forward"
        figures.part(f"conv plain float32 {way}", lambda r=reverse: parity.compare_conv(plain.conv, DEVICE, reverse=r, shape=shape))
        for name, function in forms().items():
            for dtype in (torch.float32, torch.bfloat16, torch.float16):
                figures.part(
                    f"{name} {str(dtype)[6:]} {way}",
                    lambda f=function, r=reverse, d=dtype: parity.compare(f, DEVICE, reverse=r, dtype=d, shape=shape),
                )


def drawn(shape: tuple[int, int, int, int]) -> list[torch.Tensor]:
    """Return a scan's arguments in bfloat16, with float32 for sums over channels."""
    given = enumerate(parity.drawn_inputs(shape, DEVICE)[:8])
    return [(x.bfloat16() if k not in (2, 5, 7) else x).requires_grad_() for k, x in given]


def scan(figures: Figures) -> None:
    """Return milliseconds of forward + backward and of forward alone, and memory beside the inputs, in bfloat16."""

    def timed(function: Callable[..., Any], shape: tuple[int, int, int, int]) -> dict[str, float]:
        given = drawn(shape)
        inputs = sum(x.numel() * x.itemsize for x in given)
        both = milliseconds(lambda: torch.autograd.grad(function(ScanInputs(*given)).sum(), given))
        with torch.no_grad():
            forward = milliseconds(lambda: function(ScanInputs(*given)))
        memory = peak(lambda: torch.autograd.grad(function(ScanInputs(*given)).sum(), given))
        return {"ms": both, "forward_ms": forward, "extra_memory_ratio": round(memory / inputs, 2)}

    for shape in SHAPES:
        words = " x ".join(map(str, shape))
        for name, function in forms().items():
            figures.part(f"{words}, {name}", timed, function, shape)
        ours = figures[f"{words}, triton"].get("ms")
        for rival in ("plain", "mamba-ssm"):
            theirs = figures.get(f"{words}, {rival}", {}).get("ms")
            if ours and theirs:
                figures[f"{words}, triton_over_{rival}"] = round(theirs / ours, 2)


def tune(figures: Figures) -> None:
    """Time Triton's loops with other block sizes, to choose the constants in triton_scan.py for this GPU."""
    from dtsf.model.scan import triton_scan

    def timed(change: dict[str, int], shape: tuple[int, int, int, int]) -> float:
        kept = {name: getattr(triton_scan, name) for name in change}
        try:
            for name, value in change.items():
                setattr(triton_scan, name, value)
            given = drawn(shape)
            return milliseconds(lambda: torch.autograd.grad(triton_scan.scan(ScanInputs(*given)).sum(), given))
        finally:
            for name, value in kept.items():
                setattr(triton_scan, name, value)

    tries: list[dict[str, int]] = [{}, {"WARPS_BACK": 10}, {"WARPS_BACK": 16}, {"STEP_BACK": 1}, {"STEP": 8}, {"WARPS": 32}]
    tries += [{"STEP_BACK": 4, "BLOCK": 16}]
    for change in tries[:2] if QUICK else tries:
        for shape in SHAPES:
            figures.part(f"{shape} {change or 'unchanged'}", timed, change, shape)


def steps(figures: Figures) -> None:
    """Time one optimiser step of each recipe."""
    cases: list[tuple[str, str, int, list[str]]] = [
        ("default", "default", 3, []),
        ("ntu60", "ntu60", 3, []),
        ("nucla-paper 2 views", "nucla-paper", 2, []),
        ("nucla-paper 3 views", "nucla-paper", 3, []),
        ("nucla-paper 2 views checkpointing", "nucla-paper", 2, ["train.checkpointing=true"]),
        ("nucla-paper 2 views compile", "nucla-paper", 2, ["train.compile=true"]),
    ]
    tiny = ["model.width=16", "model.depth=1", "train.batch_size=2", "model.frames=2"]
    for name, recipe, views, changes in cases[:3] if QUICK else cases:
        # The default recipe at its automatic size, which is small.
        figures.part(name, one_step, recipe, views, changes + tiny if QUICK and recipe != "default" else changes)


def one_step(recipe_name: str, views: int, changes: list[str]) -> dict[str, Any]:
    from dtsf.model.network import DTSFNet
    from dtsf.training.distributed import launch
    from dtsf.training.losses import dtsf_loss
    from dtsf.training.prepare import adamw
    from dtsf.training.recipe import REFERENCE_CLIPS, load_recipe, resolve_auto

    recipe = resolve_auto(load_recipe(recipe_name, changes), REFERENCE_CLIPS)
    pixels = "pixels" in recipe.model.inputs
    side, channels, classes = (48 if QUICK else 224, 3, 10) if pixels else (6, 112, 60 if "ntu" in recipe_name else 10)
    net = DTSFNet(recipe.model, channels=channels, side=side, n_classes=classes, n_views=views).to(DEVICE).train()
    for encoder in net.encoders:
        encoder.gradient_checkpointing = recipe.train.checkpointing
        if recipe.train.compile and DEVICE == "cuda":
            encoder.compile_mixers(torch.device(DEVICE))
    optimizer = adamw(net, recipe.train, launch(DEVICE, recipe.train.precision))
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
    else:
        groups = 13_440 if recipe_name == "ntu60" else REFERENCE_CLIPS // 3
        found["hours_of_training"] = round(took * -(-groups // B) * recipe.train.epochs / 3.6e6, 4)
    return found


def batches(figures: Figures) -> None:
    """Time a batch made on the CPU and sent, and one made from embeddings on the GPU; return their difference too."""
    from dtsf.training.data import Groups, Prefetcher, training_batches
    from dtsf.training.recipe import load_recipe

    n = 12 if QUICK else 3072
    embeddings = torch.randn(n, 16, 6, 6, 112, generator=torch.Generator().manual_seed(0)).half()
    row_GV = torch.arange(n).view(-1, 3)
    groups = Groups(embeddings, row_GV, torch.zeros(len(row_GV), dtype=torch.int64), tuple(map(str, range(len(row_GV)))))

    def timed(name: str, stays: bool) -> dict[str, float]:
        recipe = load_recipe(name)
        source = replace(groups, embeddings_NFHWC=embeddings.to(DEVICE)) if stays else groups

        def take(device: str, source: Groups = source) -> torch.Tensor:
            torch.manual_seed(0)
            more = (recipe.model.frames, recipe.model.motion_sampling, recipe.augment, torch.ones(112))
            return Prefetcher(training_batches(source, recipe.train.batch_size, *more), torch.device(device)).next().x_BVTHWC

        apart = (take(DEVICE).cpu() - take("cpu", groups)).abs().max()
        return {"ms": milliseconds(lambda: take(DEVICE)), "largest_difference": float(apart)}

    for name in ("default", "ntu60"):
        for stays in (False, True):
            figures.part(f"{name} {'resident' if stays else 'streamed'}", timed, name, stays)


def stage1(figures: Figures) -> None:
    """Time the embedding of batches of eight clips, host to host."""
    import numpy as np

    from dtsf.pipeline.encoders.choose import load_encoder

    clips, size = (1, 96) if QUICK else (8, 192)
    repeats = 1 if QUICK else 5

    def rate(embed: Callable[[], Any]) -> dict[str, float]:
        took = milliseconds(embed, repeats)
        return {"ms": took, "clips_per_s": round(1000 * clips / took, 1)}

    def ours(name: str) -> dict[str, float]:
        frames = np.random.default_rng(0).integers(0, 256, (16 * clips, size, size, 3), np.uint8)
        encoder = load_encoder(name, size, 6 if size == 192 else 3, "torch-cpu" if QUICK else "cuda")
        return rate(lambda: encoder.embed(frames))

    def vit() -> dict[str, float]:
        width, depth, patches = (32, 1, 16) if QUICK else (384, 12, 196)
        layer = torch.nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, activation="gelu", batch_first=True, norm_first=True
        )
        blocks = torch.nn.TransformerEncoder(layer, depth, enable_nested_tensor=False).to(DEVICE).eval()
        patch = torch.nn.Conv2d(3, width, 16, 16).to(DEVICE)
        side = 16 * round(patches**0.5)
        pixels = torch.randint(0, 256, (16 * clips, 3, side, side), dtype=torch.uint8)

        def embed() -> Any:
            with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16):
                return blocks(patch(pixels.to(DEVICE).float() / 255).flatten(2).transpose(1, 2)).float().cpu()

        return rate(embed)

    for name in ("efficientnet-lite0", "efficientnet-lite2"):
        figures.part(name, ours, name)
    figures.part("ViT-S of random weights", vit)


def resume(figures: Figures) -> None:
    """Train two epochs at once, and with a kill after the first; return the difference of the weights."""
    from dtsf.cache.schema import CacheSpec, DatasetInfo
    from dtsf.training.data import Groups
    from dtsf.training.loop import fit
    from dtsf.training.recipe import load_recipe

    class Killed(Exception):
        pass

    def kill(report: object) -> None:
        raise Killed

    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(24, 16, 6, 6, 112, generator=generator).half()
    groups = Groups(embeddings, torch.arange(24).view(8, 3), torch.arange(8) % 3, tuple(map(str, range(8))))
    spec = CacheSpec(decoder="drawn", frames=16, size=192, grid=6, encoder="e", weights_hash="0", channels=112)
    info = DatasetInfo(kind="nucla", name="a", class_names=("a", "b", "c"), view_names=("1", "2", "3"))
    recipe = load_recipe("default", ["train.epochs=2", "train.batch_size=4", "model.width=16", "model.depth=1"])
    common: dict[str, Any] = {"info": info, "spec": spec, "protocol": "", "device": DEVICE}
    with tempfile.TemporaryDirectory() as whole, tempfile.TemporaryDirectory() as cut:
        right = fit(groups, recipe, run=Path(whole), **common).net.state_dict()
        with contextlib.suppress(Killed):
            fit(groups, recipe, run=Path(cut), on_epoch=kill, **common)
        found = fit(groups, recipe, run=Path(cut), resume=True, **common).net.state_dict()
    apart = max(float((x.double() - found[name].double()).abs().max()) for name, x in right.items())
    figures["largest_difference"] = apart
    figures["bit_for_bit"] = all(torch.equal(x, found[name]) for name, x in right.items())


SECTIONS: dict[str, Callable[[Figures], None]] = {
    "machine": machine,
    "parity": errors,
    "scan": scan,
    "steps": steps,
    "batches": batches,
    "stage1": stage1,
    "resume": resume,
    "tune": tune,
}


def milliseconds(function: Callable[[], Any], repeats: int = 7) -> float:
    """Return the median, without the first two."""
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
    """Return the bytes allocated in addition to the current ones; 0 on a CPU, which does not count."""
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
    """Return all numbers as tables."""

    def rows(value: Any, name: str = "") -> list[tuple[str, str]]:
        if isinstance(value, dict):
            return [row for key, inner in value.items() for row in rows(inner, f"{name} / {key}" if name else str(key))]
        return [(name, f"{value:.4g}" if isinstance(value, float) else str(value))]

    parts = []
    for section, found in document.items():
        lines = "".join(f"<tr><td>{html.escape(a)}</td><td>{html.escape(b)}</td></tr>" for a, b in rows(found))
        parts.append(f"<h2>{html.escape(section)}</h2><table>{lines}</table>")
    style = "body{font:15px sans-serif;margin:2em}td{padding:2px 14px 2px 0;border-bottom:1px solid #ddd}"
    head = f"<!doctype html><meta charset=utf-8><title>dtsf on a GPU</title><style>{style}</style>"
    return f"{head}<h1>dtsf on a GPU</h1>{''.join(parts)}"


if __name__ == "__main__":
    main()
