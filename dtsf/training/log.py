"""Log of a training: ``log.jsonl``, one line a step (keys: docs/output.md), and TensorBoard events if it is installed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from dtsf.errors import CheckpointError
from dtsf.files.read import json_text, read_file
from dtsf.files.write import open_log, refusal, remedy, write_atomically


def summary_writer(folder: Path, step: int) -> Any:
    """Return a TensorBoard writer for ``folder``; None if TensorBoard is not installed. Events after ``step`` are dropped."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


class TrainingLog(AbstractContextManager["TrainingLog"]):
    """Open log of a run folder; None writes nothing. Lines after ``step``, that of the checkpoint, are removed and made again."""

    def __init__(self, run: Path | None, step: int) -> None:
        self._file, self._writer = None, None
        if run is not None:
            if (run / "tensorboard").is_symlink():
                raise CheckpointError(f"{run / 'tensorboard'} is a symbolic link and is not followed: remove it")
            path = self._path = run / "log.jsonl"
            _cut(path, step)
            try:
                self._file = open_log(path)
            except OSError as error:
                raise CheckpointError(f"cannot write {path}: {refusal(error)}") from error
            self._writer = summary_writer(run / "tensorboard", step)

    def write(self, line: dict[str, Any]) -> None:
        """Write the numbers of a step."""
        if self._file is not None:
            # JSON has no NaN and no Infinity.
            finite = {name: value if math.isfinite(value) else None for name, value in line.items()}
            with self._errors():
                self._file.write(json_text(finite) + "\n")
        if self._writer is not None:
            for name, value in line.items():
                if name not in ("step", "epoch"):
                    self._writer.add_scalar(name, value, line["step"])

    def flush(self) -> None:
        """Write everything to the disk, before a checkpoint counts on it."""
        if self._file is not None:
            with self._errors():
                self._file.flush()
                os.fsync(self._file.fileno())

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self._path}: {refusal(error)}. The last checkpoint is safe; {remedy(error)} and run the "
                "same command again (dtsf train with --resume)"
            ) from error

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            # A full disk was already reported.
            with suppress(OSError):
                self._file.close()
        if self._writer is not None:
            self._writer.close()


def _cut(path: Path, step: int) -> None:
    """Keep the complete lines up to ``step``. The file is replaced atomically."""
    kept, data = 0, b""
    if step and os.path.lexists(path):
        data = read_file(path, limit=1 << 30, error=CheckpointError)  # five million steps
    for line in data.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n") or not json.loads(line)["step"] <= step:
                break
        except (ValueError, KeyError, TypeError, RecursionError):
            break
        kept += len(line)
    write_atomically(path, data[:kept], parents=False, error=lambda why: CheckpointError(f"cannot write {path}: {why}"))
