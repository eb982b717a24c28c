"""The parts that all ranks brought, merged in rank order in float64: the same bits on every rank, by any transport.

``gathered`` is ``(ranks, 1 + k * C)`` float64: each rank's count, then its vectors. The compiled twin
(native/merging.h) does the same operations in the same order.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from wholebatch.kernels import native_available, native_module
from wholebatch.moments import Moments


def merge_moments(gathered: Tensor, like: Tensor) -> Moments:
    """The moments of all ranks together, as ``like`` ``(C,)``. A rank of count 0 leaves no trace."""
    if not gathered.is_cpu or not native_available():
        return merge_moments_torch(gathered, like)
    out = torch.empty((2, like.shape[0]), dtype=like.dtype)
    count = merge_into(gathered, out)
    return Moments(count, *out.to(like.device))


def merge_into(gathered: Tensor, out: Tensor) -> float:
    """:func:`merge_moments` into ``(2, C)``, mean and M2; returns the count."""
    if not native_available():
        whole = merge_moments_torch(gathered, out[0])
        out[0], out[1] = whole.mean, whole.m2
        return whole.count
    ranks, channels, wide = gathered.shape[0], out.shape[1], out.dtype == torch.float64
    mean = out.data_ptr()
    m2 = mean + channels * out.element_size()
    return native_module().merge_moments(gathered.data_ptr(), ranks, channels, mean, m2, wide)  # type: ignore[no-any-return]


def merge_moments_torch(gathered: Tensor, like: Tensor) -> Moments:
    """The twin in torch, on any device; a GPU is waited for once, for the counts."""
    channels = like.shape[0]
    counts = gathered[:, 0].tolist()
    parts = [Moments(n, row[1 : 1 + channels], row[1 + channels :]) for n, row in zip(counts, gathered, strict=True)]
    whole = reduce(Moments.merge, parts)
    if whole.count == 0:
        return Moments(0.0, torch.zeros_like(like), torch.zeros_like(like))
    return Moments(whole.count, whole.mean.to(like), whole.m2.to(like))


def add_parts(gathered: Tensor, like: Tensor) -> Tensor:
    """The sum of all ranks' vectors, as ``like``."""
    if not gathered.is_cpu or not native_available():
        return add_parts_torch(gathered, like)
    out = torch.empty(like.shape, dtype=like.dtype)  # contiguous, whatever like is
    wide = like.dtype == torch.float64
    native_module().add_parts(gathered.data_ptr(), gathered.shape[0], like.numel(), out.data_ptr(), wide)
    return out if like.is_cpu else out.to(like.device)


def add_parts_torch(gathered: Tensor, like: Tensor) -> Tensor:
    """The twin in torch. One rank after the other: torch's own sum has an order of its own."""
    total: Tensor = reduce(torch.add, gathered[:, 1:])
    return total.view(like.shape).to(like)
