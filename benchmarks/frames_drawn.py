"""Test files of frames.py: numbered frames, drawn by the program ffmpeg."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["CASES", "Case", "draw", "numbered"]

X264 = ["-c:v", "libx264", "-preset", "veryfast"]
X265 = ["-c:v", "libx265", "-preset", "veryfast", "-x265-params"]
QUIET = "log-level=none"
LAST = {"mkv": 1 / 30, "webm": 1 / 30, "mov": 1 / 30, "wmv": 1 / 30}
"""Containers in which ffmpeg gives the last of uneven frames the duration of a steady rate."""


@dataclass(frozen=True)
class Case:
    """Description of one file."""

    name: str
    words: list[str]
    """Arguments of ffmpeg between the frames and the file."""
    size: tuple[int, int] = (192, 192)
    n_frames: int = 120
    fps: str = "30"
    after: list[list[str]] = field(default_factory=list)
    """Further calls of ffmpeg on the previous output (``IN``), each into a file with the ending of the last word."""
    finish: Callable[[bytes], bytes] | None = None
    """Function that changes the final bytes."""
    stream: int = 0
    """Index of the right stream among those with pictures."""
    seconds: Callable[[int], float] | None = None
    """Function from frame k to its time, if the rate is not steady."""

    last_frame: float | None = None
    """Duration of the last frame in seconds, if it differs from the rate."""
    is_garbled: bool = False
    """True if the picture is turned, so that its number differs."""

    @property
    def times(self) -> np.ndarray:
        """Return the times of all frames and of one more."""
        return np.array([self.seconds(k) if self.seconds else k / self.rate for k in range(self.n_frames)])

    @property
    def last(self) -> float:
        """Return the duration of the last frame in seconds."""
        return self.last_frame if self.last_frame else 1 / self.rate

    @property
    def rate(self) -> float:
        """Return the frames per second, if steady."""
        up, _, down = self.fps.partition("/")
        return int(up) / int(down or 1)


def numbered(k: int, width: int, height: int) -> np.ndarray:
    """Return a picture that shows ``k`` in nine squares in its middle."""
    picture = np.full((height, width, 3), 40, np.uint8)
    third = min(width, height) // 3
    top, left = (height - 3 * third) // 2, (width - 3 * third) // 2
    for bit in range(9):
        y, x = divmod(bit, 3)
        value = 230 if k >> bit & 1 else 20
        picture[top + y * third : top + (y + 1) * third, left + x * third : left + (x + 1) * third] = value
    return picture


def draw(case: Case, path: Path) -> bool:
    """Write the file of a case. Return False if this ffmpeg cannot."""
    width, height = case.size
    steps = [case.words, *case.after]
    files = [path.with_name(f"step{k}_{path.stem}{_ending(step, path)}") for k, step in enumerate(steps)]
    head = ["ffmpeg", "-v", "error", "-y"]
    words = [*head, "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", case.fps, "-i", "-"]
    frames = b"".join(numbered(k, width, height).tobytes() for k in range(case.n_frames))
    done = subprocess.run([*words, *_plain(case.words), str(files[0])], input=frames, capture_output=True, check=False)
    for k, step in enumerate(case.after, 1):
        if done.returncode:
            break
        words = [str(files[k - 1]) if word == "IN" else word for word in _plain(step)]
        done = subprocess.run([*head, *words, str(files[k])], capture_output=True, check=False)
    if done.returncode == 0:
        data = files[-1].read_bytes()
        path.write_bytes(case.finish(data) if case.finish else data)
    for file in files:
        file.unlink(missing_ok=True)
    return done.returncode == 0


def _ending(step: list[str], path: Path) -> str:
    return step[-1] if step[-1].startswith(".") else path.suffix


def _plain(step: list[str]) -> list[str]:
    return [word for word in step if not (word is step[-1] and word.startswith("."))]


def _mid_gop(data: bytes) -> bytes:
    """Return a transport stream from its second quarter on, as a receiver records it after switching on."""
    n = len(data) // 188
    return data[: 188 * 3] + data[188 * (n // 4) :]


def _grid() -> list[Case]:
    cases: list[Case] = []

    def add(name: str, *words: str, **more: object) -> None:
        cases.append(Case(name, list(words), **more))  # type: ignore[arg-type]

    for ending in ("avi", "mp4", "mov", "mkv", "ts", "mpg", "flv", "h264", "3gp", "asf", "m2ts"):
        for gop, b in ((30, 3), (250, 3), (12, 0)):
            add(f"h264_g{gop}_b{b}.{ending}", *X264, "-g", str(gop), "-bf", str(b), "-sc_threshold", "0")
    add("h264_g1.mp4", *X264, "-g", "1")
    for ending in ("mp4", "mkv", "ts", "avi", "h264"):
        add(f"h264_open.{ending}", *X264, "-g", "24", "-bf", "3", "-x264-params", "open-gop=1:scenecut=0")
    for ending in ("mp4", "ts", "mkv"):
        add(f"h264_refresh.{ending}", *X264, "-g", "30", "-bf", "0", "-x264-params", "intra-refresh=1")
    add("h264_interlaced.ts", *X264, "-flags", "+ildct+ilme", "-x264-params", "tff=1", "-g", "30")
    add("h264_interlaced.mp4", *X264, "-flags", "+ildct+ilme", "-x264-params", "tff=1", "-g", "30")
    add("h264_10bit.mkv", *X264, "-pix_fmt", "yuv420p10le", "-g", "30")
    add("h264_444.mp4", *X264, "-pix_fmt", "yuv444p", "-g", "30")
    add("h264_odd.mp4", *X264, "-pix_fmt", "yuv444p", "-g", "30", size=(201, 187))
    add("h264_baseline.mp4", *X264, "-profile:v", "baseline", "-pix_fmt", "yuv420p", "-g", "30")
    for fps in ("15", "25", "30000/1001", "60", "50", "24000/1001", "10", "120"):
        for ending in ("mp4", "mkv", "avi", "ts"):
            add(f"h264_{fps.replace('/', '_')}fps.{ending}", *X264, "-g", "30", fps=fps)
    for ending in ("mp4", "mkv", "ts", "hevc", "mov", "avi"):
        add(f"hevc_open.{ending}", *X265, QUIET, "-g", "30")
        add(f"hevc_closed.{ending}", *X265, f"{QUIET}:open-gop=0", "-g", "30")
    add("hevc_10bit.mp4", *X265, QUIET, "-pix_fmt", "yuv420p10le", "-g", "30")
    for ending in ("avi", "mp4", "mkv", "mov", "ts", "asf", "3gp", "m4v", "mpg"):
        for gop, b in ((12, 2), (250, 2), (12, 0), (1, 0)):
            add(f"mpeg4_g{gop}_b{b}.{ending}", "-c:v", "mpeg4", "-q:v", "3", "-g", str(gop), "-bf", str(b))
    for codec in ("mpeg1video", "mpeg2video"):
        for ending in ("mpg", "ts", "mkv", "mp4", "avi", "vob", "m2v"):
            for gop, b in ((12, 2), (100, 0), (12, 0)):
                add(
                    f"{codec}_g{gop}_b{b}.{ending}",
                    "-c:v",
                    codec,
                    "-q:v",
                    "3",
                    "-g",
                    str(gop),
                    "-bf",
                    str(b),
                    "-r",
                    "30",
                )
    add("mpeg2_interlaced.ts", "-c:v", "mpeg2video", "-q:v", "3", "-flags", "+ildct+ilme", "-bf", "2", "-g", "12")
    for codec in ("wmv1", "wmv2"):
        for ending in ("wmv", "asf", "avi"):
            add(f"{codec}.{ending}", "-c:v", codec, "-q:v", "3", "-g", "12")
    add("msmpeg4.avi", "-c:v", "msmpeg4", "-q:v", "3", "-g", "12")
    for ending in ("webm", "mkv", "avi"):
        add(
            f"vp8_altref.{ending}",
            *[
                "-c:v",
                "libvpx",
                "-auto-alt-ref",
                "1",
                "-lag-in-frames",
                "16",
                "-arnr-maxframes",
                "5",
                "-b:v",
                "300k",
                "-g",
                "30",
            ],
        )
        add(
            f"vp9_altref.{ending}",
            *[
                "-c:v",
                "libvpx-vp9",
                "-auto-alt-ref",
                "1",
                "-lag-in-frames",
                "16",
                "-b:v",
                "300k",
                "-g",
                "40",
                "-cpu-used",
                "8",
                "-deadline",
                "realtime",
            ],
        )
    add("vp9.mp4", *["-c:v", "libvpx-vp9", "-b:v", "300k", "-g", "40", "-cpu-used", "8"])
    for ending in ("mp4", "mkv", "webm"):
        add(f"av1.{ending}", *["-c:v", "libsvtav1", "-preset", "12", "-g", "40"], n_frames=90)
    for codec, endings in {
        "mjpeg": "avi mov mkv mp4",
        "ffv1": "mkv avi",
        "huffyuv": "avi mkv",
        "rawvideo": "avi",
        "png": "mov",
    }.items():
        for ending in endings.split():
            add(
                f"{codec}.{ending}", "-c:v", codec, *(["-q:v", "3", "-pix_fmt", "yuvj420p"] if codec == "mjpeg" else [])
            )
    add("prores.mov", "-c:v", "prores_ks", "-profile:v", "0")
    add("dnxhd.mov", *["-c:v", "dnxhd", "-b:v", "36M", "-pix_fmt", "yuv422p"], size=(1280, 720), fps="25", n_frames=50)
    add("theora.ogv", "-c:v", "libtheora", "-q:v", "7", "-g", "30")
    add("theora_vfr.ogv", "-c:v", "libtheora", "-q:v", "7", "-g", "64")
    add("flv1.flv", "-c:v", "flv1", "-q:v", "3", "-g", "12")
    add("h263.3gp", "-c:v", "h263", "-q:v", "3", size=(352, 288))
    add("dv.avi", "-c:v", "dvvideo", "-pix_fmt", "yuv420p", size=(720, 576), fps="25", n_frames=75)
    add("dv.dv", "-c:v", "dvvideo", "-pix_fmt", "yuv420p", size=(720, 576), fps="25", n_frames=75)
    add("cinepak.avi", "-c:v", "cinepak", n_frames=40)
    add("gif.gif", "-vf", "format=gray", fps="25")
    add("rv10.rm", "-c:v", "rv10", "-q:v", "3", "-g", "12")
    add("mxf.mxf", "-c:v", "mpeg2video", "-q:v", "3", "-bf", "2", "-g", "12", fps="25")
    add("nut.nut", *X264, "-g", "30")
    add("fragmented.mp4", *X264, "-g", "30", "-movflags", "frag_keyframe+empty_moov")
    add("faststart.mp4", *X264, "-g", "30", "-movflags", "faststart")
    add("late.mkv", *X264, "-g", "30", "-output_ts_offset", "7.3")
    add("late.mp4", *X264, "-g", "30", "-output_ts_offset", "7.3")
    add(
        "late.ts", *X264, "-g", "30", "-output_ts_offset", "95443.5"
    )  # the clock of a transport stream overflows at 95443.7 s
    add("wraps.mpg", "-c:v", "mpeg2video", "-bf", "2", "-q:v", "3", "-output_ts_offset", "95442.2")
    for ending in ("mp4", "mkv", "ts", "avi", "mpg", "mov", "flv"):
        sound = ["-f", "lavfi", "-i", "sine=frequency=440:duration=6", "-map", "0", "-map", "1"]
        add(f"sound.{ending}", *sound, *X264, "-g", "30", *(["-ar", "44100"] if ending == "flv" else []))
    copy = ["-c", "copy"]
    whole = [*X264, "-g", "60", "-sc_threshold", "0", ".mp4"]
    for ending in ("mp4", "mov", "mkv", "ts", "avi", "flv", "mpg"):
        for start, length in (("1.5", "1.5"), ("2.1", "1.2"), ("0.4", "3.1")):
            cut = ["-ss", start, "-i", "IN", "-t", length, *copy]
            add(f"cut_h264_{start}_{length}.{ending}", *whole, after=[cut])
    cut = ["-ss", "2.1", "-i", "IN", "-t", "1.3", *copy]
    for ending in ("mp4", "mkv", "ts"):
        add(f"cut_hevc.{ending}", *X265, QUIET, "-g", "30", ".mp4", after=[cut])
        add(f"cut_open.{ending}", *X264, "-g", "24", "-x264-params", "open-gop=1:scenecut=0", ".mkv", after=[cut])
    for ending in ("mpg", "ts", "mkv", "avi"):
        add(f"cut_mpeg2.{ending}", *["-c:v", "mpeg2video", "-bf", "2", "-q:v", "3", "-g", "12"], ".ts", after=[cut])
    for ending in ("avi", "mp4", "mkv"):
        add(f"cut_mpeg4.{ending}", *["-c:v", "mpeg4", "-bf", "2", "-q:v", "3", "-g", "24"], ".mp4", after=[cut])
    add("cut_vp9.webm", *["-c:v", "libvpx-vp9", "-b:v", "300k", "-g", "40", "-cpu-used", "8"], ".webm", after=[cut])
    add("cut_av1.mkv", *["-c:v", "libsvtav1", "-preset", "12", "-g", "40"], ".mp4", after=[cut])
    add("cut_output.mp4", *whole, after=[["-i", "IN", "-ss", "1.1", "-t", "2", *copy]])
    for name, words in {
        "h264": [*X264, "-g", "40", "-bf", "3"],
        "h264_b0": [*X264, "-g", "60", "-bf", "0"],
        "hevc": [*X265, QUIET, "-g", "40"],
        "mpeg2": ["-c:v", "mpeg2video", "-bf", "2", "-q:v", "3", "-g", "15"],
        "mpeg4": ["-c:v", "mpeg4", "-bf", "0", "-q:v", "3", "-g", "15"],
    }.items():
        add(f"midgop_{name}.ts", *words, finish=_mid_gop)

    def phone(k: int) -> float:
        return k / 30 if k < 60 else 2 + (k - 60) / 5

    uneven = "settb=1/90000,setpts='if(lt(N,60),N*3000,180000+(N-60)*18000)'"
    for name, words in {
        "mp4": X264, "mkv": X264, "ts": X264, "flv": X264,
        "webm": ["-c:v", "libvpx-vp9", "-b:v", "300k", "-cpu-used", "8"],
        "mov": ["-c:v", "mjpeg", "-q:v", "3", "-pix_fmt", "yuvj420p"],
        "wmv": ["-c:v", "wmv2", "-q:v", "3"],
    }.items():  # fmt: skip
        add(
            f"uneven.{name}",
            "-vf",
            uneven,
            "-fps_mode",
            "vfr",
            "-enc_time_base",
            "1/90000" if name != "webm" else "1/1000",
            *words,
            "-g",
            "30",
            seconds=phone,
            last_frame=LAST.get(name, 0.2),
        )
    for codec in ("mjpeg", "mpeg4"):
        # Written at 30 frames per second with an empty chunk for every missing frame, as webcam recorders do.
        add(
            f"drops_{codec}.avi",
            "-vf",
            uneven,
            "-fps_mode",
            "vfr",
            "-enc_time_base",
            "1/30",
            "-c:v",
            codec,
            "-q:v",
            "3",
            *(["-pix_fmt", "yuvj420p"] if codec == "mjpeg" else []),
            seconds=phone,
        )
    add(
        "two_streams.mp4",
        "-filter_complex",
        "[0:v]split[a][b];[a]fps=10,scale=96:96[c]",
        "-map",
        "[c]",
        "-map",
        "[b]",
        *X264,
        "-g",
        "30",
        stream=1,
    )
    add(
        "two_streams.mkv",
        "-filter_complex",
        "[0:v]split[a][b];[a]fps=10,scale=96:96[c]",
        "-map",
        "[b]",
        "-map",
        "[c]",
        *X264,
        "-g",
        "30",
    )
    cover = ["-f", "lavfi", "-i", "color=red:s=640x640:d=0.04", "-map", "0", "-map", "1"]
    add("cover.mp4", *cover, "-c:v:0", "libx264", "-c:v:1", "mjpeg", "-disposition:v:1", "attached_pic")
    add("turned.mp4", *X264, "-g", "30", is_garbled=True, after=[["-i", "IN", "-metadata:s:v", "rotate=90", *copy]])
    add("one_second.mp4", *X264, n_frames=31)
    add("long.avi", *X264, "-g", "50", n_frames=511)
    add("long.mp4", *X264, "-g", "50", n_frames=511)
    return cases


CASES = _grid()
