"""Batch norm and ReLU over the ranks of a group, as one writes it by hand with torch.distributed: the peers' layer.

Forward: each rank's count, mean and M2 go to all by one all_gather, and are merged by Chan's formula. Backward: the two
sums of the gradient are added up by one all_reduce. The ReLU is taken in, so that its mask costs no pass of its own in
the variant that torch.compile makes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

EPS, MOMENTUM = 1e-5, 0.1


class Pieces(Protocol):
    """What a rank computes by itself. ``z``, ``y``, ``dy``: ``(N, C)``; everything else ``(C,)``."""

    def apply(self, z: Tensor, mean: Tensor, var: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """``relu((z - mean) * rstd * weight + bias)``."""
        ...

    def sums(self, dy: Tensor, y: Tensor, z: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        """What :meth:`dz` needs of ``g = dy where y > 0``; and ``(sum g, sum g * xhat)`` as ``(2, C)``."""
        ...

    def dz(self, g: Tensor, y: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, means: Tensor) -> Tensor:
        """``weight * rstd * (g - means[0] - xhat * means[1])``."""
        ...


class Kernels:
    """torch's own kernels for batch norm, one pass each."""

    def apply(self, z: Tensor, mean: Tensor, var: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.native_batch_norm(z, weight, bias, mean, var, False, 0.0, EPS)[0].relu_()

    def sums(self, dy: Tensor, y: Tensor, z: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        g = torch.ops.aten.threshold_backward(dy, y, 0)
        _, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
            g, z, torch.ones_like(mean), None, None, mean, rstd, True, EPS, [False, True, True]
        )
        return g, torch.stack([dbias, dweight])

    def dz(self, g: Tensor, y: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, means: Tensor) -> Tensor:
        scale = weight * rstd
        slope = -scale * rstd * means[1]
        return torch.addcmul(-scale * means[0] - slope * mean, z, slope).addcmul_(g, scale)


class Compiled:
    """The same by torch.compile, the ReLU and its mask within the passes."""

    def __init__(self) -> None:
        def apply(z: Tensor, mean: Tensor, var: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return ((z - mean) * (rstd * weight) + bias).relu()

        def sums(dy: Tensor, y: Tensor, z: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
            g = torch.where(y > 0, dy, 0)
            return torch.stack([g.sum(0), (g * (z - mean)).sum(0) * rstd])

        def dz(dy: Tensor, y: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, means: Tensor) -> Tensor:
            g = torch.where(y > 0, dy, 0)
            return (weight * rstd) * (g - means[0] - (z - mean) * (rstd * means[1]))

        compiled: Callable[[Any], Any] = torch.compile(dynamic=False)
        self.apply, self._sums, self.dz = compiled(apply), compiled(sums), compiled(dz)

    def sums(self, dy: Tensor, y: Tensor, z: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
        return dy, self._sums(dy, y, z, mean, rstd)


class JointNorm(nn.Module):
    """Batch norm over all ranks, and ReLU.

    Attributes:
        seconds: spent in its collectives since somebody set it to 0.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, pieces: Pieces, group: ProcessGroup) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.pieces, self.group, self.seconds = pieces, group, 0.0

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = _Joint.apply(z, self.weight, self.bias, self)  # type: ignore[no-untyped-call]
        return out

    def merge(self, z: Tensor) -> tuple[Tensor, Tensor, float]:
        """Mean and biased variance over all ranks, and how many examples there are."""
        mean, var = torch.batch_norm_update_stats(z, None, None, 0.0)
        own = torch.cat([mean.new_tensor([len(z)]), mean, var * len(z)])
        gathered = own.new_empty(dist.get_world_size(self.group), len(own))
        start = time.perf_counter()
        dist.all_gather(list(gathered), own, group=self.group)
        self.seconds += time.perf_counter() - start
        channels = len(mean)
        count, mean, m2 = 0.0, torch.zeros_like(mean), torch.zeros_like(mean)
        for n, row in zip(gathered[:, 0].tolist(), gathered, strict=True):
            delta, count = row[1 : 1 + channels] - mean, count + n
            mean = mean + delta * (n / count)
            m2 = m2 + row[1 + channels :] + delta.square() * (n * (count - n) / count)
        var = m2 / count
        self.running_mean.lerp_(mean, MOMENTUM)
        self.running_var.lerp_(m2 / (count - 1), MOMENTUM)
        return mean, var, count

    def add_up(self, sums: Tensor) -> Tensor:
        """The sum over all ranks."""
        total = sums.clone()
        start = time.perf_counter()
        dist.all_reduce(total, group=self.group)
        self.seconds += time.perf_counter() - start
        return total


class _Joint(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor, norm: JointNorm) -> Tensor:
        mean, var, ctx.count = norm.merge(z)
        rstd = (var + EPS).rsqrt()
        y = norm.pieces.apply(z, mean, var, rstd, weight, bias)
        ctx.save_for_backward(y, z, mean, rstd, weight)
        ctx.norm = norm
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        y, z, mean, rstd, weight = ctx.saved_tensors
        norm: JointNorm = ctx.norm
        g, own = norm.pieces.sums(dy, y, z, mean, rstd)
        whole = norm.add_up(own)
        dz = norm.pieces.dz(g, y, z, mean, rstd, weight, whole / ctx.count)
        return dz, own[1], own[0], None  # of this rank: DDP adds the parameters' gradients up
