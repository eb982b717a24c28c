"""Batch norm over parts of the mini-batch that one process takes in turn: three nodes of autograd for each call.

One node for all parts would hold every part's input and gradient at once. So each part has a node on either side, and
only vectors of C numbers pass the one in the middle::

    forward     part 1   z ── FindMoments ── moments ─┐           ┌─ mean, rstd ── Apply ── y
                part 2   z ── FindMoments ── moments ─┴── Unite ──┴─ mean, rstd ── Apply ── y

    backward    part 1   g ── Apply (keeps g) ── sums ─┐           ┌─ whole sums ── FindMoments (takes g) ── dz
                part 2   g ── Apply (keeps g) ── sums ─┴── Unite ──┴─ whole sums ── FindMoments (takes g) ── dz

What flows back along the edges of the middle are not gradients of moments but the two sums of
:mod:`wholebatch.batch_norm`: ``sum(dt), sum(dt * xhat)``, of a part and then of the whole mini-batch. An output that
nobody uses adds nothing to them, and its part still gets its ``dz``, with ``g = 0``.

A part has finished its section of the net, and holds none of it, when autograd goes on to the next part: nodes run in
the reverse order of their making, and a section's are made one after the other.

Whoever takes the parts in turn says so by :data:`wholebatch.parts.PARTY`, and lets each wait in its ``meet``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from wholebatch.batch_norm import Call
from wholebatch.kernels.batch_norm import Affine, Kernel, find_rstd
from wholebatch.moments import Moments
from wholebatch.parts.party import Arrival, Joint, Keep, Party, Run
from wholebatch.sharing import Meeting, Sharing


class _Passing:
    """One call of one part, which its two nodes know in common."""

    __slots__ = ("affine", "call", "count", "joint", "keep", "kept", "release", "task")

    def __init__(self, call: Call, affine: Affine, keep: Keep, release: Callable[[], None] | None) -> None:
        self.call, self.affine, self.keep, self.release = call, affine, keep, release
        self.joint: Joint | None = None
        self.count = 0.0
        # What the part's second node leaves for its first one, and in which backward pass.
        self.kept: tuple[Callable[[], Tensor], Callable[[], Tensor], Callable[[], Tensor] | None] | None = None
        self.task = -1


class _FindMoments(torch.autograd.Function):
    """``(2, C)``, mean and M2 of a part; backward: ``dz`` and ``dresidual`` of it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, residual: Tensor | None, passing: _Passing) -> Tensor:
        moments = passing.call.kernel.moments(z, passing.affine.mask)
        passing.count = float(moments.count)
        ctx.save_for_backward(z)
        ctx.passing = passing
        return torch.stack([moments.mean, moments.m2])

    @staticmethod
    def backward(ctx: Any, whole: Tensor) -> tuple[Tensor | None, ...]:
        passing: _Passing = ctx.passing
        affine, statistics = passing.affine, passing.call.statistics
        assert statistics is not None
        kept, passing.kept = passing.kept, None
        residual = None
        if kept is not None and passing.task == torch._C._current_graph_task_id():
            z, g = kept[0](), kept[1]()
            residual = kept[2]() if kept[2] is not None else None
        else:  # this part's output took no part in the loss
            (z,) = ctx.saved_tensors
            g = torch.zeros_like(z)
        has_residual = ctx.needs_input_grad[1]
        if residual is None and has_residual:
            residual = g  # without an activation its value is of no matter, only that there is one
        affine = Affine(affine.weight, affine.bias, residual, affine.slope, affine.mask)
        count = 0 if passing.call.moments is None else passing.call.moments.count
        dz, dt = passing.call.kernel.input_gradient(g, z, *statistics, affine, whole, count)
        return (dz if ctx.needs_input_grad[0] else None, (g if dt is None else dt) if has_residual else None, None)


class _Unite(torch.autograd.Function):
    """``(2, C)``, mean and rstd of the whole mini-batch; backward: the sums over it. Keeps no tensor."""

    @staticmethod
    def forward(ctx: Any, arrivals: Sequence[Arrival], joint: Joint, *tokens: Tensor) -> Tensor:
        call = arrivals[0].call
        moments = merge([arrival.count for arrival in arrivals], tokens)
        if call.sharing is not None:
            moments = call.sharing.merge(moments, Meeting(call.layer, "forward"))
        for arrival in arrivals:
            arrival.call.moments = moments
        ctx.sharing, ctx.layer, ctx.joint = call.sharing, call.layer, joint
        return torch.stack([moments.mean, find_rstd(moments, call.eps)])

    @staticmethod
    def backward(ctx: Any, sums: Tensor) -> tuple[Tensor | None, ...]:
        ctx.joint.check()
        sharing: Sharing | None = ctx.sharing
        whole = sums if sharing is None else sharing.sum(sums.contiguous(), Meeting(ctx.layer, "backward"))
        return None, None, *(whole if needed else None for needed in ctx.needs_input_grad[2:])


class _Apply(torch.autograd.Function):
    """``y`` of a part; backward: its sums, and with them the gradients of weight and bias.

    ``source`` is the part's other node, which saves ``z`` for both; None: it does not record, and this one does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        statistics: Tensor,
        z: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        passing: _Passing,
        source: Any,
    ) -> Tensor:
        assert passing.call.statistics is not None
        mean, rstd = passing.call.statistics
        mask, slope = passing.affine.mask, passing.affine.slope
        y = passing.call.kernel.apply(z, mean, rstd, Affine(weight, bias, residual, slope, mask))
        # In the same order as BatchNormFunction, which stands for both nodes where a checkpoint recomputes them.
        saved = (weight, bias, residual if slope != 1 else None, mask, mean, rstd)
        ctx.save_for_backward(z if source is None else None, *saved)
        ctx.passing, ctx.source = passing, source
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        passing: _Passing = ctx.passing
        assert passing.joint is not None
        passing.joint.check()
        z, weight, bias, residual, mask, mean, rstd = ctx.saved_tensors
        if ctx.source is not None:
            (z,) = ctx.source.saved_tensors
        affine = Affine(weight, bias, residual, passing.affine.slope, mask)
        sums = passing.call.kernel.sums(g, z, mean, rstd, affine)
        if ctx.source is not None:
            keep = passing.keep
            passing.kept = keep(z), keep(g), None if residual is None else keep(residual)
            passing.task = torch._C._current_graph_task_id()
        if passing.release is not None:
            passing.release()
        needs = ctx.needs_input_grad
        return (
            sums if needs[0] else None,
            None,
            sums[1].clone() if weight is not None and needs[2] else None,  # whole tensors, which may be stored apart
            sums[0].clone() if bias is not None and needs[3] else None,
            None,
            None,
            None,
        )


def merge(counts: Sequence[float], tokens: Sequence[Tensor]) -> Moments:
    """The moments of all parts together, each given by its count and ``(2, C)``, mean and M2.

    In float64 where the device has it, and relative to one part's mean, which keeps Chan's formula's accuracy::

        mean = a + sum(n_p * (mean_p - a)) / n        M2 = sum(M2_p) + sum(n_p * (mean_p - mean)^2)
    """
    dtype, device, total = tokens[0].dtype, tokens[0].device, sum(counts)
    if total == 0:
        return Moments(0, *torch.zeros_like(tokens[0]).unbind())
    wide = dtype if device.type == "mps" else torch.float64
    means, m2s = torch.stack(list(tokens), 1).to(wide).unbind()
    n = torch.tensor(counts, dtype=wide, device=device).unsqueeze(1)
    origin = means[next(p for p, count in enumerate(counts) if count)]
    mean = origin + (n * (means - origin)).sum(0) / total
    m2 = m2s.sum(0) + (n * (means - mean).square()).sum(0)
    return Moments(total, mean.to(dtype), m2.to(dtype))


def unite(arrivals: Sequence[Arrival], run: Run) -> Tensor:
    """The meeting itself, for all parts in order: ``(2, C)``, mean and rstd; ``call.moments`` of each are set."""
    joint = Joint(run)
    for arrival in arrivals:
        arrival.joint = joint
    with torch.set_grad_enabled(any(arrival.grad for arrival in arrivals)):
        tokens = [arrival.tokens for arrival in arrivals]
        statistics: Tensor = _Unite.apply(arrivals, joint, *tokens)  # type: ignore[no-untyped-call]
    return statistics


def normalise_in_turn(
    party: Party,
    call: Call,
    z: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float | Tensor,
    identity: object,
) -> Tensor:
    """``y`` of one part, after all parts have come here; ``call.moments`` are those of the whole mini-batch."""
    affine = Affine(
        None if weight is None else weight.detach(), None if bias is None else bias.detach(), None, call.slope, mask
    )
    fixed_z, fixed = z.detach(), None if residual is None else residual.detach()
    release = party.arrive()
    passing = _Passing(call, affine, party.keep, release)
    tokens: Tensor = _FindMoments.apply(z, residual, passing)  # type: ignore[no-untyped-call]
    arrival = Arrival(
        call,
        tokens,
        passing.count,
        z.shape,
        identity,
        running_mean,
        running_var,
        momentum,
        torch.is_grad_enabled(),
    )
    statistics = party.meet(arrival, z)
    passing.joint, call.statistics = arrival.joint, (statistics[0].detach(), statistics[1].detach())
    source = tokens.grad_fn
    del tokens, arrival
    y: Tensor = _Apply.apply(statistics, fixed_z, weight, bias, fixed, passing, source)  # type: ignore[no-untyped-call]
    kernel, slope, vectors = call.kernel, call.slope, (affine.weight, affine.bias)
    party.note_output(
        y, functools.partial(_apply_again, kernel, slope), (fixed_z, *call.statistics, *vectors, fixed, mask)
    )
    return y


def _apply_again(
    kernel: Kernel,
    slope: float,
    z: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    return kernel.apply(z, mean, rstd, Affine(weight, bias, residual, slope, mask))
