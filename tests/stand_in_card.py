"""A card where there is none: tensors that say they are elsewhere and hold their numbers on the CPU, so that mixing is an error."""

import contextlib
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CARD = torch.device("meta")


class OnCard(torch.Tensor):
    """A tensor on :data:`CARD`, with its numbers in ``held``."""

    @staticmethod
    def __new__(cls, held):
        shape = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device=CARD, requires_grad=held.requires_grad, **shape)
        made.held = held
        return made

    def __repr__(self):
        return f"OnCard({self.held})"

    def tolist(self):
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside of the stand-in")


class StandIn(TorchDispatchMode):
    """Runs every operation on the CPU, and stops one of tensors of both places that copies none to the other."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        on_card = any(isinstance(x, OnCard) for x in tensors)
        if function._overloadpacket not in (torch.ops.aten.copy_, torch.ops.aten._to_copy):
            places = {isinstance(x, OnCard) for x in tensors if x.ndim}
            assert len(places) <= 1, f"{function} of tensors on the card and on the CPU"
        else:
            on_card = isinstance(args[0], OnCard)
        if kwargs.get("device") is not None:
            on_card = torch.device(kwargs["device"]).type == CARD.type
            kwargs["device"] = torch.device("cpu")
        held_args, held_kwargs = tree_map(lambda x: x.held if isinstance(x, OnCard) else x, (args, kwargs))
        out = function(*held_args, **held_kwargs)
        if not on_card:
            return out
        out = tree_map(lambda x: OnCard(x) if isinstance(x, torch.Tensor) else x, out)
        return return_and_correct_aliasing(function, args, kwargs, out)


@contextlib.contextmanager
def stand_in_card():
    """Within, ``tensor.to(CARD)`` works."""
    autocast, tensor = torch.autocast, torch.tensor

    def usual_autocast(device, *rest, **more):
        return contextlib.nullcontext() if device == CARD.type else autocast(device, *rest, **more)

    # Made of Python's numbers: no operation that a mode sees.
    def usual_tensor(data, *, device=None, **more):
        return tensor(data, **more).to(device)

    def new_tensor(x, data, *, dtype=None, device=None):
        return tensor(data, dtype=dtype or x.dtype).to(device or x.device)

    with (
        mock.patch.object(torch, "autocast", usual_autocast),
        mock.patch.object(torch, "tensor", usual_tensor),
        mock.patch.object(torch.Tensor, "new_tensor", new_tensor),
        StandIn(),
    ):
        yield CARD
