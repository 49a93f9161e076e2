"""Training on a GPU, tested without one: prefetched batches, and one device for all tensors of an operation."""

from contextlib import contextmanager, nullcontext
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from dtsf.cache.schema import CacheSpec, DatasetInfo
from dtsf.model.config import ModelConfig
from dtsf.model.network import DTSFNet
from dtsf.model.videomamba import VideoMamba
from dtsf.training import data, loop
from dtsf.training.augment import AugmentConfig
from dtsf.training.data import Batch, Groups, Prefetcher, fits_on_gpu, to_device_if_fits, training_batches
from dtsf.training.losses import dtsf_loss
from dtsf.training.recipe import builtin_names, load_recipe, resolve_auto

FAKE_GPU = torch.device("meta")


class GpuTensor(torch.Tensor):
    """A tensor on :data:`FAKE_GPU`; ``cpu_values`` has its values."""

    @staticmethod
    def __new__(cls, values):
        shape = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, device=FAKE_GPU, requires_grad=values.requires_grad, **shape)
        made.cpu_values = values
        return made

    def tolist(self):
        return self.cpu_values.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside of fake_gpu()")


class FakeGpuMode(TorchDispatchMode):
    """Runs every operation on the CPU. Fails if an operation has tensors of both devices, except for copies."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_gpu = any(isinstance(x, GpuTensor) for x in tensors)
        if function._overloadpacket not in (torch.ops.aten.copy_, torch.ops.aten._to_copy):
            devices = {isinstance(x, GpuTensor) for x in tensors if x.ndim}
            assert len(devices) <= 1, f"{function} of tensors on the GPU and on the CPU"
        else:
            on_gpu = isinstance(args[0], GpuTensor)
        if kwargs.get("device") is not None:
            on_gpu = torch.device(kwargs["device"]).type == FAKE_GPU.type
            kwargs["device"] = torch.device("cpu")
        cpu_args, cpu_kwargs = tree_map(lambda x: x.cpu_values if isinstance(x, GpuTensor) else x, (args, kwargs))
        out = function(*cpu_args, **cpu_kwargs)
        if not on_gpu:
            return out
        out = tree_map(lambda x: GpuTensor(x) if isinstance(x, torch.Tensor) else x, out)
        return return_and_correct_aliasing(function, args, kwargs, out)


@contextmanager
def fake_gpu():
    """Context in which ``tensor.to(FAKE_GPU)`` works."""
    autocast, tensor = torch.autocast, torch.tensor

    def autocast_or_none(device, *rest, **more):
        return nullcontext() if device == FAKE_GPU.type else autocast(device, *rest, **more)

    # Tensors from Python numbers: a dispatch mode does not see them.
    def make_tensor(values, *, device=None, **more):
        return tensor(values, **more).to(device)

    def new_tensor(x, values, *, dtype=None, device=None):
        return tensor(values, dtype=dtype or x.dtype).to(device or x.device)

    with (
        mock.patch.object(torch, "autocast", autocast_or_none),
        mock.patch.object(torch, "tensor", make_tensor),
        mock.patch.object(torch.Tensor, "new_tensor", new_tensor),
        FakeGpuMode(),
    ):
        yield FAKE_GPU


def batches(n, device="cpu", made=None):
    for k in range(n):
        if made is not None:
            made.append(k)
        x = torch.full((1, 2), float(k), device=device)
        yield Batch(x, torch.ones(1, 1, dtype=torch.bool), torch.tensor([k]), torch.zeros(1, 1))


class FakeStream:
    made = 0

    def __init__(self, *_):
        self.waited = 0
        FakeStream.made += 1

    def wait_stream(self, other):
        self.waited += 1


@pytest.fixture
def fake_cuda(monkeypatch):
    """CUDA streams without work, to see the order of events on a CPU."""
    current, seen = FakeStream(), []
    data._side_stream.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: seen.append("pinned") or x)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: seen.append("kept"))
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **o: x if "non_blocking" in o else to(x, *a, **o))
    yield current, seen
    data._side_stream.cache_clear()


def test_prefetcher__makes_the_next_batch_ahead_on_a_gpu(fake_cuda):
    current, seen = fake_cuda
    made = []
    ahead = Prefetcher(batches(3, made=made), torch.device("cuda"))
    for k in range(3):
        assert int(ahead.next().label_B) == k
        assert current.waited == k + 1, "the computation waits for its copy"
        ahead.prepare()
        ahead.prepare()
        assert made == list(range(min(k + 2, 3))), "one ahead, not more"
    with pytest.raises(StopIteration):
        ahead.next()
    assert seen.count("pinned") == seen.count("kept") == 12


def test_prefetcher__makes_a_batch_on_request_on_a_cpu():
    made = []
    ahead = Prefetcher(batches(2, made=made), torch.device("cpu"))
    ahead.prepare()
    assert made == []
    assert int(ahead.next().label_B) == 0
    assert made == [0]


def test_prefetcher__copies_only_from_the_cpu_in_one_stream(fake_cuda):
    before = FakeStream.made
    for _ in range(3):
        assert Prefetcher(batches(1, FAKE_GPU), torch.device("cuda")).next().x_BVTHWC.device == FAKE_GPU
    assert fake_cuda[1].count("pinned") == 9, "mask, labels and rows"
    assert FakeStream.made == before + 1


@pytest.mark.parametrize(("n_bytes", "fits"), [(560, True), (561, False)])
def test_fits_on_gpu__bounds_the_share_of_free_memory(monkeypatch, n_bytes, fits):
    """1000 bytes are free for all programs, 400 more for this one: 0.4 of both."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert fits_on_gpu(n_bytes, torch.device("cuda", 1)) is fits
    assert not fits_on_gpu(n_bytes, torch.device("cpu"))


def drawn_groups():
    embeddings = torch.randn(17, 6, 6, 6, 12, generator=torch.Generator().manual_seed(0)).half()
    row_GV = torch.arange(18).view(6, 3)
    row_GV[2, 1] = row_GV[5, 2] = -1
    return Groups(embeddings, row_GV, torch.arange(6) % 3, tuple("abcdef"))


SHARES = {"flip": 0.5, "view_drop": 0.3, "swap_background": 0.5, "occlude": 0.5}
EVERYTHING = AugmentConfig(crop=0.2, jitter=1.0, shift=0.4, zoom=0.2, tempo=0.5, delay=1.0, noise=0.1, **SHARES)


@pytest.mark.parametrize("motion_sampling", [0.0, 0.7])
def test_training_batches__same_draws_on_a_gpu(monkeypatch, motion_sampling):
    calls = []
    monkeypatch.setattr(data, "fits_on_gpu", lambda n, device: calls.append((n, device)) or device == FAKE_GPU)

    def made(device):
        torch.manual_seed(3)
        groups = to_device_if_fits(drawn_groups(), device)
        assert groups.embeddings_NFHWC.device == device
        return list(training_batches(groups, 4, 4, motion_sampling, EVERYTHING, torch.ones(12))), torch.get_rng_state()

    here, state = made(torch.device("cpu"))
    with fake_gpu():
        there, state_there = made(FAKE_GPU)
    assert calls == [(17 * 6 * 6 * 6 * 12 * 2, device) for device in (torch.device("cpu"), FAKE_GPU)]
    assert torch.equal(state, state_there)
    for a, b in zip(here, there, strict=True):
        assert isinstance(b.x_BVTHWC, GpuTensor)
        assert torch.equal(a.x_BVTHWC, b.x_BVTHWC.cpu_values)
        assert all(torch.equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))


class FakeFabric:
    device = FAKE_GPU

    def setup(self, model, optimizer):
        return model, optimizer

    def no_backward_sync(self, model, enabled):
        return nullcontext()

    def backward(self, loss):
        loss.backward()

    def clip_gradients(self, module, optimizer, max_norm, error_if_nonfinite):
        return torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm, foreach=False)


@pytest.mark.parametrize("recipe", ["default", "ntu60"])
def test_fit__same_numbers_for_batches_of_the_gpu_or_cpu(monkeypatch, tmp_path, recipe):
    monkeypatch.setattr(loop, "save", lambda *_: None)
    spec = CacheSpec(decoder="drawn", frames=6, size=192, grid=6, encoder="e", weights_hash="0", channels=12)
    info = DatasetInfo(kind="nucla", name="a", class_names=("a", "b", "c"), view_names=("1", "2", "3"))
    sizes = ["train.epochs=2", "train.batch_size=4", "model.width=16", "model.depth=1", "model.frames=4", "train.precision=32-true"]
    calls = []

    def weights(fits, **options):
        monkeypatch.setattr(data, "fits_on_gpu", lambda n_bytes, device: calls.append((fits, device)) or fits)
        common = {"info": info, "spec": spec, "protocol": "", "run": tmp_path, "device": "cpu"}
        return loop.fit(drawn_groups(), load_recipe(recipe, sizes), **common, **options).net.state_dict()

    on_the_cpu = weights(False)
    with fake_gpu():
        streamed, stays = (weights(fits, fabric=FakeFabric()) for fits in (False, True))
    assert calls == [(False, torch.device("cpu")), (False, FAKE_GPU), (True, FAKE_GPU)], "once per training"
    # Close to the CPU's, whose scan sums in another order.
    for name, x in on_the_cpu.items():
        assert torch.equal(streamed[name].cpu_values, stays[name].cpu_values), name
        torch.testing.assert_close(stays[name].cpu_values, x, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("recipe", sorted({*builtin_names("recipe")} - {"demo", "ntu120"}))
def test_network__constants_are_on_its_device(recipe):
    config = resolve_auto(load_recipe(recipe), 100)
    side, channels = (48, 3) if "pixels" in config.model.inputs else (6, 12)
    small = config.model.model_copy(update={"depth": 2, "width": 16, "frames": 4, "reduce": min(config.model.reduce, 8)})
    x, label = torch.rand(2, 3, 4, side, side, channels), torch.tensor([1, 2])
    every = torch.ones(2, 3, dtype=torch.bool)
    some = every.clone()
    some[0, 1] = False

    def results(device, training):
        torch.manual_seed(0)
        net = DTSFNet(small, channels=channels, side=side, n_classes=5, n_views=3).to(device).train(training)
        losses = [dtsf_loss(net(x.to(device), mask.to(device)), label.to(device), config.loss, 0)["loss"] for mask in (some, every)]
        sum(losses).backward()
        return [loss.item() for loss in losses] + [p.grad.norm().item() for p in net.parameters() if p.grad is not None]

    here = results("cpu", False)
    with fake_gpu():
        assert results(FAKE_GPU, False) == pytest.approx(here, rel=1e-4, abs=1e-6)
        results(FAKE_GPU, True)


def make_encoder(**options):
    torch.manual_seed(0)
    config = ModelConfig(**{"patch": 2, "frames": 3, "width": 8, "depth": 3, "state": 4, "readout": "cls"} | options)
    return VideoMamba(config, channels=2, side=4, n_classes=3)


def test_gradient_checkpointing__gives_the_same_gradients():
    x = torch.randn(4, 2, 3, 4, 4)
    found = []
    for checkpointing in (False, True):
        encoder = make_encoder(drop_path=0.5).train()
        encoder.gradient_checkpointing = checkpointing
        torch.manual_seed(1)  # drops the same sequences both times
        feature = encoder(x)
        used = [p for p in encoder.parameters() if p.grad_fn is None][:-2]
        found.append([feature, *torch.autograd.grad(feature.square().sum(), used)])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compile_mixers__keeps_names_and_numbers():
    x = torch.randn(2, 2, 3, 4, 4)
    encoder = make_encoder().eval()
    before, names = encoder(x), list(encoder.state_dict())
    encoder.compile_mixers(torch.device("cpu"), backend="eager")
    assert list(encoder.state_dict()) == names
    torch.testing.assert_close(encoder(x), before)
