"""What is done on vectors of C numbers between the passes over a tensor: natively, for an operation of torch on twenty
numbers takes longer than batch norm on a thousand."""

from __future__ import annotations

import torch
from torch import Tensor

from wholebatch.kernels.batch_norm.native import is_enabled, load
from wholebatch.moments import Moments


def find_rstd(moments: Moments, eps: float) -> Tensor:
    """``1 / sqrt(M2 / count + eps)``; of no elements at all, as if the variance were 0."""
    m2 = moments.m2
    if not _fits(m2):
        return moments.rstd(eps)
    rstd = torch.empty_like(m2)
    wide = m2.dtype == torch.float64
    load().batch_norm_rstd(wide, m2.shape[0], m2.data_ptr(), moments.count, eps, rstd.data_ptr())
    return rstd


def move_running(
    running_mean: Tensor | None, running_var: Tensor | None, moments: Moments, momentum: float | Tensor
) -> None:
    """Move running statistics by those of a mini-batch: ``running += momentum * (new - running)``, unbiased variance.

    Raises:
        ValueError: fewer than 2 elements, which have no unbiased variance.
    """
    if running_mean is not None:
        _move(running_mean, moments.mean, 1, momentum)
    if running_var is not None:
        if moments.count < 2:
            moments.variance(unbiased=True)  # raises
        _move(running_var, moments.m2, moments.count - 1, momentum)


def _move(running: Tensor, sums: Tensor, divisor: float, momentum: float | Tensor) -> None:
    if isinstance(momentum, float) and running.dtype == sums.dtype and _fits(sums) and _fits(running):
        wide = sums.dtype == torch.float64
        load().move_running(wide, sums.shape[0], sums.data_ptr(), divisor, momentum, running.data_ptr())
        torch.autograd.graph.increment_version(running)
    else:
        running.lerp_((sums.detach() / divisor).to(running.dtype), momentum)


def _fits(vector: Tensor) -> bool:
    return (
        type(vector) is Tensor
        and vector.is_cpu
        and (vector.dtype is torch.float32 or vector.dtype is torch.float64)
        and vector.is_contiguous()
        and not vector.requires_grad
        and not torch._C._are_functorch_transforms_active()  # whose tensors have no memory either
        and is_enabled()
    )
