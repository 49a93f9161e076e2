"""What a card needs of training, tried where there is none."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dtsf.cache.spec import CacheSpec, DatasetInfo
from dtsf.model.network.encoder import VideoMamba
from dtsf.model.training import ahead as room
from dtsf.model.training.ahead import Ahead, fits_on_card, resident
from dtsf.model.training.augment import AugmentConfig
from dtsf.model.training.data import Batch, Groups, training_batches
from dtsf.model.training.loop import fit
from dtsf.model.training.recipe import load_recipe

ELSEWHERE = torch.device("meta")
"""A card in name only: it computes shapes, and refuses what is on two devices."""


def batches(n, device="cpu"):
    for k in range(n):
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
def a_card(monkeypatch):
    """Streams in name only, so that the order of events can be seen on a CPU."""
    from contextlib import nullcontext

    current, seen = FakeStream(), []
    room._side_stream.cache_clear()
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: seen.append("pinned") or x)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda x, stream: seen.append("kept"))
    to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda x, *a, **o: x if "non_blocking" in o else to(x, *a, **o))
    yield current, seen
    room._side_stream.cache_clear()


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


def test_what_is_on_the_card_already_is_not_sent_there(a_card):
    ahead = Ahead(batches(2, ELSEWHERE), torch.device("cuda"))
    assert ahead.take().x_BVTHWC.device == ELSEWHERE
    assert a_card[1].count("pinned") == 3, "mask, labels and rows"


def test_all_epochs_share_one_stream_of_a_card(a_card):
    before = FakeStream.made
    for _ in range(3):
        Ahead(batches(1), torch.device("cuda")).take()
    assert FakeStream.made == before + 1


@pytest.mark.parametrize(("n_bytes", "fits"), [(560, True), (561, False)])
def test_embeddings_stay_on_a_card_with_room_to_spare(monkeypatch, n_bytes, fits):
    """1000 bytes are free for all programs, 400 more for this one: 0.4 of both."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    assert fits_on_card(n_bytes, torch.device("cuda", 1)) is fits
    assert not fits_on_card(n_bytes, torch.device("cpu"))


def drawn_groups(frames=6, grid=6, channels=12):
    embeddings = torch.randn(17, frames, grid, grid, channels, generator=torch.Generator().manual_seed(0)).half()
    row_GV = torch.arange(18).view(6, 3)
    row_GV[2, 1] = row_GV[5, 2] = -1
    return Groups(embeddings, row_GV, torch.arange(6) % 3, tuple("abcdef"))


def test_embeddings_move_only_where_they_fit(monkeypatch):
    groups, asked = drawn_groups(), []
    monkeypatch.setattr(room, "fits_on_card", lambda n_bytes, device: asked.append((n_bytes, device)) or len(asked) == 2)
    assert resident(groups, ELSEWHERE) is groups
    moved = resident(groups, ELSEWHERE)
    assert moved.embeddings_NFHWC.device == ELSEWHERE
    assert moved.row_GV is groups.row_GV
    assert asked == [(17 * 6 * 6 * 6 * 12 * 2, ELSEWHERE)] * 2


class OneDevice(TorchDispatchMode):
    """Stops an operation on tensors of two devices, unless it copies one to the other."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        held = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and x.ndim]
        copies = function._overloadpacket in (torch.ops.aten.copy_, torch.ops.aten._to_copy)
        assert copies or len({x.device for x in held}) <= 1, function
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("pace", [0.0, 0.7])
def test_on_a_card_batches_are_chosen_and_varied_by_the_same_draws(monkeypatch, pace):
    monkeypatch.setattr(room, "fits_on_card", lambda n_bytes, device: True)
    everything = AugmentConfig(
        crop=0.2, jitter=1.0, shift=0.4, zoom=0.2, tempo=0.5, delay=1.0, flip=0.5, view_drop=0.3, room=0.5, hide=0.5, noise=0.1
    )

    def made(groups):
        torch.manual_seed(3)
        with OneDevice():
            found = list(training_batches(groups, 4, 4, pace, everything, torch.ones(12)))
        return found, torch.get_rng_state()

    here, state = made(drawn_groups())
    there, state_there = made(resident(drawn_groups(), ELSEWHERE))
    assert torch.equal(state, state_there)
    for a, b in zip(here, there, strict=True):
        assert b.x_BVTHWC.device == ELSEWHERE
        assert (b.x_BVTHWC.shape, b.x_BVTHWC.dtype) == (a.x_BVTHWC.shape, a.x_BVTHWC.dtype)
        for name in ("mask_BV", "label_B", "row_BV"):
            assert torch.equal(getattr(a, name), getattr(b, name))


def test_training_from_resident_embeddings_is_training_from_streamed_ones(monkeypatch, tmp_path):
    """To the bit, with the CPU in the place of the card."""
    spec = CacheSpec(decoder="drawn", frames=6, size=192, grid=6, encoder="e", weights_hash="0", channels=12)
    info = DatasetInfo(dataset="nucla", name="a", class_names=("a", "b", "c"), view_names=("1", "2", "3"))
    sizes = ["train.epochs=2", "train.batch_size=4", "model.width=16", "model.depth=1", "model.frames=4"]
    weights, asked = [], []
    for fits in (False, True):
        monkeypatch.setattr(room, "fits_on_card", lambda n_bytes, device, fits=fits: asked.append(fits) or fits)
        (tmp_path / str(fits)).mkdir()
        fitted = fit(
            drawn_groups(), load_recipe("default", sizes), info=info, spec=spec, protocol="", run=tmp_path / str(fits), device="cpu"
        )
        weights.append(fitted.net.state_dict())
    assert asked == [False, True], "asked once a training"
    for name, x in weights[0].items():
        assert torch.equal(x, weights[1][name]), name


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
