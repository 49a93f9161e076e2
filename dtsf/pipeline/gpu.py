"""Graphics cards in stage 1: one worker a card, cores that decode for it, and several clips a call.

A card embeds a clip in milliseconds and a core decodes one in a third of a second. So a worker that has a card keeps a decoder's
child on each of its cores, all of them ahead, and embeds what they have ready together: neither waits for the other as long as
there are enough cores.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from dtsf.errors import VideoError
from dtsf.pipeline.video.decoder_process import decode_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np

    from dtsf.pipeline.video.decoder_process import Decoder, DecodeRequest

CLIPS_A_CALL = 8
"""128 frames of 16 a clip: what fills a card, and waits less than a third of a second for its clips."""
RESOURCE = "GPU"
"""dask's name for a card: ``dask worker ... --resources GPU=1``, one worker a card."""


def count_cards(encoder: str) -> int:
    """Cards of this machine that the encoder would run on. Without NVIDIA's device file PyTorch is not even asked."""
    if encoder == "pixels" or not any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg")):
        return 0
    import torch

    return torch.cuda.device_count()


def usual_workers(encoder: str) -> int:
    """Processes of stage 1 on this machine: one a card; without cards one a core."""
    return count_cards(encoder) or os.cpu_count() or 1


def decoders_of_a_worker(encoder: str) -> int:
    """Children that decode for one worker: its share of the cores beside a card, else one."""
    cards = count_cards(encoder)
    return max(1, (os.cpu_count() or 1) // max(cards, _workers_here)) if cards else 1


_workers_here = 1
"""That share this machine's cores, as far as this process knows: one that has taken a card sees no other."""


def select_gpu(number: int, cards: int, workers: int) -> None:
    """In one of ``workers`` dask workers of this machine: use the card of its number, before anything else asks for one."""
    global _workers_here
    _workers_here = workers
    visible = _visible_cards(cards)
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]


@lru_cache(maxsize=1)
def _visible_cards(cards: int) -> tuple[str, ...]:
    """Names of the cards as they were before this process took one of them: those that the person left visible, or all."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(str(k) for k in range(cards)) if named is None else tuple(named.split(","))


def decode_side_by_side(decoders: Sequence[Decoder], requests: list[DecodeRequest]) -> Iterator[Any]:
    """Decode clips in their order, each decoder taking every n-th clip ahead of time (as :func:`.decode_all`)."""
    n = len(decoders)
    streams = [decode_all(decoder, requests[k::n]) for k, decoder in enumerate(decoders)]
    return (next(streams[k % n]) for k in range(len(requests)))


def embed_batched(
    items: Iterator[Any], embed: Callable[[np.ndarray], np.ndarray], clips_a_call: int
) -> Iterator[tuple[Any, np.ndarray | None]]:
    """Each clip with its embedding, or the error of one that cannot be used with None, in order; several clips a call."""
    if clips_a_call == 1:
        for item in items:
            yield item, None if isinstance(item, VideoError) else embed(item[0])
        return
    waiting: list[Any] = []
    frames: list[np.ndarray] = []
    for item in items:
        if isinstance(item, VideoError):
            waiting.append(item)
            continue
        # A decoder's frames are its child's memory, gone when its next clip comes.
        frames.append(item[0].copy())
        waiting.append((frames[-1], item[1]))
        if len(frames) == clips_a_call:
            yield from _embedded(waiting, frames, embed)
            waiting, frames = [], []
    yield from _embedded(waiting, frames, embed)


def _embedded(
    waiting: list[Any], frames: list[np.ndarray], embed: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[Any, np.ndarray | None]]:
    import numpy as np

    cells: Iterator[np.ndarray] = iter(())
    if frames:
        whole = embed(np.concatenate(frames))
        cells = iter(whole.reshape(len(frames), -1, *whole.shape[1:]))
    for item in waiting:
        yield item, None if isinstance(item, VideoError) else next(cells)
