"""What the tests of the cache share: a tiny data set whose rows follow from a seed."""

import json
import re

import numpy as np
import xxhash

from dtsf.cache.catalog import CatalogDocument, CatalogEntry, read_catalog, write_catalog
from dtsf.cache.documents import read_metadata, read_records
from dtsf.cache.layout import array_shapes
from dtsf.cache.records import Clip, ClipRecord, Source, Status
from dtsf.cache.seal import TAIL
from dtsf.cache.spec import CacheSpec, DatasetInfo, ShardRecord
from dtsf.cache.writer import create_or_open, extend, write_shard

FORMS = [("zarr", "none"), ("hdf5", "none"), ("zarr", "zstd"), ("hdf5", "gzip")]
SPEC = CacheSpec(
    decoder="decord2 0", frames=2, size=96, grid=3, encoder="e", weights_hash="0", channels=4, picture_size=5
)
SHARD_SIZE = 3


def info(name="a"):
    return DatasetInfo(kind="nucla", name=name, class_names=("x", "y"), view_names=("1", "2"))


def clip(name, **words):
    usual = {"path": f"{name}.avi", "label": 0, "raw_label": "1", "group": f"g{name}", "view": 1}
    return Clip(id=name, **usual | words)


def source(clip, **changes):
    """What a clip was computed from; its content is its path."""
    part = {name: getattr(clip, name) for name in ("path", "start", "end", "first", "last", "fps")}
    content = xxhash.xxh3_128_hexdigest(clip.path.encode())
    return Source(**{**part, "bytes": 7, "mtime_ns": 9, "content_hash": content, **changes})


def list_clips(folder, clips, info, status=None):
    """Write the catalog, as preprocess does: before its work with the status ``waiting``."""
    known = {"bytes": 7, "mtime_ns": 9, "status": status}
    listed = [CatalogEntry(clip=one, key=source(one).key, **known) for one in sorted(clips, key=lambda c: c.id)]
    write_catalog(folder, CatalogDocument(info=info, clips=tuple(listed)))


def list_all(folder):
    """List every clip that a record has a row or a status for, beside those that are listed."""
    metadata = read_metadata(folder)
    shards = read_records(folder, metadata)
    held = read_catalog(folder)
    known = {entry.clip.id: entry for entry in held.clips} if held else {}
    for shard in shards:
        for record in shard.clips:
            one = clip(record.source.path.removesuffix(".avi"))
            known.setdefault(one.id, CatalogEntry(clip=one, key=record.key, bytes=7, mtime_ns=9))
    clips = [entry for _, entry in sorted(known.items())]
    write_catalog(folder, CatalogDocument(info=held.info if held else info(metadata.info.name), clips=tuple(clips)))


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=(n, *shape)) * 50).astype(dtype) for name, (shape, dtype) in array_shapes(SPEC).items()
    }


def shard_record(shard, names, bad=()):
    records = [ClipRecord(source=source(clip(name)), status=Status.OK, row=k) for k, name in enumerate(names)]
    records += [ClipRecord(source=source(clip(name)), status=Status.TRUNCATED, row=None, reason="cut") for name in bad]
    return ShardRecord(shard=shard, fingerprint=SPEC.fingerprint(), rows=len(names), clips=tuple(records), files={})


def add_shard(folder, shard, names, bad=(), seed=0):
    extend(folder, shard + 1)
    values = rows(len(names), seed)
    written = write_shard(folder, shard_record(shard, names, bad), values)
    list_all(folder)
    return written, values


def names(shard):
    """The clips of a full shard."""
    return [f"{shard}-{row}" for row in range(SHARD_SIZE)]


def make(folder, format="zarr", compress="none", shards=3):
    """A data set of full shards: shard k holds the clips k-0, k-1, k-2 from seed k. Returns rows by clip id."""
    create_or_open(folder, SPEC, info(folder.name), SHARD_SIZE, format=format, compress=compress)
    values = {}
    for k in range(shards):
        _, made = add_shard(folder, k, names(k), seed=k)
        values |= {name: {array: made[array][row] for array in made} for row, name in enumerate(names(k))}
    return values


def reseal(text):
    """Make a changed document consistent with itself again, as somebody who means harm would."""
    data = re.sub(rb'"checksum": ?"[0-9a-f]*"', b'"checksum": "' + b"0" * 16 + b'"', text.encode())
    found = TAIL.search(data)
    return data[: found.start(1)] + xxhash.xxh3_64_hexdigest(data).encode() + data[found.end(1) :]


def forge(path, change):
    """Change a document and checksum it again."""
    document = json.loads(path.read_text())
    change(document)
    checksum = document.pop("checksum", "0" * 16)
    path.write_bytes(reseal(json.dumps({**document, "checksum": checksum})))


def race(place, writer, shards):
    """Commit all shards, each of two writers with values of its own, in its own order."""
    for shard in range(shards) if writer else reversed(range(shards)):
        extend(place, shard + 1)
        write_shard(place, shard_record(shard, names(shard)), rows(SHARD_SIZE, seed=100 * writer + shard))


def winners(data, shards):
    """Who committed each shard, whole."""
    assert [clip.id for clip in data.clips] == sorted(name for shard in range(shards) for name in names(shard))
    found = []
    for shard in range(shards):
        held = data.embeddings(names(shard))
        (winner,) = [w for w in (0, 1) if (held == rows(SHARD_SIZE, seed=100 * w + shard)["embeddings"]).all()]
        assert (data.pictures(names(shard)) == rows(SHARD_SIZE, seed=100 * winner + shard)["pictures"]).all()
        found.append(winner)
    return found


def snapshot(folder):
    """Bytes of every file; a lock has none that matter."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
