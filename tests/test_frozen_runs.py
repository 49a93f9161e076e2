"""Outputs and losses of runs that an earlier version trained and wrote: ``tests/data/frozen/runs``.

Each file has the weights by their present names, inputs, outputs without and with calibration, and the losses of its training.
The losses of `unseen-cameras` are of the present order of sums over channels: at most 1e-6 from the earlier ones. Those of
`thumbnails` are of PyTorch's fused AdamW: at most 1e-7 from them.
"""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from dtsf.cache.schema import CacheSpec, DatasetInfo
from dtsf.model.evidence import dirichlet
from dtsf.model.network import DTSFNet
from dtsf.training.data import Groups
from dtsf.training.loop import fit
from dtsf.training.recipe import load_recipe

RUNS = Path(__file__).parent / "data/frozen/runs"
NAMES = sorted(path.stem for path in RUNS.iterdir())
INFO = DatasetInfo(kind="manifest", name="toy", class_names=("a", "b", "c"), view_names=("1", "2"))
SPEC = CacheSpec(decoder="none", frames=4, size=32, grid=3, encoder="none", weights_hash="0", channels=6)


def frozen(name):
    """The file's tensors, its metadata, and its recipe. Uses one thread, as the run did."""
    torch.set_num_threads(1)
    file = RUNS / f"{name}.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    return load_file(file), metadata, load_recipe(metadata["recipe"], json.loads(metadata["overrides"]))


def same_machine(metadata):
    """True if numbers must agree to the bit: the same PyTorch, on a CPU with the same vector instructions."""
    return (metadata["torch"], metadata["cpu"]) == (torch.__version__, torch.backends.cpu.get_cpu_capability())


@pytest.mark.parametrize("name", NAMES)
def test_network__outputs_of_a_frozen_run_are_equal_to_the_bit(name):
    stored, metadata, recipe = frozen(name)
    net = DTSFNet(recipe.model, channels=6, side=3, n_classes=3, n_views=2).eval()
    net.load_state_dict({key[8:]: x for key, x in stored.items() if key.startswith("weights.")})
    x, mask, three = stored["x"].float(), stored["mask"], stored["x3"].float()
    assert net.calibrator.fitted
    with torch.inference_mode():
        outputs = {"calibrated": net(x, mask)}
        net.calibrator.fitted = False
        outputs |= {"two": net(x, mask), "all": net(x), "three": net(three)}
    compared = 0
    for key, wanted in stored.items():
        tag, _, field = key.partition(".")
        if tag in outputs:
            output = outputs[tag]
            found = dirichlet(output.view_logits_BVK) if field == "view_alpha_BVK" else getattr(output, field)
            assert torch.equal(found, wanted) or not same_machine(metadata), key
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=key)
            compared += 1
    assert compared >= 24


@pytest.mark.parametrize("name", NAMES)
def test_fit__losses_of_a_frozen_run_are_equal_to_the_bit(name, tmp_path):
    _, metadata, recipe = frozen(name)
    torch.manual_seed(0)
    label = torch.arange(18) % 3
    x = 0.1 * torch.randn(36, 4, 3, 3, 6)
    x += F.one_hot(label.repeat_interleave(2), 6)[:, None, None, None] * torch.linspace(-1, 1, 4)[:, None, None, None]
    rows = torch.arange(36).view(18, 2)
    rows[1, 0] = -1
    groups = Groups(x.half(), rows, label, tuple(f"g{k:02}" for k in range(18)))
    fit(groups, recipe, info=INFO, spec=SPEC, protocol="all", run=tmp_path, device="cpu", seed=3)
    found = [json.loads(line)["loss"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    wanted = json.loads(metadata["losses"])
    assert found == (wanted if same_machine(metadata) else pytest.approx(wanted, rel=1e-4))
