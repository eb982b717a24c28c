"""The parts of a table: rows to train on, to watch the training with, and to test it on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PARTS = ("training", "validation", "test")


@dataclass(frozen=True)
class Part:
    """Rows of the table, as numbers: ``x`` (N, F) float32, ``y`` as the loss takes it, ``weight`` (N,) or None."""

    rows: np.ndarray
    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice) -> Part:
        """A run of its rows."""
        return Part(self.rows[rows], self.x[rows], self.y[rows], None if self.weight is None else self.weight[rows])

    def as_tuple(self) -> tuple[np.ndarray, ...]:
        """``(x, y)`` or ``(x, y, weight)``: what ``fit`` takes as validation rows."""
        return (self.x, self.y) if self.weight is None else (self.x, self.y, self.weight)


@dataclass(frozen=True)
class Whole:
    """What every rank knows of a part's rows, its own and all others', in the order of the table.

    Attributes:
        rows: their indices in the table ``(N,)``.
        y, weight: as in :class:`Part`.
    """

    rows: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None

    def __len__(self) -> int:
        return len(self.rows)
