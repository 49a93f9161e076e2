"""``dtsf synth nucla``: draw a small multi-view action dataset, as video files in N-UCLA's layout."""

from __future__ import annotations

import contextlib
import csv
import itertools
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from dtsf.errors import ConfigError, DataError
from dtsf.pipeline.datasets.synthetic_scene import ACTIONS, CAMERA_DEGREES, N_ROOMS, draw_clip
from dtsf.settings import Frozen

MAIN = "multiview_action_videos"


class SynthSummary(Frozen):
    """Numbers of drawn videos. ``collections``: folders for ``dtsf preprocess nucla --root``, by name."""

    out: str
    actions: int
    subjects: int
    views: int
    clips: int
    groups: int
    collections: dict[str, str]
    seconds: float


def synthesize_nucla(
    out: Path,
    *,
    subjects: int = 6,
    episodes: int = 3,
    bias: float | None = None,
    occlude: bool = False,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> SynthSummary:
    """Draw 10 actions by several subjects, filmed by three cameras 55 degrees apart. The last third of the subjects (at least
    one) are test subjects. ``OUT/videos.csv`` is a manifest; ``OUT/labels.csv`` names action, room and split of each video.

    ``bias``: fraction of training groups in the room of their action; None: rooms are random. The main collection then has only
    training subjects; ``_aligned`` and ``_conflict`` have the same test performances, in the room of their action or of another
    one. ``occlude``: add ``_occluded``: the test performances with a pillar in front of the actor in one view.

    Raises ConfigError: a number is out of range. DataError: ``out`` is not empty, or cannot be written.
    """
    if subjects < 2 or episodes < 1:
        raise ConfigError(f"--subjects {subjects} must be at least 2 and --episodes {episodes} at least 1")
    if bias is not None and not 0 <= bias <= 1:
        raise ConfigError(f"--bias {bias} must be from 0 to 1")
    started = time.monotonic()
    clips = _plan_clips(subjects, episodes, bias, occlude, seed)
    manifest = []
    for clip in clips:
        collection = clip["path"].split("/")[0].removeprefix(MAIN)
        group = f"a{clip['action']:02d}_s{clip['subject']:02d}_e{clip['episode']:02d}{collection}"
        row = {"path": clip["path"], "label": clip["action_name"], "group": group, "view": f"cam{clip['view']}"}
        manifest.append(row | {"subject": clip["subject"], "split": clip["split"]})
    with new_folder(out) as folder:
        for done, clip in enumerate(clips, 1):
            _write_avi(folder / clip["path"], draw_clip(clip, seed))
            on_progress(done, len(clips))
        for name, rows in (("labels.csv", clips), ("videos.csv", manifest)):
            write_rows(folder / name, rows)
    n_views, seconds = len(CAMERA_DEGREES), time.monotonic() - started
    counts = {"actions": len(ACTIONS), "views": n_views, "clips": len(clips), "groups": len(clips) // n_views}
    collections = {name: str(out / name) for name in sorted({clip["path"].split("/")[0] for clip in clips})}
    return SynthSummary(out=str(out), subjects=subjects, collections=collections, seconds=seconds, **counts)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder that becomes ``out`` at the end. Raises DataError: ``out`` is not empty, or cannot be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists and is not empty: remove it or choose another --out")
    temporary = out.absolute().with_name(f".{out.name}.tmp-{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table with the columns of its first row. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _plan_clips(subjects: int, episodes: int, bias: float | None, occlude: bool, seed: int) -> list[dict[str, Any]]:
    """Return the clips of all collections, as rows of ``labels.csv``."""
    first_test = subjects - max(1, subjects // 3) + 1
    clips = []
    for action, subject, episode in itertools.product(ACTIONS, range(1, subjects + 1), range(episodes)):
        own_room = list(ACTIONS).index(action)
        rng = np.random.default_rng((seed, 1, action, subject, episode))
        anywhere = int(rng.integers(N_ROOMS))
        elsewhere = (own_room + int(rng.integers(1, N_ROOMS))) % N_ROOMS
        hidden_view = int(rng.integers(len(CAMERA_DEGREES))) + 1
        in_own_room = bias is not None and rng.uniform() < bias
        rooms = {MAIN: own_room if in_own_room else anywhere if bias is None else elsewhere}
        is_test = subject >= first_test
        if is_test and bias is not None:
            rooms = {f"{MAIN}_aligned": own_room, f"{MAIN}_conflict": elsewhere}
        if is_test and occlude:
            rooms[f"{MAIN}_occluded"] = anywhere
        clips += [
            {
                "path": f"{name}/a{action:02d}/v{view:02d}_s{subject:02d}_e{episode:02d}.avi",
                "action": action,
                "action_name": ACTIONS[action][0],
                "subject": subject,
                "view": view,
                "episode": episode,
                "background": room,
                "occluded": int(name.endswith("_occluded") and view == hidden_view),
                "split": "test" if is_test else "train",
            }
            for name, room in rooms.items()
            for view in range(1, len(CAMERA_DEGREES) + 1)
        ]
    return clips


def _write_avi(path: Path, frames: np.ndarray) -> None:
    """Write MPEG-4 in AVI, which every decoder reads. Frames are (T, H, W, 3) uint8, 30 per second."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=Fraction(30))
        stream.width, stream.height = frames.shape[2], frames.shape[1]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.qmax = 6
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
