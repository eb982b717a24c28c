"""What a finished net predicts for a part of the table, whoever holds the rows: scores and pictures are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from wholebatch.feedforward.sharding import shard_bounds
from wholebatch.runs.model import Model
from wholebatch.runs.prepared import Prepared
from wholebatch.runs.ranks import Ranks


@dataclass(frozen=True)
class Predicted:
    """All rows of a part: ``outputs`` (N, K) of the net, ``y`` as the loss takes it, ``weight`` (N,) or None."""

    outputs: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None


def predict(model: Model, prepared: Prepared, shards: int, ranks: Ranks) -> dict[str, Predicted]:
    """By the name of the part; all rows on the first rank, no outputs on the others.

    The rows of each shard are predicted by themselves, so that no number depends on who holds them: a product over
    other rows may have other last bits.
    """
    found, each = {}, shards // ranks.count
    for name, whole in prepared.whole.items():
        part = getattr(prepared, name)
        bounds = shard_bounds(len(whole), shards)[ranks.rank * each : (ranks.rank + 1) * each + 1]
        pieces = [model.outputs(part.x[a - bounds[0] : b - bounds[0]]) for a, b in pairwise(bounds)]
        outputs = ranks.gather(np.concatenate(pieces), f"outputs of the {name} rows")
        found[name] = Predicted(outputs, whole.y, whole.weight)
    return found
