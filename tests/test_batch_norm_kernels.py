"""Both kernels of batch norm, the compiled one and its twin, against float64."""

from __future__ import annotations

import pytest
import torch

from tests.kernel_inputs import DTYPES, EPS, SHAPES, fill, make_affine, make_mask
from tests.kernel_oracle import check
from wholebatch.kernels.batch_norm import Affine, Kernel, Reference


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(kernel: Kernel, shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
    z, g = fill(shape, dtype, last=last), fill(shape, dtype, last=last, seed=1, mean=0.3)
    for slope, residual, weights in ((1.0, False, True), (0.0, False, True), (0.0, True, True), (0.01, True, False)):
        check(kernel, z, g, make_affine(z, slope, residual, weights=weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("per", ["example", "position", "none"])
@pytest.mark.parametrize("shape", [(64, 20), (301, 3), (5, 3, 7), (3, 4, 9, 5)], ids=str)
def test_masks_against_float64(shape: tuple[int, ...], per: str, dtype: torch.dtype) -> None:
    z, g = fill(shape, dtype), fill(shape, dtype, seed=1, mean=0.3)
    for slope, residual in ((1.0, False), (0.0, True), (0.01, True)):
        check(Reference(), z, g, make_affine(z, slope, residual, mask=make_mask(shape, per)))


@pytest.mark.parametrize("shape", [(700, 20), (6, 5, 31, 11)], ids=str)
def test_inputs_far_from_zero(kernel: Kernel, shape: tuple[int, ...]) -> None:
    """Sums of squares would have lost all digits of the variance: 1e8 and 1 in float32."""
    z = fill(shape, torch.float32, mean=1e4)
    check(kernel, z, fill(shape, torch.float32, seed=1), make_affine(z, 0.0, False))


@pytest.mark.parametrize("first", [1, 15, 16, 17, 300])
@pytest.mark.parametrize("shape", [(1100, 20), (1100, 200), (1100, 3, 40)], ids=str)
def test_a_mean_that_moves_on_from_one_example_to_the_next(kernel: Kernel, shape: tuple[int, ...], first: int) -> None:
    """The mean of what came before is far from that of what follows, by many of its deviations."""
    z = fill(shape, torch.float32, mean=0) * 1e-3
    z[first:] += 1e3
    z[2 * first :] -= 5e5
    moments = kernel.moments(z, None)
    exact = z.double().transpose(0, 1).flatten(1)
    # The compiled kernel sums up to 64 numbers in float32, then in float64; torch all of them one after the other.
    terms = moments.count if isinstance(kernel, Reference) else 64
    allowed = terms * torch.finfo(torch.float32).eps / 2
    var, mean = torch.var_mean(exact, 1, correction=0)
    assert ((moments.mean.double() - mean).abs() <= allowed * (mean.abs() + var.sqrt())).all()
    assert ((moments.m2.double() / moments.count - var).abs() <= allowed * var).all()


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
