"""A line per epoch in ``metrics.jsonl``, and TensorBoard events on request.

The checkpoint's history is what counts: a run that goes on first makes the file equal to it, so that no epoch is there
twice and none is missing, whenever the run was killed.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any

from wholebatch.files import append_line, write

SCALARS = ("loss", "learning_rate", "examples_per_second", "validation_loss", "validation_score")


def as_line(row: dict[str, float]) -> str:
    """An epoch as JSON; a number that is not finite becomes null, since JSON has none."""
    return json.dumps({n: v if math.isfinite(v) else None for n, v in row.items()})


class Metrics:
    """Writes what each epoch gave; close it, or use it in a ``with`` block."""

    def __init__(self, file: Path, events: Path | None, history: list[dict[str, float]]) -> None:
        self.file = file
        self._writer = None if events is None else _open_events(events, len(history) + 1)
        write(file, "".join(as_line(row) + "\n" for row in history))

    def add(self, row: dict[str, float]) -> None:
        """One more epoch."""
        append_line(self.file, as_line(row))
        if self._writer is not None:
            for name in SCALARS:
                if name in row:
                    self._writer.add_scalar(name, row[name], int(row["epoch"]))
            self._writer.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()


def check_tensorboard() -> None:
    """Raise ValueError, with the remedy, where TensorBoard is asked for and not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "--tensorboard needs the package tensorboard, which is not installed; "
            "install it: pip install 'wholebatch[tensorboard]'"
        ) from error


def _open_events(folder: Path, first_epoch: int) -> Any:
    """A writer that hides what an earlier, killed run wrote from ``first_epoch`` on."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_epoch if first_epoch > 1 else None)
