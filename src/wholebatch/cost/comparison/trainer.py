"""What a contender does, whichever its engine."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from wholebatch.cost.comparison.problem import Problem
from wholebatch.feedforward.evaluation import score


class DivergedError(Exception):
    """A loss, a parameter or an output is no longer finite."""


class Trainer(Protocol):
    """A net in training; it begins with the first weights of its seed."""

    threads: int
    how: str

    def train(self, order: np.ndarray, offsets: np.ndarray) -> float:
        """Steps over rows ``order[offsets[s]:offsets[s+1]]`` of the training rows; returns the seconds that they took.

        All that an epoch takes is in it, the gathering of the rows too; loading the table once is not.

        Raises:
            DivergedError: the loss or a parameter is no longer finite.
        """
        ...

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Outputs ``(N, out_features)`` in eval mode."""
        ...


def evaluate(trainer: Trainer, problem: Problem) -> float:
    """The score on the validation rows.

    Raises:
        DivergedError: an output is not finite.
    """
    out = trainer.predict(problem.validation.x)
    if not np.isfinite(out).all():
        raise DivergedError
    return score(out, problem.validation, problem.loss)
