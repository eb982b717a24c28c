"""The compiled kernel and its twin to the bit: however fused, divided, laid out, threaded or built."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.kernel_inputs import DTYPES, EPS, SHAPES, everything, fill, make_affine, native_only
from tests.programs import run
from wholebatch.kernels.batch_norm import Affine, Kernel, Native, Reference
from wholebatch.kernels.batch_norm import native as native_kernels


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
from tests.kernel_inputs import DTYPES, everything
from wholebatch import kernels
assert kernels.instruction_set() == sys.argv[1], kernels.instruction_set()
digest = hashlib.sha256()
for shape in ((301, 33), (64, 20), (33, 2500), (9, 17, 4), (33, 6, 7, 7), (2, 3, 70, 61)):
    for dtype in DTYPES:
        for tensor in everything(shape, dtype, False):
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""


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
