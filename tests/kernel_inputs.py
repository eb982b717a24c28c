"""Inputs of batch norm's kernels: shapes that fill no vector or more than one, another mean and spread a channel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from wholebatch.kernels import native_available
from wholebatch.kernels.batch_norm import Affine, Native, accumulation_dtype

EPS = 1e-5


DTYPES = [torch.float32, torch.float64, torch.bfloat16]


# Rows that fill no long row, one row, one column, wide and narrow; planes of one element, of a few, of an odd number,
# of several blocks; sizes of 0.
SHAPES = [
    (64, 20), (1, 5), (7, 1), (301, 33), (2100, 3), (530, 96), (33, 2500),
    (5, 3, 7), (9, 17, 4), (4, 8, 1, 1), (2, 3, 70, 61), (33, 6, 7, 7), (3, 2, 5, 4, 6), (2, 5, 9000),
    (0, 4), (3, 4, 0),
]  # fmt: skip


native_only = pytest.mark.skipif(not native_available(), reason="the compiled part is missing here")


def fill(shape: tuple[int, ...], dtype: torch.dtype, *, last: bool = False, seed: int = 0, mean: float = 2) -> Tensor:
    """Another mean and spread in every channel."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]
    wide = (1, -1, *[1] * (len(shape) - 2))
    spread = torch.linspace(0.5, 2, channels, dtype=torch.float64).view(wide)
    x = torch.randn(shape, dtype=torch.float64, generator=generator) * spread + mean
    x = x.to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def make_mask(shape: tuple[int, ...], per: str) -> Tensor:
    """Two of three ``example``s or ``position``s count, or ``none`` does."""
    sizes = (shape[0], 1, *[1] * (len(shape) - 2)) if per == "example" else (shape[0], 1, *shape[2:])
    mask = torch.rand(sizes, generator=torch.Generator().manual_seed(7)) < 2 / 3
    return mask & False if per == "none" else mask


def make_affine(z: Tensor, slope: float, residual: bool, *, weights: bool = True, mask: Tensor | None = None) -> Affine:
    acc, channels = accumulation_dtype(z.dtype), z.shape[1]
    weight = torch.linspace(-1, 1.5, channels, dtype=acc)
    bias = torch.linspace(1, -1, channels, dtype=acc)
    added = torch.empty_like(z).copy_(fill(tuple(z.shape), z.dtype, seed=2, mean=0)) if residual else None
    return Affine(weight if weights else None, bias if weights else None, added, slope, mask)


def everything(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> list[Tensor]:
    """All that the compiled kernels find."""
    kernel = Native()
    z, g = fill(shape, dtype, last=last), fill(shape, dtype, last=last, seed=1)
    affine = make_affine(z, 0.0, True)
    y, moments, rstd = kernel.forward(z, EPS, affine)
    dz, dresidual, sums = kernel.backward(g, z, moments.mean, rstd, affine, moments.count)
    assert dresidual is not None
    return [y, moments.mean, moments.m2, rstd, dz, dresidual, sums]
