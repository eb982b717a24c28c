"""Which rows of a prepared table each rank keeps: those of its shards, and as many shares of what is held out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wholebatch.feedforward.sharding import shard_bounds
from wholebatch.runs.prepared import Part, Prepared
from wholebatch.runs.ranks import Ranks


def deal(prepared: Prepared, shards: int, ranks: Ranks) -> Prepared:
    """What this rank keeps of a table that it has prepared whole."""
    if ranks.count == 1:
        return prepared
    parts = [prepared.training, prepared.validation, prepared.test]
    training, validation, test = (None if part is None else _own(part, shards, ranks) for part in parts)
    assert training is not None
    return replace(prepared, training=training, validation=validation, test=test)


def own_bounds(rows: int, shards: int, ranks: Ranks) -> np.ndarray:
    """Where this rank's shards of so many rows begin, and the end of the last: ``(own shards + 1,)``."""
    each = shards // ranks.count
    return shard_bounds(rows, shards)[ranks.rank * each : (ranks.rank + 1) * each + 1]


def _own(part: Part, shards: int, ranks: Ranks) -> Part:
    bounds = own_bounds(len(part), shards, ranks)
    here = slice(bounds[0], bounds[-1])
    return Part(part.rows[here], part.x[here], part.y[here], None if part.weight is None else part.weight[here])
