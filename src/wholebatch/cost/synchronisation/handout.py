"""The table as it is handed to ranks: files that all of them map, of which each reads its own rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from wholebatch.feedforward.data import Data, prepare
from wholebatch.feedforward.settings import Architecture, Loss, Optimizer

if TYPE_CHECKING:  # ranks need not import what reads tables
    from wholebatch.cost.comparison.problem import Problem


@dataclass(frozen=True)
class Handout:
    """What every rank is told.

    Attributes:
        folder: where the rows are.
        architecture: of the net, with batch norm.
        loss: to minimise; it also decides the score.
        optimizer: with the learning rate of the trainings.
        offsets: where each mini-batch of an epoch begins, of all ranks' rows.
        group_size: ranks of a group.
        straggler: how many times as long the last rank computes where it is slow.
    """

    folder: Path
    architecture: Architecture
    loss: Loss
    optimizer: Optimizer
    offsets: np.ndarray
    group_size: int
    straggler: float

    @property
    def rows(self) -> int:
        """To learn from."""
        return int(self.offsets[-1])

    def training(self, begin: int, end: int) -> Data:
        """These rows, in memory of this process."""
        return self._read("training", slice(begin, end))

    def validation(self) -> Data:
        """All rows to score."""
        return self._read("validation", slice(None))

    def _read(self, part: str, rows: slice) -> Data:
        x, y = (np.load(self.folder / f"{part}-{name}.npy", mmap_mode="r")[rows] for name in "xy")
        return prepare(np.array(x), np.array(y), None, self.architecture, self.loss, torch.float32)


def hand_out(problem: Problem, folder: Path, group_size: int, straggler: float) -> Handout:
    """Write the rows of ``problem`` to ``folder``."""
    for part, data in (("training", problem.training), ("validation", problem.validation)):
        assert data.y is not None
        np.save(folder / f"{part}-x.npy", data.x, allow_pickle=False)
        np.save(folder / f"{part}-y.npy", data.y, allow_pickle=False)
    architecture = problem.architecture("batch")
    return Handout(folder, architecture, problem.loss, problem.optimizer, problem.offsets, group_size, straggler)
