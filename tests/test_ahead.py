"""What a card needs of training, tried where there is none."""

import pytest
import torch

from dtsf.model.network.encoder import VideoMamba
from dtsf.model.training.ahead import Ahead
from dtsf.model.training.data import Batch


def batches(n):
    for k in range(n):
        yield Batch(
            torch.full((1, 2), float(k)), torch.ones(1, 1, dtype=torch.bool), torch.tensor([k]), torch.zeros(1, 1)
        )


class FakeStream:
    def __init__(self, *_):
        self.waited = 0

    def wait_stream(self, other):
        self.waited += 1


@pytest.fixture
def a_card(monkeypatch):
    """Streams in name only, so that the order of events can be seen on a CPU."""
    from contextlib import nullcontext

    current, seen = FakeStream(), []
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: seen.append("pinned") or x)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: seen.append("kept"))
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **o: x if "non_blocking" in o else to(x, *a, **o))
    return current, seen


def test_on_a_card_the_next_batch_is_made_before_it_is_asked_for(a_card):
    current, seen = a_card
    made = []
    ahead = Ahead((made.append(k) or batch for k, batch in enumerate(batches(3))), torch.device("cuda"))
    for k in range(3):
        assert int(ahead.take().label_B) == k
        assert current.waited == k + 1, "what is computed waits for its copy"
        ahead.prepare()
        ahead.prepare()
        assert made == list(range(min(k + 2, 3))), "one ahead, not more"
    with pytest.raises(StopIteration):
        ahead.take()
    assert seen.count("pinned") == seen.count("kept") == 12


def test_on_a_cpu_a_batch_is_made_when_it_is_asked_for():
    made = []
    ahead = Ahead((made.append(k) or batch for k, batch in enumerate(batches(2))), torch.device("cpu"))
    ahead.prepare()
    assert made == []
    assert int(ahead.take().label_B) == 0
    assert made == [0]


def _encoder(**options):
    torch.manual_seed(0)
    return VideoMamba(channels=2, canvas=4, patch=2, frames=3, n_classes=3, width=8, depth=3, state=4, **options)


def test_blocks_that_are_computed_again_give_the_same_gradients():
    """Stochastic depth drops the same sequences both times."""
    x = torch.randn(4, 2, 3, 4, 4)
    found = []
    for spare in (False, True):
        encoder = _encoder(drop_path_rate=0.5).train()
        encoder.spare_memory = spare
        torch.manual_seed(1)
        feature = encoder(x)
        found.append(
            [
                feature,
                *torch.autograd.grad(
                    feature.square().sum(), [p for p in encoder.parameters() if p.grad_fn is None][:-2]
                ),
            ]
        )
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_mixers_keep_the_names_of_the_weights_and_the_numbers():
    x = torch.randn(2, 2, 3, 4, 4)
    encoder = _encoder().eval()
    before, names = encoder(x), list(encoder.state_dict())
    encoder.compile_mixers(torch.device("cpu"), backend="eager")
    assert list(encoder.state_dict()) == names
    torch.testing.assert_close(encoder(x), before)
