"""The oracle of training over ranks, in one process: float64 torch over the whole mini-batch, but for batch norms.

A batch norm normalises each rank's rows by the moments that this rank is to know: of all rows, of its group's, of its
own, or of its own and what the others had in the step before. Autograd then finds the derivative, whatever it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from oracle import Masked, Oracle, inputs_of, loss_of
from wholebatch import FeedForward, Loss, Optimizer
from wholebatch.feedforward.data import Data
from wholebatch.feedforward.dropout import dropout_mask
from wholebatch.feedforward.sharding import Deal
from wholebatch.feedforward.spread import Spread
from wholebatch.moments import Moments


class SpreadOracle(Oracle):
    """A float64 twin of ``model`` whose rows are spread over ``ranks``."""

    def __init__(
        self, model: FeedForward, loss: Loss, optimizer: Optimizer, spread: Spread, ranks: int, seed: int = 0
    ) -> None:
        super().__init__(model, loss, optimizer, seed)
        self.spread, self.ranks = spread, ranks
        self.rows: list[int] = []  # of each rank, in this mini-batch
        self.before: dict[int, list[Moments]] = {}  # by batch norm, of each rank in the step before

    def train_spread(self, data: Data, deal: Deal, orders: Sequence[np.ndarray], rate: float) -> list[float]:
        """Epochs over all rows; ``deal`` is of all shards. Returns the mean loss of each epoch."""
        assert deal.own == range(len(deal.sizes))
        losses = []
        for order in orders:
            self.before, total = {}, 0.0
            for step in range(deal.steps):
                rows = order[deal.offsets[step] : deal.offsets[step + 1]]
                self.rows = deal.counts[step].reshape(self.ranks, -1).sum(1).tolist()
                total += self.train(data.take(rows), np.arange(len(rows)), [0, len(rows)], [rate]) * len(rows)
            losses.append(total / len(data))
        return losses

    def forward(self, data: Data) -> Tensor:
        weight = None if data.sample_weight is None else torch.from_numpy(data.sample_weight).double()
        x, hidden, self._fresh = inputs_of(data), 0, dict[int, list[Moments]]()
        for index, module in enumerate(self.net):
            if isinstance(module, nn.BatchNorm1d):
                x = self._normalise(index, module, x, weight if self.loss.weigh_moments else None)
            elif isinstance(module, Masked):
                mask = dropout_mask(*x.shape, hidden, self.step, self.seed, self.architecture.dropout)
                x = x * torch.from_numpy(mask).double() / (1 - self.architecture.dropout)
            else:
                x = module(x)
            hidden += isinstance(module, Masked)
        assert data.y is not None
        y = torch.from_numpy(data.y)
        loss = loss_of(self.loss, x, y if self.loss.takes_classes else y.double(), weight)
        squares = sum((m.weight.square().sum() for m in self.net if isinstance(m, nn.Linear)), torch.zeros(()))
        self.before = self._fresh
        return loss + self.loss.alpha / 2 * squares / (len(data) if weight is None else weight.sum())

    def _normalise(self, index: int, norm: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        parts, weights = x.split(self.rows), [None] * self.ranks if weight is None else weight.split(self.rows)
        fresh = [moments_of(z, w) for z, w in zip(parts, weights, strict=True)]
        self._fresh[index] = [Moments(m.count, m.mean.detach(), m.m2.detach()) for m in fresh]
        whole = reduce(Moments.merge, self._fresh[index])
        out = []
        for rank, z in enumerate(parts):
            moments = reduce(Moments.merge, self._known(index, rank, fresh))
            out.append((z - moments.mean) * torch.rsqrt(moments.m2 / max(moments.count, 1) + norm.eps))
        with torch.no_grad():
            free = whole.count if weight is None else max(whole.count, float((weight != 0).sum()))
            norm.num_batches_tracked += 1
            share = norm.momentum if norm.momentum is not None else 1 / float(norm.num_batches_tracked)
            norm.running_mean.lerp_(whole.mean, share)
            norm.running_var.lerp_(whole.m2 / whole.count * free / max(free - 1, 1), share)
        return torch.cat(out) * norm.weight + norm.bias

    def _known(self, index: int, rank: int, fresh: list[Moments]) -> list[Moments]:
        """The moments that a rank normalises by; those that are not of this step are constants."""
        if self.spread.sync == "all":
            return fresh
        if self.spread.sync == "group":
            size = self.spread.group_size or self.ranks
            return fresh[rank // size * size : rank // size * size + size]
        others = self.before.get(index) if self.spread.sync == "late" else None
        return [fresh[rank]] if others is None else [*others[:rank], fresh[rank], *others[rank + 1 :]]


def moments_of(z: Tensor, weight: Tensor | None) -> Moments:
    """Differentiable; with weights a row of weight w counts as w rows."""
    if weight is None:
        return Moments.of(z)
    total = float(weight.sum())
    if total == 0:
        return Moments.of(z[:0])
    mean = (z * weight[:, None]).sum(0) / total
    return Moments(total, mean, ((z - mean).square() * weight[:, None]).sum(0))
