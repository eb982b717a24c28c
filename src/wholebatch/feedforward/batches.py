"""The mini-batches of an epoch as the reference engine takes them over shards: own rows, and what is known of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from wholebatch.feedforward.data import Data, as_tensor
from wholebatch.feedforward.losses import loss_weight
from wholebatch.feedforward.peers import Peers, add_in_order
from wholebatch.feedforward.settings import Loss
from wholebatch.moments import Moments
from wholebatch.sharing import Meeting
from wholebatch.sharing.merging import merge_moments


@dataclass(frozen=True)
class Part:
    """A shard's rows of a mini-batch; it may have none.

    Attributes:
        x: ``(rows, in_features)``.
        y: as in :class:`Data`.
        weight: ``(rows,)``, or None for equal ones.
        first: the place of its first row in the whole mini-batch.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None
    first: int

    def __len__(self) -> int:
        return self.x.shape[0]


@dataclass(frozen=True)
class Batch:
    """A mini-batch: the parts of the own shards, and numbers of the whole.

    Attributes:
        parts: of the own shards, in their order.
        rows: of all shards.
        loss_weight: what the loss is divided by.
        weight: the sum of the sample weights; the rows, where they are equal.
        weighed: how many rows have a weight other than 0.
    """

    parts: list[Part]
    rows: int
    loss_weight: float
    weight: float
    weighed: int


class Batches:
    """The mini-batches of an epoch, in order. What all ranks have to know of each is told in one meeting before them.

    Attributes:
        centre: ``(in_features,)`` float64, the mean of the first mini-batch: the same on all ranks.
    """

    def __init__(
        self, data: Data, order: np.ndarray, offsets: np.ndarray, counts: np.ndarray, loss: Loss, peers: Peers
    ) -> None:
        self._data, self._order, self._offsets, self._counts, self._own = data, order, offsets, counts, peers.own
        totals = np.zeros((len(peers.own), len(counts), 3))
        for step in range(len(counts)):
            for index, rows in enumerate(self._rows(step)):
                totals[index, step] = _totals(data, rows, loss)
        told = peers.gather(totals.reshape(len(peers.own), -1), Meeting("epoch", "totals"))
        self._totals = add_in_order(told).reshape(-1, 3)
        means = np.stack([_count_and_mean(data.x[rows]) for rows in self._rows(0)])
        told = peers.gather(means, Meeting("epoch", "centre"))
        self.centre = merge_moments(torch.from_numpy(told), torch.zeros(data.x.shape[1], dtype=torch.float64)).mean

    def __iter__(self) -> Iterator[Batch]:
        for step, counts in enumerate(self._counts):
            firsts = np.append(0, counts.cumsum())[self._own.start : self._own.stop]
            parts = [self._part(rows, int(first)) for rows, first in zip(self._rows(step), firsts, strict=True)]
            loss_weight, weight, weighed = self._totals[step]
            yield Batch(parts, int(counts.sum()), float(loss_weight), float(weight), int(weighed))

    def _rows(self, step: int) -> list[np.ndarray]:
        """Own shard by own shard, the rows that a step takes."""
        rows = self._order[self._offsets[step] : self._offsets[step + 1]]
        return np.split(rows, self._counts[step, self._own.start : self._own.stop].cumsum()[:-1])

    def _part(self, rows: np.ndarray, first: int) -> Part:
        taken = self._data.take(rows)
        assert taken.y is not None
        weight = None if taken.sample_weight is None else as_tensor(taken.sample_weight)
        # Cloned: what a matrix product rounds may depend on where its memory begins, and torch aligns its own.
        return Part(as_dense(taken.x).clone(), as_tensor(taken.y), weight, first)


def as_dense(x: Any) -> Tensor:
    """A table's rows as a dense tensor."""
    return as_tensor(x.toarray() if scipy.sparse.issparse(x) else x)


def _totals(data: Data, rows: np.ndarray, loss: Loss) -> tuple[float, float, int]:
    """Of some rows: the weight of their losses, the sum of their sample weights, and how many of those are not 0."""
    assert data.y is not None
    if data.sample_weight is None and (loss.class_weights is None or not loss.takes_classes):
        return len(rows), len(rows), len(rows)
    if data.sample_weight is None:
        return loss_weight(loss, as_tensor(data.y[rows]), None, torch.float64), len(rows), len(rows)
    weight = torch.from_numpy(data.sample_weight[rows].astype(np.float64))
    return (
        loss_weight(loss, as_tensor(data.y[rows]), weight, torch.float64),
        float(weight.sum()),
        int((weight != 0).sum()),
    )


def _count_and_mean(x: Any) -> np.ndarray:
    """``(1 + 2 F,)``: how many rows, their mean, and zeros where moments have M2."""
    rows, features = x.shape
    mean = np.asarray(x.mean(axis=0, dtype=np.float64)).ravel() if rows else np.zeros(features)
    return np.concatenate([[rows], mean, np.zeros(features)])


def moments_of(z: Tensor, weight: Tensor | None) -> np.ndarray:
    """``(1 + 2 C,)`` float64: count, mean and M2 over the rows of ``z``; with weights a row of weight w counts as w."""
    z = z.detach().double()
    if weight is None:
        moments = Moments.of(z)
    elif not bool(weight.any()):
        moments = Moments.of(z[:0])
    else:
        w = weight.double()[:, None]
        total = w.sum()
        mean = (z * (w / total)).sum(0)
        moments = Moments(float(total), mean, ((z - mean).square() * w).sum(0))
    return torch.cat([z.new_tensor([moments.count]), moments.mean, moments.m2]).numpy()
