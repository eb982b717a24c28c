"""Layers and the functional form over the GPU's kernels: which way a call goes, and that none waits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import wholebatch
from tests.gpu_kernels import DEVICE, KERNELS, affine_for, draw, quiet
from tests.kernel_inputs import EPS, make_mask
from tests.twice import Twice
from wholebatch.functional import batch_norm
from wholebatch.kernels.batch_norm import Reference, choose_kernel, native, steps
from wholebatch.kernels.gpu import finding
from wholebatch.kernels.gpu.kernel import Triton
from wholebatch.kernels.gpu.plan import Plan
from wholebatch.kernels.place import Place
from wholebatch.kernels.wish import wished

pytestmark = quiet


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without a card, tensors of the CPU go to the GPU's kernels."""
    caches = (wished, steps, native.is_enabled, finding._takes_host_tensors)
    if DEVICE == "cpu":
        monkeypatch.setenv("WHOLEBATCH_KERNELS", "gpu")
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


class Waits(TorchFunctionMode):
    """Refuses what fetches a number from the device, for which the host waits."""

    FETCHING = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert getattr(function, "__name__", "") not in self.FETCHING, function
        return function(*args, **(kwargs or {}))


def parameters(channels: int) -> tuple[Tensor, Tensor]:
    made = torch.linspace(-1, 1.5, channels), torch.linspace(1, -1, channels)
    return made[0].to(DEVICE).requires_grad_(), made[1].to(DEVICE).requires_grad_()


def running(channels: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.full((channels,), value, dtype=dtype, device=DEVICE) for value in (0.3, 1.7)]


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(40, 5), (3, 4, 5, 2)], ids=str)
def test_a_training_step_is_torchs_and_never_waits(shape: tuple[int, ...], masked: bool, momentum: float) -> None:
    z, residual = draw(shape, torch.float32).requires_grad_(), draw(shape, torch.float32, seed=4).requires_grad_()
    g, (weight, bias) = draw(shape, torch.float32, seed=1), parameters(shape[1])
    mask = make_mask(shape, "example").to(DEVICE) if masked else None
    stats = running(shape[1])
    with Waits():
        y = batch_norm(z, *stats, weight, bias, True, momentum, activation="relu", residual=residual, mask=mask)
        found = torch.autograd.grad(y, (z, residual, weight, bias), g)
    assert type(y.grad_fn).__name__ == "_DirectBackward"

    exact = [x.detach().cpu().double().requires_grad_() for x in (z, residual, weight, bias)]
    rows = slice(None) if mask is None else mask.cpu().flatten()
    expected = [x.cpu() for x in running(shape[1], torch.float64)]
    t = F.batch_norm(exact[0][rows], *expected, *exact[2:], True, momentum) + exact[1][rows]
    whole = torch.zeros(shape, dtype=torch.float64).masked_scatter(
        torch.ones(shape, dtype=torch.bool) if mask is None else mask.cpu().expand(shape), F.relu(t)
    )
    # Some forty numbers of size one, a few dozen roundings of 6e-8 each, times weight / std < 3.
    torch.testing.assert_close(y.detach().cpu().double(), whole.detach(), rtol=1e-5, atol=2e-5)
    for ours, theirs in zip(found, torch.autograd.grad(whole, exact, g.cpu().double()), strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=1e-5, atol=5e-5)
    for ours, theirs in zip(stats, expected, strict=True):
        torch.testing.assert_close(ours.cpu().double(), theirs, rtol=2e-6, atol=1e-6)


def test_gradients_and_statistics_are_told_to_autograd() -> None:
    z, (weight, bias), stats = draw((8, 3), torch.float32), parameters(3), running(3)
    versions = [x._version for x in stats]
    y = batch_norm(z, *stats, weight, bias, True)
    assert [x._version for x in stats] == [version + 1 for version in versions]
    for tensor in torch.autograd.grad(y.square().sum(), (weight, bias)):
        assert tensor.storage_offset() == 0
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("left", [0, 1])
def test_a_mask_that_leaves_no_variance_moves_none(left: int) -> None:
    """One element has no unbiased variance; that is refused where the host knows of it, and here it does not."""
    z, stats = draw((6, 3), torch.float32), running(3)
    mask = torch.arange(6, device=DEVICE) < left
    y = batch_norm(z, *stats, None, None, True, mask=mask)
    assert torch.equal(y, torch.zeros_like(y))  # of one element: its own mean taken off
    assert torch.equal(stats[1], running(3)[1])
    if left:
        torch.testing.assert_close(stats[0], 0.9 * running(3)[0] + 0.1 * z[0], rtol=1e-6, atol=1e-6)
    else:
        assert torch.equal(stats[0], running(3)[0])


@pytest.mark.parametrize("shape", [(0, 3), (2, 3, 0), (5, 0, 3)], ids=str)
def test_no_elements_change_nothing(shape: tuple[int, ...]) -> None:
    z = torch.zeros(shape, device=DEVICE, requires_grad=True)
    (weight, bias), stats = parameters(shape[1]), running(shape[1])
    y = batch_norm(z, *stats, weight, bias, True, activation="relu")
    y.sum().backward()
    assert z.grad is not None
    assert y.shape == z.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros(shape[1], device=DEVICE))
    assert all(torch.equal(one, two) for one, two in zip(stats, running(shape[1]), strict=True))


def test_one_value_per_channel_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        batch_norm(draw((1, 3), torch.float32), None, None, training=True)


def test_workers_share_a_mini_batch() -> None:
    """Two that have the same are as one that has it twice."""
    z, g, (weight, bias) = draw((9, 4), torch.float32), draw((9, 4), torch.float32, seed=1), parameters(4)
    shared, alone = running(4), running(4)
    leaf, both = z.clone().requires_grad_(), torch.cat([z, z]).requires_grad_()
    y = batch_norm(leaf, *shared, weight, bias, True, process_group=Twice(), activation="relu")
    whole = batch_norm(both, *alone, weight, bias, True, activation="relu")
    torch.testing.assert_close(y, whole[:9], rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad(y, (leaf, weight, bias), g)
    expected = torch.autograd.grad(whole, (both, weight, bias), torch.cat([g, g]))
    torch.testing.assert_close(found[0], expected[0][:9], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found[1:], expected[1:], strict=True):  # a worker has the sums over its own part
        torch.testing.assert_close(2 * ours, theirs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(shared, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_it_can_be_differentiated_twice(masked: bool) -> None:
    z, (weight, bias) = draw((12, 3), torch.float32), parameters(3)
    mask = make_mask((12, 3), "example").to(DEVICE) if masked else None
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = z.to(dtype).requires_grad_()
        y = batch_norm(leaf, None, None, weight, bias, True, activation="leaky_relu", mask=mask)
        (first,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), (leaf, weight)))
    for ours, theirs in zip(*found, strict=True):
        # Three derivatives of a dozen numbers, each some tens of roundings of 6e-8 of numbers up to 100.
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-4, atol=2e-3)


def test_layers_train_evaluate_and_compile() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    layer = wholebatch.BatchNorm2d(4, activation="relu").to(DEVICE)
    theirs = torch.nn.BatchNorm2d(4).to(DEVICE)
    z = draw((3, 4, 5, 2), torch.float32, last=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for call in (layer, compiled):
        torch.testing.assert_close(call(z), F.relu(theirs(z)), rtol=1e-5, atol=1e-5)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[key], value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.eval()(z), F.relu(theirs.eval()(z)), rtol=1e-5, atol=1e-5)


def test_what_is_not_served_goes_to_torch() -> None:
    mask = torch.ones(4, 1, dtype=torch.bool, device=DEVICE)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for given in (None, mask):
            assert isinstance(choose_kernel(torch.zeros(4, 3, dtype=dtype, device=DEVICE), given), Triton)
    assert isinstance(choose_kernel(torch.zeros(4, 3, dtype=torch.float64, device=DEVICE), None), Reference)
    assert isinstance(choose_kernel(torch.zeros(4, 3, device="meta"), None), Reference)


class Wide(Triton):
    """Offsets of 64 bits, as of tensors with more elements than a test has room for."""

    def _plan(self, z: Tensor, place: Place, inputs: int) -> Plan:
        return replace(super()._plan(z, place, inputs), wide=True)


@pytest.mark.parametrize("name", KERNELS)
def test_wide_offsets_find_the_same_elements(name: str) -> None:
    z, g = draw((3, 5, 7, 3), torch.float32), draw((3, 5, 7, 3), torch.float32, seed=1)
    affine = affine_for(z, 0.0, True)
    found = []
    for kernel in (KERNELS[name], Wide(KERNELS[name].limits)):
        y, moments, rstd = kernel.forward(z, EPS, affine)
        found.append([y, *kernel.backward(g, z, moments.mean, rstd, affine, moments.count)])
    for one, two in zip(*found, strict=True):
        assert one is not None
        assert two is not None
        assert torch.equal(one, two)
