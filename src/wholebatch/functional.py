"""``batch_norm`` with the signature of ``torch.nn.functional.batch_norm``, and what it lacks as keywords."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wholebatch.batch_norm import BatchNormFunction, Call
from wholebatch.kernels.batch_norm import accumulation_dtype, choose_kernel
from wholebatch.moments import Moments

if TYPE_CHECKING:
    from wholebatch.sharing import Sharing

Activation = str | Callable[[Tensor], Tensor] | None


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: Activation = None,
    residual: Tensor | None = None,
    mask: Tensor | None = None,
    sharing: Sharing | None = None,
    layer: str = "batch_norm",
) -> Tensor:
    """DRAFT."""
    if input.dim() < 2:
        raise ValueError(f"batch_norm takes (N, C, *), at least 2 dimensions; the input has {input.dim()}")
    acc = accumulation_dtype(input.dtype)
    weight = weight if weight is None else weight.to(acc)
    bias = bias if bias is None else bias.to(acc)
    slope = 0.0 if activation == "relu" else 1.0
    call = Call(choose_kernel(input, mask), eps, slope, sharing, layer)
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError("evaluation needs running_mean and running_var; they are None: pass training=True")
        call.constant = running_mean.to(acc), torch.rsqrt(running_var.to(acc) + eps)
    y: Tensor = BatchNormFunction.apply(input, weight, bias, residual, mask, call)
    if training and call.moments is not None:
        _update(running_mean, running_var, call.moments, momentum)
    return y


def _update(running_mean: Tensor | None, running_var: Tensor | None, moments: Moments, momentum: float) -> None:
    if running_mean is not None:
        running_mean.lerp_(moments.mean.to(running_mean.dtype), momentum)
    if running_var is not None:
        running_var.lerp_(moments.variance(unbiased=True).to(running_var.dtype), momentum)
