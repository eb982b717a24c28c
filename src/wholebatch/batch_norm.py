"""Batch norm as one differentiable operation, whoever shares the mini-batch.

Forward, with ``m`` elements per channel in the whole mini-batch (all but dimension 1, over all workers)::

    mean = sum(z) / m      var = sum((z - mean)^2) / m      rstd = 1 / sqrt(var + eps)      xhat = (z - mean) * rstd
    t = weight * xhat + bias + residual      y = t if t > 0 else slope * t

Backward, from ``g = dL/dy`` and ``dt = g * dy/dt``::

    dz = weight * rstd * (dt - sum(dt) / m - xhat * sum(dt * xhat) / m)
    dweight = sum(dt * xhat)      dbias = sum(dt)      dresidual = dt

The sums of ``dz`` are over the whole mini-batch, those of ``dweight`` and ``dbias`` over this worker's part: what adds
up the gradients of all other parameters (DistributedDataParallel, gradient accumulation) adds up these too.

Source: Ioffe and Szegedy, "Batch Normalization", 2015; the derivative as in section 3 there, regrouped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wholebatch.kernels.batch_norm import Affine, Kernel, Reference, accumulation_dtype, counted, find_rstd
from wholebatch.moments import Moments
from wholebatch.sharing import Meeting, Sharing


@dataclass(slots=True)
class Call:
    """One call of the operation: what it is to do, and after it what it found.

    Attributes:
        kernel: does the arithmetic on this worker's part.
        eps: added to the variance.
        slope: of the activation below 0, see :class:`wholebatch.kernels.batch_norm.Affine`.
        sharing: the workers that share the mini-batch; None: this one has it all.
        layer: its name, for errors.
        constant: ``(mean, rstd)`` that do not depend on the input (evaluation); None: the mini-batch's own.
        moments: those of the whole mini-batch; given beforehand they are used as they are (a recomputation), and
            otherwise found by the forward pass.
        statistics: ``(mean, rstd)`` that the forward pass used.
    """

    kernel: Kernel
    eps: float
    slope: float = 1.0
    sharing: Sharing | None = None
    layer: str = "batch_norm"
    constant: tuple[Tensor, Tensor] | None = None
    moments: Moments | None = None
    statistics: tuple[Tensor, Tensor] | None = None


class BatchNormFunction(torch.autograd.Function):
    """``y`` of the formulas above. Weight and bias are in the accumulation dtype, the mask is a bool tensor or None."""

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        call: Call,
    ) -> Tensor:
        affine = Affine(weight, bias, residual, call.slope, mask)
        y, mean, rstd = normalise(z, affine, call)
        call.statistics = mean, rstd
        # The residual is needed only to find again on which side of 0 the activation was.
        ctx.save_for_backward(z, weight, bias, residual if call.slope != 1 else None, mask, mean, rstd)
        ctx.call, ctx.has_residual = call, residual is not None
        ctx.count = call.moments.count if call.moments is not None else 0
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        z, weight, bias, residual, mask, mean, rstd = ctx.saved_tensors
        call: Call = ctx.call
        affine = Affine(weight, bias, residual, call.slope, mask)
        if torch.is_grad_enabled():
            dz, dt, sums = find_gradients_differentiable(g, z, affine, call, ctx.count)
        else:
            dz, dt, sums = find_gradients(g, z, affine, call, ctx.count, mean, rstd)
        needs = ctx.needs_input_grad
        dresidual = (g if dt is None else dt) if ctx.has_residual and needs[3] else None
        if dresidual is g and mask is not None:
            dresidual = counted(g, mask)
        return (
            dz if needs[0] else None,
            sums[1].clone() if weight is not None and needs[1] else None,  # whole tensors, which may be stored apart
            sums[0].clone() if bias is not None and needs[2] else None,
            dresidual,
            None,
            None,
        )


def normalise(z: Tensor, affine: Affine, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """``(y, mean, rstd)``; the whole mini-batch's moments are left in ``call``."""
    kernel = call.kernel
    if call.constant is not None:
        mean, rstd = call.constant
        return kernel.apply(z, mean, rstd, affine), mean, rstd
    if call.moments is None and call.sharing is None:
        y, call.moments, rstd = kernel.forward(z, call.eps, affine)
        return y, call.moments.mean, rstd
    if call.moments is None:
        assert call.sharing is not None
        call.moments = call.sharing.merge(kernel.moments(z, affine.mask), Meeting(call.layer, "forward"))
    rstd = find_rstd(call.moments, call.eps)
    return kernel.apply(z, call.moments.mean, rstd, affine), call.moments.mean, rstd


def find_gradients(
    g: Tensor, z: Tensor, affine: Affine, call: Call, count: float, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor | None, Tensor]:
    """``(dz, dt, sums)``: ``dt`` is None without a residual, ``sums`` are this worker's own."""
    kernel = call.kernel
    if call.constant is None and call.sharing is None:
        return kernel.backward(g, z, mean, rstd, affine, count)
    sums = kernel.sums(g, z, mean, rstd, affine)
    whole = None
    if call.constant is None:
        assert call.sharing is not None
        whole = call.sharing.sum(sums, Meeting(call.layer, "backward"))
    return (*kernel.input_gradient(g, z, mean, rstd, affine, whole, count), sums)


def normalise_plainly(z: Tensor, affine: Affine, call: Call) -> Tensor:
    """``y`` by torch's operations alone, for what differentiates those one by one (torch.func, forward mode).

    Raises:
        ValueError: workers share the mini-batch, and the transformation would not know of them.
    """
    if call.sharing is not None:
        raise ValueError(
            f"{call.layer} shares its mini-batch with other workers, which torch.func and forward-mode differentiation "
            "cannot follow: set its process_group to None for them, or use torch.autograd.grad"
        )
    call.kernel = Reference()
    return normalise(z, affine, call)[0]


class _SharedSum(torch.autograd.Function):
    """A sum over workers that can be differentiated: the gradient of a sum is the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, sharing: Sharing, layer: str) -> Tensor:
        ctx.sharing, ctx.layer = sharing, layer
        return sharing.sum(vectors, Meeting(layer, "double backward"))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        return _SharedSum.apply(g, ctx.sharing, ctx.layer), None, None  # type: ignore[no-untyped-call]


def find_gradients_differentiable(
    g: Tensor, z: Tensor, affine: Affine, call: Call, count: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """:func:`find_gradients` by torch's operations, with statistics formed again: they too are differentiated.

    Only constant ones are used as they are.
    """
    twin = Reference()

    def shared(vectors: Tensor) -> Tensor:
        return vectors if call.sharing is None else _SharedSum.apply(vectors, call.sharing, call.layer)  # type: ignore[no-untyped-call]

    mean, rstd = call.constant or _statistics_differentiable(z, affine.mask, count, call.eps, shared)
    sums = twin.sums(g, z, mean, rstd, affine)
    whole = shared(sums) if call.constant is None else None
    return (*twin.input_gradient(g, z, mean, rstd, affine, whole, count), sums)


def _statistics_differentiable(
    z: Tensor, mask: Tensor | None, count: float, eps: float, shared: Any
) -> tuple[Tensor, Tensor]:
    dims = [d for d in range(z.dim()) if d != 1]
    wide = (-1, *[1] * (z.dim() - 2))
    x = z.to(accumulation_dtype(z.dtype))
    mean = shared(counted(x, mask).sum(dims)) / max(count, 1)
    m2 = shared(counted(x - mean.view(wide), mask).square().sum(dims))
    return mean, Moments(count, mean, m2).rstd(eps)
