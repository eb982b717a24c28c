"""The contender on this project's engine, as ``fit`` runs it."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from wholebatch import kernels
from wholebatch.cost.comparison.problem import Problem
from wholebatch.cost.comparison.record import NormName
from wholebatch.cost.comparison.trainer import DivergedError
from wholebatch.feedforward.engine import NonFiniteLossError
from wholebatch.feedforward.engines import make_engine


class Ours:
    """See :class:`wholebatch.cost.comparison.trainer.Trainer`.

    The net's parameters are handed to the engine at the beginning of each call of ``train``, and back at its end: that
    is a part of the time.
    """

    def __init__(
        self, problem: Problem, norm: NormName, seed: int, learning_rate: float, threads: int, how: str
    ) -> None:
        self.problem, self.threads, self.how, self.learning_rate = problem, threads, how, learning_rate
        optimizer = replace(problem.optimizer, learning_rate=learning_rate)
        self.engine = make_engine(problem.net(norm, seed), problem.loss, optimizer, seed=seed, n_threads=threads)

    def train(self, order: np.ndarray, offsets: np.ndarray) -> float:
        rates = np.full(len(offsets) - 1, self.learning_rate)
        start = time.perf_counter()
        try:
            self.engine.train_epoch(self.problem.training, order, offsets, rates)
        except NonFiniteLossError:
            raise DivergedError from None
        return time.perf_counter() - start

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.engine.predict(x)


def variants() -> list[str]:
    """How it can run here: with the best instruction set, or on the torch reference where nothing was compiled."""
    return [kernels.instruction_set() if kernels.native_available(say=True) else "torch reference"]
