"""Moments: merging in any grouping is the whole, and batch norm's formulas are its derivative."""

from __future__ import annotations

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wholebatch.moments import Moments

EPS = 2.0**-53


def assert_same(given: Moments, whole: Moments, spread: Tensor, size: Tensor, parts: int) -> None:
    """Tolerances: a mean of n values of one size errs by a few roundings of that size for each merge; M2 by a few
    roundings of itself, and of count * (error of the mean)^2 and its cross term with the spread, for each merge."""
    mean_error = 8 * (parts + 1) * EPS * (size + 1e-300)
    assert given.count == whole.count
    assert ((given.mean - whole.mean).abs() <= mean_error).all()
    m2_error = 32 * (parts + 1) * EPS * whole.m2 + 4 * whole.count * (mean_error**2 + mean_error * spread)
    assert ((given.m2 - whole.m2).abs() <= m2_error + 1e-300).all()


@given(
    rows=st.integers(1, 60),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    offset=st.sampled_from([0.0, 1.0, -1e4, 1e8]),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_merging_in_any_grouping_is_the_whole(
    rows: int, cuts: list[int], offset: float, seed: int, data: st.DataObject
):
    """Parts of any sizes, empty ones too, in any order, as any tree."""
    z = torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, 3)) + offset)
    bounds = [0, *sorted(min(cut, rows) for cut in cuts), rows]
    parts = [Moments.of(z[a:b]) for a, b in pairwise(bounds)]
    whole = Moments.of(z)
    spread, size = (z - z.mean(0)).abs().amax(0), z.abs().amax(0)
    waiting = list(parts)
    while len(waiting) > 1:
        a = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        b = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        waiting.append(a.merge(b))
    assert_same(waiting[0], whole, spread, size, len(parts))
    assert_same(functools.reduce(Moments.merge, parts), whole, spread, size, len(parts))


def test_against_numpy():
    z = np.random.default_rng(0).standard_normal((41, 5)) * [1, 10, 0.1, 1, 1] + [0, 1e4, -3, 0, 0]
    moments = Moments.of(torch.from_numpy(z))
    np.testing.assert_allclose(moments.mean, z.mean(0), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(moments.variance(), z.var(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance(unbiased=True), z.var(0, ddof=1), rtol=1e-12)


def test_at_mean_1e3_in_float32():
    """Where E[x^2] - E[x]^2 has lost half of the variance: 1e6 * 2^-24 against 1. A mean of 1e3 errs by 6e-5 here, and
    its square is what M2 then lacks: nothing that float32 would show."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((4096, 4)) + 1e3).float()
    exact = x.double().var(0, unbiased=False)
    merged = functools.reduce(Moments.merge, (Moments.of(part) for part in x.split(100)))
    torch.testing.assert_close(merged.variance().double(), exact, rtol=1e-5, atol=0)
    naive = (x.square().mean(0) - x.mean(0).square()).double()
    assert float(((naive - exact) / exact).abs().max()) > 1e-3


def test_empty_and_single():
    z = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    empty = Moments.of(z[:0])
    assert empty.count == 0
    assert empty.merge(Moments.of(z)).mean.tolist() == z.mean(0).tolist()
    assert Moments.of(z).merge(empty).m2.tolist() == Moments.of(z).m2.tolist()
    assert empty.merge(empty).count == 0
    with pytest.raises(ValueError, match=r"variance needs at least 1 element, these moments count 0"):
        empty.variance()
    single = Moments.of(z[:1])
    assert single.variance().tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"unbiased variance needs at least 2 elements, these moments count 1"):
        single.variance(unbiased=True)


@pytest.mark.parametrize("parts", [[5], [1, 4], [2, 0, 3]])
def test_the_formulas_are_differentiable_through_merging(parts: list[int]):
    """gradcheck: the derivative that autograd takes of merge and rstd against finite differences."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(5, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    gamma = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    beta = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)

    def normalise(z: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        moments = functools.reduce(Moments.merge, (Moments.of(part) for part in z.split(parts)))
        return gamma * moments.rstd(1e-2) * (z - moments.mean) + beta

    assert torch.autograd.gradcheck(normalise, (z, gamma, beta))
    assert torch.autograd.gradgradcheck(normalise, (z, gamma, beta))
