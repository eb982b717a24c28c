"""A sharing without other workers."""

from __future__ import annotations

from torch import Tensor

from wholebatch.moments import Moments
from wholebatch.sharing import Meeting


class Twice:
    """The mini-batch is this part twice: its mean, and twice its sums."""

    def merge(self, moments: Moments, meeting: Meeting) -> Moments:
        return Moments(2 * moments.count, moments.mean, 2 * moments.m2)

    def sum(self, vectors: Tensor, meeting: Meeting) -> Tensor:
        return 2 * vectors
