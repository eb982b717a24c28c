"""What the rows of each mini-batch count for: sums that every rank needs of all shards."""

from __future__ import annotations

import numpy as np
import torch

from wholebatch.feedforward.data import Data
from wholebatch.feedforward.settings import Loss


def weigh_rows(data: Data, order: np.ndarray, counts: np.ndarray, loss: Loss) -> np.ndarray | None:
    """``(shards, steps, 3)`` float64: the sum of what multiplies each row's loss, that of the sample weights, and how
    many rows have a weight other than 0. None where every row counts once.

    Args:
        order: of the rows, step after step, shard after shard.
        counts: rows of each mini-batch in each of these shards, ``(steps, shards)``.
    """
    by_class = loss.takes_classes and loss.class_weights is not None
    if data.sample_weight is None and not by_class:
        return None
    weight = np.ones(len(order))
    if data.sample_weight is not None:
        weight = data.sample_weight[order].astype(np.float64)
    of_loss = weight
    if by_class:
        assert data.y is not None
        # Rounded to the net's dtype first, as the losses have them.
        dtype = torch.from_numpy(np.empty(0, data.x.dtype)).dtype
        of_loss = weight * torch.tensor(loss.class_weights, dtype=dtype).double().numpy()[data.y[order]]
    of = np.repeat(np.arange(counts.size), counts.ravel())  # (step, shard) of each row
    sums = [np.bincount(of, each, counts.size) for each in (of_loss, weight, weight != 0)]
    return np.stack(sums, axis=-1).reshape(*counts.shape, 3).swapaxes(0, 1)
