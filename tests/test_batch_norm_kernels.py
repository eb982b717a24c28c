"""Both kernels of batch norm, the compiled one and its twin, against float64 and against each other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from wholebatch.kernels import native_available
from wholebatch.kernels.batch_norm import (
    Affine,
    Kernel,
    Native,
    Reference,
    accumulation_dtype,
    choose_kernel,
)
from wholebatch.kernels.batch_norm import native as native_kernels

EPS = 1e-5
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# Rows that fill no long row, one row, one column, wide and narrow; planes of one element, of a few, of an odd number,
# of several blocks; sizes of 0.
SHAPES = [
    (64, 20), (1, 5), (7, 1), (301, 33), (2100, 3), (530, 96), (33, 2500),
    (5, 3, 7), (9, 17, 4), (4, 8, 1, 1), (2, 3, 70, 61), (33, 6, 7, 7), (3, 2, 5, 4, 6), (2, 5, 9000),
    (0, 4), (3, 4, 0),
]  # fmt: skip
native_only = pytest.mark.skipif(not native_available(), reason="the compiled part is missing here")


@pytest.fixture(params=["reference", "native"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    if request.param == "native" and not native_available():
        pytest.skip("the compiled part is missing here")
    return Native() if request.param == "native" else Reference()


def fill(shape: tuple[int, ...], dtype: torch.dtype, *, last: bool = False, seed: int = 0, mean: float = 2) -> Tensor:
    """Another mean and spread in every channel."""
    generator = torch.Generator().manual_seed(seed)
    channels = shape[1]
    wide = (1, -1, *[1] * (len(shape) - 2))
    spread = torch.linspace(0.5, 2, channels, dtype=torch.float64).view(wide)
    x = torch.randn(shape, dtype=torch.float64, generator=generator) * spread + mean
    x = x.to(dtype)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


def make_affine(z: Tensor, slope: float, residual: bool, *, weights: bool = True) -> Affine:
    acc, channels = accumulation_dtype(z.dtype), z.shape[1]
    weight = torch.linspace(-1, 1.5, channels, dtype=acc)
    bias = torch.linspace(1, -1, channels, dtype=acc)
    added = torch.empty_like(z).copy_(fill(tuple(z.shape), z.dtype, seed=2, mean=0)) if residual else None
    return Affine(weight if weights else None, bias if weights else None, added, slope)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(330, 20), (30, 33, 3), (4, 6, 31, 9)], ids=str)
def test_what_is_fused_changes_no_number(kernel: Kernel, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    z, residual = fill(shape, dtype), fill(shape, dtype, seed=3, mean=0)
    plain = make_affine(z, 1.0, False)
    mean, rstd = (m := kernel.moments(z, None)).mean, m.rstd(EPS)
    unfused = kernel.apply(z, mean, rstd, plain)
    for added, before in ((None, unfused), (residual, unfused + residual)):
        for slope, after in ((0.0, torch.relu(before)), (0.01, torch.nn.functional.leaky_relu(before, 0.01))):
            fused = kernel.apply(z, mean, rstd, Affine(plain.weight, plain.bias, added, slope))
            assert torch.equal(fused, after)
            g = fill(shape, dtype, seed=4)
            _, dt = kernel.input_gradient(
                g, z, mean, rstd, Affine(plain.weight, plain.bias, residual, slope), None, m.count
            )
            if added is not None:
                assert dt is not None
                leaf = before.clone().requires_grad_()
                (torch.relu(leaf) if slope == 0 else torch.nn.functional.leaky_relu(leaf, slope)).backward(g)
                assert torch.equal(dt, leaf.grad)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_two_parts_as_in_one(kernel: Kernel, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    z, g = fill(shape, dtype), fill(shape, dtype, seed=1)
    affine = make_affine(z, 0.0, True)
    y, moments, rstd = kernel.forward(z, EPS, affine)
    dz, dresidual, sums = kernel.backward(g, z, moments.mean, rstd, affine, moments.count)
    again = kernel.moments(z, None)
    assert torch.equal(again.mean, moments.mean)
    assert torch.equal(again.m2, moments.m2)
    assert torch.equal(again.rstd(EPS), rstd)
    assert torch.equal(kernel.apply(z, moments.mean, rstd, affine), y)
    sums_again = kernel.sums(g, z, moments.mean, rstd, affine)
    assert torch.equal(sums_again, sums)
    dz_again, dresidual_again = kernel.input_gradient(g, z, moments.mean, rstd, affine, sums, moments.count)
    assert torch.equal(dz_again, dz)
    assert dresidual is not None
    assert dresidual_again is not None
    assert torch.equal(dresidual_again, dresidual)


@native_only
@pytest.mark.parametrize("slope", [1.0, 0.0, 0.01])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(301, 33), (9, 17, 4), (2, 3, 70, 61)], ids=str)
def test_element_by_element_the_twin_gives_the_same_bits(
    shape: tuple[int, ...], dtype: torch.dtype, slope: float
) -> None:
    z, g = fill(shape, dtype), fill(shape, dtype, seed=1)
    affine, twin, native = make_affine(z, slope, True), Reference(), Native()
    mean, rstd = (m := twin.moments(z, None)).mean, m.rstd(EPS)
    assert torch.equal(native.apply(z, mean, rstd, affine), twin.apply(z, mean, rstd, affine))
    for sums in (None, twin.sums(g, z, mean, rstd, affine)):
        for ours, theirs in zip(
            native.input_gradient(g, z, mean, rstd, affine, sums, m.count),
            twin.input_gradient(g, z, mean, rstd, affine, sums, m.count),
            strict=True,
        ):
            assert ours is not None
            assert theirs is not None
            assert torch.equal(ours, theirs)


def test_every_bfloat16_is_rounded_as_torch_does(kernel: Kernel) -> None:
    """All 65536, infinities, nans and denormals among them; the weights bring ties and numbers too small."""
    z = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    weights = torch.tensor([1, 1.00390625, 1.001953125, 1 / 3, -2, 2**-130])
    z = z[:, None].expand(-1, len(weights)).contiguous()
    expected = (z.float() * weights).to(torch.bfloat16)
    zero, one = torch.zeros(len(weights)), torch.ones(len(weights))
    for layout in (z, z.t().contiguous()[None].clone()):  # as columns, and as planes
        y = kernel.apply(layout, zero, one, Affine(weights, None, None, 1.0))
        y = y if layout is z else y[0].t()
        assert torch.equal(y.isnan(), expected.isnan())
        assert torch.equal(y.nan_to_num(7), expected.nan_to_num(7))
        rises = kernel.input_gradient(
            torch.ones_like(layout), layout, zero, one, Affine(weights, None, torch.zeros_like(layout), 0.0), None, 1
        )[1]
        assert rises is not None
        assert torch.equal(rises if layout is z else rises[0].t(), (expected > 0).to(torch.bfloat16))


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


@native_only
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_other_layouts_are_as_if_copied(last: bool) -> None:
    kernel = Native()
    whole = fill((6, 10, 8, 9), torch.float32, last=last)
    z, g = whole[:, ::2, :, 1:], torch.tensor(0.5).expand(6, 5, 8, 8)
    residual = fill((6, 5, 8, 8), torch.float32, last=not last, seed=5)
    given = Affine(torch.ones(10)[::2], torch.zeros(5), residual, 0.0)
    plain = Affine(torch.ones(5), torch.zeros(5), residual.contiguous(), 0.0)
    y, moments, rstd = kernel.forward(z, EPS, given)
    dz, dresidual, sums = kernel.backward(g, z, moments.mean, rstd, given, moments.count)
    z, g = z.contiguous(), g.contiguous()
    y_copied, copied, _ = kernel.forward(z, EPS, plain)
    assert torch.equal(moments.mean, copied.mean)
    assert torch.equal(y, y_copied)
    dz_copied, dresidual_copied, sums_copied = kernel.backward(g, z, copied.mean, rstd, plain, copied.count)
    assert torch.equal(sums, sums_copied)
    assert torch.equal(dz, dz_copied)
    assert dresidual is not None
    assert dresidual_copied is not None
    assert torch.equal(dresidual, dresidual_copied)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def everything(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> list[Tensor]:
    """All that the compiled kernels find."""
    kernel = Native()
    z, g = fill(shape, dtype, last=last), fill(shape, dtype, last=last, seed=1)
    affine = make_affine(z, 0.0, True)
    y, moments, rstd = kernel.forward(z, EPS, affine)
    dz, dresidual, sums = kernel.backward(g, z, moments.mean, rstd, affine, moments.count)
    assert dresidual is not None
    return [y, moments.mean, moments.m2, rstd, dz, dresidual, sums]


# Enough elements for several threads: rows in chunks, strips of columns, channels, and chunks of few channels.
MANY = [(9000, 20), (40, 8200), (40, 20, 14, 14), (9, 3, 150, 150)]


@native_only
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", MANY, ids=str)
@pytest.mark.usefixtures("threads")
def test_the_same_bits_on_any_number_of_threads(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> None:
    found = []
    for count in (1, 2, 3, 4):
        torch.set_num_threads(count)
        found.append(everything(shape, dtype, last))
    native_kernels.native_module().use_threads(0, 0)  # as with an older torch
    found.append(everything(shape, dtype, last))
    native_kernels.load.cache_clear()
    native_kernels.load()
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@native_only
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((65600, 64), torch.float32),
        ((131200, 64), torch.bfloat16),
        ((22, 64, 56, 56), torch.float32),
        ((6, 8, 297, 299), torch.float32),
    ],
    ids=str,
)
def test_large_outputs_are_the_twins_bits(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """From 16 MiB on, outputs are written past the caches."""
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    affine, native, twin = make_affine(z, 0.0, False), Native(), Reference()
    mean, rstd = (m := native.moments(z, None)).mean, m.rstd(EPS)
    assert torch.equal(native.apply(z, mean, rstd, affine), twin.apply(z, mean, rstd, affine))
    sums = native.sums(z, z, mean, rstd, affine)
    ours, _ = native.input_gradient(z, z, mean, rstd, affine, sums, m.count)
    theirs, _ = twin.input_gradient(z, z, mean, rstd, affine, sums, m.count)
    assert torch.equal(ours, theirs)


SETS = """
import hashlib, sys
import torch
from tests.test_batch_norm_kernels import DTYPES, everything
from wholebatch import kernels
assert kernels.instruction_set() == sys.argv[1], kernels.instruction_set()
digest = hashlib.sha256()
for shape in ((301, 33), (64, 20), (33, 2500), (9, 17, 4), (33, 6, 7, 7), (2, 3, 70, 61)):
    for dtype in DTYPES:
        for tensor in everything(shape, dtype, False):
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""


def run(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


@native_only
def test_the_same_bits_in_every_build() -> None:
    digests = {}
    for name in ("avx512", "avx2", "portable"):
        result = run(SETS, name, WHOLEBATCH_INSTRUCTION_SET=name)
        if "this processor has" not in result.stderr:
            assert result.returncode == 0, result.stderr
            digests[name] = result.stdout
    assert "portable" in digests
    assert len(set(digests.values())) == 1, digests


@native_only
def test_the_compiled_kernel_is_chosen_where_it_serves() -> None:
    mask = torch.ones(4, 1, dtype=torch.bool)
    for dtype in DTYPES:
        assert isinstance(choose_kernel(torch.zeros(4, 3, dtype=dtype), None), Native)
        assert isinstance(choose_kernel(torch.zeros(4, 3, dtype=dtype), mask), Reference)
    assert isinstance(choose_kernel(torch.zeros(4, 3, dtype=torch.float16), None), Reference)
    assert isinstance(choose_kernel(torch.zeros(4, 3, device="meta"), None), Reference)


@pytest.mark.parametrize(
    ("wish", "expected"), [("reference", "Reference"), ("quick", "known are native and reference")]
)
def test_the_twin_can_be_asked_for(wish: str, expected: str) -> None:
    program = (
        "import torch\nfrom wholebatch.kernels.batch_norm import choose_kernel\n"
        "try:\n    print(type(choose_kernel(torch.zeros(4, 3), None)).__name__)\nexcept ValueError as e:\n    print(e)"
    )
    assert expected in run(program, WHOLEBATCH_KERNELS=wish).stdout
