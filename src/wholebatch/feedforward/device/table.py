"""The table on the device: rows, targets and weights, from which mini-batches are gathered there.

A sparse table lies there as a dense one, filled block by block, so that the host never holds it all. Where batch norm
takes the mean of ``W x`` away, inputs far from zero are moved there once, as the table is laid down: a step then pays
nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from weakref import ref

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from wholebatch.feedforward.data import Data, as_tensor
from wholebatch.feedforward.device.memory import check_room
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.sharding import shard_bounds
from wholebatch.moments import Moments
from wholebatch.sharing import Meeting
from wholebatch.sharing.merging import merge_moments

BLOCK_BYTES = 64 << 20  # of a sparse table's rows that are made dense in one go
FAR = 4.0  # standard deviations: columns whose mean is further from zero are moved, as in native/step.cpp


class Table:
    """One :class:`Data` on a device.

    Args:
        centred: the first layer stands under a batch norm, so that a constant may be taken from each column.
        peers: over ranks the constants are the same on all of them.

    Attributes:
        x: ``(N, F)``.
        y: ``(N,)`` int64 or ``(N, out)``.
        weight: ``(N,)`` or None.
        centre: ``(F,)``, taken from ``x``; None: nothing was.

    Raises:
        ValueError: there is no room for it on the device.
    """

    def __init__(self, data: Data, device: torch.device, *, centred: bool, peers: Peers | None = None) -> None:
        assert data.y is not None
        self._data = ref(data)
        rows, features = data.x.shape
        size = np.dtype(data.x.dtype).itemsize
        check_room(device, rows * features * size, f"the table of {rows:,} rows and {features:,} columns")
        self.x = _lay_down(data.x, device)
        self.y = as_tensor(data.y).to(device)
        self.weight = None if data.sample_weight is None else as_tensor(data.sample_weight).to(device)
        self.centre = self._move(device, peers) if centred else None

    def holds(self, data: Data) -> bool:
        """Whether it was laid down from this very object."""
        return self._data() is data

    def _move(self, device: torch.device, peers: Peers | None) -> Tensor | None:
        """Take from each column its mean over all ranks' rows, where one of them is far from zero."""
        bounds = shard_bounds(len(self.x), 1 if peers is None else len(peers.own))
        found = [_moments_of(self.x[begin:end]) for begin, end in pairwise(bounds.tolist())]
        rows = np.stack([np.concatenate([[m.count], m.mean.cpu().numpy(), m.m2.cpu().numpy()]) for m in found])
        if peers is not None:
            rows = peers.gather(rows, Meeting("table", "centre"))
        whole = merge_moments(torch.from_numpy(rows), torch.zeros(self.x.shape[1], dtype=torch.float64))
        if not whole.count or not bool((whole.mean.square() > FAR**2 * whole.variance()).any()):
            return None
        centre = whole.mean.to(device)
        self.x = self.x.clone() if device.type == "cpu" else self.x  # on the CPU it may be the person's own
        for block in _blocks(self.x):
            block.copy_(block.double() - centre)
        return centre.to(self.x.dtype)


def dense_rows(x: object, begin: int, end: int) -> Tensor:
    """Rows of a table as a dense tensor on the host."""
    rows = x[begin:end]  # type: ignore[index]
    return as_tensor(rows.toarray() if scipy.sparse.issparse(rows) else rows)


def _lay_down(x: object, device: torch.device) -> Tensor:
    if not scipy.sparse.issparse(x):
        assert isinstance(x, np.ndarray)
        return as_tensor(x).to(device)
    rows, features = x.shape  # type: ignore[attr-defined]
    table = torch.empty((rows, features), dtype=dense_rows(x, 0, 0).dtype, device=device)
    step = _block_rows(table)
    for begin in range(0, rows, step):
        table[begin : begin + step].copy_(dense_rows(x, begin, begin + step))
    return table


def _moments_of(x: Tensor) -> Moments:
    """In float64, block by block in their order."""
    whole = Moments.of(x[:0].double())
    for block in _blocks(x):
        whole = whole.merge(Moments.of(block.double()))
    return whole


def _blocks(x: Tensor) -> Iterator[Tensor]:
    step = _block_rows(x)
    return (x[begin : begin + step] for begin in range(0, len(x), step))


def _block_rows(x: Tensor) -> int:
    return max(1, BLOCK_BYTES // max(1, x.shape[1] * x.element_size()))
