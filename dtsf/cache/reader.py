"""Read a cache at memory speed: rows come from memory-mapped shards, or from memory. Summarise a dataset."""

from __future__ import annotations

import datetime
import mmap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dtsf.cache.catalog import match_rows, read_catalog, read_shards
from dtsf.cache.compare import Piece, digest_clips, make_pieces, remarks
from dtsf.cache.documents import DatasetHandle, is_dataset, open_handle, record_name, refuse_replaced
from dtsf.cache.formats import array_bytes, array_shapes
from dtsf.cache.schema import BadClip, CatalogDocument, Clip, ClipRecord, DatasetInfo, ShardRecord
from dtsf.cache.store import Location, Store, open_store
from dtsf.errors import CacheError
from dtsf.files.read import available_memory, refuse_unless_fits
from dtsf.names import tidy

LATE = 0.1  # a picture that begins more than so many seconds after its file is named by cache info


@dataclass(frozen=True)
class CachedDataset(DatasetHandle):
    """Dataset opened for reading. It can be used after a fork and sent to another process."""

    shards: dict[int, ShardRecord]
    catalog: CatalogDocument | None = None  # None before the first catalog is written
    records: dict[str, tuple[int, ClipRecord]] = field(default_factory=dict)
    """Shard and record of each clip, by clip id."""
    bad: tuple[BadClip, ...] = ()
    """Clips without a row, sorted by id."""
    damaged: tuple[int, ...] = ()
    """Damaged shards that the next ``preprocess`` makes again."""
    _shards: dict[tuple[str, int], np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    _views: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)
    _in_memory: set[str] = field(default_factory=set, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # Without maps and rows: the other process maps the same pages itself.
        return {**self.__dict__, "_shards": {}, "_views": {}, "_in_memory": set()}

    @property
    def info(self) -> DatasetInfo:
        """Kind, name, classes and views."""
        if self.catalog is not None:
            return self.catalog.info
        return DatasetInfo(**self.metadata.info.model_dump(), class_names=(), view_names=())

    @cached_property
    def clips(self) -> tuple[Clip, ...]:
        """Clips with a row, sorted by id."""
        bad = {one.clip.id for one in self.bad}
        entries = self.catalog.clips if self.catalog else ()
        return tuple(entry.clip for entry in entries if entry.clip.id not in bad and entry.clip.id in self.records)

    @cached_property
    def pieces(self) -> dict[str, Piece]:
        """Recording of each clip by clip id, to find copies."""
        return make_pieces(self.catalog, self.records)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Hash of what an experiment reads of each clip, by clip id."""
        return digest_clips(self.info, self.clips, self.records)

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Notes about the source, and remarks about its clips: copies, contradictions, names that look the same."""
        return (*self.catalog.notes, *remarks(self.catalog, self.records)) if self.catalog else ()

    @cached_property
    def verdicts(self) -> dict[str, int]:
        """Number of clips by status."""
        statuses = [self.records[clip.id][1].status.value for clip in self.clips]
        return dict(sorted(Counter([*statuses, *(bad.status.value for bad in self.bad)]).items()))

    @property
    def squares(self) -> dict[str, list[str]]:
        """Paths of the clips by what is said about their square; see :data:`dtsf.cache.status.CROP_NOTES`. Clips that are parts
        of one file have the line of the table too.
        """
        found: dict[str, list[str]] = {}
        of_path = Counter(clip.path for clip in self.clips)
        for clip in self.clips:
            for note in self.records[clip.id][1].crop_notes:
                found.setdefault(note, []).append(clip.place if of_path[clip.path] > 1 else clip.path)
        return dict(sorted(found.items()))

    @cached_property
    def catalog_hash(self) -> str:
        """Content hash of the catalog, which a run stores. Empty without a catalog."""
        return self.catalog.content_hash() if self.catalog else ""

    @property
    def where(self) -> str:
        """Origin of the next rows: ``memory``, ``mapped files`` or ``decompressed shards``."""
        if "embeddings" in self._in_memory:
            return "memory"
        return "mapped files" if self.metadata.compress == "none" else "decompressed shards"

    def embeddings(self, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Return embeddings of clips: (len(ids), F, G*G, C), float16 unless the spec has another dtype."""
        return self.gather("embeddings", ids, out)

    def pictures(self, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Return small RGB pictures of the same frames: (len(ids), F, h, w, 3) uint8."""
        return self.gather("pictures", ids, out)

    def frame_index(self, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Return the index of each frame in its video, in presentation order: (len(ids), F) int32."""
        return self.gather("frame_index", ids, out)

    def frame_time(self, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Return the time of each frame in seconds of its file, as a player shows it: (len(ids), F) float64. NaN where unknown."""
        return self.gather("frame_time", ids, out)

    def row_bytes(self, array: str = "embeddings") -> int:
        """Return the size of one row in bytes."""
        return array_bytes(self.metadata, array) // self.shard_size

    def gather(self, array: str, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Return the rows of clips in the order of ``ids``, which may repeat. ``out``: (len(ids), ...) array of the right dtype
        in C order; reusing one avoids page faults. Raises CacheError: an unknown clip, or a shard that does not match its record.
        """
        shape, dtype = array_shapes(self.spec)[array]
        if out is None:
            refuse_unless_fits(len(ids) * self.row_bytes(array), f"reading {len(ids)} clips of {self.store}")
            out = np.empty((len(ids), *shape), dtype)
        elif out.shape != (len(ids), *shape) or out.dtype != dtype or not out.flags.c_contiguous:
            raise CacheError(f"out must be {(len(ids), *shape)} {dtype} in C order, not {out.shape} {out.dtype}")
        views = self._views.setdefault(array, {})
        rows_1 = [views[clip_id] if clip_id in views else self._view(array, clip_id) for clip_id in ids]
        if rows_1:
            # One call for all rows: a Python loop takes a third of the copying time.
            np.concatenate(rows_1, out=out)
        return out

    def hold(self, array: str = "embeddings", *, share: float = 0.5) -> bool:
        """Read all rows into memory if they take at most ``share`` of the free memory. Return True if they are in memory."""
        if array in self._in_memory:
            return True
        ids = [clip.id for clip in self.clips]
        if len(ids) * self.row_bytes(array) > share * available_memory():
            return False
        # In file order, so that a disk reads sequentially.
        ids.sort(key=lambda clip_id: (self.records[clip_id][0], self.records[clip_id][1].row or 0))
        values = self.gather(array, ids)
        self._views[array] = {clip_id: values[row : row + 1] for row, clip_id in enumerate(ids)}
        self._in_memory.add(array)
        return True

    def _view(self, array: str, clip_id: str) -> np.ndarray:
        """Return one row as an array of length 1 without a copy, and keep it if its shard is kept."""
        shard, record = self.records.get(clip_id, (-1, None))
        if record is None or record.row is None:
            raise CacheError(f"clip {clip_id!r} has no row in {self.store}")
        view = self.shard_rows(array, shard)[record.row : record.row + 1]
        if (array, shard) in self._shards:
            self._views[array][clip_id] = view
        return view

    def shard_rows(self, array: str, shard: int) -> np.ndarray:
        """Return the rows of one shard with its padding, read-only, memory-mapped or decompressed."""
        if (array, shard) in self._shards:
            return self._shards[array, shard]
        try:
            rows, stays = self._open_shard(array, shard)
        except CacheError:
            refuse_replaced(self, self.shards[shard])
            raise
        refuse_replaced(self, self.shards[shard])
        if stays:
            self._shards[array, shard] = rows
        return rows

    def _open_shard(self, array: str, shard: int) -> tuple[np.ndarray, bool]:
        """Return the rows of one shard, and True if they may be kept."""
        shape, dtype = array_shapes(self.spec)[array]
        stored = self.shards[shard].arrays[array]
        expected = self.shards[shard].files[stored.file]
        path = self.store.local_path(stored.file, expected)
        hint = f"run dtsf cache repair {self.store}, then dtsf preprocess"
        try:
            with path.open("rb") as file:
                size = file.seek(0, 2)
                if size != expected.bytes:
                    raise CacheError(f"shard {shard}: {path} has {size} bytes instead of {expected.bytes}: {hint}")
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise CacheError(f"shard {shard} is committed but {path} cannot be read ({why}): {hint}") from error
        data, n_bytes = mapped[stored.offset : stored.offset + stored.bytes], array_bytes(self.metadata, array)
        if self.metadata.compress == "none":
            rows = np.frombuffer(data, dtype).reshape(self.shard_size, *shape)
        else:
            refuse_unless_fits(n_bytes, f"decompressing shard {shard} of {self.store}")
            rows = np.empty((self.shard_size, *shape), dtype)
            try:
                self.format.decode(data, rows)
            except CacheError as error:
                raise CacheError(f"shard {shard}: {path} has {error}: {hint}") from error
        return rows, self.metadata.compress == "none" or n_bytes * len(self.shards) < available_memory() // 2


def open_cached(path: Location | DatasetHandle) -> CachedDataset:
    """Open one dataset for reading, also without a usable clip. ``path``: its folder, URL or handle."""
    dataset = path if isinstance(path, DatasetHandle) else open_handle(path)
    shards, catalog = read_shards(dataset), read_catalog(dataset)
    records, bad = match_rows(catalog, shards.by_key)
    by_number = {shard.shard: shard for shard in shards.records}
    numbers = tuple(shard.shard for shard in shards.damaged)
    return CachedDataset(dataset.store, dataset.metadata, by_number, catalog, records, bad, numbers)


def list_datasets(cache: Location) -> list[str]:
    """Return the names of the datasets in a cache."""
    store = open_store(cache)
    return [name for name in store.folders() if is_dataset(store.below(name))]


def find_datasets(cache: Location, name: str | None = None, *, damaged: bool = False) -> list[Store]:
    """Return the stores of all datasets, or of one. ``damaged``: also without valid metadata. Raises CacheError: none."""
    store = open_store(cache)
    stores = [below for found in store.folders() if is_dataset(below := store.below(found), damaged=damaged)]
    if not stores:
        raise CacheError(f"no dataset in the cache {store}: run dtsf preprocess DATASET --root DIR --cache {store}")
    chosen = [one for one in stores if name is None or one.name in (name, tidy(name))]
    if not chosen:
        raise CacheError(f"no dataset {name!r} in the cache {store}: it has {', '.join(one.name for one in stores)}")
    return chosen


def open_dataset(cache: Location, name: str | None = None) -> CachedDataset:
    """Open one dataset of a cache. ``name``: needed if there are several. Raises CacheError: no such dataset, or no usable clip."""
    stores = find_datasets(cache, name)
    if len(stores) > 1:
        names = ", ".join(store.name for store in stores)
        raise CacheError(
            f"the cache {open_store(cache)} has {len(stores)} datasets ({names}): choose one with --dataset NAME"
        )
    data = open_cached(stores[0])
    if not data.clips:
        statuses = ", ".join(f"{n} {status}" for status, n in data.verdicts.items()) or "no shard yet"
        raise CacheError(f"{data.store} has no usable clip ({statuses}): run dtsf preprocess again")
    return data


def summarise(path: Location) -> dict[str, Any]:
    """Return the summary of a dataset, as ``dtsf cache info --json`` prints it. ``groups_by_views``: groups by number of views.
    ``views_differ_by``: 1 - shortest / longest view of a group. ``pictures_begin``: second at which the picture of a file
    begins, by path, if it is late. ``not_listed``: rows that the catalog does not name.
    """
    data = open_cached(path)
    info, shards = data.info, data.shards.values()
    views = Counter(clip.group for clip in data.clips)
    by_class, by_view = Counter(clip.label for clip in data.clips), Counter(clip.view for clip in data.clips)
    used = {(shard, record.row) for shard, record in data.records.values() if record.row is not None}
    unused = sum(shard.rows for shard in shards) - len(used)
    newest = max((data.store.modified(record_name(shard)) or 0.0 for shard in data.shards), default=0.0)
    seconds: dict[str, list[float]] = {}
    for clip in data.clips:
        record = data.records[clip.id][1]
        if record.duration:
            end = record.begin + record.duration
            seconds.setdefault(clip.group, []).append(min(clip.end or end, end) - max(clip.start or 0.0, record.begin))
    known = [lengths for lengths in seconds.values() if len(lengths) > 1 and max(lengths) > 0]
    shares = sorted(1 - min(lengths) / max(lengths) for lengths in known)
    lengths = {"groups": len(shares), "median": shares[len(shares) // 2], "largest": shares[-1]} if shares else None
    written = datetime.datetime.fromtimestamp(newest).astimezone().isoformat(" ", "minutes") if newest else None
    return {
        "place": str(data.store),
        "dataset": info.kind,
        **info.model_dump(mode="json", exclude={"kind"}),
        "clips": len(data.clips),
        "groups": len(views),
        "groups_by_views": dict(sorted(Counter(views.values()).items(), reverse=True)),
        "views_differ_by": lengths,
        "clips_by_class": {name: by_class[k] for k, name in enumerate(info.class_names)},
        "clips_by_view": {name: by_view[k] for k, name in enumerate(info.view_names, 1)},
        "verdicts": data.verdicts,
        "squares": data.squares,
        "pictures_begin": {clip.path: begin for clip in data.clips if (begin := data.records[clip.id][1].begin) > LATE},
        **data.metadata.model_dump(include={"format", "compress", "layout", "shard_size", "fingerprint"}),
        "shards": len(shards),
        "bytes": sum(file.bytes for shard in shards for file in shard.files.values()),
        "not_listed": unused,
        "not_listed_bytes": unused * sum(data.row_bytes(array) for array in array_shapes(data.spec)),
        "last_written": written,
        "redo": data.damaged,
        "catalog": data.catalog_hash,
        "notes": data.notes,
        "spec": data.spec.model_dump(mode="json"),
        "bad": [one.model_dump(mode="json") for one in data.bad],
    }
