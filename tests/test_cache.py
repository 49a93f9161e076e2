"""Datasets in both formats: rows, records, conversion, and access by other programs."""

import errno
import json
import os
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from make_cache import FORMS, SHARD_SIZE, SPEC, add_shard, create, forge, info, make, rows, shard_record, snapshot

from dtsf.cache import reader
from dtsf.cache.check import verify
from dtsf.cache.documents import open_handle, read_records
from dtsf.cache.formats import array_shapes
from dtsf.cache.reader import open_dataset
from dtsf.cache.schema import CacheSpec, FilePart, describe_difference
from dtsf.cache.store import open_store
from dtsf.cache.writer import convert, create_or_open, extend, write_shard
from dtsf.errors import CacheError, FingerprintError
from dtsf.files import write as commit
from dtsf.files.write import write_atomically

ARRAYS = list(array_shapes(SPEC))


def check(data, values, arrays=ARRAYS):
    assert [clip.id for clip in data.clips] == sorted(values)
    order = [*sorted(values, reverse=True), next(iter(values))]
    for array in arrays:
        np.testing.assert_array_equal(data.gather(array, order), [values[name][array] for name in order])


@pytest.mark.parametrize(("format_", "compress"), FORMS)
def test_gather__is_equal_in_every_format(tmp_path, format_, compress):
    values = make(tmp_path / "a", format_, compress)
    data = open_dataset(tmp_path)
    assert data.where == ("mapped files" if compress == "none" else "decompressed shards")
    check(data, values)
    held = open_dataset(tmp_path)
    assert held.hold()
    assert held.where == "memory"
    check(held, values)
    with pytest.raises(CacheError, match="clip 'none' has no row"):
        held.embeddings(["none"])
    assert verify(tmp_path / "a", deep=True).ok
    make(tmp_path / "plain/a")
    same = {"files": {}, "arrays": {}, "checksum": ""}
    ours, theirs = (
        [record.model_copy(update=same) for record in read_records(open_handle(root))]
        for root in (tmp_path / "a", tmp_path / "plain/a")
    )
    assert ours == theirs


@pytest.mark.parametrize(("format_", "compress"), FORMS)
def test_dataset__opens_in_other_programs(tmp_path, format_, compress, monkeypatch):
    values = make(tmp_path / "a", format_, compress, shards=2)
    extend(open_handle(tmp_path / "a"), 3)
    monkeypatch.chdir("/")
    file = h5py.File(tmp_path / "a/dataset.h5") if format_ == "hdf5" else zarr.open_group(tmp_path / "a", mode="r")
    for array in ARRAYS:
        assert file[array].shape[0] == 3 * SHARD_SIZE
        assert file[array].attrs["units"]
        np.testing.assert_array_equal(file[array][: 2 * SHARD_SIZE], [row[array] for row in values.values()])
    assert np.isnan(file["embeddings"][2 * SHARD_SIZE :]).all()
    assert (file["frame_index"][2 * SHARD_SIZE :] == -1).all()
    metadata = file.attrs["dtsf"]
    if format_ == "zarr":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            listed = zarr.open_group(tmp_path / "a", mode="r")
            assert {name: array.shape[0] for name, array in listed.arrays()} == dict.fromkeys(ARRAYS, 3 * SHARD_SIZE)
        assert metadata["fingerprint"] == SPEC.fingerprint()
        assert all(file[array].metadata.dimension_names[0] == "clip" for array in ARRAYS)
        return
    assert json.loads(metadata)["fingerprint"] == SPEC.fingerprint()
    file.close()
    record = read_records(open_handle(tmp_path / "a"))[1]
    with h5py.File(tmp_path / "a/shards/00001.h5") as file:
        np.testing.assert_array_equal(file["pictures"][0], values["1-0"]["pictures"])
        assert compress == "gzip" or file["pictures"].id.get_offset() == record.arrays["pictures"].offset


@pytest.mark.parametrize("layout", [1, 2, 3, 4, "schema"])
def test_open_dataset__another_layout_is_refused_with_the_next_command(tmp_path, layout):
    make(tmp_path / "a", shards=1)
    change = {"spec": {"schema_version": 9}} if layout == "schema" else {"layout": layout}
    forge(tmp_path / "a/dtsf.json", lambda document: document.update(change))
    if layout == 1:
        group = json.loads((tmp_path / "a/zarr.json").read_text())
        del group["attributes"]["dtsf"]["layout"]
        (tmp_path / "a/zarr.json").write_text(json.dumps(group))
        (tmp_path / "a/dtsf.json").unlink()
    before = snapshot(tmp_path)
    for refuse in (lambda: open_dataset(tmp_path), lambda: create(tmp_path / "a")):
        with pytest.raises(CacheError, match=f"{layout} .*reads layout 5.*dtsf preprocess --overwrite"):
            refuse()
    assert not verify(tmp_path / "a").ok
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(("form", "other"), [(FORMS[k], FORMS[(k + step) % 4]) for k in range(4) for step in (1, 2)])
def test_convert__keeps_rows_and_records_and_restores_every_byte(tmp_path, form, other):
    values = make(tmp_path / "one/a", *form)
    assert convert(tmp_path / "one/a", tmp_path / "two/a", format=other[0], compress=other[1]) == 3
    check(open_dataset(tmp_path / "two"), values)
    assert verify(tmp_path / "two/a", deep=True).ok
    assert convert(tmp_path / "two/a", tmp_path / "three/a", format=form[0], compress=form[1]) == 3
    there, back = snapshot(tmp_path / "one/a"), snapshot(tmp_path / "three/a")
    del there["published.json"], back["published.json"]
    assert there == back
    assert convert(tmp_path / "one/a", tmp_path / "two/a", format=other[0], compress=other[1]) == 0


def test_convert__another_dtype_changes_the_fingerprint(tmp_path):
    values = make(tmp_path / "one/a")
    convert(tmp_path / "one/a", tmp_path / "wide/a", dtype="float32")
    wide = open_dataset(tmp_path / "wide")
    assert wide.spec.embedding_dtype == "float32"
    assert wide.spec.fingerprint() != SPEC.fingerprint()
    gathered = wide.embeddings(["2-1"])
    assert gathered.dtype == np.float32
    np.testing.assert_array_equal(gathered[0], values["2-1"]["embeddings"].astype(np.float32))
    convert(tmp_path / "wide/a", tmp_path / "narrow/a", dtype="float16")
    check(open_dataset(tmp_path / "narrow"), values)
    with pytest.raises(CacheError, match="float32 in the cache, float16 requested"):
        create(tmp_path / "wide/a")
    big, spec = tmp_path / "big/a", wide.spec
    values = rows(1) | {"embeddings": np.full((1, *array_shapes(spec)["embeddings"][0]), 1e6, np.float32)}
    record = shard_record(0, ["x"]).model_copy(update={"fingerprint": spec.fingerprint()})
    write_shard(create(big, spec=spec), record, values)
    with pytest.raises(CacheError, match="beyond float16"):
        convert(big, tmp_path / "small/a", dtype="float16")
    with pytest.raises(CacheError, match="cannot become float64"):
        convert(big, tmp_path / "small2/a", dtype="float64")


def test_convert__refuses_damage_and_itself(tmp_path):
    make(tmp_path / "a")
    with pytest.raises(CacheError, match="onto itself"):
        convert(tmp_path / "a", tmp_path / "x/../a")
    path = tmp_path / "a/embeddings/c/1/0/0/0"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CacheError, match=r"embeddings/c/1.*checksum.*repair"):
        convert(tmp_path / "a", tmp_path / "b")
    with pytest.raises(CacheError, match="zarr has no compression 'gzip'"):
        convert(tmp_path / "a", tmp_path / "c", compress="gzip")


def test_gather__writes_into_a_given_array_and_hold_refuses_rows_that_do_not_fit(tmp_path, monkeypatch):
    values = make(tmp_path / "a")
    data = open_dataset(tmp_path)
    for _ in range(2):
        out = np.empty((2, *array_shapes(SPEC)["embeddings"][0]), "<f2")
        assert data.embeddings(["2-2", "0-0"], out) is out
        np.testing.assert_array_equal(out, [values["2-2"]["embeddings"], values["0-0"]["embeddings"]])
        data.hold()
    for wrong in (out[:1], out.astype("<f4"), np.empty((2, 9, 2, 4), "<f2").transpose(0, 2, 1, 3)):
        with pytest.raises(CacheError, match="out must be"):
            data.embeddings(["2-2", "0-0"], wrong)
    data = open_dataset(tmp_path)
    before, needed = len(pickle.dumps(data)), len(data.clips) * data.row_bytes()
    monkeypatch.setattr(reader, "available_memory", lambda: 2 * needed - 1)
    assert not data.hold()
    assert data.where == "mapped files"
    monkeypatch.setattr(reader, "available_memory", lambda: 2 * needed)
    assert data.hold()
    assert len(pickle.dumps(data)) == before


def test_open_dataset__imports_no_heavy_library(tmp_path):
    make(tmp_path / "a")
    code = (
        "import sys; from pathlib import Path; from dtsf.cache.reader import open_dataset\n"
        f"d = open_dataset(Path({str(tmp_path)!r})); d.embeddings([d.clips[0].id])\n"
        "print([m for m in ('zarr', 'h5py', 'torch', 'fsspec', 'dask') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_open_store__accepts_a_url_as_a_path():
    assert str(open_store(Path("s3://bucket/a/b"))) == str(open_store("s3://bucket/a/b/")) == "s3://bucket/a/b"
    assert open_store("file:///tmp/x").path == Path("/tmp/x")
    assert open_store("plain/folder").path == Path("plain/folder")


def test_fingerprint__changes_with_every_field():
    assert SPEC.fingerprint() == CacheSpec.model_validate_json(SPEC.model_dump_json()).fingerprint()
    for field, value in SPEC.model_dump().items():
        other = SPEC.model_copy(update={field: value + 1 if isinstance(value, int) else value + "x"})
        assert other.fingerprint() != SPEC.fingerprint(), field
        assert field in describe_difference(SPEC, other)


def test_gather__returns_the_newest_row_of_each_clip(tmp_path):
    folder = tmp_path / "a"
    create(folder)
    _, first = add_shard(folder, 0, ["a", "b", "c"], seed=1)
    _, second = add_shard(folder, 1, ["d"], bad=["e"], seed=2)
    data = open_dataset(tmp_path)
    assert [c.id for c in data.clips] == ["a", "b", "c", "d"]
    assert [r.clip.id for r in data.bad] == ["e"]
    assert data.verdicts == {"ok": 4, "truncated": 1}
    for name in ("embeddings", "pictures", "frame_index"):
        held = {**dict(zip("abc", first[name], strict=True)), "d": second[name][0]}
        gathered = getattr(data, name)(["d", "b", "b", "a"])
        assert gathered.dtype == array_shapes(SPEC)[name][1]
        np.testing.assert_array_equal(gathered, [held[k] for k in "dbba"])
    _, newer = add_shard(folder, 2, ["a"], bad=["b"], seed=2)
    data = open_dataset(tmp_path)
    np.testing.assert_array_equal(data.embeddings(["a"]), newer["embeddings"])
    # A row counts, also if the same file could not be read later.
    np.testing.assert_array_equal(data.embeddings(["b"])[0], first["embeddings"][1])
    with pytest.raises(CacheError, match="'e' has no row"):
        data.embeddings(["e"])


def test_gather__names_a_damaged_chunk(tmp_path):
    make(tmp_path / "a", shards=1)
    path = tmp_path / "a/embeddings/c/0/0/0/0"
    data = path.read_bytes()
    for damaged in (data[:-1], data + b"x", None):
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with pytest.raises(CacheError, match=r"shard 0.*embeddings/c/0"):
            open_dataset(tmp_path).embeddings(["0-0"])


def test_open_dataset__refusals_name_the_next_command(tmp_path):
    for cache in (tmp_path / "none", tmp_path):
        with pytest.raises(CacheError, match=r"no dataset in the cache .*dtsf preprocess"):
            open_dataset(cache)
    for name in ("a", "b"):
        create(tmp_path / name)
    for name, message in (
        (None, r"2 datasets \(a, b\).*--dataset"),
        ("c", r"no dataset 'c'.*a, b"),
        ("../a", "no dataset '../a'"),
        ("a", "no shard yet"),
    ):
        with pytest.raises(CacheError, match=message):
            open_dataset(tmp_path, name)


def test_create_or_open__refuses_other_settings_and_names_them(tmp_path):
    folder = tmp_path / "a"
    create(folder)
    other = SPEC.model_copy(update={"size": 192})
    with pytest.raises(FingerprintError, match=r"size: 96 in the cache, 192 requested.*--name.*--overwrite"):
        create(folder, spec=other)
    with pytest.raises(CacheError, match="has the kind nucla, not ntu: choose another --name"):
        create_or_open(folder, SPEC, info().model_copy(update={"kind": "ntu"}), SHARD_SIZE)
    for options, message in (
        ({"format": "hdf5"}, "has --format zarr, not hdf5.*convert"),
        ({"compress": "zstd"}, "has --compress none, not zstd"),
    ):
        with pytest.raises(CacheError, match=message):
            create_or_open(folder, SPEC, info(), SHARD_SIZE, **options)
    with pytest.raises(CacheError, match="unknown format 'csv': there are zarr, hdf5"):
        create_or_open(folder.with_name("b"), SPEC, info("b"), SHARD_SIZE, format="csv")
    # Classes and views are in the catalog, which may change.
    create_or_open(folder, SPEC, info().model_copy(update={"class_names": ("z",)}), SHARD_SIZE)
    assert create_or_open(folder, SPEC, info(), 99).shard_size == SHARD_SIZE
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    with pytest.raises(CacheError, match="not a dtsf cache"):
        create(tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "mine"


def test_write_atomically__a_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(CacheError, match="cannot write"):
        write_atomically(path / "below", b"")
    monkeypatch.setattr(commit.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(CacheError, match=rf"{path}.*No space left.*Committed files are safe.*same command again"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_part__has_every_field_and_is_that_of_the_copy():
    given = {"start": 1.0, "end": 2.5, "first": 3, "last": 4, "fps": 25.0}
    given |= {"region": (0.0, 0.0, 1.0, 0.5), "ignore": ((0.0, 0.0, 9.0, 9.0),)}
    assert {"path", *given} == {*FilePart.model_fields}
    whole = FilePart(path="a/B.MP4")
    assert (whole.part, whole.model_copy(update={"path": "a.b/c"}).part) == (".mp4", "")
    for name, value in given.items():
        assert whole.model_copy(update={name: value}).part == f".mp4@{name}={value!r}"
    assert whole.part == ".mp4"
