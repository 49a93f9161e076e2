"""Caches for tests, without videos: tiny ones whose rows follow from a seed, and learnable ones."""

import json
import re
from pathlib import Path

import numpy as np
import xxhash

from dtsf.cache.catalog import CatalogDocument, read_catalog, write_catalog
from dtsf.cache.documents import CHECKSUM, open_handle, read_records
from dtsf.cache.formats import array_shapes
from dtsf.cache.schema import CacheSpec, CatalogEntry, Clip, ClipRecord, DatasetInfo, ShardRecord, Source
from dtsf.cache.status import Status
from dtsf.cache.writer import create_or_open, extend, write_shard

FORMS = [("zarr", "none"), ("hdf5", "none"), ("zarr", "zstd"), ("hdf5", "gzip")]
SPEC = CacheSpec(decoder="decord2 0", frames=2, size=96, grid=3, encoder="e", weights_hash="0", channels=4, picture_size=5)
SHARD_SIZE = 3
# For the datasets of draw.
SMALL_NETWORK = [
    'model.branch=[{input="motion", weight=0.67}, {input="dynamic", channels=8, weight=0.33}]',
    *("model.width=16", "model.depth=1", "model.occlusion_threshold=0.0", "train.lr=0.01"),
]


def info(name="a"):
    return DatasetInfo(kind="nucla", name=name, class_names=("x", "y"), view_names=("1", "2"))


def clip(name, **fields):
    defaults = {"path": f"{name}.avi", "label": 0, "raw_label": "1", "group": f"g{name}", "view": 1}
    return Clip(id=name, **defaults | fields)


def source(clip, **changes):
    """The source of a clip. Its content is its path."""
    part = {name: getattr(clip, name) for name in ("path", "start", "end", "first", "last", "fps")}
    content = xxhash.xxh3_128_hexdigest(clip.path.encode())
    return Source(**{**part, "bytes": 7, "mtime_ns": 9, "content_hash": content, **changes})


def list_clips(folder, clips, info, status=None):
    """Write the catalog, as preprocess does. Before its first shard the status is ``waiting``."""
    known = {"bytes": 7, "mtime_ns": 9, "status": status}
    entries = [CatalogEntry(clip=one, key=source(one).key, **known) for one in sorted(clips, key=lambda c: c.id)]
    write_catalog(open_handle(folder), CatalogDocument(info=info, clips=tuple(entries)))


def list_waiting(folder, shards):
    """Write the catalog of full shards that do not exist yet."""
    list_clips(folder, [clip(name) for shard in range(shards) for name in names(shard)], info(Path(folder).name), Status.WAITING)


def list_all(folder):
    """Add every clip with a record to the catalog."""
    dataset = open_handle(folder)
    document = read_catalog(dataset)
    entries = {entry.clip.id: entry for entry in document.clips} if document else {}
    for record in (record for shard in read_records(dataset) for record in shard.clips):
        one = clip(record.source.path.removesuffix(".avi"))
        entries.setdefault(one.id, CatalogEntry(clip=one, key=record.key, bytes=7, mtime_ns=9))
    clips = tuple(entry for _, entry in sorted(entries.items()))
    write_catalog(dataset, CatalogDocument(info=document.info if document else info(dataset.metadata.info.name), clips=clips))


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    return {name: (rng.normal(size=(n, *shape)) * 50).astype(dtype) for name, (shape, dtype) in array_shapes(SPEC).items()}


def shard_record(shard, names, bad=()):
    records = [ClipRecord(source=source(clip(name)), status=Status.OK, row=k) for k, name in enumerate(names)]
    records += [ClipRecord(source=source(clip(name)), status=Status.TRUNCATED, row=None, reason="cut") for name in bad]
    return ShardRecord(shard=shard, fingerprint=SPEC.fingerprint(), rows=len(names), clips=tuple(records), files={})


def write_full(folder, shard, seed=None):
    """Commit a full shard, without the catalog."""
    record, values = shard_record(shard, names(shard)), rows(SHARD_SIZE, seed=shard if seed is None else seed)
    return write_shard(open_handle(folder), record, values)


def create(folder, form=(None, None), spec=SPEC):
    """Make or open an empty dataset of a format and compression. Its name is the last part of its path or URL."""
    return create_or_open(folder, spec, info(Path(folder).name), SHARD_SIZE, format=form[0], compress=form[1])


def add_shard(folder, shard, names, bad=(), seed=0):
    dataset = open_handle(folder)
    extend(dataset, shard + 1)
    values = rows(len(names), seed)
    written = write_shard(dataset, shard_record(shard, names, bad), values)
    list_all(folder)
    return written, values


def names(shard):
    return [f"{shard}-{row}" for row in range(SHARD_SIZE)]


def make(folder, format="zarr", compress="none", shards=3):
    """Make a dataset of full shards: shard k has the clips k-0, k-1, k-2 from seed k. Return rows by clip id."""
    create(folder, (format, compress))
    values = {}
    for k in range(shards):
        _, made = add_shard(folder, k, names(k), seed=k)
        values |= {name: {array: made[array][row] for array in made} for row, name in enumerate(names(k))}
    return values


def with_checksum(text):
    """A changed document with a valid checksum, as an attacker would write it."""
    data = re.sub(rb'"checksum": ?"[0-9a-f]*"', b'"checksum": "' + b"0" * 16 + b'"', text.encode())
    return CHECKSUM.sub(xxhash.xxh3_64_hexdigest(data).encode(), data)


def forge(path, change):
    """Change a document and make its checksum valid."""
    document = json.loads(path.read_text())
    change(document)
    checksum = document.pop("checksum", "0" * 16)
    path.write_bytes(with_checksum(json.dumps({**document, "checksum": checksum})))


def race(path, writer, shards):
    """Commit all shards as one of two writers, each with its own values and order."""
    for shard in range(shards) if writer else reversed(range(shards)):
        extend(open_handle(path), shard + 1)
        write_full(path, shard, seed=100 * writer + shard)


def winners(data, shards):
    """The writer of each shard; the shard must be complete."""
    assert [clip.id for clip in data.clips] == sorted(name for shard in range(shards) for name in names(shard))
    found = []
    for shard in range(shards):
        cached = data.embeddings(names(shard))
        (winner,) = [w for w in (0, 1) if (cached == rows(SHARD_SIZE, seed=100 * w + shard)["embeddings"]).all()]
        assert (data.pictures(names(shard)) == rows(SHARD_SIZE, seed=100 * winner + shard)["pictures"]).all()
        found.append(winner)
    return found


def snapshot(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def draw(
    cache, name="drawn", kind="manifest", classes=3, subjects=(1, 2), takes=2, pixels=0, frames=16, seed=0, keep=lambda _: True
):
    """Make a learnable dataset: each class by each subject ``takes`` times in three views.

    ``pixels``: side of uint8 frames in place of embeddings. ``keep``: True for the clips to make.
    """
    if pixels:
        form = {"encoder": "pixels", "embedding_dtype": "uint8", "size": pixels, "grid": pixels, "channels": 3}
    else:
        form = {"encoder": "e", "embedding_dtype": "float16", "size": 96, "grid": 6, "channels": 8}
    spec = CacheSpec(decoder="decord2 0", frames=frames, weights_hash="0", picture_size=4, **form)
    clips = [
        clip(
            f"a{label}_s{subject}_e{take}_v{view}", path=f"{name}-{label}-{subject}-{take}-{view}.avi",
            label=label, raw_label=str(label), group=f"a{label}_s{subject}_e{take}", view=view,
            subject=str(subject) or None, setup=subject or None,
            split="train" if subject == subjects[0] else "test", background=f"room{(label + take) % 2}",
        )  # fmt: skip
        for label in range(classes)
        for subject in subjects
        for take in range(takes)
        for view in (1, 2, 3)
    ]
    clips = [one for one in clips if keep(one)]
    rng = np.random.default_rng(seed)
    arrays = {
        array: rng.integers(0, 255, (len(clips), *shape)).astype(dtype)
        if np.dtype(dtype).kind in "iu"
        else rng.normal(size=(len(clips), *shape)).astype(dtype)
        for array, (shape, dtype) in array_shapes(spec).items()
    }
    if not pixels:
        # Each class moves in its own cells.
        wave = 4 * np.sin(np.linspace(0, 6, frames))[:, None, None]
        for row, one in enumerate(clips):
            arrays["embeddings"][row, :, one.label * 5 : one.label * 5 + 5] += wave.astype(np.float16)
    class_names = tuple(f"class {k}" for k in range(classes))
    info = DatasetInfo(kind=kind, name=name, class_names=class_names, view_names=("1", "2", "3"))
    dataset = create_or_open(cache / name, spec, info, len(clips), format="zarr", compress="none")
    extend(dataset, 1)
    records = tuple(ClipRecord(source=source(one), status=Status.OK, row=row) for row, one in enumerate(clips))
    shard = ShardRecord(shard=0, fingerprint=spec.fingerprint(), rows=len(clips), clips=records, files={})
    write_shard(dataset, shard, arrays)
    list_clips(cache / name, clips, info)
    return cache
