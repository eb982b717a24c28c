"""Time per step in interleaved rounds, as recordings of nets that were trained on a table keep it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from wholebatch.cost.digits import middle
from wholebatch.cost.values import Seconds

LEAST_ROUNDS = 7
"""Below this, a 20th and an 80th percentile say nothing."""
BUSY = 1.5
"""Where the rounds' 80th percentile is so many times their 20th, something else used the cores."""


class Timing(BaseModel):
    """Time per step, from interleaved rounds: a burst of everything that is compared in each, in a new order.

    Attributes:
        seconds: per step, one value a round; round i of all that are compared ran within the same moment.
        steps: that a burst had.
        median, low, high: of ``seconds``: the median, the 20th and the 80th percentile.
    """

    model_config = ConfigDict(extra="forbid")

    seconds: list[Seconds] = Field(min_length=1)
    steps: int
    median: Seconds
    low: Seconds
    high: Seconds


def summarise(seconds: Sequence[float], steps: int) -> Timing:
    """Median, p20 and p80 of the rounds' seconds per step."""
    low, median, high = middle(seconds)
    return Timing(seconds=list(seconds), steps=steps, median=median, low=low, high=high)


def doubt_machine(timings: Iterable[Timing], differ: str, remedy: str) -> list[str]:
    """A sentence where the rounds lie far apart; none where they do not.

    Args:
        differ: what does, with its verb: ``the rounds of a choice differ``.
        remedy: a sentence.
    """
    widest = max(timing.high / max(timing.low, 1e-12) for timing in timings)
    if widest <= BUSY:
        return []
    return [
        f"The machine was busy, or its clock changed: {differ} by up to {widest:.1f} times (20th to 80th percentile). "
        f"{remedy}"
    ]
