"""Both kernels of batch norm, the compiled one and its twin, against float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernel_inputs import DTYPES, EPS, SHAPES, fill, make_affine
from wholebatch.kernels.batch_norm import Affine, Kernel, accumulation_dtype


def wide(vector: Tensor, z: Tensor) -> Tensor:
    return vector.double().view(1, -1, *[1] * (z.dim() - 2))


def per_channel(x: Tensor) -> Tensor:
    """The largest of each channel."""
    return x.abs().transpose(0, 1).flatten(1).amax(1) if x.numel() else x.new_zeros(x.shape[1])


def assert_within(given: Tensor, expected: Tensor, allowed: Tensor, what: str) -> None:
    off = (given.double() - expected).abs()
    over = off > allowed
    where = over.nonzero()[:1].tolist()
    assert not over.any(), (
        f"{what}: off by {off[over].max():.3g} at {where}, allowed {allowed.expand_as(off)[over].min():.3g}"
    )


def check(kernel: Kernel, z: Tensor, g: Tensor, affine: Affine) -> None:
    """Forward and backward against float64 autograd; ``u`` and ``s`` are the unit roundoffs of what is computed with
    and of what is stored."""
    u = torch.finfo(accumulation_dtype(z.dtype)).eps / 2
    s = torch.finfo(z.dtype).eps / 2 if z.dtype == torch.bfloat16 else 0.0
    y, moments, rstd = kernel.forward(z, EPS, affine)
    dims = [d for d in range(z.dim()) if d != 1]
    count = z.numel() // z.shape[1]
    assert moments.count == count
    assert y.stride() == torch.empty_like(z).stride()
    if count == 0:
        assert torch.equal(moments.mean, torch.zeros_like(moments.mean))
        assert torch.equal(moments.m2, torch.zeros_like(moments.m2))
        dz, _, sums = kernel.backward(g, z, moments.mean, rstd, affine, count)
        assert dz.shape == z.shape
        assert torch.equal(sums, torch.zeros_like(sums))
        return

    leaf = z.detach().double().clone().requires_grad_()
    mean = leaf.mean(dims)
    variance = (leaf - wide(mean, z)).square().mean(dims)
    xhat = (leaf - wide(mean, z)) * wide(torch.rsqrt(variance + EPS), z)
    weight, bias = (affine.weight, affine.bias) if affine.weight is not None else (None, None)
    t = xhat if weight is None or bias is None else xhat * wide(weight, z) + wide(bias, z)
    if affine.residual is not None:
        t = t + affine.residual.double()
    # Which side of 0 an element is on is taken from the kernel: where t rounds to another sign, both are right.
    rises = y > 0
    expected = t if affine.slope == 1 else t.where(rises, t * affine.slope)

    # The mean: sums of up to 2^5 roundings in a row (twin) of values as large as the mean, and the last rounding.
    largest = per_channel(z.double())
    mean_off = 8 * u * largest
    assert_within(moments.mean, mean.detach(), mean_off, "mean")
    # M2 about a mean that is off by d is too large by count * d^2; its own sums are of terms of one sign.
    m2 = variance.detach() * count
    assert_within(moments.m2, m2, 100 * u * m2 + count * mean_off.square(), "M2")
    # rstd: half the relative error of var + eps.
    inverse = torch.rsqrt(variance.detach() + EPS)
    rstd_off = (100 * u * variance.detach() + mean_off.square()) * inverse.square() / 2 + 3 * u
    assert_within(rstd, inverse, inverse * rstd_off, "rstd")

    # y: the error of the mean, stretched; those of rstd and of a handful of operations; three roundings to storage.
    gain = torch.ones_like(inverse) if weight is None else weight.double().abs()
    shift = torch.zeros_like(inverse) if bias is None else bias.double().abs()
    size = gain * per_channel(xhat.detach()) + shift
    size = size if affine.residual is None else size + per_channel(affine.residual.double())
    t_off = gain * inverse * mean_off + size * (rstd_off + 8 * u + 4 * s)
    # Where the kernel was on the other side of 0, it is off by what t is off.
    assert_within(y, expected.detach(), wide(2 * t_off, z), "y")

    dt = g.double() if affine.slope == 1 else g.double().where(rises, g.double() * affine.slope)
    t.backward(dt)
    assert leaf.grad is not None
    dz, dresidual, sums = kernel.backward(g, z, moments.mean, rstd, affine, count)
    # The sums: each at the end of up to 100 additions in a row; xhat off by what the mean is; dt rounded once.
    xhat_off = inverse * mean_off + per_channel(xhat.detach()) * rstd_off
    absolute, products = dt.abs().sum(dims), (dt * xhat.detach()).abs().sum(dims)
    first_off = (100 * u + s) * absolute
    second_off = (100 * u + s) * products + xhat_off * absolute
    assert_within(sums[0], dt.sum(dims), first_off, "sum of dt")
    assert_within(sums[1], (dt * xhat.detach()).sum(dims), second_off, "sum of dt * xhat")
    terms = per_channel(dt) + absolute / count + per_channel(xhat.detach()) * products / count
    dz_off = first_off / count + per_channel(xhat.detach()) * second_off / count + xhat_off * products / count
    dz_off = gain * inverse * (dz_off + terms * (8 * u + 2 * s + rstd_off))
    assert dz.stride() == torch.empty_like(z).stride()
    assert_within(dz, leaf.grad, wide(dz_off, z), "dz")
    if affine.residual is None:
        assert dresidual is None
    else:
        assert dresidual is not None
        assert_within(dresidual, dt, (s + 3 * u) * dt.abs(), "dresidual")  # the slope is rounded, too


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(kernel: Kernel, shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
    z, g = fill(shape, dtype, last=last), fill(shape, dtype, last=last, seed=1, mean=0.3)
    for slope, residual, weights in ((1.0, False, True), (0.0, False, True), (0.0, True, True), (0.01, True, False)):
        check(kernel, z, g, make_affine(z, slope, residual, weights=weights))


@pytest.mark.parametrize("shape", [(700, 20), (6, 5, 31, 11)], ids=str)
def test_inputs_far_from_zero(kernel: Kernel, shape: tuple[int, ...]) -> None:
    """Sums of squares would have lost all digits of the variance: 1e8 and 1 in float32."""
    z = fill(shape, torch.float32, mean=1e4)
    check(kernel, z, fill(shape, torch.float32, seed=1), make_affine(z, 0.0, False))


@pytest.mark.parametrize("shape", [(301, 7), (5, 7, 40, 5)], ids=str)
def test_a_channel_of_one_value_has_no_variance(kernel: Kernel, shape: tuple[int, ...]) -> None:
    z = torch.full(shape, 0.1)
    moments = kernel.moments(z, None)
    u = torch.finfo(torch.float32).eps / 2
    assert (moments.mean - 0.1).abs().max() <= 8 * u * 0.1
    assert (moments.m2 >= 0).all()
    assert (moments.m2 / moments.count).max() <= (8 * u * 0.1) ** 2  # the square of what the mean may be off


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("shape", [(300, 20), (20, 6, 4), (3, 6, 40, 5)], ids=str)
def test_what_is_not_finite_stays_in_its_channel(kernel: Kernel, shape: tuple[int, ...], bad: float) -> None:
    z, g = fill(shape, torch.float32), fill(shape, torch.float32, seed=1)
    affine = make_affine(z, 0.0, False)
    y, moments, rstd = kernel.forward(z, EPS, affine)
    dz, _, _ = kernel.backward(g, z, moments.mean, rstd, affine, moments.count)
    z[0, 3] = bad
    bad_y, bad_moments, bad_rstd = kernel.forward(z, EPS, affine)
    bad_dz, _, _ = kernel.backward(g, z, bad_moments.mean, bad_rstd, affine, moments.count)
    others = [c for c in range(shape[1]) if c != 3]
    assert torch.equal(y[:, others], bad_y[:, others])
    assert torch.equal(dz[:, others], bad_dz[:, others])
    assert not bad_moments.mean[3].isfinite()
    assert bad_y[:, 3].isnan().any()


@pytest.mark.parametrize("shape", [(4, 20), (1, 20, 8)], ids=str)
def test_relu_of_what_is_not_finite_and_of_zero(kernel: Kernel, shape: tuple[int, ...]) -> None:
    z = torch.ones(shape)
    z[0, 0], z[0, 1], z[0, 2], z[0, 3] = float("nan"), float("-inf"), float("inf"), 0.0
    zero, one = torch.zeros(20), torch.ones(20)
    y = kernel.apply(z, zero, one, Affine(slope=0.0))
    assert y[0, 0].isnan().all()
    assert torch.equal(y[0, 1], torch.zeros_like(y[0, 1]))
    assert torch.equal(y[0, 2], z[0, 2])
    g = torch.full(shape, 3.0)
    dz, _ = kernel.input_gradient(g, z, zero, one, Affine(slope=0.0), None, 1)
    assert torch.equal(dz[0, 3], torch.zeros_like(dz[0, 3]))  # at 0 it does not rise
    assert torch.equal(dz[0, 2], g[0, 2])
