"""wholebatch: the native engine as `fit` uses it, an epoch of shuffled rows of a table.

The time includes the gather of the rows, which no peer has to do (each gets mini-batches that lie ready), and the
copying of the parameters into the engine and back, once in an epoch.
"""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from benchmarks.problem import Problem
from benchmarks.systems import LeftOut
from wholebatch.feedforward import data
from wholebatch.feedforward.engines import make_engine
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.settings import Architecture, Loss, Optimizer
from wholebatch.kernels import instruction_set, native_module, product_unit


def load() -> str:
    """The version, and the instruction set in use."""
    try:
        native_module()
    except ValueError as error:
        raise LeftOut(str(error)) from None
    return f"{version('wholebatch')} ({instruction_set()})"


LOSS = Loss("cross_entropy")


def make_net(problem: Problem) -> tuple[FeedForward, Optimizer]:
    """The net with its first weights, the same in every process, and how it is trained."""
    norm, optimizer = problem.norm, problem.optimizer
    torch.manual_seed(0)
    model = FeedForward.of(Architecture(problem.sizes[0], problem.sizes[1:-1], problem.sizes[-1], norm=norm))  # type: ignore[arg-type]
    return model, Optimizer(optimizer, learning_rate=problem.learning_rate)  # type: ignore[arg-type]


class Ours:
    """One engine and its table."""

    note = ""

    def __init__(self, problem: Problem) -> None:
        precision: Any = problem.precision
        if precision != "highest" and product_unit(precision) is None:
            raise LeftOut(f"no unit of this processor makes {precision} products faster than those of float32")
        model, optimizer = make_net(problem)
        threads = problem.threads
        self.engine = make_engine(
            model, LOSS, optimizer, n_threads=threads, engine="native", matmul_precision=precision
        )
        self.data = data.prepare(*problem.table(), None, model.architecture, LOSS, torch.float32)
        self.problem, self.epoch = problem, 0

    def run(self, steps: int) -> float:
        examples = steps * self.problem.batch
        passes = -(-examples // len(self.data))
        orders = [data.shuffled(len(self.data), 0, self.epoch + i) for i in range(passes)]
        order = np.ascontiguousarray(np.concatenate(orders)[:examples], dtype=np.int64)
        self.epoch += passes
        offsets = np.arange(steps + 1, dtype=np.int64) * self.problem.batch
        rates = np.full(steps, self.problem.learning_rate)
        start = time.perf_counter()
        self.engine.train_epoch(self.data, order, offsets, rates)
        return time.perf_counter() - start


make = Ours
