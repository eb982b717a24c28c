"""The measured numbers taken together: what console, page and sentences all say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from wholebatch.cost.synchronisation.record import Choice, Delay, Steps, Synchronisation


@dataclass(frozen=True)
class Parts:
    """A step, seconds; and what some ranks do of it, as shares of the whole that sum to 1.

    Attributes:
        median, low, high: of the step: the median of the rounds, the 20th and the 80th percentile.
        compute, exchange, wait: means over the ranks.
    """

    median: float
    low: float
    high: float
    compute: float
    exchange: float
    wait: float


@dataclass(frozen=True)
class Difference:
    """How the last scores of a choice differ from those of another, from the same seeds.

    Attributes:
        mean: over seeds.
        error: standard error of ``mean``; None with a single seed.
        seeds: how many.
    """

    mean: float
    error: float | None
    seeds: int

    @property
    def is_seen(self) -> bool:
        """Whether chance would give one so large, either way, in less than 5 % of such measurements.

        By Student's t for pairs: of 5 seeds it has to be 2.8 times the standard error, of 2 seeds 12.7 times.
        """
        if self.error is None:
            return False
        return abs(self.mean) > float(stdtrit(self.seeds - 1, 0.975)) * self.error


def waiting(steps: Steps) -> Parts:
    """Of all ranks but one that is always held up: of those that wait for it."""
    return _parts(steps, range(len(steps.wait) - (steps.delay == "last")))


def last_one(steps: Steps) -> Parts:
    """Of the last rank."""
    return _parts(steps, [len(steps.wait) - 1])


def _parts(steps: Steps, ranks: Sequence[int]) -> Parts:
    compute, exchange, wait = (
        float(np.mean([of[rank] for rank in ranks])) for of in (steps.compute, steps.exchange, steps.wait)
    )
    whole = compute + exchange + wait or 1.0
    timing = steps.timing
    return Parts(timing.median, timing.low, timing.high, compute / whole, exchange / whole, wait / whole)


def last_scores(record: Synchronisation, choice: Choice) -> dict[int, float]:
    """By seed; those of trainings that diverged are left out."""
    return {t.seed: t.scores[-1] for t in record.trained(choice) if t.diverged is None}


def compare(record: Synchronisation, choice: Choice, base: Choice) -> Difference | None:
    """The last scores of ``choice`` over those of ``base``; None: no seed with which both went well."""
    one, other = last_scores(record, choice), last_scores(record, base)
    pairs = [one[seed] - other[seed] for seed in one if seed in other]
    if not pairs:
        return None
    error = float(np.std(pairs, ddof=1)) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    return Difference(float(np.mean(pairs)), error, len(pairs))


def ratio(one: Steps, base: Steps) -> float:
    """Of the median steps."""
    return one.timing.median / base.timing.median


def epoch_seconds(record: Synchronisation, choice: Choice, delay: Delay) -> float | None:
    """The mean over trainings and epochs; None: no epoch was finished."""
    means = [t.seconds[-1] / (len(t.seconds) - 1) for t in record.trained(choice, delay) if len(t.seconds) > 1]
    return float(np.mean(means)) if means else None


def is_unchanged(record: Synchronisation, choice: Choice) -> bool | None:
    """Whether ranks that were held up changed no score, by equality; None: there were none."""
    pairs = [
        (held, plain)
        for held in (*record.trained(choice, "last"), *record.trained(choice, "changing"))
        for plain in record.trained(choice)
        if plain.seed == held.seed
    ]
    if not pairs:
        return None
    return all((a.scores, a.diverged) == (b.scores, b.diverged) for a, b in pairs)
