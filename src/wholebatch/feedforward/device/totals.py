"""What is known of each mini-batch before an epoch: what its loss is divided by, and how its rows are weighed."""

from __future__ import annotations

import numpy as np

from wholebatch.feedforward.data import Data
from wholebatch.feedforward.peers import Peers, add_in_order
from wholebatch.feedforward.settings import Loss
from wholebatch.feedforward.weighing import weigh_rows
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
    weighed = weigh_rows(data, order, counts[:, own.start : own.stop], loss)
    if weighed is None:
        return np.repeat(counts.sum(1).astype(np.float64)[:, None], 3, axis=1)
    told = weighed.reshape(len(own), -1)
    if peers is not None:
        told = peers.gather(told, Meeting("epoch", "weights"))
    return add_in_order(told).reshape(-1, 3)
