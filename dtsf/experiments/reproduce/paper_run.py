"""N-UCLA both ways: from embeddings anywhere, and as the paper does it, from pixels, where there is a card and a checkpoint.

The second is a reproduction of its own in ``OUT/paper``, with its own cache: uint8 frames of 224 pixels, VideoMamba-S, snapshots
pasted into frames, MSF. Its rows stand below the first one's, in the one table of ``OUT``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtsf.errors import ConfigError
from dtsf.experiments.reproduce.nucla import reproduce_nucla
from dtsf.experiments.reproduce.settings import Settings
from dtsf.experiments.reproduce.table import write_results

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dtsf.experiments.reproduce.records import Reproduction

PAPER = {"recipe": "nucla-paper", "encoder": "pixels", "size": 224, "frames": 16, "grid": 6}
"""What differs from the embeddings' settings; the grid is that of the pixels whatever it says."""


def has_card(device: str) -> bool:
    """Whether training would run on a card."""
    if device == "cpu":
        return False
    import torch

    return torch.cuda.is_available()


def reproduce_both(
    root: Path | None,
    out: Path,
    init: Path,
    *,
    settings: Settings | None = None,
    paper_overrides: tuple[str, ...] = (),
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> Reproduction:
    """From embeddings into ``out``; on a card also from pixels into ``out/paper``; the rows of both in ``out``'s table. Raises
    ConfigError: the checkpoint does not exist; and all that either raises.

    Args:
        init: VideoMamba checkpoint that the run from pixels starts from.
        settings: Of the run from embeddings, which starts from nothing.
        paper_overrides: ``section.key=value`` for the run from pixels.
    """
    if not init.is_file():
        raise ConfigError(f"--init {init}: no such file")
    first = reproduce_nucla(root, out, settings=settings, device=device, say=say, **options)
    if not has_card(device):
        say("no card: the paper's own run, from pixels, is left out; the same command on a machine with one adds it")
        return first
    say(f"the paper's own run: pixels of {PAPER['size']}, VideoMamba-S from {init.name}")
    paper = Settings(**PAPER, overrides=paper_overrides, init=str(init.absolute()))
    options = {**options, "cache": None, "on_check": lambda _: None}
    second = reproduce_nucla(root, out / "paper", settings=paper, device=device, say=say, **options)
    write_results(both := together(first, second), out)
    return both


def together(first: Reproduction, second: Reproduction) -> Reproduction:
    """One document of two: rows, runs, stages and notes below one another. The data are the same."""
    runs = [run.model_copy(update={"run": f"paper/{run.run}"}) for run in second.runs]
    stages = [stage.model_copy(update={"name": f"paper: {stage.name}"}) for stage in second.stages]
    doubts = [text for text in (first.too_many_bad, second.too_many_bad) if text]
    return first.model_copy(
        update={
            "planned": first.planned + second.planned,
            "too_many_bad": "; ".join(doubts) or None,
            "notes": tuple(dict.fromkeys((*first.notes, *second.notes))),
            "rows": first.rows + second.rows,
            "runs": (*first.runs, *runs),
            "stages": (*first.stages, *stages),
            "command": f"{first.command}    and, for the paper's rows,    {second.command}",
        }
    )
