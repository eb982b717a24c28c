"""What a finished net predicts for a part of the table, whoever holds the rows: scores and pictures are made of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from wholebatch.runs.model import Model
from wholebatch.runs.prepared import Part
from wholebatch.runs.ranks import Ranks


@dataclass(frozen=True)
class Predicted:
    """All rows of a part: ``outputs`` (N, K) of the net, ``y`` as the loss takes it, ``weight`` (N,) or None."""

    outputs: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None


def predict(model: Model, part: Part, bounds: np.ndarray, ranks: Ranks, name: str) -> Predicted:
    """The rows of all ranks on the first rank; nobody's on the others.

    Args:
        part: this rank's rows.
        bounds: where each of its shards begins, and the end of the last. Each is predicted by itself, so that the
            numbers do not depend on who holds it: a product over other rows may have other last bits.
    """
    starts = bounds - bounds[0]
    outputs = np.concatenate([model.outputs(part.x[begin:end]) for begin, end in pairwise(starts)])
    whole = [
        None if values is None else ranks.gather(values, f"{what} of the {name} rows")
        for what, values in (("outputs", outputs), ("targets", part.y), ("weights", part.weight))
    ]
    assert whole[0] is not None
    assert whole[1] is not None
    return Predicted(whole[0], whole[1], whole[2])
