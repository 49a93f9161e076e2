"""What this machine can do, and how to get what it cannot: ``dtsf doctor``. Knows both stages, as :mod:`dtsf.api` does."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LEAST_FREE_GB = 1.0
DEFAULT_ENCODER = "efficientnet-lite0"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str
    how: str = ""
    """How to get what is missing; empty where nothing is."""
    needed: bool = True
    """Whether dtsf does not work without it."""
    value: Any = None
    """For programs; ``found`` if None."""


@dataclass(frozen=True)
class Health:
    """All checks."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether everything that is needed is there."""
        return all(check.ok or not check.needed for check in self.checks)

    def summary(self) -> dict[str, Any]:
        """One flat object for programs: the value of each check by its name, and all checks in full."""
        values = {
            check.name.replace(" ", "_"): check.found if check.value is None else check.value for check in self.checks
        }
        listed = [{"name": c.name, "ok": c.ok, "needed": c.needed, "found": c.found, "how": c.how} for c in self.checks]
        return {"ok": self.ok, **values, "checks": listed}


def examine(cache: Path, *, on_step: Callable[[int, int, str], None] | None = None) -> Health:
    """Look at everything; takes some ten seconds, most of them the tests of the two stages. ``on_step``: called with how many
    looks are done, of how many, and the next one.
    """
    from dtsf.pipeline.selftest import check_codecs, check_stage1
    from dtsf.training.selftest import check_stage2

    looks: list[tuple[str, Callable[[], list[Check]]]] = [
        ("packages", _packages),
        ("torch", _torch),
        ("scan", _scan),
        ("encoder", _encoder),
        ("disk", lambda: [_disk(cache)]),
        ("codecs", lambda: [Check("codecs", *check_codecs())]),
        ("stage 1", lambda: [Check("stage 1", *check_stage1())]),
        ("stage 2", lambda: [Check("stage 2", *check_stage2())]),
    ]
    checks: list[Check] = []
    for k, (name, look) in enumerate(looks):
        if on_step is not None:
            on_step(k, len(looks), name)
        try:
            checks += look()
        # The doctor is for machines on which something is broken: whatever is raised is a finding.
        except Exception as error:  # noqa: BLE001
            what = f"{type(error).__name__}: {error}"
            checks.append(
                Check(name, False, what, "dtsf --debug doctor shows where; make setup installs everything anew")
            )
    if on_step is not None:
        on_step(len(looks), len(looks), "")
    return Health(tuple(checks))


def scan_in_use(device: str) -> tuple[str, str]:
    """Name of the selective scan that runs on a device, and why. The one place that says it."""
    import torch

    from dtsf.model.scan.dispatch import kernel_choice

    choice = kernel_choice(torch.device(device))
    return choice.name, choice.reason


def _packages() -> list[Check]:
    wanted = {
        "dtsf": ("dtsf", True, "make setup"),
        "av": ("av", True, "pip install av"),
        "decord": ("decord2", False, "for --decoder decord: pip install decord2"),
        "dask": ("dask", True, "pip install dask distributed"),
        "zarr": ("zarr", True, "pip install 'zarr>=3.1'"),
        "hdf5": ("h5py", True, "pip install h5py"),
        "onnxruntime": ("onnxruntime", True, "pip install onnxruntime"),
        "timm": ("timm", False, "for --encoder timm:MODEL: pip install 'dtsf[timm]'"),
        "s3": ("s3fs", False, "for caches at s3:// addresses: pip install 'dtsf[s3]'"),
    }
    checks = [
        Check("python", True, f"{platform.python_version()} at {sys.executable}", value=platform.python_version())
    ]
    for name, (package, needed, how) in wanted.items():
        try:
            checks.append(Check(name, True, importlib.metadata.version(package), needed=needed))
        except importlib.metadata.PackageNotFoundError:
            checks.append(Check(name, False, f"not available: {package} is not installed", how, needed, value=False))
    return checks


def _torch() -> list[Check]:
    import torch

    checks = [
        Check("torch", True, f"{torch.__version__}, {torch.get_num_threads()} thread(s)", value=torch.__version__)
    ]
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        checks.append(Check("cuda", True, f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB", needed=False, value=True))
    elif torch.version.cuda is None:
        how = (
            "this PyTorch is a build without CUDA. On a machine with an NVIDIA card: install one with CUDA, by the line that "
            "https://pytorch.org/get-started/locally gives for its driver, then make setup-gpu"
        )
        checks.append(Check("cuda", False, "not available: everything runs on the CPU", how, needed=False, value=False))
    else:
        how = (
            f"this PyTorch is built for CUDA {torch.version.cuda} but sees no device: nvidia-smi says whether the driver "
            "does; in a container start it with --gpus all; $CUDA_VISIBLE_DEVICES must not be empty"
        )
        checks.append(Check("cuda", False, "not available: no device is seen", how, needed=False, value=False))
    return checks


def _scan() -> list[Check]:
    """Which scan runs, tried on the device itself: outputs and all gradients, both directions, against float64."""
    import torch

    from dtsf.model.scan.dispatch import selective_scan
    from dtsf.model.scan.parity import TOLERANCE, compare

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, why = scan_in_use(device)
    error = max(compare(selective_scan, device, reverse=reverse, dtype=torch.float32) for reverse in (False, True))
    ok = error < TOLERANCE
    how = "" if ok else f"it departs from the float64 form: file an issue with dtsf doctor --json ({why})"
    return [Check("scan", ok, f"{name} on {device}, within {error:.0e} of float64; {why}", how, value=name)]


def _encoder() -> list[Check]:
    from dtsf.pipeline.encoders.choose import encoder_identity
    from dtsf.pipeline.encoders.efficientnet_lite import weights_file

    identity = encoder_identity(DEFAULT_ENCODER, 192, 6)
    file = weights_file(DEFAULT_ENCODER)
    found = f"{identity.name}, weights {identity.weights_hash} at {file}"
    return [
        Check("encoder", True, found, value=identity.name),
        Check("encoder weights", True, f"{file.stat().st_size / 1e6:.1f} MB", value=identity.weights_hash),
    ]


def _disk(cache: Path) -> Check:
    place = cache.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    # 16 frames x 36 cells x 112 channels x 2 bytes, and the pictures.
    clips = int(free * 1e9 / (16 * 36 * 112 * 2 + 16 * 48 * 48 * 3))
    ok = free >= LEAST_FREE_GB
    how = "" if ok else f"free some, or put the cache elsewhere: --cache DIR (looked at {place})"
    return Check("disk", ok, f"{free:.1f} GB free at {place}: room for some {clips:,} clips", how, value=round(free, 3))
