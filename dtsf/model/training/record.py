"""What a run writes down as it goes: ``log.jsonl``, a line a step, and TensorBoard's events where TensorBoard is installed.

Keys of a line: ``step`` and ``epoch``, then numbers: ``lr``, ``accuracy``, ``loss`` and its terms. Behind the last step of an
epoch, where groups are held out, a line with ``held_out_loss`` and ``held_out_accuracy``.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Record", "Writer", "summary_writer"]


class Writer(Protocol):
    """What is asked of TensorBoard's writer."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Note a number."""

    def close(self) -> None:
        """Write what is left."""


def summary_writer(folder: Path, step: int) -> Writer | None:
    """TensorBoard's writer for ``folder``; None where TensorBoard is not installed.

    Args:
        folder: Where the events go.
        step: Events of later steps, which a killed process left, count no more.

    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer: Writer = SummaryWriter(str(folder), purge_step=step + 1)
    return writer


class Record:
    """The open log of a run; use it as a context.

    Args:
        run: Run folder; None writes nothing, for all processes but the first.
        step: Steps that the checkpoint knows: lines of later ones are cut off, they are made again.

    """

    def __init__(self, run: Path | None, step: int) -> None:
        self._file, self._writer = None, None
        if run is not None:
            path = run / "log.jsonl"
            _cut(path, step)
            # A line at a time: who looks at the file while it grows sees whole lines.
            self._file = path.open("a", encoding="utf-8", buffering=1)
            self._writer = summary_writer(run / "tensorboard", step)

    def write(self, line: dict[str, Any]) -> None:
        """Write down a step's numbers."""
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
        if self._writer is not None:
            for name, value in line.items():
                if name not in ("step", "epoch"):
                    self._writer.add_scalar(name, value, line["step"])

    def secure(self) -> None:
        """Bring everything to the disk, before a checkpoint says that it is there."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def _cut(path: Path, step: int) -> None:
    """Cut the file behind the last whole line of a known step, in place: a kill finds it either way, never half."""
    path.touch()
    kept = 0
    with path.open("rb") as file:
        for line in file:
            try:
                known = line.endswith(b"\n") and json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError):
                known = False
            if not known or not step:
                break
            kept += len(line)
    os.truncate(path, kept)
