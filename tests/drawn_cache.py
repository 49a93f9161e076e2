"""A cache of drawn embeddings, without videos: small, quick to make, and learnable."""

import numpy as np
from cache_tools import list_clips, source

from dtsf.cache.layout import array_shapes
from dtsf.cache.records import Clip, ClipRecord, Verdict
from dtsf.cache.spec import CacheSpec, DatasetInfo, ShardRecord
from dtsf.cache.store import create_or_open, extend, write_shard


def draw(cache, name="drawn", kind="manifest", classes=3, subjects=(1, 2), takes=2, pixels=0, frames=16, seed=0):
    """Every class by every subject ``takes`` times before three cameras. ``pixels`` is the side of uint8 frames instead."""
    spec = CacheSpec(
        decoder="decord2 0",
        frames=frames,
        size=pixels or 96,
        grid=pixels or 6,
        encoder="pixels" if pixels else "e",
        weights_hash="0",
        channels=3 if pixels else 8,
        embedding_dtype="uint8" if pixels else "float16",
        picture_size=4,
    )
    clips = [
        Clip(
            id=f"a{label}_s{subject}_e{take}_v{view}",
            path=f"{label}-{subject}-{take}-{view}.avi",
            label=label,
            raw_label=str(label),
            group=f"a{label}_s{subject}_e{take}",
            view=view,
            subject=str(subject),
            setup=subject,
            split="train" if subject == subjects[0] else "test",
            background=f"room{(label + take) % 2}",
        )
        for label in range(classes)
        for subject in subjects
        for take in range(takes)
        for view in (1, 2, 3)
    ]
    rng = np.random.default_rng(seed)
    arrays = {
        array: rng.integers(0, 255, (len(clips), *shape)).astype(dtype)
        if np.dtype(dtype).kind in "iu"
        else rng.normal(size=(len(clips), *shape)).astype(dtype)
        for array, (shape, dtype) in array_shapes(spec).items()
    }
    if not pixels:
        for row, clip in enumerate(clips):
            # A class moves in cells of its own.
            wave = 4 * np.sin(np.linspace(0, 6, frames))[:, None, None]
            arrays["embeddings"][row, :, clip.label * 5 : clip.label * 5 + 5] += wave.astype(np.float16)
    info = DatasetInfo(
        dataset=kind,
        name=name,
        class_names=tuple(f"class {k}" for k in range(classes)),
        view_names=("1", "2", "3"),
    )
    create_or_open(cache / name, spec, info, len(clips), format="zarr", compress="none")
    extend(cache / name, 1)
    records = tuple(ClipRecord(source=source(clip), verdict=Verdict.OK, row=row) for row, clip in enumerate(clips))
    write_shard(
        cache / name,
        ShardRecord(shard=0, fingerprint=spec.fingerprint(), rows=len(clips), clips=records, files={}),
        arrays,
    )
    list_clips(cache / name, clips, info)
    return cache
