"""A cache of drawn embeddings, without videos: small, quick to make, and learnable."""

import numpy as np
from cache_tools import clip, list_clips, source

from dtsf.cache.layout import array_shapes
from dtsf.cache.records import ClipRecord, Status
from dtsf.cache.spec import CacheSpec, DatasetInfo, ShardRecord
from dtsf.cache.writer import create_or_open, extend, write_shard


def draw(cache, name="drawn", kind="manifest", classes=3, subjects=(1, 2), takes=2, pixels=0, frames=16, seed=0):
    """Every class by every subject ``takes`` times before three cameras. ``pixels`` is the side of uint8 frames instead."""
    if pixels:
        form = {"encoder": "pixels", "embedding_dtype": "uint8", "size": pixels, "grid": pixels, "channels": 3}
    else:
        form = {"encoder": "e", "embedding_dtype": "float16", "size": 96, "grid": 6, "channels": 8}
    spec = CacheSpec(
        decoder="decord2 0", frames=frames, weights_hash="0", picture_size=4, **form,
    )  # fmt: skip
    clips = [
        clip(
            f"a{label}_s{subject}_e{take}_v{view}", path=f"{label}-{subject}-{take}-{view}.avi",
            label=label, raw_label=str(label), group=f"a{label}_s{subject}_e{take}", view=view, subject=str(subject),
            setup=subject, split="train" if subject == subjects[0] else "test", background=f"room{(label + take) % 2}",
        )  # fmt: skip
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
        # A class moves in cells of its own.
        wave = 4 * np.sin(np.linspace(0, 6, frames))[:, None, None]
        for row, one in enumerate(clips):
            arrays["embeddings"][row, :, one.label * 5 : one.label * 5 + 5] += wave.astype(np.float16)
    names = tuple(f"class {k}" for k in range(classes))
    info = DatasetInfo(kind=kind, name=name, class_names=names, view_names=("1", "2", "3"))
    create_or_open(cache / name, spec, info, len(clips), format="zarr", compress="none")
    extend(cache / name, 1)
    records = tuple(ClipRecord(source=source(one), status=Status.OK, row=row) for row, one in enumerate(clips))
    shard = ShardRecord(shard=0, fingerprint=spec.fingerprint(), rows=len(clips), clips=records, files={})
    write_shard(cache / name, shard, arrays)
    list_clips(cache / name, clips, info)
    return cache
