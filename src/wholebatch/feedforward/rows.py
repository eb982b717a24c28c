"""The rows of a training: this rank's, checked, and dealt to mini-batches with those of all ranks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from wholebatch.feedforward.agreement import do_together, tell_numbers
from wholebatch.feedforward.data import Data, batch_offsets, prepare
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.settings import Architecture, Loss
from wholebatch.feedforward.sharding import Deal, shard_bounds


def take_rows(
    peers: Peers | None,
    x: Any,
    y: Any,
    sample_weight: Any,
    architecture: Architecture,
    loss: Loss,
    dtype: torch.dtype,
) -> Data:
    """This rank's rows, checked as :func:`wholebatch.feedforward.data.prepare` checks all rows.

    A rank may have none. Where some ranks have weights, those without get a weight of 1 for each row.

    Raises:
        ValueError, TypeError: on every rank, what is wrong with the rows of one.
    """
    alone = peers is None
    data = do_together(peers, lambda: prepare(x, y, sample_weight, architecture, loss, dtype, whole=alone))
    return data if peers is None else check_rows(peers, data)


def check_rows(peers: Peers, data: Data) -> Data:
    """What can only be checked over all ranks; with weights on every rank, if one has some.

    Raises:
        ValueError: on every rank, where there are no rows at all, or all weights are zero.
    """
    weight = data.sample_weight
    told = tell_numbers(peers, [len(data), weight is not None, len(data) if weight is None else float(weight.sum())])
    rows, weighted, total = told.sum(0)
    if not rows:
        raise ValueError("x has no rows on any rank")
    if weighted and weight is None:
        data = replace(data, sample_weight=np.ones(len(data), data.x.dtype))
    if weighted and not total:
        raise ValueError("sample weights must not be negative, nor all zero; they are all zero on every rank")
    return data


def cut_shards(peers: Peers | None, rows: int) -> np.ndarray:
    """Where each of this rank's shards begins among its ``rows``, and the end of the last: ``(own shards + 1,)``."""
    return shard_bounds(rows, 1 if peers is None else len(peers.own))


def tell_sizes(peers: Peers | None, bounds: np.ndarray) -> list[int]:
    """The rows of each of all shards, from the bounds of the own ones."""
    sizes: list[int] = tell_numbers(peers, np.diff(bounds)).astype(np.int64).ravel().tolist()
    return sizes


def deal_rows(peers: Peers | None, rows: int, batch_size: int, architecture: Architecture) -> Deal:
    """How the ``rows`` of this rank, and those of all others, make mini-batches of ``batch_size`` rows.

    Raises:
        ValueError: on every rank; see :func:`wholebatch.feedforward.data.batch_offsets`.
    """
    sizes = tell_sizes(peers, cut_shards(peers, rows))
    own = range(1) if peers is None else peers.own
    return Deal.of(sizes, own, batch_offsets(sum(sizes), batch_size, architecture))
