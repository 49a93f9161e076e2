"""Frames of stage 1 against a player: numbered frames in codecs x containers x GOP x B-frames x cuts x rates.

Every frame shows its own number as nine black or white squares. The program ffmpeg (not the library in PyAV) decodes each file
in order, as a player does. The requested frames are at the centres of equal shares of that time. Usual scripts are compared:
decord's ``get_batch``, OpenCV's ``CAP_PROP_POS_FRAMES``, PyAV's ``seek`` without decoding on to the frame, torchcodec in its exact
mode.

    python benchmarks/frames.py --json
    python benchmarks/frames.py --only avi,cut --keep DIR
    python benchmarks/frames.py --only avi,cut --keep DIR --draw-only    # JSON: the frames that a player shows, by file
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from frames_drawn import CASES, Case, draw

from dtsf.errors import VideoError
from dtsf.pipeline.video.decode import decode_clip

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = 96
UNTIMED = {".avi", ".h264", ".hevc", ".m2v", ".m4v"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--only", default="", help="parts of names, joined by commas")
    parser.add_argument("--keep", type=Path, help="folder for the drawn files; existing files are not drawn again")
    parser.add_argument("--draw-only", action="store_true", help="draw the files, and print their frames as JSON")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    words = [word for word in arguments.only.split(",") if word]
    cases = [case for case in CASES if not words or any(word in case.name for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        files, not_drawn = draw_all(cases, arguments.keep or Path(folder), arguments.frames)
        if arguments.draw_only:
            print(json.dumps(files))
            return
        document = read_all(files, arguments.keep or Path(folder), arguments.frames, peers=not arguments.no_peers)
    document["not_drawn"] = not_drawn
    if arguments.json:
        print(json.dumps({key: value for key, value in document.items() if key != "rows"}))
        return
    readers = ["dtsf", *document["peers"]]
    print("| file | " + " | ".join(readers) + " |\n|" + " --- |" * (len(readers) + 1))
    for name, found in document["rows"].items():
        if any(found[reader] != "0" for reader in readers):
            print(f"| {name} | " + " | ".join(found[reader] for reader in readers) + " |")
    print(json.dumps({key: value for key, value in document.items() if key != "rows"}, indent=1))


def draw_all(cases: list[Case], folder: Path, n_frames: int) -> tuple[dict[str, Any], list[str]]:
    """Draw the files. Return the ``shown`` and ``expected`` frame numbers by name, and the names that ffmpeg cannot write."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {}
    not_drawn = []
    for case in cases:
        path = folder / case.name
        shown = read_player(path, case) if path.exists() or draw(case, path) else []
        if shown:
            files[case.name] = {"shown": shown, "expected": expected_frames(case, path, shown, n_frames)}
        else:
            not_drawn.append(case.name)
    return files, not_drawn


def read_all(files: dict[str, Any], folder: Path, n_frames: int, *, peers: bool) -> dict[str, Any]:
    """Read all files with every reader, and count wrong frames."""
    readers: dict[str, Callable[[Path, int], list[int]]] = {"dtsf": read_dtsf}
    if peers:
        readers |= {"decord": read_decord, "pyav_seek": read_pyav_seek}
        for module, package, read in (
            ("cv2", "opencv-python-headless", read_opencv),
            ("torchcodec", "torchcodec", read_torchcodec),
        ):
            if importlib.util.find_spec(module):
                readers[{"cv2": "opencv"}.get(module, module)] = read
            else:
                print(f"{module} is not installed and is left out: pip install {package}", file=sys.stderr)
    totals = {name: Counter(wrong_files=0, wrong_frames=0, refused=0) for name in readers}
    rows: dict[str, dict[str, str]] = {}
    for file, found in files.items():
        rows[file] = {}
        for name, read in readers.items():
            try:
                numbers = read(folder / file, n_frames)
            except Exception as error:  # noqa: BLE001 - another reader may raise anything
                totals[name]["refused"] += 1
                rows[file][name] = "refused"
                if name == "dtsf":
                    print(f"{file}: {error}", file=sys.stderr)
                continue
            wrong = sum(a != b for a, b in zip(numbers, found["expected"], strict=True))
            totals[name]["wrong_frames"] += wrong
            totals[name]["wrong_files"] += wrong > 0
            rows[file][name] = str(wrong)
            if name == "dtsf" and wrong:
                print(f"{file}: {numbers} instead of {found['expected']}", file=sys.stderr)
    return {
        "files": len(rows),
        "frames": n_frames * len(rows),
        **totals["dtsf"],
        "peers": {name: dict(total) for name, total in totals.items() if name != "dtsf"},
        "rows": rows,
    }


def expected_frames(case: Case, path: Path, shown: list[int], n_frames: int) -> list[int]:
    """Return the numbers of the frames that a player shows at the centres of equal shares of the clip's time."""
    begin = len(shown) - 1
    while begin and (shown[begin - 1] < shown[begin] or case.is_garbled):
        begin -= 1
    shown = shown[begin:]  # pictures before the first key frame are noise that may look like a number
    # A file without presentation times shows one frame after the other, also across cuts.
    ranks = (
        np.arange(len(shown))
        if (path.suffix in UNTIMED and case.seconds is None) or case.is_garbled
        else np.array(shown)
    )
    times, end = case.times[ranks], case.times[ranks[-1]] + case.last
    moments = times[0] + (np.arange(n_frames) + 0.5) * (end - times[0]) / n_frames
    return [shown[k] for k in np.searchsorted(times, moments + 1e-6, "right") - 1]


def read_player(path: Path, case: Case) -> list[int]:
    """Return the numbers of all frames in presentation order; pictures without a readable number are skipped."""
    words = ["ffmpeg", "-v", "quiet", "-i", path, "-map", f"0:v:{case.stream}", "-fps_mode", "passthrough"]
    words += ["-vf", "scale=96:96", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, check=False).stdout
    numbers = [number_of(picture) for picture in np.frombuffer(raw, np.uint8).reshape(-1, 96, 96, 3)]
    return [number for number in numbers if number >= 0]


def number_of(square: np.ndarray) -> int:
    """Return the number that a square picture shows, or -1 if it is not clear."""
    third = len(square) / 3
    values = np.array(
        [
            square[
                int((y + 0.3) * third) : int((y + 0.7) * third), int((x + 0.3) * third) : int((x + 0.7) * third)
            ].mean()
            for y in range(3)
            for x in range(3)
        ]
    )
    return int(((values > 125) << np.arange(9)).sum()) if np.abs(values - 125).min() > 40 else -1


def read_dtsf(path: Path, n_frames: int) -> list[int]:
    """Read with dtsf."""
    return [number_of(picture) for picture in decode_clip(path, n_frames, SIZE).frames]


def read_decord(path: Path, n_frames: int) -> list[int]:
    """Read with decord, as in its README."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    return [number_of(middle(frame)) for frame in reader.get_batch(centres(len(reader), n_frames)).asnumpy()]


def read_opencv(path: Path, n_frames: int) -> list[int]:
    """Read with OpenCV, as in usual answers on the web."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    numbers = []
    for place in centres(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), n_frames):
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(place))
        there, frame = capture.read()
        if not there:
            raise VideoError(f"{path}: no frame")
        numbers.append(number_of(middle(frame)))
    return numbers


def read_pyav_seek(path: Path, n_frames: int) -> list[int]:
    """Read with PyAV: seek to each time and take the next frame."""
    import av

    numbers = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        duration = container.duration / 1e6
        for moment in (np.arange(n_frames) + 0.5) * duration / n_frames:
            container.seek(int(moment / stream.time_base) + (stream.start_time or 0), stream=stream)
            numbers.append(number_of(middle(next(container.decode(stream)).to_ndarray(format="rgb24"))))
    return numbers


def read_torchcodec(path: Path, n_frames: int) -> list[int]:
    """Torchcodec in its exact mode: the frames played at each time."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), dimension_order="NHWC", seek_mode="exact")
    begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    moments = begin + (np.arange(n_frames) + 0.5) * (end - begin) / n_frames
    return [number_of(middle(frame)) for frame in decoder.get_frames_played_at(moments.tolist()).data.numpy()]


def centres(total: int, n_frames: int) -> np.ndarray:
    """Return the centres of equal shares."""
    return (2 * np.arange(n_frames) + 1) * total // (2 * n_frames)


def middle(frame: np.ndarray) -> np.ndarray:
    """Return the square in the middle of a picture."""
    side = min(frame.shape[:2])
    top, left = (frame.shape[0] - side) // 2, (frame.shape[1] - side) // 2
    return frame[top : top + side, left : left + side]


if __name__ == "__main__":
    main()
