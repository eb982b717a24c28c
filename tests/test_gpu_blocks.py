"""Products with batch norm in them, in Triton, against float64; each kernel from the very numbers that it is given.

``u`` is the unit roundoff of float32, ``s`` that of what is stored (0 for float32: its rounding is among the ``u``). A
sum of K products is off by at most ``(K + 4) u`` of the sum of their sizes, whatever its order, and by what its terms
are off.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.gpu_kernels import DEVICE, quiet
from tests.kernel_oracle import assert_within
from wholebatch.kernels.gpu.blocks import (
    TILES,
    Derived,
    Normalised,
    Tiles,
    multiply,
    multiply_across,
    multiply_back,
    multiply_for_norm,
)

pytestmark = quiet

U, EPS = 2.0**-24, 1e-5
SMALL = Tiles(16, 16, 16, programs=8)
# Rows, inputs, neurons: no whole tile, one row, whole tiles, a sum over rows in several parts.
SHAPES = [(37, 19, 21), (1, 3, 2), (64, 16, 32), (150, 5, 7)]
SLOPES = (0.0, 0.01, 1.0)
CASES = [
    (shape, dtype, SMALL, SLOPES[i % 3])
    for i, (shape, dtype) in enumerate(itertools.product(SHAPES, (torch.float32, torch.bfloat16)))
] + [((70, 33, 65), torch.float32, TILES, 0.0)]
each_case = pytest.mark.parametrize(
    ("shape", "dtype", "tiles", "slope"), CASES, ids=[f"{s}-{d}-{t.rows}-{a}" for s, d, t, a in CASES]
)


class Near(NamedTuple):
    """A float64 matrix, and how much a kernel's may be off, element by element."""

    value: Tensor
    off: Tensor


def roundoff(dtype: torch.dtype) -> float:
    return 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def normalised(rows: int, columns: int, dtype: torch.dtype, slope: float, seed: int = 0) -> Normalised:
    """Sums with a mean and a spread for each neuron, their own statistics, and weights far from 1 and 0."""
    z = draw(rows, columns, dtype=dtype, seed=seed) * 3 + draw(columns, seed=seed + 1).to(dtype) * 2
    wide = z.double()
    mean, m2 = wide.mean(0), (wide - wide.mean(0)).square().sum(0)
    statistics = torch.stack([mean, m2, torch.rsqrt(m2 / rows + EPS)]).float()
    return Normalised(z, statistics, 1 + 0.3 * draw(columns, seed=seed + 2), 0.5 * draw(columns, seed=seed + 3), slope)


def before(of: Normalised) -> Near:
    """t: one rounding for each of five operations, and one to storage."""
    assert of.weight is not None
    assert of.bias is not None
    x, (mean, _, rstd) = of.z.double(), of.statistics.double()
    part = (x - mean) * rstd * of.weight.double()
    t = part + of.bias.double()
    return Near(t, 8 * U * (part.abs() + of.bias.double().abs()) + roundoff(of.z.dtype) * t.abs())


def inputs(of: Tensor | Normalised) -> Near:
    """What a product reads as H; where a t is so near 0 that its sign is open, either side is within t's own error."""
    if isinstance(of, Tensor):
        return Near(of.double(), torch.zeros_like(of.double()))
    t, off = before(of)
    h = t.where(t > 0, of.slope * t)
    return Near(h, off + (U + roundoff(of.z.dtype)) * h.abs())


def gradients(of: Tensor | Derived) -> Near:
    """What a product reads as dZ."""
    if isinstance(of, Tensor):
        return Near(of.double(), torch.zeros_like(of.double()))
    assert of.of.weight is not None
    (mean, _, rstd), count = of.of.statistics.double(), len(of.g)
    xhat = (of.of.z.double() - mean) * rstd
    terms = of.g.double(), of.dbias.double() / count, xhat * of.dweight.double() / count
    scale = of.of.weight.double() * rstd
    dz = (terms[0] - terms[1] - terms[2]) * scale
    size = sum(term.abs() for term in terms) * scale.abs()
    return Near(dz, 8 * U * size + roundoff(of.g.dtype) * dz.abs())


def product(a: Near, b: Near, dtype: torch.dtype) -> Near:
    value, sizes = a.value @ b.value, a.value.abs() @ b.value.abs()
    off = (a.value.shape[1] + 4) * U * sizes + a.off @ b.value.abs() + a.value.abs() @ b.off + a.off @ b.off
    return Near(value, off + roundoff(dtype) * (value.abs() + off))


def exact(x: Tensor) -> Near:
    return Near(x.double(), torch.zeros_like(x.double()))


def given(shape: tuple[int, int, int], dtype: torch.dtype, slope: float) -> tuple[Normalised, Normalised, Tensor]:
    """Two hidden layers, ``(rows, inputs)`` and ``(rows, neurons)``, and the weights between."""
    rows, fan_in, fan_out = shape
    below, above = normalised(rows, fan_in, dtype, slope), normalised(rows, fan_out, dtype, slope, seed=10)
    return below, above, draw(fan_out, fan_in, dtype=dtype, seed=20)


def derived(above: Normalised) -> Derived:
    rows, columns = above.z.shape
    return Derived(
        draw(rows, columns, dtype=above.z.dtype, seed=30), above, draw(columns, seed=31), draw(columns, seed=32)
    )


@each_case
def test_forward(shape: tuple[int, int, int], dtype: torch.dtype, tiles: Tiles, slope: float) -> None:
    below, _, w = given(shape, dtype, slope)
    added = draw(shape[2], seed=40).to(dtype)
    for of in (below.z, below):
        z = multiply(of, w, added, tiles)
        expected = product(inputs(of), Near(w.double().T, torch.zeros_like(w.double().T)), dtype)
        value = expected.value + added.double()
        off = expected.off + (U + roundoff(dtype)) * (value.abs() + expected.off)
        assert z.dtype == dtype
        assert_within(z, value, off, "Z")


@each_case
def test_moments(shape: tuple[int, int, int], dtype: torch.dtype, tiles: Tiles, slope: float) -> None:
    """Of Z as it is stored; and running statistics that move by them."""
    below, _, w = given(shape, dtype, slope)
    running_mean, running_var = draw(shape[2], seed=50), draw(shape[2], seed=51).abs()
    moved = running_mean.clone(), running_var.clone()
    z, statistics = multiply_for_norm(below, w, EPS, *moved, 0.3, tiles)
    assert torch.equal(z, multiply(below, w, None, tiles))
    check_moments(z, statistics)
    rows = shape[0]
    mean, m2, _ = statistics.double()
    assert_within(moved[0], running_mean.double().lerp(mean, 0.3), 4 * U * (running_mean.abs() + mean.abs()), "mean")
    unbiased = m2 / max(rows - 1, 1)
    wanted = running_var.double().lerp(unbiased, 0.3) if rows > 1 else running_var.double()
    assert_within(moved[1], wanted, 4 * U * (running_var.double() + unbiased), "variance")


def check_moments(z: Tensor, statistics: Tensor) -> None:
    """As :func:`tests.kernel_oracle.check` has it for batch norm's own kernels."""
    wide, rows = z.double(), len(z)
    mean = wide.mean(0)
    m2 = (wide - mean).square().sum(0)
    mean_off = 8 * U * wide.abs().amax(0)
    assert_within(statistics[0], mean, mean_off, "mean")
    assert_within(statistics[1], m2, 100 * U * m2 + rows * mean_off.square(), "M2")
    rstd = torch.rsqrt(m2 / rows + EPS)
    off = rstd * ((100 * U * m2 / rows + mean_off.square()) * rstd.square() / 2 + 3 * U)
    assert_within(statistics[2], rstd, off, "rstd")


def test_moments_far_from_zero() -> None:
    """Sums at 1e4 with a spread of 1: sums of squares would have lost all digits of the variance."""
    x, w = draw(100, 9), draw(7, 9, seed=1) / 3
    x[:, 0], w[:, 0] = 1e4, 1.0
    z, statistics = multiply_for_norm(x, w, EPS, tiles=SMALL)
    assert float(z.mean()) == pytest.approx(1e4, rel=1e-3)
    check_moments(z, statistics)


@each_case
def test_back_through_the_activation(
    shape: tuple[int, int, int], dtype: torch.dtype, tiles: Tiles, slope: float
) -> None:
    below, above, w = given(shape, dtype, slope)
    for of in (derived(above).g, derived(above)):
        dweight, dbias = (torch.full((shape[1],), float("nan"), device=DEVICE) for _ in range(2))
        found = multiply_back(of, w, below, dweight, dbias, tiles)
        value, off = product(gradients(of), exact(w), dtype)
        t, t_off = before(below)
        # Where t rounds to the other side of 0 both are right: the kernel's forward pass says which it was.
        forward = multiply(below, torch.eye(shape[1], dtype=dtype, device=DEVICE), None, tiles)
        rises = (forward > 0) if slope == 0 else (t > 0).where(t.abs() > t_off, forward > 0)
        assert bool((rises == (t > 0))[t.abs() > t_off].all())
        dt = value if slope == 1 else value.where(rises, value * slope)
        dt_off = off + (2 * U + roundoff(dtype)) * dt.abs()
        assert_within(found.g, dt, dt_off, "dt")
        # The sums, of dt as it is stored.
        stored, (mean, _, rstd) = found.g.double(), below.statistics.double()
        xhat = (below.z.double() - mean) * rstd
        assert_within(dbias, stored.sum(0), (len(stored) + 4) * U * stored.abs().sum(0), "sum of dt")
        allowed = (len(stored) + 8) * U * (stored * xhat).abs().sum(0)
        assert_within(dweight, (stored * xhat).sum(0), allowed, "sum of dt * xhat")
        assert found.of is below
        assert found.dweight is dweight


@each_case
def test_gradient_of_the_weights(shape: tuple[int, int, int], dtype: torch.dtype, tiles: Tiles, slope: float) -> None:
    below, above, _ = given(shape, dtype, slope)
    for of, read in ((derived(above).g, below), (derived(above), below.z)):
        out = torch.full((shape[2], shape[1]), float("nan"), dtype=dtype, device=DEVICE)
        multiply_across(of, read, out, tiles)
        dz = gradients(of)
        value, off = product(Near(dz.value.T, dz.off.T), inputs(read), dtype)
        assert_within(out, value, off, "dW")


def test_the_same_call_has_the_same_bits() -> None:
    below, above, w = given((150, 5, 7), torch.float32, 0.0)
    outcomes = []
    for _ in range(2):
        z, statistics = multiply_for_norm(below, w, EPS, tiles=SMALL)
        dweight, dbias, out = torch.empty(5), torch.empty(5), torch.empty_like(w)
        sums = dweight.to(DEVICE), dbias.to(DEVICE)
        found = multiply_back(derived(above), w, below, *sums, SMALL)
        multiply_across(derived(above), below, out, SMALL)
        outcomes.append((z, statistics, found.g, *sums, out))
    for one, other in zip(*outcomes, strict=True):
        assert torch.equal(one, other)


def test_rows_are_summed_in_parts() -> None:
    """300 rows in tiles of 16 and sums of 16: three parts of 128 or fewer, of which 300 is no multiple."""
    g, x = draw(300, 7), draw(300, 5, seed=1)
    out = torch.empty(7, 5, device=DEVICE)
    multiply_across(g, x, out, SMALL)
    parts = [g[i : i + 112].double().T @ x[i : i + 112].double() for i in (0, 112, 224)]
    value, off = product(Near(g.double().T, torch.zeros(7, 300, dtype=torch.float64)), exact(x), torch.float32)
    assert_within(out, sum(parts, torch.zeros_like(value)), off, "dW")
