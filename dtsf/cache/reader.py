"""Reading a cache at memory speed: rows are gathered from memory-mapped shards, or from memory when they are held there."""

from __future__ import annotations

import mmap
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.catalog import join, newest_records, read_catalog
from dtsf.cache.documents import is_dataset, read_marks, read_metadata, read_records, storage_format
from dtsf.cache.layout import array_shapes, part_bytes
from dtsf.cache.spec import DatasetInfo
from dtsf.cache.store import LocalStore, open_store
from dtsf.errors import CacheError
from dtsf.files.memory import available_memory, refuse_unless_fits

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dtsf.cache.catalog import CatalogDocument
    from dtsf.cache.records import BadClip, Clip, ClipRecord
    from dtsf.cache.remote import RemoteStore
    from dtsf.cache.spec import CacheSpec, DatasetMetadata, ShardRecord


@dataclass(frozen=True)
class CachedDataset:
    """One data set of a cache, opened for reading. Safe to use after a fork and to send to another process."""

    place: LocalStore | RemoteStore
    metadata: DatasetMetadata
    shards: dict[int, ShardRecord]
    catalog: CatalogDocument | None
    """What is true now; None where nothing was listed yet."""
    records: dict[str, tuple[int, ClipRecord]]
    """By id of a listed clip: the shard that holds its row, and what became of its bytes."""
    bad: tuple[BadClip, ...] = ()
    """Listed clips that have no row, in the order of their ids."""
    _shards: dict[tuple[str, int], np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    _views: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)
    _held: set[str] = field(default_factory=set, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # Maps and values stay behind: the other process maps the same pages itself.
        return {**self.__dict__, "_shards": {}, "_views": {}, "_held": set()}

    @property
    def folder(self) -> Path | RemoteStore:
        """Where it is."""
        return self.place.path if isinstance(self.place, LocalStore) else self.place

    @property
    def spec(self) -> CacheSpec:
        """What identifies it."""
        return self.metadata.spec

    @property
    def info(self) -> DatasetInfo:
        """What it holds: classes and views by their numbers."""
        if self.catalog is not None:
            return self.catalog.info
        return DatasetInfo(kind=self.metadata.info.kind, name=self.metadata.info.name, class_names=(), view_names=())

    @property
    def shard_size(self) -> int:
        """Rows of a whole shard."""
        return self.metadata.shard_size

    @cached_property
    def clips(self) -> tuple[Clip, ...]:
        """Clips that have a row, in the order of their ids."""
        without = {bad.clip.id for bad in self.bad}
        listed = self.catalog.clips if self.catalog else ()
        return tuple(entry.clip for entry in listed if entry.clip.id not in without and entry.clip.id in self.records)

    @cached_property
    def verdicts(self) -> dict[str, int]:
        """Number of listed clips by status; see :class:`.records.BadClip` for those that have none."""
        words = [self.records[clip.id][1].status.value for clip in self.clips]
        return dict(sorted(Counter([*words, *(bad.status for bad in self.bad)]).items()))

    @cached_property
    def catalog_hash(self) -> str:
        """What a trained run keeps: see :meth:`.catalog.CatalogDocument.digest`."""
        return self.catalog.digest() if self.catalog else ""

    def embeddings(self, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Embeddings of clips: (len(ids), F, G*G, C), float16 unless the spec says otherwise."""
        return self.gather("embeddings", ids, out)

    def pictures(self, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Small RGB pictures of the same frames: (len(ids), F, h, w, 3) uint8."""
        return self.gather("pictures", ids, out)

    def frame_index(self, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Number of each frame in its video, in the order of presentation: (len(ids), F) int32."""
        return self.gather("frame_index", ids, out)

    def frame_time(self, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Seconds of each frame from the first shown one: (len(ids), F) float64; NaN where it is unknown."""
        return self.gather("frame_time", ids, out)

    def row_bytes(self, array: str = "embeddings") -> int:
        """Bytes of one clip's row."""
        return part_bytes(self.metadata, array) // self.shard_size

    def gather(self, array: str, ids: Sequence[str], out: np.ndarray | None = None) -> np.ndarray:
        """Rows of clips, in the order of ``ids``.

        Args:
            array: ``embeddings``, ``pictures``, ``frame_index`` or ``frame_time``.
            ids: Of clips that have a row; an id may come more than once.
            out: Where to put them: (len(ids), ...), C order, the array's dtype. A new array if left out; giving one saves the
                time that the kernel takes to hand out its pages.

        Raises:
            CacheError: An unknown clip, or a shard that is not what its record says.
        """
        shape, dtype = array_shapes(self.spec)[array]
        if out is None:
            refuse_unless_fits(len(ids) * self.row_bytes(array), f"reading {len(ids)} clips of {self.place}")
            out = np.empty((len(ids), *shape), dtype)
        elif out.shape != (len(ids), *shape) or out.dtype != dtype or not out.flags.c_contiguous:
            raise CacheError(f"out must be {(len(ids), *shape)} {dtype} in C order, not {out.shape} {out.dtype}")
        views = self._views.setdefault(array, {})
        rows_1 = [views[clip_id] if clip_id in views else self._view(array, clip_id) for clip_id in ids]
        if rows_1:
            # One call copies them all: a loop in Python costs as much as a third of the copying.
            np.concatenate(rows_1, out=out)
        return out

    def _view(self, array: str, clip_id: str) -> np.ndarray:
        """One row as an array of one, kept where its shard is: a look into the map, no copy."""
        shard, record = self.records.get(clip_id, (-1, None))
        if record is None or record.row is None:
            raise CacheError(f"clip {clip_id!r} has no row in {self.place}")
        opened = self._shards.get((array, shard))
        if opened is None:
            opened = self._open(array, shard)
        view = opened[record.row : record.row + 1]
        if (array, shard) in self._shards:
            self._views[array][clip_id] = view
        return view

    def rows(self, array: str, shard: int) -> np.ndarray:
        """The rows in use of one shard, in the order in which they are stored. Not to be written to."""
        opened = self._shards.get((array, shard))
        return (self._open(array, shard) if opened is None else opened)[: self.shards[shard].rows]

    def hold(self, array: str = "embeddings", *, share: float = 0.5) -> bool:
        """Read all rows into memory, if they take no more than ``share`` of what is free; True if they are there."""
        if array in self._held:
            return True
        ids = [clip.id for clip in self.clips]
        if len(ids) * self.row_bytes(array) > share * available_memory():
            return False
        # In the order of the files, so that a disk reads forward.
        ids.sort(key=lambda clip_id: (self.records[clip_id][0], self.records[clip_id][1].row or 0))
        values = self.gather(array, ids)
        self._views[array] = {clip_id: values[row : row + 1] for row, clip_id in enumerate(ids)}
        self._held.add(array)
        return True

    @property
    def where(self) -> str:
        """Where the next rows come from: ``memory``, ``mapped files`` or ``decompressed shards``."""
        if "embeddings" in self._held:
            return "memory"
        return "mapped files" if self.metadata.compress == "none" else "decompressed shards"

    def _open(self, array: str, shard: int) -> np.ndarray:
        """Rows of one shard. Mapped, or decompressed by the codec that Zarr and HDF5 use themselves."""
        shape, dtype = array_shapes(self.spec)[array]
        record = self.shards[shard]
        part = record.arrays[array]
        path = self.place.file(part.file, record.files[part.file])
        n_bytes = part_bytes(self.metadata, array)
        hint = f"run dtsf cache repair {self.place}, then dtsf preprocess again to make it anew"
        try:
            with path.open("rb") as file:
                held = file.seek(0, 2)
                if held != record.files[part.file].bytes:
                    raise CacheError(
                        f"shard {shard}: {path} has {held} bytes instead of {record.files[part.file].bytes}: {hint}"
                    )
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError) as error:
            raise CacheError(
                f"shard {shard} is committed but {path} cannot be read ({getattr(error, 'strerror', None) or error}): {hint}"
            ) from error
        stored = mapped[part.offset : part.offset + part.bytes]
        if self.metadata.compress == "none":
            rows = np.frombuffer(stored, dtype).reshape(self.shard_size, *shape)
            self._shards[array, shard] = rows
            return rows
        refuse_unless_fits(n_bytes, f"decompressing shard {shard} of {self.place}")
        rows = np.empty((self.shard_size, *shape), dtype)
        try:
            storage_format(self.metadata.format, self.metadata.compress).decode(stored, rows)
        except CacheError as error:
            raise CacheError(f"shard {shard}: {path} holds {error}: {hint}") from error
        if n_bytes * len(self.shards) < available_memory() // 2:
            self._shards[array, shard] = rows
        return rows


def list_datasets(cache: Path | str) -> list[str]:
    """Names of the data sets in a cache; a hidden folder is one in the making, a link is none."""
    place = open_store(cache)
    return [name for name in place.folders() if is_dataset(place.below(name))]


def open_dataset(cache: Path | str, name: str | None = None) -> CachedDataset:
    """Open a data set for reading.

    Args:
        cache: The cache's folder, or the URL of one on an object store.
        name: Which data set; may be left out where the cache holds one.

    Raises:
        CacheError: No cache, empty, unknown name, or several data sets and none named.
    """
    place = open_store(cache)
    names = list_datasets(cache)
    if isinstance(place, LocalStore) and not place.path.is_dir():
        raise CacheError(f"no cache at {place}: make one with dtsf preprocess DATASET --root DIR --cache {place}")
    if not names:
        raise CacheError(f"the cache {place} is empty: fill it with dtsf preprocess DATASET --root DIR --cache {place}")
    if name is None and len(names) > 1:
        raise CacheError(
            f"the cache {place} holds {len(names)} data sets ({', '.join(names)}): say which with --dataset NAME"
        )
    chosen = names[0] if name is None else name
    if chosen not in names:
        raise CacheError(f"no data set {chosen!r} in the cache {place}; it holds {', '.join(names)}")
    dataset = open_place(place.below(chosen))
    if not dataset.clips:
        raise CacheError(
            f"{dataset.place} has no usable clip ({dataset.verdicts or 'nothing is committed yet'}): run dtsf preprocess again"
        )
    return dataset


def open_place(place: LocalStore | RemoteStore) -> CachedDataset:
    """Open the data set at a place, also one without a usable clip."""
    metadata = read_metadata(place)
    shards = read_records(place, metadata)
    catalog = read_catalog(place)
    records, bad = join(catalog, newest_records(shards, read_marks(place, metadata)))
    return CachedDataset(place, metadata, {shard.shard: shard for shard in shards}, catalog, records, bad)
