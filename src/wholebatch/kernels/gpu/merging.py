"""Partial results of programs, merged in their order: launched."""

from __future__ import annotations

from torch import Tensor

from wholebatch.kernels.gpu import backward, forward
from wholebatch.kernels.gpu.launching import launch
from wholebatch.kernels.gpu.plan import cdiv, merging_tile


def merge_moments(
    parts: Tensor,
    statistics: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    eps: float,
    momentum: float,
) -> None:
    """``(programs, 4, C)`` to ``statistics``: ``(3, C)`` or, with the count, ``(4, C)``; running statistics are moved
    (autograd is not told)."""
    programs, _, c = parts.shape
    tile = merging_tile(programs, c)
    moving = statistics, running_mean, running_var, eps, momentum
    launch(
        forward.merge_parts,
        (cdiv(c, tile[1]),),
        8,
        parts,
        *(parts, *moving, programs, c, *tile, statistics.shape[0] == 4),
    )


def merge_sums(parts: Tensor, dweight: Tensor, dbias: Tensor) -> None:
    """``(programs, 2, C)`` to the two sums."""
    programs, _, c = parts.shape
    tile = merging_tile(programs, c)
    launch(backward.merge_part_sums, (cdiv(c, tile[1]),), 8, parts, *(parts, dweight, dbias, programs, c, *tile))
