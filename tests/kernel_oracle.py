"""A kernel of batch norm against float64 autograd, with tolerances derived from what it computes with and stores."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.kernel_inputs import EPS
from wholebatch.kernels.batch_norm import Affine, Kernel, accumulation_dtype


def wide(vector: Tensor, z: Tensor) -> Tensor:
    return vector.double().view(1, -1, *[1] * (z.dim() - 2))


def per_channel(x: Tensor) -> Tensor:
    """The largest of each channel."""
    return x.abs().transpose(0, 1).flatten(1).amax(1) if x.numel() else x.new_zeros(x.shape[1])


def assert_within(given: Tensor, expected: Tensor, allowed: Tensor, what: str) -> None:
    off = (given.double() - expected).abs()
    over = ~(off <= allowed)  # what is not a number is over
    where = over.nonzero()[:1].tolist()
    assert not over.any(), (
        f"{what}: off by {off[over].max():.3g} at {where}, allowed {allowed.expand_as(off)[over].min():.3g}"
    )


def check(kernel: Kernel, z: Tensor, g: Tensor, affine: Affine) -> None:
    """Forward and backward against float64 autograd.

    ``u`` and ``s`` are the unit roundoffs of what is computed with and of what is stored; ``least`` is half of the
    stored type's smallest number, by which numbers are off that are too small for all digits. Kernels on a GPU get
    their tensors there, and are held against float64 on the CPU.
    """
    u = torch.finfo(accumulation_dtype(z.dtype)).eps / 2
    half = z.dtype in (torch.bfloat16, torch.float16)
    s = torch.finfo(z.dtype).eps / 2 if half else 0.0
    least = torch.finfo(z.dtype).smallest_normal * torch.finfo(z.dtype).eps / 2 if half else 0.0
    y, moments, rstd = kernel.forward(z, EPS, affine)
    dims = [d for d in range(z.dim()) if d != 1]
    kept = torch.ones(z.shape, dtype=torch.bool) if affine.mask is None else affine.mask.cpu().expand(z.shape)
    count = float(kept[:, 0].sum())
    assert moments.count == count
    assert y.stride() == torch.empty_like(z).stride()
    if count == 0:
        assert torch.equal(moments.mean, torch.zeros_like(moments.mean))
        assert torch.equal(moments.m2, torch.zeros_like(moments.m2))
        assert torch.equal(y, torch.zeros_like(z))
        dz, _, sums = kernel.backward(g, z, moments.mean, rstd, affine, count)
        assert torch.equal(dz, torch.zeros_like(z))
        assert torch.equal(sums, torch.zeros_like(sums))
        return

    weight, bias, residual = (None if x is None else x.double().cpu() for x in affine[:3])
    rises = (y > 0).cpu()
    dz, dresidual, sums = kernel.backward(g, z, moments.mean, rstd, affine, count)
    assert dz.stride() == torch.empty_like(z).stride()
    assert (dresidual is None) == (residual is None)
    y, rstd, found_mean, found_m2, dz, sums = (x.cpu() for x in (y, rstd, moments.mean, moments.m2, dz, sums))

    zero = torch.zeros((), dtype=torch.float64)
    z, g = z.detach().cpu(), g.cpu()
    leaf = z.double().where(kept, zero).requires_grad_()  # what does not count may be anything
    mean = leaf.where(kept, zero).sum(dims) / count
    variance = (leaf - wide(mean, z)).where(kept, zero).square().sum(dims) / count
    xhat = ((leaf - wide(mean, z)) * wide(torch.rsqrt(variance + EPS), z)).where(kept, zero)
    t = xhat if weight is None or bias is None else xhat * wide(weight, z) + wide(bias, z)
    if residual is not None:
        t = t + residual
    # Which side of 0 an element is on is taken from the kernel: where t rounds to another sign, both are right.
    expected = (t if affine.slope == 1 else t.where(rises, t * affine.slope)).where(kept, zero)

    # The mean: sums of up to 2^5 roundings in a row (twin) of values as large as the mean, and the last rounding.
    largest = per_channel(z.double().where(kept, zero))
    mean_off = 8 * u * largest
    assert_within(found_mean, mean.detach(), mean_off, "mean")
    # M2 about a mean that is off by d is too large by count * d^2; its own sums are of terms of one sign.
    m2 = variance.detach() * count
    assert_within(found_m2, m2, 100 * u * m2 + count * mean_off.square(), "M2")
    # rstd: half the relative error of var + eps.
    inverse = torch.rsqrt(variance.detach() + EPS)
    rstd_off = (100 * u * variance.detach() + mean_off.square()) * inverse.square() / 2 + 3 * u
    assert_within(rstd, inverse, inverse * rstd_off, "rstd")

    # y: the error of the mean, stretched; those of rstd and of a handful of operations; three roundings to storage.
    gain = torch.ones_like(inverse) if weight is None else weight.abs()
    shift = torch.zeros_like(inverse) if bias is None else bias.abs()
    size = gain * per_channel(xhat.detach()) + shift
    size = size if residual is None else size + per_channel(residual)
    t_off = gain * inverse * mean_off + size * (rstd_off + 8 * u + 4 * s) + 3 * least
    # Where the kernel was on the other side of 0, it is off by what t is off.
    assert_within(y, expected.detach(), wide(2 * t_off, z), "y")

    dt = (g.double() if affine.slope == 1 else g.double().where(rises, g.double() * affine.slope)).where(kept, zero)
    t.backward(dt)
    assert leaf.grad is not None
    # The sums: each at the end of up to 100 additions in a row; xhat off by what the mean is; dt rounded once.
    xhat_off = inverse * mean_off + per_channel(xhat.detach()) * rstd_off
    absolute, products = dt.abs().sum(dims), (dt * xhat.detach()).abs().sum(dims)
    first_off = (100 * u + s) * absolute + count * least
    second_off = (100 * u + s) * products + xhat_off * absolute + count * least * per_channel(xhat.detach())
    assert_within(sums[0], dt.sum(dims), first_off, "sum of dt")
    assert_within(sums[1], (dt * xhat.detach()).sum(dims), second_off, "sum of dt * xhat")
    terms = per_channel(dt) + absolute / count + per_channel(xhat.detach()) * products / count
    dz_off = first_off / count + per_channel(xhat.detach()) * second_off / count + xhat_off * products / count
    dz_off = gain * inverse * (dz_off + terms * (8 * u + 2 * s + rstd_off) + least) + least
    assert_within(dz, leaf.grad.where(kept, zero), wide(dz_off, z), "dz")
    if dresidual is not None:
        # The slope is rounded, too.
        assert_within(dresidual.cpu(), dt, (s + 3 * u) * dt.abs() + least, "dresidual")
