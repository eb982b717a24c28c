"""The ordinary call: a training step of batch norm, by this process alone, or on the CPU shared with ranks.

The same kernels as :mod:`wholebatch.batch_norm`, in as few steps of Python as there can be: at ``(64, 20)`` batch norm
takes 2 microseconds, and what leads to it takes the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from wholebatch.batch_norm import Call, find_gradients_differentiable
from wholebatch.kernels.batch_norm import Affine, Alone, Steps
from wholebatch.moments import refuse_one_value
from wholebatch.sharing import Meeting
from wholebatch.sharing.processes import Processes

Running = Tensor | None


def can_go_directly(
    call: Call, running_mean: Running, running_var: Running, momentum: float | Tensor, dtype: torch.dtype
) -> bool:
    """Whether :func:`normalise_directly` serves; ``dtype`` is that of accumulation."""
    return (
        (isinstance(call.kernel, Alone) if call.sharing is None else _can_share(call))
        and isinstance(momentum, float)
        and _fits(running_mean, dtype)
        and _fits(running_var, dtype)
        and not is_transformed()
        and not torch._C._len_torch_dispatch_stack()  # a mode wants to see operations
    )


def _can_share(call: Call) -> bool:
    return isinstance(call.kernel, Steps) and isinstance(call.sharing, Processes)


def is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, which look into plain operations only."""
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def _fits(running: Running, dtype: torch.dtype) -> bool:
    return running is None or (
        type(running) is Tensor and running.dtype is dtype and running.is_contiguous() and not running.requires_grad
    )


class _Direct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        call: Call,
        running_mean: Running,
        running_var: Running,
        momentum: float,
    ) -> Tensor:
        slope = call.slope
        kernel: Any = call.kernel
        sharing: Any = call.sharing
        affine = Affine(weight, bias, residual, slope, mask)
        y: Tensor
        if sharing is None:
            y, statistics, ctx.count = kernel.train(z, call.eps, affine, running_mean, running_var, momentum)
        else:
            statistics, count = kernel.begin(z)
            ctx.count = count = sharing.merge_into(statistics, count, call.layer)
            if count == 1:
                refuse_one_value(z.shape)
            y = kernel.finish(z, call.eps, affine, statistics, count, running_mean, running_var, momentum)
        ctx.save_for_backward(z, weight, bias, residual if slope != 1 else None, mask, statistics)
        ctx.call, ctx.has_residual = call, residual is not None
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        z, weight, bias, residual, mask, statistics = ctx.saved_tensors
        call: Call = ctx.call
        affine = Affine(weight, bias, residual, call.slope, mask)
        dweight: Tensor | None
        dbias: Tensor | None
        if torch.is_grad_enabled():
            count = float(statistics[3, 0]) if ctx.count is None else ctx.count
            dz, dt, sums = find_gradients_differentiable(g, z, affine, call, count)
            dbias, dweight = sums[0].clone(), sums[1].clone()
        elif call.sharing is None:
            kernel: Any = call.kernel
            dz, dt, dweight, dbias = kernel.train_backward(g, z, statistics, affine, ctx.count)
        else:
            dz, dt, dweight, dbias = _find_shared_gradients(g, z, affine, call, ctx.count, statistics)
        return (
            dz,
            None if weight is None else dweight,
            None if bias is None else dbias,
            (g if dt is None else dt) if ctx.has_residual else None,
            None,
            None,
            None,
            None,
            None,
        )


def _find_shared_gradients(
    g: Tensor, z: Tensor, affine: Affine, call: Call, count: float, statistics: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    kernel: Any = call.kernel
    sharing: Any = call.sharing
    sums, dweight, dbias = kernel.find_sums(g, z, statistics, affine)
    whole = sharing.sum(sums, Meeting(call.layer, "backward"))
    return (*kernel.find_gradient(g, z, statistics, affine, whole, count), dweight, dbias)


# Not Function.apply, which looks for torch.func first: can_go_directly has.
_apply: Any = super(torch.autograd.Function, _Direct).apply


def normalise_directly(
    call: Call,
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    running_mean: Running,
    running_var: Running,
    momentum: float | Tensor,
) -> Tensor:
    """``y``; running statistics have been moved.

    Where only a GPU knows that a mask left one value per channel, nobody waits to hear of it: ``y`` is then as of a
    variance of 0, and the running variance stays.

    Raises:
        ValueError: one value per channel.
    """
    if z.numel() == z.shape[1] > 0 and call.sharing is None:
        refuse_one_value(z.shape)
    y: Tensor = _apply(z, weight, bias, residual, mask, call, running_mean, running_var, momentum)
    return y
