"""Write and read a dataset; refusals name the next command."""

import errno
import os

import numpy as np
import pytest
from make_cache import SHARD_SIZE, SPEC, add_shard, info

from dtsf.cache.formats import array_shapes
from dtsf.cache.reader import open_dataset
from dtsf.cache.schema import CacheSpec, describe_difference
from dtsf.cache.writer import create_or_open
from dtsf.errors import CacheError, FingerprintError
from dtsf.files import write as commit
from dtsf.files.write import write_atomically


@pytest.fixture
def folder(tmp_path):
    create_or_open(tmp_path / "a", SPEC, info(), SHARD_SIZE)
    return tmp_path / "a"


def test_fingerprint__changes_with_every_field():
    assert SPEC.fingerprint() == CacheSpec.model_validate_json(SPEC.model_dump_json()).fingerprint()
    for field, value in SPEC.model_dump().items():
        other = SPEC.model_copy(update={field: value + 1 if isinstance(value, int) else value + "x"})
        assert other.fingerprint() != SPEC.fingerprint(), field
        assert field in describe_difference(SPEC, other)


def test_gather__returns_written_rows_in_any_order(folder):
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


def test_write_shard__a_chunk_is_raw_bytes_with_the_recorded_checksum(folder):
    import xxhash

    record, values = add_shard(folder, 0, ["a", "b", "c"])
    for name, expected in record.files.items():
        data = (folder / name).read_bytes()
        assert (len(data), xxhash.xxh3_64_hexdigest(data)) == (expected.bytes, expected.xxh3)
    assert (folder / "embeddings/c/0/0/0/0").read_bytes() == values["embeddings"].tobytes()


def test_gather__uses_the_newest_record_of_a_clip(folder):
    add_shard(folder, 0, ["a", "b"], seed=1)
    _, newer = add_shard(folder, 1, ["a"], bad=["b"], seed=2)
    data = open_dataset(folder.parent)
    np.testing.assert_array_equal(data.embeddings(["a"]), newer["embeddings"])
    with pytest.raises(CacheError, match="'b' has no row"):
        data.embeddings(["b"])


@pytest.mark.parametrize("damage", ["missing", "cut", "grown"])
def test_gather__names_a_damaged_chunk(folder, damage):
    add_shard(folder, 0, ["a"])
    path = folder / "embeddings/c/0/0/0/0"
    data = path.read_bytes()
    path.unlink() if damage == "missing" else path.write_bytes(data[:-1] if damage == "cut" else data + b"x")
    with pytest.raises(CacheError, match=r"shard 0.*embeddings/c/0"):
        open_dataset(folder.parent).embeddings(["a"])


def test_open_dataset__refusals_name_the_next_command(tmp_path):
    with pytest.raises(CacheError, match=r"no dataset in the cache .*dtsf preprocess"):
        open_dataset(tmp_path / "none")
    with pytest.raises(CacheError, match=r"no dataset in the cache.*dtsf preprocess"):
        open_dataset(tmp_path)
    for name in ("a", "b"):
        create_or_open(tmp_path / name, SPEC, info(name), SHARD_SIZE)
    with pytest.raises(CacheError, match=r"2 datasets \(a, b\).*--dataset"):
        open_dataset(tmp_path)
    with pytest.raises(CacheError, match=r"no dataset 'c'.*a, b"):
        open_dataset(tmp_path, "c")
    with pytest.raises(CacheError, match="no dataset '../a'"):
        open_dataset(tmp_path, "../a")
    with pytest.raises(CacheError, match="no shard yet"):
        open_dataset(tmp_path, "a")


def test_create_or_open__refuses_other_settings_and_names_them(folder):
    other = SPEC.model_copy(update={"size": 192})
    with pytest.raises(FingerprintError, match=r"size: 96 in the cache, 192 requested.*--name.*--overwrite"):
        create_or_open(folder, other, info(), SHARD_SIZE)
    with pytest.raises(CacheError, match="has the kind nucla, not ntu: choose another --name"):
        create_or_open(folder, SPEC, info().model_copy(update={"kind": "ntu"}), SHARD_SIZE)
    # Classes and views are in the catalog, which may change.
    create_or_open(folder, SPEC, info().model_copy(update={"class_names": ("z",)}), SHARD_SIZE)
    assert create_or_open(folder, SPEC, info(), 99).shard_size == SHARD_SIZE


def test_create_or_open__does_not_touch_a_foreign_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/thesis.txt").write_text("mine")
    with pytest.raises(CacheError, match="not a dtsf cache"):
        create_or_open(tmp_path / "a", SPEC, info(), SHARD_SIZE)
    assert (tmp_path / "a/thesis.txt").read_text() == "mine"


def test_write_atomically__a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(commit.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(CacheError, match=rf"{path}.*No space left.*Committed files are safe.*same command again"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_write_atomically__a_parent_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="cannot write"):
        write_atomically(tmp_path / "file/below", b"")
