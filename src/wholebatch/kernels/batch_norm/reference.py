"""The torch twin of the compiled kernels: any device, dtype and mask, and differentiable in everything it is given."""

from __future__ import annotations

import torch
from torch import Tensor

from wholebatch.activations import activate
from wholebatch.kernels.batch_norm.kernel import Affine, accumulation_dtype
from wholebatch.kernels.batch_norm.masking import counted
from wholebatch.moments import Moments


class Reference:
    """See :class:`wholebatch.kernels.batch_norm.Kernel`."""

    def moments(self, z: Tensor, mask: Tensor | None) -> Moments:
        x, dims, channels = _accumulated(z), _reduced(z), z.shape[1]
        count = float(z.numel() // max(channels, 1) if mask is None else mask.expand(z.shape[0], 1, *z.shape[2:]).sum())
        if count == 0:
            zero = x.new_zeros(channels)
            return Moments(0, zero, zero)
        mean = counted(x, mask).sum(dims) / count
        return Moments(count, mean, counted(x - _wide(mean, z), mask).square().sum(dims))

    def apply(self, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine) -> Tensor:
        return counted(activate(_before_activation(z, mean, rstd, affine), affine.slope), affine.mask)

    def forward(self, z: Tensor, eps: float, affine: Affine) -> tuple[Tensor, Moments, Tensor]:
        moments = self.moments(z, affine.mask)
        rstd = moments.rstd(eps)
        return self.apply(z, moments.mean, rstd, affine), moments, rstd

    def sums(self, g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine) -> Tensor:
        dt = _accumulated(_through_activation(g, z, mean, rstd, affine))
        return torch.stack([dt.sum(_reduced(z)), (dt * _normalised(z, mean, rstd, affine.mask)).sum(_reduced(z))])

    def input_gradient(
        self, g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine, sums: Tensor | None, count: float
    ) -> tuple[Tensor, Tensor | None]:
        dt = _through_activation(g, z, mean, rstd, affine)
        dz = _accumulated(dt)
        if sums is not None:
            first, second = (sums / max(count, 1)).unbind()
            dz = dz - _wide(first, z) - _normalised(z, mean, rstd, affine.mask) * _wide(second, z)
        dz = counted(dz * _wide(rstd if affine.weight is None else affine.weight * rstd, z), affine.mask)
        return dz.to(z.dtype), None if affine.residual is None else dt

    def backward(
        self, g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine, count: float
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        sums = self.sums(g, z, mean, rstd, affine)
        return (*self.input_gradient(g, z, mean, rstd, affine, sums, count), sums)


def _accumulated(z: Tensor) -> Tensor:
    return z.to(accumulation_dtype(z.dtype))


def _reduced(z: Tensor) -> list[int]:
    return [d for d in range(z.dim()) if d != 1]


def _wide(vector: Tensor, z: Tensor) -> Tensor:
    return vector.view(-1, *[1] * (z.dim() - 2))


def _normalised(z: Tensor, mean: Tensor, rstd: Tensor, mask: Tensor | None) -> Tensor:
    return counted((_accumulated(z) - _wide(mean, z)) * _wide(rstd, z), mask)


def _before_activation(z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine) -> Tensor:
    # The mean is taken off first: scale * z + offset would lose six digits where inputs are far from zero.
    scale = rstd if affine.weight is None else affine.weight * rstd
    t = (_accumulated(z) - _wide(mean, z)) * _wide(scale, z)
    if affine.bias is not None:
        t = t + _wide(affine.bias, z)
    t = t.to(z.dtype)
    return t if affine.residual is None else t + affine.residual


def _through_activation(g: Tensor, z: Tensor, mean: Tensor, rstd: Tensor, affine: Affine) -> Tensor:
    """``dt`` in ``z``'s dtype, as the activation's own backward would hand it on."""
    if affine.slope != 1:
        rises = _before_activation(z, mean, rstd, affine) > 0
        g = g.where(rises, g * affine.slope if affine.slope else g.new_zeros(()))
    return counted(g, affine.mask)
