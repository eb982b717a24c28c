"""The contender on torch eager, at its best: torch's own layers, autograd and optimizer, and no needless work.

A shuffled run of mini-batches is gathered by one ``index_select`` and cut by ``split``; gradients are set to None; the
optimizer is the fused or the foreach implementation, whichever was faster in a trial.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wholebatch.cost.comparison.problem import Problem
from wholebatch.cost.comparison.record import NormName
from wholebatch.cost.comparison.trainer import DivergedError
from wholebatch.feedforward.data import as_tensor
from wholebatch.feedforward.reference import make_optimizer
from wholebatch.feedforward.settings import Loss

VARIANTS = ("fused", "foreach")


class Eager:
    """See :class:`wholebatch.cost.comparison.trainer.Trainer`."""

    def __init__(
        self, problem: Problem, norm: NormName, seed: int, learning_rate: float, threads: int, how: str
    ) -> None:
        self.threads, self.how = threads, how
        assert problem.training.y is not None
        self.x, self.y = as_tensor(problem.training.x), as_tensor(problem.training.y)
        self.net = problem.net(norm, seed).to_sequential().train()
        self.loss = loss_function(problem.loss)
        optimizer = replace(problem.optimizer, learning_rate=learning_rate)
        self.optimizer = make_optimizer(optimizer, self.net, **{how: True})

    def train(self, order: np.ndarray, offsets: np.ndarray) -> float:
        torch.set_num_threads(self.threads)
        net, optimizer, loss_of = self.net, self.optimizer, self.loss
        start = time.perf_counter()
        rows, sizes = torch.from_numpy(order[: offsets[-1]]), np.diff(offsets).tolist()
        xs, ys = (torch.split(values.index_select(0, rows), sizes) for values in (self.x, self.y))
        for x, y in zip(xs, ys, strict=True):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(net(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        seconds = time.perf_counter() - start
        if not all(bool(torch.isfinite(parameter).all()) for parameter in net.parameters()):
            raise DivergedError
        return seconds

    @torch.no_grad()
    def predict(self, x: np.ndarray) -> np.ndarray:
        torch.set_num_threads(self.threads)
        self.net.eval()
        out: np.ndarray = self.net(as_tensor(x)).numpy()
        self.net.train()
        return out


def loss_function(loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """torch's own function for ``loss``, with targets as the engine has them: ``(N,)`` classes or ``(N, K)`` values."""
    functions: dict[str, Callable[..., Tensor]] = {
        "cross_entropy": functional.cross_entropy,
        "mse": functional.mse_loss,
        "huber": functional.huber_loss,
        "bce": functional.binary_cross_entropy_with_logits,
    }
    return functions[loss.kind]
