"""A GPU for tests on a CPU: its tensors report another device and have their values on the CPU. Mixing devices is an error."""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

FAKE_GPU = torch.device("meta")


class GpuTensor(torch.Tensor):
    """A tensor on :data:`FAKE_GPU`; ``cpu_values`` has its values."""

    @staticmethod
    def __new__(cls, values):
        shape = {"strides": values.stride(), "storage_offset": values.storage_offset(), "dtype": values.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, values.shape, device=FAKE_GPU, requires_grad=values.requires_grad, **shape)
        made.cpu_values = values
        return made

    def __repr__(self):
        return f"GpuTensor({self.cpu_values})"

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


@contextlib.contextmanager
def fake_gpu():
    """Context in which ``tensor.to(FAKE_GPU)`` works."""
    autocast, tensor = torch.autocast, torch.tensor

    def autocast_or_none(device, *rest, **more):
        return contextlib.nullcontext() if device == FAKE_GPU.type else autocast(device, *rest, **more)

    # Tensors from Python numbers: a dispatch mode does not see them.
    def make_tensor(data, *, device=None, **more):
        return tensor(data, **more).to(device)

    def new_tensor(x, data, *, dtype=None, device=None):
        return tensor(data, dtype=dtype or x.dtype).to(device or x.device)

    with (
        mock.patch.object(torch, "autocast", autocast_or_none),
        mock.patch.object(torch, "tensor", make_tensor),
        mock.patch.object(torch.Tensor, "new_tensor", new_tensor),
        FakeGpuMode(),
    ):
        yield FAKE_GPU
