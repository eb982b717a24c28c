"""Which rows a shard owns, how many of them each mini-batch takes, and which: functions of sizes, never of ranks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from wholebatch.feedforward.data import shuffled


def shard_bounds(rows: int, shards: int) -> np.ndarray:
    """Where each shard of a table begins, and the end of the last: ``(shards + 1,)`` int64.

    Runs of rows, of equal length but for one row more in the first ``rows % shards``. The rows of some neighbouring
    shards, cut by themselves into as many, are cut at the same places.
    """
    share, more = divmod(rows, shards)
    return np.array([s * share + min(s, more) for s in range(shards + 1)], dtype=np.int64)


def shard_counts(sizes: Sequence[int], offsets: np.ndarray) -> np.ndarray:
    """How many rows of each shard every mini-batch of an epoch takes: ``(steps, shards)`` int64.

    Each shard's rows are spread evenly over the epoch: the j-th of n stands at the time ``(j + 1/2) / n``, and the
    mini-batches take rows by time, shards in order where times are equal. So a mini-batch has exactly as many rows as
    ``offsets`` says, and every row is taken once.

    Args:
        sizes: rows of each shard.
        offsets: ``(steps + 1,)``, as :func:`wholebatch.feedforward.data.batch_offsets` gives them for all rows.
    """
    times = np.concatenate([(np.arange(size) + 0.5) / max(size, 1) for size in sizes])
    owners = np.repeat(np.arange(len(sizes)), sizes)[np.argsort(times, kind="stable")]
    steps = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    places = np.bincount(steps * len(sizes) + owners, minlength=(len(offsets) - 1) * len(sizes))
    return places.reshape(-1, len(sizes)).astype(np.int64)


def own_offsets(counts: np.ndarray, own: range) -> np.ndarray:
    """Where each mini-batch begins among the rows of these shards, and the end of the last: ``(steps + 1,)`` int64."""
    return np.append(0, counts[:, own.start : own.stop].sum(1).cumsum()).astype(np.int64)


def own_order(
    sizes: Sequence[int], own: range, counts: np.ndarray, seed: int, epoch: int, *, shuffle: bool = True
) -> np.ndarray:
    """The order of these shards' rows in an epoch: step after step, and within a step shard after shard.

    Every shard is shuffled by itself, whoever owns it.

    Args:
        sizes: rows of each of all shards.
        own: the shards whose rows are ordered; they stand one behind the other.
        counts: of :func:`shard_counts`.

    Returns:
        ``(rows,)`` int64, indices among the rows of these shards.
    """
    begins = accumulate((sizes[shard] for shard in own), initial=0)
    rows = [
        begin + (shuffled(sizes[shard], seed, epoch, shard) if shuffle else np.arange(sizes[shard]))
        for begin, shard in zip(begins, own, strict=False)
    ]
    steps = [np.repeat(np.arange(len(counts)), counts[:, shard]) for shard in own]
    order: np.ndarray = np.concatenate(rows)[np.argsort(np.concatenate(steps), kind="stable")]
    return order.astype(np.int64, copy=False)
