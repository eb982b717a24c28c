"""The operation as torch's compilers see it: an opaque operator with shapes, a derivative, and nothing mutated.

A compiler cannot look into a compiled kernel or a meeting of processes; ``torch.library`` lets it pass them through in
one graph (``fullgraph=True``). Eager calls do not come here: a custom operator costs about 10 microseconds more.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from wholebatch.batch_norm import Call, find_gradients, normalise
from wholebatch.kernels import gpu
from wholebatch.kernels.batch_norm import Affine, accumulation_dtype, choose_kernel
from wholebatch.sharing import ProcessGroupLike, Sharing, sharing_of
from wholebatch.sharing.replay import refuse_compiled

# A graph holds constants only: a sharing is named in it, and looked up when the graph runs. Names do not keep it.
_SHARINGS: WeakValueDictionary[str, Any] = WeakValueDictionary()
_KEPT: dict[str, Any] = {}  # a person's own that cannot be referred to weakly (slots)
_NUMBERS = itertools.count(1)


def name_sharing(process_group: ProcessGroupLike) -> str:
    """A name under which the operators find this sharing again, for as long as it is there."""
    if process_group is None:
        return ""
    if isinstance(process_group, str):
        return process_group
    for name, known in [*_SHARINGS.items(), *_KEPT.items()]:
        if known is process_group:
            return name
    name = f"sharing {next(_NUMBERS)}"  # none is given twice: a graph may outlive what it names
    try:
        _SHARINGS[name] = process_group
    except TypeError:
        _KEPT[name] = process_group
    return name


# As torch.compiler.assume_constant_result marks it, which would import the whole compiler for everyone: 2 seconds.
name_sharing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _find(name: str) -> Sharing | None:
    if not name:
        return None
    if not name.startswith("sharing "):
        return sharing_of(name)
    sharing = _SHARINGS.get(name, _KEPT.get(name))
    if sharing is not None:
        return sharing_of(sharing)
    raise ValueError(
        "the process group that this graph was compiled with is gone: give the batch norms a group that is there, and "
        "compile again (torch.compiler.reset())"
    )


@torch.library.custom_op("wholebatch::batch_norm", mutates_args=())
def batch_norm_op(
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    eps: float,
    slope: float,
    sharing: str,
    layer: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``(y, mean, M2, rstd, count)`` of a training step's forward pass.

    The count is a float64 scalar where z is: one on the CPU would keep a compiler from replaying a GPU's graph. Where
    only a GPU knows what a mask left, nobody waits to hear of it, as in :mod:`wholebatch.direct`.
    """
    refuse_compiled(layer)
    call = Call(choose_kernel(z, mask), eps, slope, _find(sharing), layer)
    affine = Affine(weight, bias, residual, slope, mask)
    if _counts_on_device(z, mask, sharing):
        y, statistics, _ = call.kernel.train(z, eps, affine, None, None, 0.0)  # type: ignore[attr-defined]
        mean, m2, rstd, counts = statistics
        return y, mean.clone(), m2.clone(), rstd.clone(), counts[0].double().clone()
    y, mean, rstd = normalise(z, affine, call)
    assert call.moments is not None
    call.moments.check(z.shape)
    # Operators give out whole tensors, no two on one storage; kernels pack the moments and rstd into one.
    mean, m2, rstd = mean.clone(), call.moments.m2.clone(), rstd.clone()
    return y, mean, m2, rstd, z.new_full((), float(call.moments.count), dtype=torch.float64)


def _counts_on_device(z: Tensor, mask: Tensor | None, sharing: str) -> bool:
    """Whether a mask is counted by a kernel that keeps the count on the device."""
    return mask is not None and not sharing and z.numel() > 0 and gpu.serves(z)


@batch_norm_op.register_fake
def _(z: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    vectors = [z.new_empty(z.shape[1], dtype=accumulation_dtype(z.dtype)) for _ in range(3)]
    return torch.empty_like(z), vectors[0], vectors[1], vectors[2], z.new_empty((), dtype=torch.float64)


@torch.library.custom_op("wholebatch::batch_norm_backward", mutates_args=())
def batch_norm_backward_op(
    g: Tensor,
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    count: Tensor,
    slope: float,
    sharing: str,
    layer: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """``(dz, dt, sums)``; ``dt`` is empty where it would be ``g`` itself."""
    call = Call(choose_kernel(z, mask), 0.0, slope, _find(sharing), layer)
    affine = Affine(weight, bias, residual, slope, mask)
    if _counts_on_device(z, mask, sharing):
        statistics = torch.stack([mean, mean, rstd, count.to(mean.dtype).expand_as(mean)])  # M2 is not looked at
        dz, dt, dweight, dbias = call.kernel.train_backward(g, z, statistics, affine, None)  # type: ignore[attr-defined]
        sums = torch.stack([dbias, dweight])
    else:
        alone = mask is None and not sharing  # then the count is a matter of shape, and nothing is fetched
        elements = z.numel() / max(z.shape[1], 1) if alone else float(count)
        dz, dt, sums = find_gradients(g, z, affine, call, elements, mean, rstd)
    return dz, g.new_empty(0) if dt is None or dt is g else dt, sums


@batch_norm_backward_op.register_fake
def _(g: Tensor, z: Tensor, weight: Any, bias: Any, residual: Any, mask: Any, mean: Tensor, *rest: Any) -> Any:
    slope = rest[2]
    changed = residual is not None and (slope != 1 or mask is not None)
    return torch.empty_like(z), torch.empty_like(z) if changed else g.new_empty(0), mean.new_empty(2, mean.shape[0])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    z, weight, bias, residual, mask, _, ctx.slope, ctx.sharing, ctx.layer = inputs
    _, mean, m2, rstd, count = output
    ctx.mark_non_differentiable(mean, m2, rstd, count)
    ctx.has_residual = residual is not None
    ctx.save_for_backward(z, weight, bias, residual, mask, mean, rstd, count)


def _differentiate(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    z, weight, bias, residual, mask, mean, rstd, count = ctx.saved_tensors
    dz, dt, sums = batch_norm_backward_op(
        g, z, weight, bias, residual, mask, mean, rstd, count, ctx.slope, ctx.sharing, ctx.layer
    )
    unchanged = ctx.slope == 1 and mask is None
    return (
        dz,
        None if weight is None else sums[1].clone(),
        None if bias is None else sums[0].clone(),
        None if not ctx.has_residual else g if unchanged else dt,
        *[None] * 5,
    )


batch_norm_op.register_autograd(_differentiate, setup_context=_keep)


def batch_norm_traced(
    z: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float | Tensor,
    eps: float,
    process_group: ProcessGroupLike,
    mask: Tensor | None,
    slope: float,
    residual: Tensor | None,
    layer: str,
) -> Tensor:
    """The training step of :func:`wholebatch.functional.batch_norm`, in operations that a compiler can trace."""
    y: Tensor
    y, mean, m2, _, count = batch_norm_op(
        z, weight, bias, residual, mask, eps, slope, name_sharing(process_group), layer
    )
    moved = momentum * (count > 0).to(count.dtype)  # float32 would round it; of no elements at all they stay
    if running_mean is not None:
        running_mean.lerp_(mean.detach().to(running_mean.dtype), moved.to(running_mean.dtype))
    if running_var is not None:
        unbiased = m2.detach() / (count - 1).clamp(min=1).to(m2.dtype)
        running_var.lerp_(unbiased.to(running_var.dtype), moved.to(running_var.dtype))
    return y
