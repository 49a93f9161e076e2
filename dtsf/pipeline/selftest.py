"""Whether stage 1 works on this machine, tried on videos drawn here. Each check gives (ok, what was found, how to mend)."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CODECS = {
    "h264": ("libx264", ".mp4"),
    "hevc": ("libx265", ".mp4"),
    "mpeg4": ("mpeg4", ".avi"),
    "mjpeg": ("mjpeg", ".avi"),
    "vp9": ("libvpx-vp9", ".mkv"),
    "av1": ("libsvtav1", ".mp4"),
}
"""Name -> the encoder that can draw a film in it, and a container."""
NEEDED = ("h264", "mpeg4")
"""NTU and N-UCLA are MPEG-4 in AVI, cameras write H.264."""
OPTIONS = {"libx265": {"x265-params": "log-level=none"}}
"""It would write a page to stderr."""
SECONDS = 5.0
N_FRAMES, SIZE = 16, 192


def check_codecs() -> tuple[bool, str, str]:
    """Draw a short film in every codec and decode it."""
    import av

    # The same for SVT-AV1, which takes no option for it.
    os.environ.setdefault("SVT_LOG", "0")
    read: list[str] = []
    failed: list[str] = []
    untried: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (encoder, ending) in CODECS.items():
            file = Path(folder) / f"{name}{ending}"
            if encoder not in av.codecs_available or not _draw(file, encoder):
                untried.append(name)
                continue
            (read if _decodes(file) else failed).append(name)
    found = f"PyAV reads {', '.join(read) or 'nothing'}"
    found += f"; not {', '.join(failed)}" if failed else ""
    found += f"; not tried, since nothing here writes it: {', '.join(untried)}" if untried else ""
    missing = [name for name in NEEDED if name in failed]
    how = ""
    if failed:
        how = f"recode files in {', '.join(failed)}: ffmpeg -i IN -c:v libx264 OUT.mp4; or pip install -U av"
    return not missing, found, how


def check_stage1() -> tuple[bool, str, str]:
    """Decode and embed a drawn clip again and again for some seconds, the way a worker does."""
    from dtsf.pipeline.encoders.choose import load_encoder
    from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest, decode_all

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.avi"
        _draw(file, "mpeg4", n_frames=48)
        encoder = load_encoder("efficientnet-lite0", SIZE, 6)
        begun, clips = time.monotonic(), 0
        cells: np.ndarray | None = None
        with Decoder(N_FRAMES, SIZE) as decoder:
            while time.monotonic() - begun < SECONDS or clips == 0:
                for item in decode_all(decoder, [DecodeRequest(file)] * 4):
                    if isinstance(item, Exception):
                        raise item
                    cells = encoder.embed(item[0])
                    clips += 1
        rate = clips / (time.monotonic() - begun)
    good = cells is not None and bool(np.isfinite(cells).all()) and float(cells.astype(np.float32).std()) > 0
    how = "" if good else "the encoder gives no usable numbers: pip install --force-reinstall onnxruntime"
    return good, f"decodes and embeds {rate:.1f} clips/s in one process", how


def _draw(file: Path, encoder: str, n_frames: int = 10) -> bool:
    """Write a film of a moving square; False where the encoder is there in name only."""
    import av

    try:
        with av.open(str(file), "w") as container:
            stream: Any = container.add_stream(encoder, rate=15, options=OPTIONS.get(encoder, {}))
            # Some codecs refuse pictures below 64 pixels, and MJPEG wants full-range colours.
            stream.width, stream.height = 320, 240
            stream.pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
            for k in range(n_frames):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(_picture(k, n_frames), format="rgb24")))
            container.mux(stream.encode())
    except (av.FFmpegError, OSError, ValueError):
        return False
    return True


def _picture(k: int, n_frames: int) -> np.ndarray:
    picture = np.full((240, 320, 3), 90, np.uint8)
    left = 20 + 200 * k // n_frames
    picture[80:160, left : left + 80] = (230, 60, 40)
    return picture


def _decodes(file: Path) -> bool:
    from dtsf.errors import VideoError
    from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest

    with Decoder(4, 64, deadline=20.0) as decoder:
        decoder.send(DecodeRequest(file))
        try:
            frames, _ = decoder.receive()
        except VideoError:
            return False
        # Whether the red square is seen to move to the right.
        places = [frame[:, :, 0].astype(int).argmax() % 64 for frame in frames]
        return bool(places[-1] > places[0])
