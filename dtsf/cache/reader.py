"""Reading a cache at memory speed: rows are gathered from memory-mapped chunk files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dtsf.cache.zarr_store import array_shapes, chunk_file, is_dataset, read_attributes, read_records
from dtsf.errors import CacheError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dtsf.cache.records import Clip, ClipRecord
    from dtsf.cache.spec import CacheSpec, DatasetInfo

__all__ = ["CachedDataset", "list_datasets", "newest_records", "open_dataset"]


@dataclass(frozen=True)
class CachedDataset:
    """One data set of a cache, opened for reading."""

    folder: Path
    spec: CacheSpec
    info: DatasetInfo
    shard_size: int
    records: dict[str, tuple[int, ClipRecord]]
    """By clip id: the shard that holds it and what became of it. A later shard's record replaces an earlier one's."""

    @cached_property
    def clips(self) -> tuple[Clip, ...]:
        """Clips that have a row, in the order of their ids."""
        return tuple(record.clip for _, record in self._sorted if record.row is not None)

    @cached_property
    def bad(self) -> tuple[ClipRecord, ...]:
        """Records of the clips that could not be used."""
        return tuple(record for _, record in self._sorted if record.row is None)

    @cached_property
    def verdicts(self) -> dict[str, int]:
        """Number of clips by verdict."""
        return dict(sorted(Counter(record.verdict.value for _, record in self._sorted).items()))

    @property
    def _sorted(self) -> list[tuple[int, ClipRecord]]:
        return [self.records[key] for key in sorted(self.records)]

    def embeddings(self, ids: Sequence[str]) -> np.ndarray:
        """Embeddings of clips: (len(ids), F, G*G, C) float16."""
        return self._gather("embeddings", ids)

    def pictures(self, ids: Sequence[str]) -> np.ndarray:
        """Small RGB pictures of the same frames: (len(ids), F, h, w, 3) uint8."""
        return self._gather("pictures", ids)

    def frame_index(self, ids: Sequence[str]) -> np.ndarray:
        """Number of each frame in its video: (len(ids), F) int32."""
        return self._gather("frame_index", ids)

    def _gather(self, array: str, ids: Sequence[str]) -> np.ndarray:
        shape, dtype = array_shapes(self.spec)[array]
        out = np.empty((len(ids), *shape), dtype)
        places: dict[int, list[tuple[int, int]]] = {}
        for position, clip_id in enumerate(ids):
            shard, record = self.records.get(clip_id, (-1, None))
            if record is None or record.row is None:
                raise CacheError(f"clip {clip_id!r} has no row in {self.folder}")
            places.setdefault(shard, []).append((position, record.row))
        for shard, pairs in places.items():
            chunk = self._map(array, shard, shape, dtype)
            positions, rows = np.array(pairs).T
            out[positions] = chunk[rows]
        return out

    def _map(self, array: str, shard: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        path = self.folder / chunk_file(array, shard)
        expected = self.shard_size * int(np.prod(shape)) * dtype.itemsize
        try:
            held = path.stat().st_size
        except OSError as error:
            raise CacheError(
                f"shard {shard} is committed but {path} cannot be read ({error.strerror}): delete "
                f"{self.folder / 'shards' / f'{shard:05d}.json'} and run dtsf preprocess again to make it anew"
            ) from error
        if held != expected:
            raise CacheError(
                f"shard {shard}: {path} has {held} bytes instead of {expected}: delete "
                f"{self.folder / 'shards' / f'{shard:05d}.json'} and run dtsf preprocess again to make it anew"
            )
        return np.memmap(path, dtype, "r", shape=(self.shard_size, *shape))


def list_datasets(cache: Path) -> list[str]:
    """Names of the data sets in a cache; a hidden folder is one in the making."""
    if not cache.is_dir():
        return []
    return sorted(entry.name for entry in cache.iterdir() if not entry.name.startswith(".") and is_dataset(entry))


def open_dataset(cache: Path, name: str | None = None) -> CachedDataset:
    """Open a data set for reading.

    Args:
        cache: The cache's folder.
        name: Which data set; may be left out where the cache holds one.

    Raises:
        CacheError: No cache, empty, unknown name, or several data sets and none named.

    """
    names = list_datasets(cache)
    if not cache.is_dir():
        raise CacheError(f"no cache at {cache}: make one with dtsf preprocess DATASET --root DIR --cache {cache}")
    if not names:
        raise CacheError(f"the cache {cache} is empty: fill it with dtsf preprocess DATASET --root DIR --cache {cache}")
    if name is None and len(names) > 1:
        raise CacheError(
            f"the cache {cache} holds {len(names)} data sets ({', '.join(names)}): say which with --dataset NAME"
        )
    chosen = names[0] if name is None else name
    if chosen not in names:
        raise CacheError(f"no data set {chosen!r} in the cache {cache}; it holds {', '.join(names)}")
    folder = cache / chosen
    spec, info, shard_size = read_attributes(folder)
    dataset = CachedDataset(folder, spec, info, shard_size, newest_records(folder, spec, shard_size))
    if not dataset.clips:
        raise CacheError(
            f"{folder} has no usable clip ({dataset.verdicts or 'nothing is committed yet'}): run dtsf preprocess again"
        )
    return dataset


def newest_records(folder: Path, spec: CacheSpec, shard_size: int) -> dict[str, tuple[int, ClipRecord]]:
    """Every clip's newest record and its shard.

    Raises:
        CacheError: A record that cannot be true: another fingerprint, or a row outside its shard.

    """
    newest = {}
    for shard in read_records(folder):
        where = f"commit record of shard {shard.shard} in {folder}"
        if shard.fingerprint != spec.fingerprint():
            raise CacheError(
                f"{where} has fingerprint {shard.fingerprint}, the cache {spec.fingerprint()}: delete that record"
            )
        for record in shard.clips:
            if record.row is not None and not 0 <= record.row < min(shard.rows, shard_size):
                raise CacheError(f"{where}: clip {record.clip.id} has row {record.row}, the shard {shard.rows}")
            newest[record.clip.id] = (shard.shard, record)
    return newest
