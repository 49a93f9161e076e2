"""A data set of the cache: what is written is read, and what cannot be is refused with the way out."""

import errno
import os

import numpy as np
import pytest
from cache_tools import SHARD_SIZE, SPEC, add_shard, info

from dtsf.cache.layout import array_shapes
from dtsf.cache.reader import open_dataset
from dtsf.cache.spec import CacheSpec, describe_difference
from dtsf.cache.writer import create_or_open
from dtsf.cache.zarr_format import chunk_file
from dtsf.errors import CacheError, FingerprintError
from dtsf.files import write as commit
from dtsf.files.write import write_atomically


@pytest.fixture
def folder(tmp_path):
    create_or_open(tmp_path / "a", SPEC, info(), SHARD_SIZE)
    return tmp_path / "a"


def test_fingerprint_follows_every_field():
    assert SPEC.fingerprint() == CacheSpec.model_validate_json(SPEC.model_dump_json()).fingerprint()
    for field, value in SPEC.model_dump().items():
        other = SPEC.model_copy(update={field: value + 1 if isinstance(value, int) else value + "x"})
        assert other.fingerprint() != SPEC.fingerprint(), field
        assert field in describe_difference(SPEC, other)


def test_round_trip_in_any_order(folder):
    _, first = add_shard(folder, 0, ["a", "b", "c"], seed=1)
    _, second = add_shard(folder, 1, ["d"], bad=["e"], seed=2)
    data = open_dataset(folder.parent)
    assert [c.id for c in data.clips] == ["a", "b", "c", "d"]
    assert [r.clip.id for r in data.bad] == ["e"]
    assert data.verdicts == {"ok": 4, "truncated": 1}
    for name in ("embeddings", "pictures", "frame_index"):
        held = {**dict(zip("abc", first[name], strict=True)), "d": second[name][0]}
        gathered = getattr(data, name)(["d", "b", "b", "a"])
        assert gathered.dtype == array_shapes(SPEC)[name][1]
        np.testing.assert_array_equal(gathered, [held[k] for k in "dbba"])


def test_chunk_file_is_raw_bytes_of_the_recorded_size_and_sum(folder):
    import xxhash

    record, values = add_shard(folder, 0, ["a", "b", "c"])
    for name, held in record.files.items():
        data = (folder / name).read_bytes()
        assert (len(data), xxhash.xxh3_64_hexdigest(data)) == (held.bytes, held.xxh3)
    assert (folder / chunk_file("embeddings", 0)).read_bytes() == values["embeddings"].tobytes()


def test_newest_record_of_a_clip_wins(folder):
    add_shard(folder, 0, ["a", "b"], seed=1)
    _, newer = add_shard(folder, 1, ["a"], bad=["b"], seed=2)
    data = open_dataset(folder.parent)
    np.testing.assert_array_equal(data.embeddings(["a"]), newer["embeddings"])
    with pytest.raises(CacheError, match="'b' has no row"):
        data.embeddings(["b"])


@pytest.mark.parametrize("damage", ["missing", "cut", "grown"])
def test_damaged_chunk_is_named(folder, damage):
    add_shard(folder, 0, ["a"])
    path = folder / chunk_file("embeddings", 0)
    data = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(data[:-1] if damage == "cut" else data + b"x")
    with pytest.raises(CacheError, match=r"shard 0.*embeddings/c/0"):
        open_dataset(folder.parent).embeddings(["a"])


def test_open_refusals(tmp_path):
    with pytest.raises(CacheError, match=r"no cache at .*dtsf preprocess"):
        open_dataset(tmp_path / "none")
    with pytest.raises(CacheError, match=r"is empty.*dtsf preprocess"):
        open_dataset(tmp_path)
    for name in ("a", "b"):
        create_or_open(tmp_path / name, SPEC, info(name), SHARD_SIZE)
    with pytest.raises(CacheError, match=r"2 data sets \(a, b\).*--dataset"):
        open_dataset(tmp_path)
    with pytest.raises(CacheError, match=r"no data set 'c'.*a, b"):
        open_dataset(tmp_path, "c")
    with pytest.raises(CacheError, match="no data set '../a'"):
        open_dataset(tmp_path, "../a")
    with pytest.raises(CacheError, match="nothing is committed yet"):
        open_dataset(tmp_path, "a")


def test_other_settings_are_refused_with_the_difference(folder):
    other = SPEC.model_copy(update={"size": 192})
    with pytest.raises(FingerprintError, match=r"size: 96 in the cache, 192 asked for.*--name.*--overwrite"):
        create_or_open(folder, other, info(), SHARD_SIZE)
    with pytest.raises(CacheError, match="holds nucla, this is ntu: choose another --name"):
        create_or_open(folder, SPEC, info().model_copy(update={"kind": "ntu"}), SHARD_SIZE)
    # Which classes and views there are is not its identity: the catalog says it, and may say another thing tomorrow.
    create_or_open(folder, SPEC, info().model_copy(update={"class_names": ("z",)}), SHARD_SIZE)
    assert create_or_open(folder, SPEC, info(), 99).shard_size == SHARD_SIZE


def test_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/thesis.txt").write_text("mine")
    with pytest.raises(CacheError, match="not a dtsf cache"):
        create_or_open(tmp_path / "a", SPEC, info(), SHARD_SIZE)
    assert (tmp_path / "a/thesis.txt").read_text() == "mine"


def test_full_disk_keeps_the_old_file_and_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(commit.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(CacheError, match=rf"{path}.*No space left.*committed so far is safe.*same command again"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_parent_that_is_a_file_is_a_cache_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot write"):
        write_atomically(tmp_path / "file/below", b"")
