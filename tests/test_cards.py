"""Stage 1 beside a graphics card, tried with stand-ins: none is here."""

import os

import numpy as np
import pytest

from dtsf.errors import VideoError
from dtsf.pipeline import gpu as cards
from dtsf.pipeline import scheduler as engine
from dtsf.pipeline import worker
from dtsf.pipeline.gpu import decode_side_by_side, embed_batched
from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, DecodeSettings

FILMS = 7


@pytest.fixture(scope="module")
def films(tmp_path_factory, make_video):
    folder = tmp_path_factory.mktemp("films")
    made = [make_video(folder / f"{k}.avi", 6 + k) for k in range(FILMS)]
    made[3].write_bytes(b"no video")
    return [DecodeRequest(path) for path in made]


def sums(frames_FHWC):
    """An encoder: a cell of one channel, the sum of a frame."""
    sums.calls.append(len(frames_FHWC))
    return frames_FHWC.reshape(len(frames_FHWC), 1, 1, -1).sum(-1, dtype=np.int64)


@pytest.fixture(autouse=True)
def _no_calls():
    sums.calls = []


def decoded(n_decoders, films, clips_a_call):
    decoders = [Decoder(DecodeSettings(4, 32)) for _ in range(n_decoders)]
    try:
        items = decode_side_by_side(decoders, films)
        # Taken one by one, as a worker does: what is behind may be overwritten.
        return [
            (str(item), None) if isinstance(item, VideoError) else (item[1]["frame_index"], cells.copy())
            for item, cells in embed_batched(items, sums, clips_a_call)
        ]
    finally:
        for decoder in decoders:
            decoder.close()


def test_several_decoders_and_clips_a_call_give_what_one_gives(films):
    one = decoded(1, films, 1)
    assert sums.calls == [4] * (FILMS - 1)
    sums.calls = []
    many = decoded(3, films, 4)
    assert sums.calls == [16, 8], "four clips a call, and the rest"
    assert len(one) == len(many) == FILMS
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    assert many[3][1] is None
    assert not np.array_equal(many[0][1], many[1][1])


def test_clips_of_which_none_can_be_used_ask_nothing_of_the_card(films):
    assert [cells for _, cells in decoded(2, [films[3]] * 3, 2)] == [None] * 3
    assert sums.calls == []


def test_a_worker_beside_a_card_has_its_share_of_the_cores_and_pixels_need_no_card(monkeypatch):
    assert cards.count_cards("pixels") == 0
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(cards, "count_cards", lambda encoder: 0 if encoder == "pixels" else 2)
    assert cards.usual_workers("efficientnet-lite0") == 2
    assert cards.decoders_of_a_worker("efficientnet-lite0") == 8
    assert cards.usual_workers("pixels") == 16
    assert cards.decoders_of_a_worker("pixels") == 1


@pytest.mark.parametrize(
    ("visible", "number", "taken"), [(None, 1, "1"), (None, 3, "1"), ("4,7", 1, "7"), ("4,7", 2, "4"), ("", 1, "")]
)
def test_a_worker_of_this_machine_takes_one_card_of_those_left_visible(monkeypatch, visible, number, taken):
    """And its share of the cores, though it sees no other card from then on."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")
    monkeypatch.setattr(cards, "_workers_here", 1)
    cards._visible_cards.cache_clear()
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for _ in range(2):
        cards.select_gpu(number, 2, 4)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == taken, "the same for every shard"
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(cards, "count_cards", lambda encoder: 1)
    assert cards.decoders_of_a_worker("efficientnet-lite0") == 4
    cards._visible_cards.cache_clear()


@pytest.mark.filterwarnings("ignore")
def test_each_worker_that_is_started_beside_cards_takes_its_own(monkeypatch):
    """Four on two cards: two a card."""
    taken = []
    monkeypatch.setattr(engine, "select_gpu", lambda *said: taken.append(said))
    monkeypatch.setattr(engine, "run_shard", lambda task, on_clip=None: None)
    started = engine._start_cluster
    monkeypatch.setattr(engine, "_start_cluster", lambda **settings: started(**settings | {"processes": False}))
    engine.run_tasks([Nothing(k) for k in range(12)], 4, None, lambda done, bad: None, cards=2)
    assert len(taken) == 12
    assert {said[1:] for said in taken} == {(2, 4)}
    assert {number for number, *_ in taken} <= set(range(4))


class Nothing:
    """A task that is only seen."""

    def __init__(self, shard):
        self.shard = shard


@pytest.mark.filterwarnings("ignore")
def test_on_a_cluster_shards_go_to_the_workers_that_offer_a_card(monkeypatch):
    from distributed import Scheduler, SpecCluster, Worker, get_worker

    seen = []
    monkeypatch.setattr(engine, "run_shard", lambda task, on_clip=None: seen.append(get_worker().name))
    workers = {
        name: {"cls": Worker, "options": {"nthreads": 1, "resources": resources, "dashboard": False}}
        for name, resources in (("plain", {}), ("other", {"GPU": 1}))
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "port": 0}}
    with SpecCluster(workers=workers, scheduler=scheduler, silence_logs=50) as cluster:
        engine.run_tasks([Nothing(k) for k in range(6)], 2, cluster.scheduler_address, lambda done, bad: None)
    assert seen == ["other"] * 6


def test_a_shard_beside_a_card_is_embedded_several_clips_a_call(monkeypatch, tmp_path, films):
    """The worker itself, with an encoder that says it is on a card."""
    from dataclasses import replace

    from dtsf.pipeline.encoders.choose import load_encoder

    real = load_encoder("efficientnet-lite0:32", 96, 3, "cpu")
    calls = []

    def embed(frames):
        calls.append(len(frames))
        return real.embed(frames)

    monkeypatch.setattr(worker, "load_encoder", lambda *_, **__: replace(real, embed=embed, device="cuda"))
    monkeypatch.setattr(worker, "decoders_of_a_worker", lambda encoder: 2)
    from test_preprocess import SMALL

    from dtsf import api

    root = films[0].path.parent
    lines = [f"{k}.avi,a,g{k},1" for k in range(FILMS)]
    (root / "list.csv").write_text("\n".join(["path,label,group,view", *lines]) + "\n")
    options = {**SMALL, "workers": 1, "max_bad": 0.5}
    beside = api.preprocess("manifest", root / "list.csv", tmp_path / "beside", **options)
    assert calls == [3 * (FILMS - 1)]
    monkeypatch.undo()
    alone = api.preprocess("manifest", root / "list.csv", tmp_path / "alone", **options)
    assert beside.verdicts == alone.verdicts
    one, other = (api.open_cache(tmp_path / name) for name in ("alone", "beside"))
    ids = [clip.id for clip in one.clips]
    np.testing.assert_allclose(
        one.embeddings(ids).astype(float), other.embeddings(ids).astype(float), rtol=2e-3, atol=2e-3
    )
