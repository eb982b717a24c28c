"""scikit-learn's MLPClassifier: `partial_fit`, which is one epoch, on the mini-batches of the table in their order.

A single call takes the steps of a whole epoch, so its checks of the input are shared by many steps.
"""

from __future__ import annotations

import time

import numpy as np
import sklearn
from sklearn.neural_network import MLPClassifier

from benchmarks.problem import Problem
from benchmarks.systems import LeftOut


def load() -> str:
    """scikit-learn's version."""
    return str(sklearn.__version__)


class Perceptron:
    """One net and its table."""

    note = ""

    def __init__(self, problem: Problem) -> None:
        if problem.norm != "none":
            raise LeftOut(f"MLPClassifier has no {problem.norm} norm")
        self.x, self.y = problem.table()
        self.batch, self.batches = problem.batch, problem.batches
        self.net = MLPClassifier(
            problem.sizes[1:-1],
            activation="relu",
            solver=problem.optimizer,
            momentum=0.0,
            nesterovs_momentum=False,
            alpha=0.0,
            batch_size=problem.batch,
            learning_rate_init=problem.learning_rate,
            shuffle=False,
            random_state=0,
        )
        self.net.partial_fit(self.x[: self.batch], self.y[: self.batch], classes=np.arange(problem.sizes[-1]))

    def run(self, steps: int) -> float:
        seconds = 0.0
        while steps:
            part = min(steps, self.batches)
            x, y = self.x[: part * self.batch], self.y[: part * self.batch]
            start = time.perf_counter()
            self.net.partial_fit(x, y)
            seconds += time.perf_counter() - start
            steps -= part
        return seconds


make = Perceptron
