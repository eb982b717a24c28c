"""A step as what lies between meetings: a stretch of compute, then the meeting that ends it.

::

    update, layer 1 | layer 2 | ... | layer L, loss, layer L backward | ... | layer 2 | layer 1 |
                    ^ forward meetings ^            ^ backward meetings         ^         ^ gradients

A layer forward computes, then meets; backward it meets (its gradient's sums are ready as it is handed the gradient),
then computes. A layer without a meeting lengthens the stretch that it is in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from wholebatch.cost.plan.record import Workload


@dataclass(frozen=True)
class Stretch:
    """What a worker computes between two meetings.

    Attributes:
        compute_us: mean, microseconds.
        spread: coefficient of variation of a step's compute.
        size: bytes that a worker brings to the meeting at its end.
        gradients: whether that meeting is the sum of gradients, the last of the step, or else a batch norm's.
    """

    compute_us: float
    spread: float
    size: int
    gradients: bool = False

    @property
    def sigma(self) -> float:
        """Of the lognormal factor on the compute: standard deviation of its logarithm; its mean is 1."""
        return math.sqrt(math.log1p(self.spread**2))


def split(workload: Workload, jitter: float | None = None, factor: float = 1.0) -> list[Stretch]:
    """The stretches of a step; the last one ends in the sum of gradients.

    Args:
        workload: one worker's step.
        jitter: coefficient of variation of every stretch; None: the workload's own spreads, as if what a stretch
            consists of varied independently.
        factor: on the workload's compute.
    """
    found: list[Stretch] = []
    pieces = [(workload.update_us, workload.update_spread)]
    for layer in workload.layers:
        pieces.append((layer.forward_us, layer.forward_spread))
        if layer.forward_bytes:
            found.append(_join(pieces, layer.forward_bytes, jitter, factor))
            pieces = []
    for layer in reversed(workload.layers):
        if layer.backward_bytes:
            found.append(_join(pieces, layer.backward_bytes, jitter, factor))
            pieces = []
        pieces.append((layer.backward_us, layer.backward_spread))
    return [*found, _join(pieces, workload.gradient_bytes, jitter, factor, gradients=True)]


def _join(
    pieces: Iterable[tuple[float, float]], size: int, jitter: float | None, factor: float, gradients: bool = False
) -> Stretch:
    """One stretch of several pieces (mean, coefficient of variation); variances of independent pieces add up."""
    pieces = list(pieces)
    mean = sum(one for one, _ in pieces)
    if jitter is None:
        deviation = math.hypot(*(one * spread for one, spread in pieces))
        jitter = deviation / mean if mean > 0 else 0.0
    return Stretch(mean * factor, jitter, size, gradients)
