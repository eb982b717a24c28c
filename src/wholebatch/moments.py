"""Moments ``(count, mean, M2)`` per channel: the little that workers exchange, and the formulas of batch norm on it.

M2 is the sum of squared deviations from the mean. Two parts merge by Chan's formula, in any grouping, without the
cancellation of ``E[x^2] - E[x]^2`` (at mean 1e3 and std 1 that form has a relative error of 0.5 in float32)::

    delta = mean_b - mean_a        n = n_a + n_b
    mean  = mean_a + delta * n_b / n
    M2    = M2_a + M2_b + delta^2 * n_a * n_b / n

Everything here is differentiable torch: in float64 it is the oracle that every kernel is tested against.

Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """``count``: how many elements; ``mean`` and ``m2``: ``(C,)``. An empty part has count 0 and zeros."""

    count: float
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, z: Tensor) -> Moments:
        """Moments of ``z`` ``(N, C)`` over its rows, in two passes."""
        if z.shape[0] == 0:
            zero = z.new_zeros(z.shape[1])
            return cls(0, zero, zero)
        mean = z.mean(0)
        return cls(z.shape[0], mean, (z - mean).square().sum(0))

    def merge(self, other: Moments) -> Moments:
        """The moments of both parts together (Chan's formula)."""
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        n = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / n)
        m2 = self.m2 + other.m2 + delta.square() * (self.count * other.count / n)
        return Moments(n, mean, m2)

    def variance(self, *, unbiased: bool = False) -> Tensor:
        """``M2 / count``, or ``M2 / (count - 1)``.

        Raises:
            ValueError: too few elements to have a variance.
        """
        divisor = self.count - 1 if unbiased else self.count
        if divisor <= 0:
            kind = "unbiased variance needs at least 2 elements" if unbiased else "variance needs at least 1 element"
            raise ValueError(f"the {kind}, these moments count {self.count}")
        return self.m2 / divisor

    def check(self, shape: Iterable[int]) -> None:
        """Raise where training cannot go on: 1 element has a variance of 0 and no unbiased one.

        Raises:
            ValueError: the whole mini-batch has 1 value per channel; ``shape`` is that of this worker's input.
        """
        if self.count == 1:
            refuse_one_value(shape)

    def rstd(self, eps: float) -> Tensor:
        """``1 / sqrt(variance + eps)``; of no elements at all, as if the variance were 0."""
        return torch.rsqrt(self.m2 / max(self.count, 1) + eps)


def refuse_one_value(shape: Iterable[int]) -> NoReturn:
    """The error of :meth:`Moments.check`."""
    raise ValueError(
        "training needs more than 1 value per channel, and the whole mini-batch has 1 "
        f"(input {tuple(shape)}): it has no variance; use a larger mini-batch, or model.eval()"
    )
