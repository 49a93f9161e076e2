"""CacheDataset for PyTorch loops, and the cache commands after preprocess in every format."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from make_cache import FORMS, SHARD_SIZE, SPEC, clip, list_clips, make, rows, shard_record, snapshot, source
from torch.utils.data import DataLoader

from dtsf import api
from dtsf.cache.schema import ClipRecord, DatasetInfo
from dtsf.cache.status import Status
from dtsf.cache.writer import create_or_open, extend, write_shard
from dtsf.errors import ConfigError
from dtsf.training.dataset import CacheDataset

VIEWS = ("left", "middle", "right")


@pytest.fixture(params=FORMS)
def grouped(request, tmp_path):
    """Seven groups of three views; group 5 lacks the middle one. Returns the folder and x_GVFHWC, zero for an absent view."""
    metadata = DatasetInfo(kind="manifest", name="a", class_names=("x", "y"), view_names=VIEWS)
    format_, compress = request.param
    dataset = create_or_open(tmp_path / "a", SPEC, metadata, SHARD_SIZE, format=format_, compress=compress)
    extend(dataset, 7)
    x, listed = np.zeros((7, 3, SPEC.frames, SPEC.grid, SPEC.grid, SPEC.channels), "<f2"), []
    for group in range(7):
        views = [view for view in (1, 2, 3) if (group, view) != (5, 2)]
        clips = [clip(f"{group}-{v}", label=group % 2, group=f"g{group}", view=v) for v in views]
        values = {name: array[: len(clips)] for name, array in rows(SHARD_SIZE, seed=group).items()}
        records = tuple(ClipRecord(source=source(c), status=Status.OK, row=k) for k, c in enumerate(clips))
        record = shard_record(group, []).model_copy(update={"rows": len(clips), "clips": records})
        write_shard(dataset, record, values)
        listed += clips
        x[group, [view - 1 for view in views]] = values["embeddings"].reshape(-1, *x.shape[2:])
    list_clips(tmp_path / "a", listed, metadata)
    return tmp_path, x


@pytest.mark.parametrize("hold", ["auto", "never"])
def test_cache_dataset__groups_and_batches(grouped, hold):
    folder, held = grouped
    groups = CacheDataset(api.open_cache(folder), hold=hold)
    assert (groups.where == "memory") == (hold == "auto")
    assert groups.names == tuple(f"g{k}" for k in range(7))
    for k, (x, mask, label) in enumerate(list(groups)):
        np.testing.assert_array_equal(x.numpy(), held[k])
        assert mask.tolist() == [True, k != 5, True]
        assert label == k % 2
    for chosen in ([6, 0, 5], [1, 2, 3], [4]):
        batch = groups.batch(chosen)
        np.testing.assert_array_equal(batch.x_BVFHWC.numpy(), held[chosen])
        assert batch.label_B.tolist() == [k % 2 for k in chosen]
    for _ in range(3):
        assert not groups.batch([5]).x_BVFHWC[0, 1].any()


@pytest.mark.parametrize(("grouped", "method"), [
    *((form, None) for form in FORMS),
    *((FORMS[0], "fork"), (FORMS[3], "fork"), (FORMS[0], "spawn")),
    *(pytest.param(form, "spawn", marks=pytest.mark.slow) for form in FORMS[1:]),
], indirect=["grouped"])
def test_cache_dataset__in_a_data_loader(grouped, method):
    folder, held = grouped
    workers = {"num_workers": 2, "multiprocessing_context": method} if method else {}
    loader = DataLoader(CacheDataset(api.open_cache(folder)), 4, **workers)
    batches = list(loader)
    np.testing.assert_array_equal(torch.cat([b.x_VFHWC for b in batches]).numpy(), held)
    assert torch.cat([b.label for b in batches]).tolist() == [k % 2 for k in range(7)]


def test_cache_dataset__of_some_clips(grouped):
    folder, held = grouped
    data = api.open_cache(folder)
    groups = CacheDataset(data, [clip for clip in data.clips if clip.view != 3 and clip.group in ("g1", "g4")])
    assert groups.names == ("g1", "g4")
    assert groups.mask_GV.tolist() == [[True, True, False]] * 2
    np.testing.assert_array_equal(groups[1].x_VFHWC[:2].numpy(), held[4, :2])
    with pytest.raises(ConfigError, match="hold='gpu' must be auto or never"):
        CacheDataset(data, hold="gpu")


def test_docs__cache_example_runs(tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "cache.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    make(tmp_path / "cache/a")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "docs/cache.md", "exec"), {})
    assert capsys.readouterr().out == "9 g0-0 memory\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cache_dataset__on_the_gpu(grouped):
    folder, held = grouped
    for hold in ("auto", "never"):
        groups = CacheDataset(api.open_cache(folder), device="cuda", hold=hold)
        assert (groups.where == "cuda:0") == (hold == "auto")
        np.testing.assert_array_equal(groups.batch([5, 0]).x_BVFHWC.cpu().numpy(), held[[5, 0]])


@pytest.mark.parametrize("form", [FORMS[1], *(pytest.param(f, marks=pytest.mark.slow) for f in (FORMS[0], *FORMS[2:]))])
def test_cache_commands__from_preprocess_to_repair(world, dtsf, tmp_path, form):
    command = ["preprocess", "nucla", "--root", world / "data", "--limit", 12, "--workers", 1, "--shard-size", 4]
    dtsf.said(*command, "--format", form[0], "--compress", form[1], cwd=tmp_path)
    data, plain = api.open_cache(tmp_path / "cache"), api.open_cache(world / "cache")
    ids = [clip.id for clip in data.clips]
    assert len(ids) == 12
    for array in ("embeddings", "pictures", "frame_index"):
        np.testing.assert_array_equal(data.gather(array, ids), plain.gather(array, ids))
    found, wanted = ([one.records[i][1].model_copy(update={"row": 0}) for i in ids] for one in (data, plain))
    assert found == wanted
    shown = dtsf.said("cache", "info", cwd=tmp_path)
    assert all(words in shown for words in ("12 usable in 4 groups", "4 with 3", form[0]))
    assert dtsf.json("cache", "verify", "--deep", cwd=tmp_path)["damaged"] == []

    whole, name = snapshot(data.store.path), sorted(data.shards[1].files)[0]
    (data.store.path / name).write_bytes(whole[name][:-1] + bytes([whole[name][-1] ^ 1]))
    dtsf.said("cache", "verify", cwd=tmp_path)
    checked = dtsf("cache", "verify", "cache/nucla", "--deep", "--json", cwd=tmp_path)
    assert checked.returncode == 2
    (damage,) = json.loads(checked.stdout)["damaged"]
    assert (damage["shard"], damage["file"]) == (1, name)
    assert "checksum" in damage["reason"]
    assert "cache repair" in dtsf("cache", "verify", "--deep", cwd=tmp_path).stderr
    assert len(dtsf.json("cache", "repair", cwd=tmp_path)["datasets"]["nucla"]["done"]) == 1
    assert dtsf.json(*command, cwd=tmp_path)["already_done"] == 8
    assert snapshot(data.store.path) == whole
