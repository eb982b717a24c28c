"""Merging what ranks gathered: the whole's moments, in any split, and the same bits from the compiled twin."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wholebatch.kernels import native_available
from wholebatch.moments import Moments
from wholebatch.sharing.merging import add_parts, add_parts_torch, merge_moments, merge_moments_torch

EPS = 2.0**-53
native_only = pytest.mark.skipif(not native_available(), reason="the compiled part is missing")

ROWS = st.lists(st.integers(0, 9), min_size=1, max_size=5)
CHANNELS = st.sampled_from([1, 3, 64, 257])  # less than a vector, one block, and a bit more than one


def gather(rows: list[int], channels: int, offset: float, seed: int) -> tuple[Tensor, Tensor]:
    """What ranks with so many rows bring, and the undivided rows."""
    z = torch.randn(sum(rows), channels, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset
    parts = [Moments.of(part) for part in z.split(rows)]
    gathered = [torch.cat([torch.tensor([part.count], dtype=torch.float64), part.mean, part.m2]) for part in parts]
    return torch.stack(gathered), z


@given(rows=ROWS, channels=CHANNELS, offset=st.sampled_from([0.0, 1e4, -1e8]), seed=st.integers(0, 99))
def test_merged_parts_are_the_undivided_batch(rows: list[int], channels: int, offset: float, seed: int):
    """Tolerances as in test_moments: a mean errs by a few roundings of the values' size for each merge, M2 by a few
    roundings of itself and by the mean's error through ``count * (error^2 + 2 * error * spread)``."""
    gathered, z = gather(rows, channels, offset, seed)
    whole, merged = Moments.of(z), merge_moments(gathered, gathered[0, 1 : 1 + channels])
    assert merged.count == whole.count
    size = z.abs().amax() if len(z) else torch.tensor(0.0)
    mean_error = 8 * (len(rows) + 1) * EPS * size
    assert ((merged.mean - whole.mean).abs() <= mean_error).all()
    spread = (z - whole.mean).abs().amax() if len(z) else torch.tensor(0.0)
    m2_error = 32 * (len(rows) + 1) * EPS * whole.m2 + 4 * whole.count * (mean_error**2 + mean_error * spread)
    assert ((merged.m2 - whole.m2).abs() <= m2_error).all()


@native_only
@given(rows=ROWS, channels=CHANNELS, dtype=st.sampled_from([torch.float32, torch.float64]), seed=st.integers(0, 99))
def test_the_compiled_twin_gives_the_same_bits(rows: list[int], channels: int, dtype: torch.dtype, seed: int):
    gathered, _ = gather(rows, channels, 3.0, seed)
    like = torch.empty(channels, dtype=dtype)
    ours, twin = merge_moments(gathered, like), merge_moments_torch(gathered, like)
    assert ours.count == twin.count
    assert ours.mean.dtype == twin.mean.dtype == dtype
    assert torch.equal(ours.mean, twin.mean)
    assert torch.equal(ours.m2, twin.m2)
    vectors = torch.empty(2, channels, dtype=dtype)
    assert torch.equal(add_parts(gathered, vectors), add_parts_torch(gathered, vectors))
    total = gathered[:, 1:].sum(0).view(2, channels)
    error = len(rows) * EPS * gathered[:, 1:].abs().sum(0).view(2, channels)
    rounding = torch.finfo(dtype).eps * total.abs()
    assert ((add_parts(gathered, vectors).double() - total).abs() <= error + rounding).all()


@pytest.mark.parametrize("merge", [merge_moments, merge_moments_torch])
def test_an_empty_rank_leaves_no_trace(merge):
    """Neither in bits nor where the others are infinite."""
    gathered, _ = gather([4, 6], 3, 0.0, 0)
    gathered[1, 2] = float("inf")
    empty = torch.zeros(1, gathered.shape[1], dtype=torch.float64)
    like = torch.empty(3, dtype=torch.float64)
    alone = merge(gathered[1:], like)
    among = merge(torch.cat([empty, gathered[1:], empty]), like)
    assert torch.equal(alone.mean, gathered[1, 1:4])
    assert torch.equal(among.mean, alone.mean)
    assert torch.equal(among.m2, alone.m2)
    nobody = merge(empty, like)
    assert (nobody.count, nobody.mean.tolist(), nobody.m2.tolist()) == (0, [0, 0, 0], [0, 0, 0])
