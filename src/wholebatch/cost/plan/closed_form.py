"""The distribution of a step without drawing it, for any number of workers.

A stretch s of one worker takes ``X_s``, lognormal with distribution function ``F_s``. A group of g workers leaves its
meeting when the last one has come, after ``F_s^g``; the stretches of a step are independent, so that a group's step is
the convolution of these; and the step of N workers in N/g groups ends with the last group (exchanges are constants)::

    F_step = ( F_1^g * F_2^g * ... * F_S^g )^(N/g)        mean = integral of t dF_step

A slower worker's factor is another lognormal: its group has ``F_s(t)^(g-1) F_s(t/by)``. Powers and convolutions are
taken on a grid, by FFT; nothing is approximated but by the grid and by tails of 1e-12.

Source: the distribution of the largest of n is in David and Nagaraja, "Order Statistics", 3rd edition, 2003, section
2.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import fft
from scipy.special import log_ndtr, ndtri, ndtri_exp

from wholebatch.cost.plan.outcome import Outcome, Team
from wholebatch.cost.plan.stretches import Stretch

_CELLS = 1 << 16
"""Of the grid. The mean is right to 1e-9 of itself up to a coefficient of variation of 1."""
_TAIL = 1e-12
"""Probability that is left out at each end of each stretch."""
_NOTHING = 1e-9
"""A step that varies by less than this share of itself is taken for one that does not vary."""


def solve(stretches: Sequence[Stretch], exchanges: Sequence[float], team: Team) -> Outcome:
    """The step of ``team``; ``exchanges`` are the microseconds that end each stretch."""
    kinds = _kinds(stretches, team)
    constant, compute = sum(exchanges), sum(stretch.compute_us for stretch in stretches) * team.mean_pace
    first, last = (max(sum(getattr(one, end) for one in kind) for kind, _ in kinds) for end in ("low", "high"))
    cell = max(sum(one.high - one.low for one in kind) for kind, _ in kinds) / _CELLS
    if cell * _CELLS <= _NOTHING * last:
        mean = p50 = p95 = last
    else:
        times = np.arange(first - cell, last + 2 * cell, cell)
        reached = np.exp(sum(count * np.log1p(-_survive(kind, cell, times)) for kind, count in kinds))
        mean = float(np.diff(reached) @ (times[1:] + times[:-1]) / 2 / (reached[-1] - reached[0]))
        p50, p95 = (float(np.interp(share, reached, times)) for share in (0.5, 0.95))
    return Outcome(mean + constant, 0.0, p50 + constant, p95 + constant, compute, max(mean - compute, 0.0))


@dataclass(frozen=True)
class _Largest:
    """What a group takes for a stretch: the largest of ``ordinary`` lognormals and, if there is one, a slower one's."""

    stretch: Stretch
    ordinary: int
    by: float | None

    @property
    def low(self) -> float:
        """It takes at least this, but for a probability of ``_TAIL``."""
        return max(self._quantile(float(ndtri_exp(np.log(_TAIL) / count)), by) for count, by in self._factors)

    @property
    def high(self) -> float:
        """It takes at most this, but for a probability of ``_TAIL`` (and as much for a slower one)."""
        return max(self._quantile(-float(ndtri(_TAIL / count)), by) for count, by in self._factors)

    def reached(self, times: np.ndarray) -> np.ndarray:
        """Its distribution function."""
        sigma = self.stretch.sigma
        scores = (np.log(times / self.stretch.compute_us) + sigma**2 / 2) / sigma
        logarithm: np.ndarray = sum(count * log_ndtr(scores - np.log(by) / sigma) for count, by in self._factors)
        reached: np.ndarray = np.exp(logarithm)
        return reached

    @property
    def _factors(self) -> list[tuple[int, float]]:
        """How many workers of which factor on the compute."""
        return [(self.ordinary, 1.0)] * (self.ordinary > 0) + ([] if self.by is None else [(1, self.by)])

    def _quantile(self, score: float, by: float) -> float:
        sigma = self.stretch.sigma
        return self.stretch.compute_us * by * float(np.exp(sigma * score - sigma**2 / 2))


def _kinds(stretches: Sequence[Stretch], team: Team) -> list[tuple[list[_Largest], int]]:
    """The kinds of groups, and how many of each there are."""
    if team.slow is None:
        return [([_Largest(one, team.group, None) for one in stretches], team.groups)]
    slow = [_Largest(one, team.group - 1, team.slow.by) for one in stretches]
    ordinary = [_Largest(one, team.group, None) for one in stretches]
    return [(slow, 1), *([(ordinary, team.groups - 1)] if team.groups > 1 else [])]


def _survive(kind: Sequence[_Largest], cell: float, times: np.ndarray) -> np.ndarray:
    """Probability that a group of this kind takes longer than each of ``times`` for all stretches."""
    start, masses = 0.0, []
    for one in kind:
        start += one.low
        if one.high > one.low:
            edges = one.low + cell * np.arange(np.ceil((one.high - one.low) / cell) + 1)
            masses.append(np.diff(one.reached(edges)))
            start += cell / 2  # a cell's mass stands in its middle
    total = sum(len(mass) for mass in masses)
    if total == 0:
        return np.where(times < start, 1 - _TAIL, 0.0)
    size = fft.next_fast_len(total, real=True)
    product = np.ones(size // 2 + 1, dtype=complex)
    for mass in masses:
        product *= fft.rfft(mass, size)
    whole = np.maximum(fft.irfft(product, size)[:total], 0.0)  # rounding leaves some at -1e-18
    whole /= whole.sum()
    beyond = np.cumsum(whole[::-1])[::-1] - whole / 2
    places = start + cell * np.arange(total)
    survival: np.ndarray = np.minimum(np.interp(times, places, beyond, left=1.0, right=0.0), 1 - _TAIL)
    return survival
