"""Which rows a shard owns, and how many of them each mini-batch takes: functions of sizes alone, never of ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shard_bounds(rows: int, shards: int) -> np.ndarray:
    """Where each shard of a table begins, and the end of the last: ``(shards + 1,)`` int64.

    Runs of rows, of equal length but for one row more in the first ``rows % shards``.
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
    counts = np.zeros((len(offsets) - 1, len(sizes)), dtype=np.int64)
    np.add.at(counts, (steps, owners), 1)
    return counts
