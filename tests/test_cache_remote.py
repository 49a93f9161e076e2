"""A cache on an object store: an S3 server on loopback."""

import json
import multiprocessing
import os
import socket
import time

import numpy as np
import pytest
from helpers import exit_code, forked
from make_cache import FORMS, SHARD_SIZE, SPEC, add_shard, create, list_all, make, names, race, rows, snapshot, winners
from moto.server import ThreadedMotoServer

from dtsf.cache import remote
from dtsf.cache.check import repair, verify
from dtsf.cache.documents import open_handle, read_records
from dtsf.cache.reader import list_datasets, open_dataset, summarise
from dtsf.cache.remote import RemoteStore
from dtsf.cache.store import open_store
from dtsf.cache.writer import convert
from dtsf.errors import CacheError, FingerprintError


@pytest.fixture(scope="module")
def server():
    made = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    made.start()
    yield "http://{}:{}".format(*made.get_host_and_port())
    made.stop()


@pytest.fixture
def bucket(server, tmp_path, monkeypatch):
    """URL of an empty bucket, configured by environment variables only."""
    import s3fs

    account = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    places = {"AWS_ENDPOINT_URL": server, "NO_PROXY": "127.0.0.1", "DTSF_COPIES": str(tmp_path / "copies")}
    for key, value in (account | places).items():
        monkeypatch.setenv(key, value)
    name = f"b{time.time_ns()}"
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}/caches"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("form", [FORMS[0], pytest.param(FORMS[3], marks=pytest.mark.slow)])
def test_s3__write_resume_read_verify_repair(bucket, tmp_path, form):
    url = f"{bucket}/a"
    create(url, form)
    assert list_datasets(bucket) == ["a"]
    add_shard(url, 0, names(0), seed=0)
    # A writer died before its record: the shard does not exist, and is written again.
    (record,) = read_records(open_handle(url))
    open_store(url).write(min(record.files).replace("00000", "00001").replace("c/0", "c/1"), b"half")
    assert read_records(open_handle(url)) == [record]
    with pytest.raises(FingerprintError, match="size: 96 in the cache, 192 requested"):
        create(url, spec=SPEC.model_copy(update={"size": 192}))
    create(url)
    for shard in (1, 2):
        add_shard(url, shard, names(shard), seed=shard)
    make(tmp_path / "local/a", *form)
    for name, data in snapshot(tmp_path / "local/a").items():
        assert open_store(url).read(name) == data, name
    assert verify(url, deep=True).ok
    data = open_dataset(bucket)

    def read():
        assert (data.embeddings(names(0)) == rows(SHARD_SIZE, seed=0)["embeddings"]).all()

    assert exit_code(forked(read)) == 0
    for shard in range(3):
        np.testing.assert_array_equal(data.embeddings(names(shard)), rows(SHARD_SIZE, seed=shard)["embeddings"])
    copies = snapshot(tmp_path / "copies")
    assert copies
    assert data.hold()
    np.testing.assert_array_equal(open_dataset(bucket).pictures(names(1)), rows(SHARD_SIZE, seed=1)["pictures"])
    assert set(copies) <= set(snapshot(tmp_path / "copies"))
    victim = sorted(read_records(open_handle(url))[1].files)[0]
    whole = open_store(url).read(victim)
    open_store(url).write(victim, whole[:-1] + bytes([whole[-1] ^ 1]))
    found = verify(url, deep=True)
    assert [(d.shard, d.file) for d in found.damaged] == [(1, victim)]
    repair(url)
    page = summarise(url)
    assert (page["clips"], page["redo"]) == (6, (1,))
    add_shard(url, 1, names(1), seed=1)
    assert verify(url, deep=True).ok
    assert open_store(url).read(victim) == whole


def test_store__that_takes_the_connection_and_stays_silent_ends_at_the_deadline(bucket, monkeypatch):
    import s3fs

    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("DTSF_STORE_TIMEOUT", "0.5")
        s3fs.S3FileSystem.clear_instance_cache()
        started = time.monotonic()
        with pytest.raises(CacheError, match=r"does not answer within 0.5 s.*DTSF_STORE_TIMEOUT"):
            open_store(bucket).read("dtsf.json")
        assert time.monotonic() - started < 5


@pytest.mark.parametrize("text", ["x", "0", "-1", "nan", "inf"])
def test_store__refuses_a_wrong_deadline(bucket, monkeypatch, text):
    monkeypatch.setenv("DTSF_STORE_TIMEOUT", text)
    with pytest.raises(CacheError, match=f"DTSF_STORE_TIMEOUT='{text}': give seconds"):
        open_store(bucket).read("dtsf.json")


def test_local_path__refuses_an_object_with_another_checksum(bucket):
    url = f"{bucket}/a"
    create(url)
    add_shard(url, 0, names(0))
    name = "embeddings/c/0/0/0/0"
    whole = open_store(url).read(name)
    open_store(url).write(name, bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(CacheError, match="does not match its checksum"):
        open_dataset(bucket).embeddings(["0-0"])
    open_store(url).write(name, whole + b"x")
    with pytest.raises(CacheError, match=f"{len(whole) + 1} bytes instead of {len(whole)}"):
        open_dataset(bucket).embeddings(["0-0"])


def test_convert__to_s3_and_back(bucket, tmp_path):
    make(tmp_path / "here/a")
    assert convert(tmp_path / "here/a", f"{bucket}/a", format="hdf5", compress="gzip") == 3
    assert convert(f"{bucket}/a", tmp_path / "back/a", format="zarr", compress="none") == 3
    there, back = snapshot(tmp_path / "here/a"), snapshot(tmp_path / "back/a")
    del there["published.json"], back["published.json"]
    assert there == back


def test_s3__one_of_two_writers_wins_each_shard(bucket):
    url = f"{bucket}/a"
    create(url)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=race, args=(url, writer, 4)) for writer in (0, 1)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    list_all(url)
    assert verify(url, deep=True).ok
    assert len(winners(open_dataset(bucket), 4)) == 4
    assert not [name for name in open_store(url).files("shards") if name.endswith(".claim")]


@pytest.mark.parametrize("step", range(2))
def test_create_or_open__another_run_makes_the_dataset_meanwhile(bucket, monkeypatch, step):
    """Before the first PUT, and between it and the next claim."""
    url, puts = f"{bucket}/a", []
    write, make_new = RemoteStore.write, RemoteStore.create

    def meanwhile(put):
        def call(store, name, data):
            puts.append(name)
            if len(puts) == step + 1:
                create(url)
                add_shard(url, 0, names(0))
            return put(store, name, data)

        return call

    monkeypatch.setattr(RemoteStore, "write", meanwhile(write))
    monkeypatch.setattr(RemoteStore, "create", meanwhile(make_new))
    create(url)
    assert len(puts) > step
    assert verify(url, deep=True).ok
    assert len(open_dataset(bucket).clips) == SHARD_SIZE


def test_claim__is_taken_over_from_a_dead_writer(bucket, monkeypatch):
    url = f"{bucket}/a"
    create(url)
    claim = "shards/00000.json.claim"
    # A dead process of this machine is detected at once, also if its number is reused.
    for process in ("999999999:1", f"{os.getpid()}:1"):
        open_store(url).write(claim, json.dumps({"host": socket.gethostname(), "process": process}).encode())
        begun = time.monotonic()
        with open_store(url).claim("shards/00000.json"):
            pass
        assert time.monotonic() - begun < 30
    # For another machine, wait until the lease ends.
    monkeypatch.setattr(remote, "LEASE_S", 1.0)
    open_store(url).write(claim, json.dumps({"host": "elsewhere", "process": "1:1"}).encode())
    begun = time.monotonic()
    add_shard(url, 0, names(0))
    assert time.monotonic() - begun > 1
    assert open_store(url).size(claim) is None


def test_open_dataset__names_a_missing_store(bucket):
    for url, message in (("s3://no-such-bucket-of-dtsf/cache", r"cannot|no dataset"), ("nonsense://x/y", "cannot")):
        with pytest.raises(CacheError, match=message):
            open_dataset(url)


def test_cache_command__accepts_a_url(bucket, dtsf, tmp_path):
    make(tmp_path / "here/a")
    done = dtsf.json("cache", "convert", "here", f"{bucket}/x", cwd=tmp_path)
    assert done == {"target": f"{bucket}/x", "shards_written": {"a": 3}}
    assert dtsf.json("cache", "verify", f"{bucket}/x", "--deep", cwd=tmp_path)["ok"] is True
    assert dtsf.json("cache", "info", f"{bucket}/x", cwd=tmp_path)["datasets"][0]["clips"] == 9
