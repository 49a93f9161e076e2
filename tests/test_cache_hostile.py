"""Caches from other people: nothing in them is executed, followed or trusted."""

import contextlib
import os
import pickle
import random
import shutil
import tracemalloc
import zlib

import numpy as np
import pytest
from make_cache import FORMS, SPEC, create, forge, info, make, snapshot

from dtsf.cache.check import repair, verify
from dtsf.cache.documents import file_record, open_handle, read_records
from dtsf.cache.formats import array_shapes
from dtsf.cache.reader import list_datasets, open_cached, open_dataset
from dtsf.cache.store import open_store
from dtsf.cache.writer import compact, convert, create_or_open
from dtsf.errors import CacheError

ARRAYS = list(array_shapes(SPEC))


def use(root):
    data = open_dataset(root)
    for array in ARRAYS:
        data.gather(array, [clip.id for clip in data.clips])
    found = verify(data.store, deep=True)
    assert found.ok, found.damaged


@pytest.mark.parametrize(
    "name", ["dtsf.json", "shards", "shards/00000.json", "embeddings", "embeddings/c/0", "embeddings/c/0/0/0/0", "published.json"]
)
def test_open_dataset__refuses_links(tmp_path, name):
    make(tmp_path / "cache/a")
    use(tmp_path / "cache")
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "cache/a" / name).rename(elsewhere)
    (tmp_path / "cache/a" / name).symlink_to(elsewhere)
    with pytest.raises((CacheError, AssertionError), match=r"link|no dataset"):
        use(tmp_path / "cache")


def test_cache__lists_and_writes_through_no_link(tmp_path):
    make(tmp_path / "private/a")
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/b").symlink_to(tmp_path / "private/a")
    assert list_datasets(tmp_path / "cache") == []
    with pytest.raises(CacheError, match="is a link"):
        open_cached(tmp_path / "cache/b")
    create(tmp_path / "cache/a")
    (tmp_path / "cache/a/embeddings/c").symlink_to(home)
    with pytest.raises(CacheError, match="link"):
        make(tmp_path / "cache/a")
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["clips"][0]["source"].update(path="../../etc/passwd"), "leaves the data root"),
        (lambda d: d["clips"][0]["source"].update(path="/etc/passwd"), "leaves the data root"),
        (lambda d: d.update(files={"../../secret": {"bytes": 1, "xxh3": "0"}, **d["files"]}), "names the files"),
        (lambda d: d["arrays"]["embeddings"].update(file="/etc/passwd"), "is not inside"),
        (lambda d: d["arrays"]["embeddings"].update(file="../b/embeddings/c/0/0/0/0"), "is not inside"),
        (lambda d: d["arrays"]["embeddings"].update(offset=1), "is not inside"),
        (lambda d: d["arrays"]["embeddings"].update(offset=2**63), "is not inside"),
        (lambda d: d["arrays"]["embeddings"].update(bytes=8), "has 8 bytes instead of"),
        (lambda d: d["arrays"].pop("pictures"), "names the arrays"),
        (lambda d: d.update(rows=10**12), "rows, a shard 3"),
        (lambda d: d["clips"][0].update(row=1), "belongs to two clips"),
        (lambda d: d["clips"][0].update(row=3), "has row 3"),
        (lambda d: d["clips"][0].update(row=-1), "has row -1"),
        (lambda d: d.update(shard=7), "has the number of shard 7"),
        (lambda d: d.update(fingerprint="0" * 16), "has fingerprint 0000"),
        (lambda d: d.update(surprise=1), "is damaged"),
        (lambda d: d["clips"][0].update(status="truncated"), "is truncated and has row 0"),
        (lambda d: d["clips"][0].update(status="__import__('os')"), "is damaged"),
        (lambda d: d["files"]["embeddings/c/0/0/0/0"].update(bytes=10**13), "10000000000000"),
    ],
)
def test_open_dataset__refuses_a_forged_record(tmp_path, change, message):
    make(tmp_path / "a")
    forge(tmp_path / "a/shards/00000.json", change)
    with pytest.raises(CacheError, match=message):
        use(tmp_path)


DTYPES = [{"embedding_dtype": word} for word in ("object", "O", "float64")]


@pytest.mark.parametrize("change", [*DTYPES, {"frames": 10**9}, {"frames": -1}, {"channels": 10**12}])
def test_open_dataset__refuses_a_forged_spec(tmp_path, change):
    make(tmp_path / "a")
    forge(tmp_path / "a/dtsf.json", lambda d: d["spec"].update(change))
    with pytest.raises(CacheError, match=r"is damaged|unknown"):
        use(tmp_path)


@contextlib.contextmanager
def memory_below(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sparse", [False, True])
def test_gather__refuses_a_claim_of_10_TB_before_memory_is_allocated(tmp_path, form, sparse):
    """All documents consistently claim 10 TB. The files have 10 KB, or are sparse."""
    spec = SPEC.model_copy(update={"frames": 4096, "grid": 256, "channels": 65536 // 64})
    make(tmp_path / "small/a", *form, shards=1)
    create_or_open(tmp_path / "a", spec, info(), 20, format=form[0], compress=form[1])
    claimed = {array: 20 * int(np.prod(s)) * d.itemsize for array, (s, d) in array_shapes(spec).items()}
    assert claimed["embeddings"] > 10e12
    for name in ("shards/00000.json", "catalog.json", *read_records(open_handle(tmp_path / "small/a"))[0].files):
        (tmp_path / "a" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "small/a" / name, tmp_path / "a" / name)

    def inflate(document):
        document["fingerprint"] = spec.fingerprint()
        for array, part in document["arrays"].items():
            part["bytes"] = claimed[array] if form[1] == "none" else part["bytes"]
            file = document["files"][part["file"]]
            file["bytes"] = max(file["bytes"], part["offset"] + part["bytes"])
        for name, file in document["files"].items() if sparse else ():
            os.truncate(tmp_path / "a" / name, file["bytes"])

    try:
        forge(tmp_path / "a/shards/00000.json", inflate)
    except OSError:
        pytest.skip("this file system holds no sparse file of 10 TB")
    data = open_dataset(tmp_path)
    with memory_below(50e6):
        with pytest.raises(CacheError, match=r"bytes instead of|GB of memory"):
            data.embeddings([clip.id for clip in data.clips])
        assert not data.hold()
        with pytest.raises(CacheError, match=r"bytes instead of|GB of memory|checksum"):
            convert(tmp_path / "a", tmp_path / "copy/a")
        assert form[1] != "none" or not verify(tmp_path / "a", deep=True).ok


@pytest.mark.parametrize("form", FORMS[2:])
def test_gather__does_not_unpack_a_bomb(tmp_path, form):
    """A compressed array with a valid checksum that unpacks to 256 MB."""
    from numcodecs.zstd import Zstd

    make(tmp_path / "a", *form, shards=1)
    bomb = Zstd(1).encode(bytes(1 << 28)) if form[0] == "zarr" else zlib.compress(bytes(1 << 28), 9)
    record = read_records(open_handle(tmp_path / "a"))[0]
    part = record.arrays["embeddings"]
    path = tmp_path / "a" / part.file
    data = path.read_bytes()[: part.offset] + bytes(bomb)
    path.write_bytes(data)

    def change(document):
        document["files"][part.file] = file_record(data).model_dump()
        document["arrays"] = {
            name: {"file": p["file"], "offset": min(p["offset"], part.offset), "bytes": len(bomb)} if p["file"] == part.file else p
            for name, p in document["arrays"].items()
        }

    forge(tmp_path / "a/shards/00000.json", change)
    data = open_dataset(tmp_path)
    with memory_below(5e6), pytest.raises(CacheError, match="instead of"):
        data.embeddings(["0-0"])


@pytest.mark.parametrize("name", ["dtsf.json", "zarr.json", "shards/00000.json", "embeddings/c/0/0/0/0"])
def test_open_dataset__does_not_open_a_pickle(tmp_path, name):
    make(tmp_path / "a")
    if name == "zarr.json":
        (tmp_path / "a/dtsf.json").unlink()

    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    (tmp_path / "a" / name).write_bytes(pickle.dumps(Harm()))
    with pytest.raises((CacheError, AssertionError)):
        use(tmp_path)
    assert not (tmp_path / "harm").exists()


def test_open_dataset__refuses_deep_nesting_huge_documents_and_pipes(tmp_path):
    make(tmp_path / "a")
    path = tmp_path / "a/shards/00000.json"
    path.write_text("[" * 200_000)
    with pytest.raises(CacheError, match="damaged"):
        use(tmp_path)
    os.truncate(path, 1 << 40)
    with pytest.raises(CacheError, match="more than"):
        use(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(CacheError, match="not a regular file"):
        use(tmp_path)
    path.unlink()
    (tmp_path / "a/dtsf.json").write_text("[" * 200_000)
    with pytest.raises(CacheError, match=r"no dataset|damaged"):
        use(tmp_path)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [25, pytest.param(300, marks=pytest.mark.slow)])
def test_verify__finds_flips_and_cuts(tmp_path, form, count):
    """Verify names the file. The reader raises an error or reads, and has no other effect."""
    folder = tmp_path / "a"
    make(folder, *form)
    whole = snapshot(folder)
    count = int(os.environ.get("EXAMPLES", count))
    generator = random.Random(count)
    for k in range(count):
        name = generator.choice(sorted(whole))
        data = bytearray(whole[name])
        if k % 4:
            data[generator.randrange(len(data))] ^= generator.randrange(1, 256)
        else:
            del data[generator.randrange(len(data)) :]
        (folder / name).write_bytes(data)
        with contextlib.suppress(CacheError):
            found = verify(folder, deep=True)
            assert any(damage.file in (name, "dtsf.json") for damage in found.damaged), (name, k, found)
        with contextlib.suppress(CacheError):
            opened = open_dataset(tmp_path)
            for array in ARRAYS:
                opened.gather(array, [clip.id for clip in opened.clips])
        (folder / name).write_bytes(whole[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["clips"][0]["clip"].update(label=9), "clip 0-0 has label 9, there are 2 classes"),
        (lambda d: d["clips"][0]["clip"].update(view=3), "clip 0-0 has view 3, there are 2"),
        (lambda d: d["clips"][0]["clip"].update(view=0), "is damaged"),
        (lambda d: d["clips"].append(d["clips"][0]), "has the clip 0-0 twice"),
        (lambda d: d["clips"][1]["clip"].update(group="g0-0"), "0-0 and 0-1 are both view 1 of group g0-0"),
        (lambda d: d["clips"][1]["clip"].update(group="g0-0", view=2, label=1), "group g0-0 has label 0 in 0-0 and 1 in 0-1"),
        (lambda d: d["clips"][0]["clip"].update(path="../../etc/passwd"), "leaves the data root"),
        (lambda d: d["info"].update(class_names=["x", "x"]), "names the class 'x' twice"),
        (lambda d: d["info"].update(view_names=["1", "1"]), "names the view '1' twice"),
        (lambda d: d["info"].update(class_names=[]), "there are 0 classes"),
        (lambda d: d["clips"][0].update(surprise=1), "is damaged"),
    ],
)
def test_read_catalog__a_forged_catalog_is_refused_and_found_by_verify(tmp_path, change, message):
    make(tmp_path / "a")
    forge(tmp_path / "a/catalog.json", change)
    with pytest.raises(CacheError, match=rf"catalog\.json.*{message}.*without decoding") as raised:
        open_dataset(tmp_path)
    found = verify(tmp_path / "a")
    assert [(d.shard, d.file, d.reason) for d in found.damaged] == [(None, "catalog.json", str(raised.value))]


@pytest.mark.parametrize("change", [{"key": "f" * 32}, {"key": "", "bytes": 8}])
def test_verify__finds_a_catalog_with_unknown_rows(tmp_path, change):
    make(tmp_path / "a")
    forge(tmp_path / "a/catalog.json", lambda d: d["clips"][0].update(change))
    found = verify(tmp_path / "a")
    assert [d.file for d in found.damaged] == ["catalog.json"]
    assert "of clip 0-0" in found.damaged[0].reason
    data = open_dataset(tmp_path)
    assert [(one.clip.id, one.status) for one in data.bad] == [("0-0", "waiting")]
    assert "0-0" not in {clip.id for clip in data.clips}


def test_gather__two_clips_may_share_a_row(tmp_path):
    make(tmp_path / "a")
    forge(tmp_path / "a/catalog.json", lambda d: d["clips"][0].update(key=d["clips"][1]["key"]))
    data = open_dataset(tmp_path)
    np.testing.assert_array_equal(data.embeddings(["0-0"]), data.embeddings(["0-1"]))
    assert verify(tmp_path / "a").ok


def test_write_lock__a_second_writer_is_refused(tmp_path):
    one, other = tmp_path / "a", tmp_path / "b/a"
    make(one)
    other.parent.mkdir()
    before = snapshot(tmp_path)
    with open_store(one).write_lock(), open_store(other).write_lock():
        for write, *folders in ((compact, one), (repair, one), (convert, one, other)):
            with pytest.raises(CacheError, match="another dtsf process is writing"):
                write(*folders)
    assert {name for name in snapshot(tmp_path).keys() ^ before.keys() if not name.endswith(".lock")} == set()
