"""What is known of each mini-batch before an epoch: what its loss is divided by, and how its rows are weighed."""

from __future__ import annotations

import numpy as np
import torch

from wholebatch.feedforward.data import Data
from wholebatch.feedforward.peers import Peers, add_in_order
from wholebatch.feedforward.settings import Loss
from wholebatch.sharing import Meeting


def step_totals(
    data: Data, order: np.ndarray, counts: np.ndarray, own: range, loss: Loss, peers: Peers | None
) -> np.ndarray:
    """``(steps, 3)`` float64 of the whole mini-batches: the sum of what multiplies each row's loss, that of the sample
    weights, and the rows whose weight is not 0; without weights the rows, three times.

    Args:
        order: of the own rows, step after step, shard after shard.
        counts: rows of each mini-batch in each of all shards, ``(steps, shards)``.
        own: the shards of this rank.
    """
    by_class = loss.takes_classes and loss.class_weights is not None
    rows = counts.sum(1).astype(np.float64)
    if data.sample_weight is None and not by_class:
        return np.repeat(rows[:, None], 3, axis=1)
    mine = counts[:, own.start : own.stop]
    weight = np.ones(len(order))
    if data.sample_weight is not None:
        weight = data.sample_weight[order].astype(np.float64)
    of_loss = weight
    if by_class:
        assert data.y is not None
        # Rounded to the net's dtype first, as the losses have them.
        dtype = torch.from_numpy(np.empty(0, data.x.dtype)).dtype
        of_loss = weight * torch.tensor(loss.class_weights, dtype=dtype).double().numpy()[data.y[order]]
    of = np.repeat(np.arange(mine.size), mine.ravel())  # (step, own shard) of each row
    sums = [np.bincount(of, each, mine.size) for each in (of_loss, weight, weight != 0)]
    each = np.stack(sums, axis=-1).reshape(*mine.shape, 3).swapaxes(0, 1)  # (own shards, steps, 3)
    told = each.reshape(len(own), -1)
    if peers is not None:
        told = peers.gather(told, Meeting("epoch", "weights"))
    return add_in_order(told).reshape(-1, 3)
