"""``batch_norm`` with the signature of ``torch.nn.functional.batch_norm``, and what that lacks as keywords."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wholebatch.activations import Activation, activate, resolve_activation
from wholebatch.batch_norm import BatchNormFunction, Call, normalise_plainly
from wholebatch.direct import can_go_directly, is_transformed, normalise_directly
from wholebatch.inputs import check_inputs, shape_mask
from wholebatch.kernels.batch_norm import Affine, accumulation_dtype, choose_kernel, counted, move_running
from wholebatch.ordinary import train_at_once
from wholebatch.parts import PARTY, UNCOMPILED, Party, normalise_in_turn
from wholebatch.recomputing import plan_output
from wholebatch.sharing import ProcessGroupLike, sharing_of
from wholebatch.sharing.replay import attend, unseen
from wholebatch.traced import batch_norm_traced

Save = Literal["input"] | None


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    process_group: ProcessGroupLike = None,
    mask: Tensor | None = None,
    activation: Activation = None,
    residual: Tensor | None = None,
    save: Save = None,
    layer: str = "batch_norm",
) -> Tensor:
    """Batch normalization over the whole mini-batch, however it is split.

    ::

        y = activation(weight * (z - mean) / sqrt(var + eps) + bias + residual)

    with the mean and the biased variance of each channel over the whole mini-batch: over every dimension but the
    second, over every worker that shares it, without what is masked. Running statistics move as in PyTorch, by the
    unbiased variance: ``running = (1 - momentum) * running + momentum * new``; of no elements at all they stay.

    Differentiable twice, across workers too. float16 and bfloat16 inputs are accumulated in float32.

    Args:
        input: ``(N, C, *)``, any floating dtype and memory format; N and the other dimensions may be 0.
        running_mean, running_var: ``(C,)`` or None; changed in place where ``training``.
        weight, bias: ``(C,)`` or None, which count as 1 and 0.
        training: normalise by the mini-batch's own statistics; otherwise by the running ones.
        momentum: of the running statistics; a float, or a tensor of no dimension.
        eps: added to the variance.
        process_group: who shares the mini-batch: None for this process alone, ``"world"``, a group of
            torch.distributed, or a :class:`wholebatch.sharing.Sharing`.
        mask: bool, True where an element counts, of ``input``'s dimensions with a channel dimension of 1, or without
            it: ``(N,)`` examples, ``(N, *)`` positions. Outputs and gradients are 0 where it is False.
        activation: a name, function or module, see :func:`wholebatch.activations.resolve_activation`. Same numbers as
            the activation called afterwards; ReLU and leaky ReLU are fused.
        residual: of ``input``'s shape and dtype, added before the activation; same numbers as added afterwards.
        save: ``"input"``: within :func:`wholebatch.saving_inputs` whoever saves the output for backward, the next
            layer mostly, saves how to form it again from ``input``. None: the output itself.
        layer: its name in errors.

    Raises:
        ValueError: shapes or devices that do not fit, one value per channel in training, no running statistics in
            evaluation, an unknown ``save``.
        TypeError: an input that is not floating, a mask that is not bool.
    """
    if save not in (None, "input"):
        raise ValueError(f"save is {save!r}; it must be None or 'input'")
    if UNCOMPILED and training and torch.compiler.is_compiling():  # parts in lockstep meet here, outside of graphs
        y: Tensor = UNCOMPILED[0](
            input,
            running_mean,
            running_var,
            weight,
            bias,
            training,
            momentum,
            eps,
            process_group=process_group,
            mask=mask,
            activation=activation,
            residual=residual,
            save=save,
            layer=layer,
        )
        return y
    slope, function = resolve_activation(activation)
    if training and mask is None and save is None and not torch.compiler.is_compiling():
        done = train_at_once(
            input,
            weight,
            bias,
            residual,
            running_mean,
            running_var,
            None,
            momentum,
            eps,
            slope,
            process_group,
            layer,
        )
        if done is not None:
            return done if function is None else function(done)
    if not training and (torch.compiler.is_compiling() or torch._C._get_tracing_state()):
        return _evaluate(input, running_mean, running_var, weight, bias, eps, mask, slope, function, residual)
    mask = check_inputs(input, weight, bias, running_mean, running_var, mask, residual)
    dtype = accumulation_dtype(input.dtype)
    if weight is not None and weight.dtype != dtype:
        weight = weight.to(dtype)
    if bias is not None and bias.dtype != dtype:
        bias = bias.to(dtype)
    if training and torch.compiler.is_compiling():
        y = batch_norm_traced(
            input,
            running_mean,
            running_var,
            weight,
            bias,
            momentum,
            eps,
            process_group,
            mask,
            slope,
            residual,
            layer,
        )
        return y if function is None else counted(function(y), mask)  # a fused one is masked already
    sharing = sharing_of(process_group) if training else None  # evaluation needs nobody, nor a group that is up
    call = Call(choose_kernel(input, mask), eps, slope, sharing, layer)
    if not training:
        if running_mean is None or running_var is None:
            raise ValueError(
                "evaluation (training=False) normalises by running_mean and running_var, and one of them is None: "
                "pass both, or training=True"
            )
        # A copy where backward may come, before which training may move the running one.
        mean = running_mean.to(dtype, copy=torch.is_grad_enabled())
        call.constant = mean, torch.rsqrt(running_var.to(dtype) + eps)
    visit = attend(layer, input.shape, training)
    party = PARTY.get() if training and (visit is None or not visit.replays) else None
    ordinary = training and visit is None and party is None and save is None
    if ordinary and can_go_directly(call, running_mean, running_var, momentum, dtype):
        y = normalise_directly(call, input, weight, bias, residual, mask, running_mean, running_var, momentum)
    elif visit is None:
        y = _run(call, input, weight, bias, residual, mask, running_mean, running_var, momentum, party)
    else:  # a checkpoint is open: what its first pass found is used again, and moved nothing but then
        call.moments = visit.moments
        running = (None, None) if visit.replays else (running_mean, running_var)
        with unseen():
            y = _run(call, input, weight, bias, residual, mask, *running, momentum, party)
        visit.record(call.moments)
    if save is not None and y.requires_grad:
        plan_output(y, input, call, Affine(weight, bias, residual, slope, mask))
    return y if function is None else counted(function(y), mask)  # a fused one is masked already


def _run(
    call: Call,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float | Tensor,
    party: Party | None,
) -> Tensor:
    y: Tensor
    if party is not None:
        identity = running_mean if running_mean is not None else weight if isinstance(weight, nn.Parameter) else None
        running = (running_mean, running_var, momentum)
        return normalise_in_turn(party, call, input, weight, bias, residual, mask, *running, identity)
    if is_transformed():
        call.moments = None  # of a checkpoint's first pass: they are differentiated too, so they are formed again
        y = normalise_plainly(input, Affine(weight, bias, residual, call.slope, mask), call)
    else:
        y = BatchNormFunction.apply(input, weight, bias, residual, mask, call)  # type: ignore[no-untyped-call]
    if call.moments is not None and call.moments.count > 0:
        call.moments.check(input.shape)
        move_running(running_mean, running_var, call.moments, momentum)
    return y


def _evaluate(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    mask: Tensor | None,
    slope: float,
    function: Callable[[Tensor], Tensor] | None,
    residual: Tensor | None,
) -> Tensor:
    """Evaluation in torch's own operations: what compilers fuse, and exporters have a name for."""
    y = F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
    if residual is not None:
        y = y + residual
    y = activate(y, slope)
    y = y if function is None else function(y)
    return y if mask is None else counted(y, shape_mask(mask, input))
