"""Batch norm as a stage of the device engine, over the rows of one process or of the shards of several.

One process with one shard calls a kernel once each way. Over shards each has its moments in float64, which are merged
by Chan's formula; with weights an example of weight w counts as w examples. No count is read by the host: those of rows
it knows, and those of weights stay on the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from wholebatch.feedforward.device.course import Batch
from wholebatch.feedforward.device.meetings import Meetings
from wholebatch.feedforward.device.parameters import Parameters
from wholebatch.feedforward.device.stages import Later
from wholebatch.kernels import gpu
from wholebatch.kernels.batch_norm import Affine, Kernel, Reference
from wholebatch.moments import refuse_one_value

REFERENCE = Reference()


def kernel_for(z: Tensor) -> Kernel:
    """Triton where it serves this tensor, else torch's operations."""
    if gpu.serves(z):
        from wholebatch.kernels.gpu.kernel import Triton

        return Triton()
    return REFERENCE


class Norm:
    """What both kinds of batch norm share: names, and the running statistics.

    Args:
        module: torch's, of which eps and momentum are taken.
        name: the module's.
        slope: of the activation that follows and is taken along, see :class:`Affine`.
        first: the weights that precede it and the constant taken from their inputs; None where nothing was taken.
    """

    def __init__(
        self, parameters: Parameters, module: Any, name: str, slope: float, first: tuple[str, Tensor] | None = None
    ) -> None:
        self._parameters, self._eps, self._momentum, self._slope = parameters, module.eps, module.momentum, slope
        self._name, self._first = name, first
        self._mean, self._var, self._tracked = (
            parameters.running[f"{name}.{of}"] for of in ("running_mean", "running_var", "num_batches_tracked")
        )

    def _affine(self) -> Affine:
        known = self._parameters.values
        return Affine(known[f"{self._name}.weight"], known[f"{self._name}.bias"], slope=self._slope)

    def _store_sums(self, number: int, sums: Tensor) -> None:
        """``(2, C)``: the gradients of bias and weight of an own shard."""
        of = self._parameters.of_shard[number]
        of[f"{self._name}.bias"].copy_(sums[0])
        of[f"{self._name}.weight"].copy_(sums[1])

    def _move(self, mean: Tensor, unbiased: Tensor, counts: Tensor | None = None) -> None:
        """Move what runs; not where ``counts``, of no dimension, is 0."""
        self._tracked.add_(1 if counts is None else counts != 0)
        share: Tensor | float | None = self._momentum
        if share is None:
            share = 1 / self._tracked.double().clamp(min=1)
        if counts is not None:
            share = torch.where(counts != 0, share, torch.zeros_like(counts))  # type: ignore[arg-type]
        if isinstance(share, Tensor):
            share = share.to(self._mean.dtype)
        if self._first is not None:
            weight, centre = self._first
            mean = mean.to(self._mean.dtype) + self._parameters.values[weight] @ centre
        self._mean.lerp_(mean.to(self._mean.dtype), share)
        self._var.lerp_(unbiased.to(self._var.dtype), share)


class Whole(Norm):
    """One shard, all rows alike: a kernel's own forward and backward."""

    def forward(self, values: list[Tensor], batch: Batch) -> list[Tensor]:
        (z,) = values
        if z.shape[0] == 1:
            refuse_one_value(z.shape)
        kernel = kernel_for(z)
        y, moments, rstd = kernel.forward(z, self._eps, self._affine())
        self._kept = kernel, z, moments.mean, rstd
        self._move(moments.mean, moments.m2 / (z.shape[0] - 1))
        return [y]

    def backward(self, gradients: list[Tensor], later: Later) -> list[Tensor]:
        (g,), (kernel, z, mean, rstd) = gradients, self._kept
        del self._kept
        for find in later:
            find()
        later.clear()
        dz, _, sums = kernel.backward(g, z, mean, rstd, self._affine(), z.shape[0])
        self._store_sums(0, sums)
        return [dz]


class Merged(Norm):
    """Several shards, of one process or many.

    While the sums of the backward pass are under way to the other ranks, the gradient of the weights above is found.
    """

    def __init__(self, *how: Any, meetings: Meetings, weighted: bool) -> None:
        super().__init__(*how)
        self._meetings, self._weighted = meetings, weighted

    def forward(self, values: list[Tensor], batch: Batch) -> list[Tensor]:
        weights = [part.weight if self._weighted else None for part in batch.parts]
        own = torch.stack([_moments_of(z, weight) for z, weight in zip(values, weights, strict=True)])
        count, mean, m2 = _merge(self._meetings.gather_near(own).wait())
        if not self._weighted and sum(batch.rows) == 1:
            refuse_one_value(values[0].shape)
        rstd = torch.rsqrt(m2 / _divisor(count) + self._eps)
        self._track(own, (count, mean, m2), batch)
        dtype = values[0].dtype
        self._kept = values, weights, mean.to(dtype), rstd.to(dtype), count, batch.rows
        return [self._apply(z) for z in values]

    def backward(self, gradients: list[Tensor], later: Later) -> list[Tensor]:
        values, weights, mean, rstd, count, rows = self._kept
        affine, normalised = self._affine(), []
        own = []
        for number, (g, z) in enumerate(zip(gradients, values, strict=True)):
            if self._weighted:
                x = (z - mean) * rstd
                normalised.append(x)
                sums = torch.stack([g.sum(0), (g * x).sum(0)])
            else:
                sums = kernel_for(z).sums(g, z, mean, rstd, affine)
            self._store_sums(number, sums)
            own.append(sums.double().reshape(-1))
        begun = self._meetings.gather_near(torch.stack(own))
        for find in later:
            find()
        later.clear()
        whole = begun.wait().sum(0).view(2, -1).to(mean.dtype)
        del self._kept
        if not self._weighted:
            total = float(sum(rows[shard] for shard in self._meetings.near))
            return [
                kernel_for(z).input_gradient(g, z, mean, rstd, affine, whole, total)[0]
                for g, z in zip(gradients, values, strict=True)
            ]
        assert affine.weight is not None
        found = []
        for g, x, weight in zip(gradients, normalised, weights, strict=True):
            assert weight is not None
            share = (weight / _divisor(count).to(weight.dtype))[:, None]
            found.append(affine.weight * rstd * (g - share * (whole[0] + x * whole[1])))
        return found

    def _apply(self, z: Tensor) -> Tensor:
        _, _, mean, rstd, _, _ = self._kept
        return kernel_for(z).apply(z, mean, rstd, self._affine())

    def _track(self, own: Tensor, near: tuple[Tensor, Tensor, Tensor], batch: Batch) -> None:
        """By the moments of all shards, whoever normalised by which."""
        everywhere = len(self._meetings.near) == len(batch.rows)
        count, mean, m2 = near if everywhere else _merge(self._meetings.gather(own).wait())
        free = torch.maximum(count, batch.weighed) if self._weighted else count
        unbiased = m2 / _divisor(count) * (free / (free - 1).clamp(min=1))
        self._move(mean, unbiased, count)


def _moments_of(z: Tensor, weight: Tensor | None) -> Tensor:
    """``(1 + 2 C,)`` float64: count, mean and M2; see :func:`wholebatch.feedforward.batches.moments_of`."""
    if weight is None:
        moments = kernel_for(z).moments(z, None)
        count = torch.full((1,), float(z.shape[0]), dtype=torch.float64, device=z.device)
        return torch.cat([count, moments.mean.double(), moments.m2.double()])
    x, w = z.double(), weight.double()[:, None]
    total = w.sum(0)
    mean = (x * (w / _divisor(total))).sum(0)
    return torch.cat([total, mean, ((x - mean).square() * w).sum(0)])


def _merge(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``(shards, 1 + 2 C)`` to (count, mean, M2); shards without rows bring zeros."""
    counts, means, m2s = rows[:, :1], *rows[:, 1:].chunk(2, dim=1)
    count = counts.sum()
    # About one shard's mean, as in Chan's formula: no more is lost than the means differ by.
    first = means.index_select(0, (counts[:, 0] != 0).int().argmax().view(1))[0]
    mean = first + (counts * (means - first)).sum(0) / _divisor(count)
    m2 = (m2s + counts * (means - mean).square()).sum(0)
    return count, mean, m2


def _divisor(count: Tensor) -> Tensor:
    """``count``, or 1 for 0."""
    return torch.where(count != 0, count, torch.ones_like(count))
