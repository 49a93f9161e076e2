"""Checks of this machine for ``dtsf doctor``. Each imports its packages, so a broken one fails only the checks that need it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MIN_FREE_GB = 1.0
DEFAULT_ENCODER = "efficientnet-lite0"
TRIAL_SECONDS = 5.0
PACKAGES = {  # name of the check -> (package, needed, how to install it)
    "dtsf": ("dtsf", True, "make setup"),
    "av": ("av", True, "pip install av"),
    "decord": ("decord2", False, "for --decoder decord: pip install 'dtsf[decord]'"),
    "dask": ("dask", True, "pip install dask distributed"),
    "zarr": ("zarr", True, "pip install 'zarr>=3.1'"),
    "hdf5": ("h5py", True, "pip install h5py"),
    "onnxruntime": ("onnxruntime", True, "pip install onnxruntime"),
    "timm": ("timm", False, "for --encoder timm:MODEL: pip install 'dtsf[timm]'"),
    "s3": ("s3fs", False, "for caches at s3:// addresses: pip install 'dtsf[s3]'"),
}
CODECS = {  # codec -> (video encoder of PyAV, container, needed); NTU and N-UCLA are MPEG-4 in AVI, most cameras H.264
    "h264": ("libx264", ".mp4", True),
    "hevc": ("libx265", ".mp4", False),
    "mpeg4": ("mpeg4", ".avi", True),
    "mjpeg": ("mjpeg", ".avi", False),
    "vp9": ("libvpx-vp9", ".mkv", False),
    "av1": ("libsvtav1", ".mp4", False),
}


class Check(NamedTuple):
    """Result of one check. ``how``: command or advice for the missing part. ``value``: for programs; ``found`` if None."""

    name: str
    ok: bool
    found: str
    how: str = ""
    needed: bool = True
    value: Any = None


class Health(NamedTuple):
    """Results of all checks."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True if all needed checks pass."""
        return all(check.ok or not check.needed for check in self.checks)

    def summary(self) -> dict[str, Any]:
        """Return one flat object for programs: the value of each check by name, and the list of all checks."""
        values = {c.name.replace(" ", "_"): c.found if c.value is None else c.value for c in self.checks}
        return {"ok": self.ok, **values, "checks": [check._asdict() for check in self.checks]}


def examine(cache: Path, *, on_step: Callable[[int, int, str], None] = lambda *_: None) -> Health:
    """Run all checks. They take about 15 seconds. ``on_step`` is called with (done, total, name of the next check)."""
    steps: dict[str, Callable[[], list[Check]]] = {
        "packages": check_packages,
        "torch": check_torch,
        "scan": check_scan,
        "encoder": check_encoder,
        "disk": lambda: check_disk(cache),
        "codecs": check_codecs,
        "stage 1": check_stage1,
        "stage 2": check_stage2,
    }
    checks: list[Check] = []
    for k, (name, step) in enumerate(steps.items()):
        on_step(k, len(steps), name)
        try:
            checks += step()
        # On a broken machine a check can raise anything, and the error is its result.
        except Exception as error:  # noqa: BLE001
            how = "dtsf --debug doctor shows the traceback; make setup installs all packages again"
            checks.append(Check(name, False, f"{type(error).__name__}: {error}", how))
    on_step(len(steps), len(steps), "")
    return Health(tuple(checks))


def check_packages() -> list[Check]:
    """Check the versions of Python and of the installed packages."""
    python = platform.python_version()
    checks = [Check("python", True, f"{python} at {sys.executable}", value=python)]
    for name, (package, needed, how) in PACKAGES.items():
        try:
            checks.append(Check(name, True, importlib.metadata.version(package), needed=needed))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, False, f"not available: {package} is not installed", how, needed, value=False))
    return checks


def check_torch() -> list[Check]:
    """Check PyTorch and its GPU."""
    import torch

    threads = f"{torch.__version__}, threads: {torch.get_num_threads()}"
    ok, how = torch.cuda.is_available(), ""
    if ok:
        gpu = torch.cuda.get_device_properties(0)
        found = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    elif torch.version.cuda is None:
        found = "not available: everything runs on the CPU"
        how = "for an NVIDIA GPU, install PyTorch with CUDA (https://pytorch.org/get-started/locally), then make setup-gpu"
    else:
        found = f"not available: this PyTorch supports CUDA {torch.version.cuda} but finds no GPU"
        how = "check the driver with nvidia-smi and $CUDA_VISIBLE_DEVICES; start a container with --gpus all"
    cuda = Check("cuda", ok, found, how, needed=False, value=ok)
    return [Check("torch", True, threads, value=torch.__version__), cuda]


def check_scan() -> list[Check]:
    """Compare the scan in use with float64 on its device: outputs and all gradients, in both directions."""
    import torch

    from dtsf.errors import ConfigError
    from dtsf.model.scan import choose_backend
    from dtsf.model.scan.parity import check_parity

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend = choose_backend(device)
    found, how = f"{backend.name} on {device}", ""
    try:
        found += f", error {check_parity(device):.0e} against float64; {backend.reason}"
    except ConfigError as error:
        how = str(error)
    return [Check("scan", not how, found, how, value=backend.name)]


def check_encoder() -> list[Check]:
    """Check the default frame encoder and the file of its weights."""
    from dtsf.pipeline.encoders.choose import encoder_identity
    from dtsf.pipeline.encoders.efficientnet_lite import weights_file

    identity, file = encoder_identity(DEFAULT_ENCODER, 192, 6), weights_file(DEFAULT_ENCODER)
    found, size = f"{identity.name}, weights {identity.weights_hash} at {file}", f"{file.stat().st_size / 1e6:.1f} MB"
    weights = Check("encoder weights", True, size, value=identity.weights_hash)
    return [Check("encoder", True, found, value=identity.name), weights]


def check_disk(cache: Path) -> list[Check]:
    """Check the free space on the disk of the cache, or of the nearest folder that exists."""
    folder = next(path for path in (cache.absolute(), *cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    # A clip is 16 frames x 36 cells x 112 channels in float16, and 16 pictures of 48 x 48 pixels.
    clips = int(free * 1e9 / (16 * 36 * 112 * 2 + 16 * 48 * 48 * 3))
    found = f"{free:.1f} GB free at {folder}, enough for {clips:,} clips"
    how = "" if free >= MIN_FREE_GB else f"free some space at {folder}, or use another disk: --cache DIR"
    return [Check("disk", not how, found, how, value=round(free, 3))]


def check_codecs() -> list[Check]:
    """Write a short video in each codec and decode it. The decoded square must move to the right."""
    import av

    from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, DecodeSettings, decode_all

    # SVT-AV1 prints to stderr and has no option against it.
    os.environ.setdefault("SVT_LOG", "0")
    with tempfile.TemporaryDirectory() as folder, Decoder(DecodeSettings(4, 64, deadline=20.0)) as decoder:
        files = {name: Path(folder) / f"{name}{ending}" for name, (_, ending, _) in CODECS.items()}
        written = [n for n in CODECS if CODECS[n][0] in av.codecs_available and _write_video(files[n], CODECS[n][0])]
        failed = []
        for name, item in zip(written, decode_all(decoder, [DecodeRequest(files[n]) for n in written]), strict=True):
            columns = [0, 0] if isinstance(item, Exception) else [x[:, :, 0].argmax() % 64 for x in item[0]]
            failed += [] if columns[-1] > columns[0] else [name]
    found = f"PyAV decodes {', '.join(name for name in written if name not in failed) or 'nothing'}"
    found += f"; cannot decode {', '.join(failed)}" if failed else ""
    if skipped := [name for name in CODECS if name not in written]:
        found += f"; not checked, because this machine cannot write it: {', '.join(skipped)}"
    how = "" if not failed else "convert such files: ffmpeg -i IN -c:v libx264 OUT.mp4; or pip install -U av"
    return [Check("codecs", not any(CODECS[name][2] for name in failed), found, how)]


def check_stage1() -> list[Check]:
    """Decode and embed a video some times, as a worker of stage 1 does."""
    from dtsf.pipeline.encoders.choose import load_encoder
    from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, DecodeSettings, decode_all

    n_clips, n_frames, size = 24, 16, 192
    encoder = load_encoder(DEFAULT_ENCODER, size, 6)
    with tempfile.TemporaryDirectory() as folder, Decoder(DecodeSettings(n_frames, size)) as decoder:
        file = Path(folder) / "clip.avi"
        _write_video(file, "mpeg4", n_frames=48)
        start = time.monotonic()
        for item in decode_all(decoder, [DecodeRequest(file)] * n_clips):
            if isinstance(item, Exception):
                raise item
            embeddings_FPC = encoder.embed(item[0]).astype(np.float32)
        rate = n_clips / (time.monotonic() - start)
    varied = np.isfinite(embeddings_FPC).all() and embeddings_FPC.std() > 0
    how = "" if varied else "the encoder returns constant or invalid numbers: pip install --force-reinstall onnxruntime"
    return [Check("stage 1", not how, f"decodes and embeds {rate:.1f} clips/s in one process", how)]


def check_stage2() -> list[Check]:
    """Train the network of the default recipe on random embeddings for some seconds. Its loss must fall."""
    import torch

    from dtsf.model.network import DTSFNet
    from dtsf.training.losses import dtsf_loss
    from dtsf.training.recipe import REFERENCE_CLIPS, load_recipe, resolve_auto

    n_classes, grid, channels = 4, 6, 112
    recipe = resolve_auto(load_recipe(), REFERENCE_CLIPS)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(recipe.train.usable_threads)
    losses: list[float] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DTSFNet(recipe.model, channels=channels, side=grid, n_classes=n_classes).to(device).train()
        optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.train.lr, foreach=False)
        label_B = torch.arange(8, device=device) % n_classes
        x_BVTHWC = torch.randn(8, 3, recipe.model.frames, grid, grid, channels, device=device) * 0.3
        # Each class has one channel that changes over time.
        wave_T11 = torch.linspace(0, 6.3, recipe.model.frames, device=device).sin()[:, None, None]
        for b, label in enumerate(label_B.tolist()):
            x_BVTHWC[b, :, ..., label * 8] += 3 * wave_T11
        start = time.monotonic()
        while len(losses) < 3 or (time.monotonic() - start < TRIAL_SECONDS and len(losses) < 40):
            loss = dtsf_loss(net(x_BVTHWC), label_B, recipe.loss, 0)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        step_ms = 1000 * (time.monotonic() - start) / len(losses)
    how = "" if losses[-1] < 0.9 * losses[0] else "the loss does not fall: file an issue with dtsf doctor --json"
    found = f"{step_ms:.0f} ms a step of 8 groups x 3 views on {device.type}, loss {losses[0]:.2f} to {losses[-1]:.2f}"
    return [Check("stage 2", not how, found, how)]


def _write_video(file: Path, encoder: str, n_frames: int = 10) -> bool:
    """Write a video of a square that moves to the right. Return False if the encoder does not work."""
    import av

    try:
        with av.open(str(file), "w") as container:
            # libx265 prints to stderr without this option.
            options = {"x265-params": "log-level=none"} if encoder == "libx265" else {}
            stream: Any = container.add_stream(encoder, rate=15, options=options)
            # Some codecs refuse frames below 64 pixels, and MJPEG needs full-range colours.
            stream.width, stream.height = 320, 240
            stream.pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
            for k in range(n_frames):
                frame_HWC = np.full((240, 320, 3), 90, np.uint8)
                left = 20 + 200 * k // n_frames
                frame_HWC[80:160, left : left + 80] = (230, 60, 40)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_HWC, format="rgb24")))
            container.mux(stream.encode())
    except (av.FFmpegError, OSError, ValueError):
        return False
    return True
