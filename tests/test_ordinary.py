"""A training step in one compiled call each way: the same bits as piece by piece, nothing remembered, few steps."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from kernel_inputs import DTYPES, SHAPES, fill
from wholebatch import BatchNorm, BatchNorm1d, ordinary
from wholebatch.kernels.batch_norm import accumulation_dtype, steps

pytestmark = pytest.mark.skipif(steps() is None, reason="the compiled part is missing here, or torch is too old for it")

ORDINARY, PIECEWISE = "_OrdinaryBackward", "_DirectBackward"


def way_of(y: Tensor) -> str:
    return type(y.grad_fn).__name__


def make_layer(channels: int, dtype: torch.dtype = torch.float32, **options: Any) -> BatchNorm:
    """A layer whose weight, bias and running statistics are others in each channel, in the dtype of accumulation."""
    layer = BatchNorm(channels, **options).to(accumulation_dtype(dtype))
    with torch.no_grad():
        for i, tensor in enumerate([*layer.parameters(), *(b for b in layer.buffers() if b.dim())]):
            tensor.copy_(torch.linspace(0.5, 1.5 + i, channels))
    return layer


def step(layer: nn.Module, z: Tensor, g: Tensor, residual: Tensor | None = None) -> dict[str, Tensor]:
    """Everything that a step finds and changes."""
    leaves = [x.detach().clone().requires_grad_() for x in (z, residual) if x is not None]
    layer.zero_grad()
    y = layer(*leaves)
    y.backward(g)
    found = {"y": y.detach(), "dz": leaves[0].grad, **{f"d{n}": p.grad for n, p in layer.named_parameters()}}
    if residual is not None:
        found["dresidual"] = leaves[1].grad
    return found | {name: buffer.clone() for name, buffer in layer.named_buffers()}


def assert_same_bits(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def piecewise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordinary, "steps", lambda: None)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [s for s in SHAPES if 0 not in s and s[0] > 1 and len(s) < 6], ids=str)
@pytest.mark.parametrize("kind", ["relu", "leaky_relu+residual", "plain"])
def test_at_once_and_piece_by_piece_give_the_same_bits(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype, last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    activation, _, added = kind.partition("+")
    options = {"activation": None if activation == "plain" else activation, "affine": activation != "plain"}
    z, g = fill(shape, dtype, last=last), fill(shape, dtype, last=last, seed=1)
    residual = fill(shape, dtype, last=last, seed=2) if added else None
    assert way_of(make_layer(shape[1], dtype, **options)(z.clone().requires_grad_(), residual)) == ORDINARY
    found = step(make_layer(shape[1], dtype, **options), z, g, residual)
    piecewise(monkeypatch)
    assert_same_bits(found, step(make_layer(shape[1], dtype, **options), z, g, residual))


@pytest.mark.parametrize(
    "make_gradient",
    [lambda g: g.t().contiguous().t(), lambda g: torch.ones(()).expand(g.shape), lambda g: g.repeat(1, 2)[:, ::2]],
    ids=["transposed", "expanded", "strided"],
)
def test_a_gradient_of_another_layout_is_laid_as_the_input(make_gradient: Callable[[Tensor], Tensor]) -> None:
    z, layer = fill((64, 20), torch.float32), make_layer(20, activation="relu")
    g = make_gradient(fill((64, 20), torch.float32, seed=1))
    found = step(layer, z, g)
    assert_same_bits(found, step(make_layer(20, activation="relu"), z, g.contiguous()))


def test_saved_tensors_may_come_back_in_another_layout() -> None:
    z, g = fill((8, 6, 5, 5), torch.float32), fill((8, 6, 5, 5), torch.float32, seed=1)
    expected = step(make_layer(6, activation="relu"), z, g)

    def turn(x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.repeat(2)[::2].clone()

    def back(x: Tensor) -> Tensor:
        return x.mT.contiguous().mT if x.dim() == 4 else x

    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, back):
        found = step(make_layer(6, activation="relu"), z, g)
    assert_same_bits(found, expected)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), lambda x: turn(x) if x.dim() == 4 else x):
        found = step(make_layer(6, activation="relu"), z, g)
    # Channels last are added up in another order: sums of 200 numbers of about 1, each of an error of 2^-24.
    torch.testing.assert_close(found["dz"], expected["dz"], atol=200 * 2**-24, rtol=1e-5)


class _Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_what_is_not_ordinary_goes_another_way() -> None:
    z = fill((64, 20), torch.float32).requires_grad_()

    def way(layer: nn.Module, *inputs: Tensor) -> str:
        return way_of(layer(*inputs))

    assert way(BatchNorm1d(20), z) == ORDINARY
    assert way(BatchNorm1d(20, momentum=None), z) != ORDINARY
    assert way(BatchNorm1d(20), z, None, torch.ones(64, dtype=torch.bool)) != ORDINARY
    assert way(BatchNorm1d(64), z.t()) == PIECEWISE
    assert way(BatchNorm1d(20), z.half()) != ORDINARY
    assert way(BatchNorm1d(20).bfloat16(), z.bfloat16()) != ORDINARY  # parameters of another dtype
    assert way(BatchNorm1d(20).eval(), z) != ORDINARY
    assert way(BatchNorm1d(20), z, z.t().contiguous().t()) == PIECEWISE  # a residual of another layout
    assert way(BatchNorm1d(20, save="input"), z) != ORDINARY
    with _Seen():
        assert way(BatchNorm1d(20), z) != ORDINARY
    with forward_ad.dual_level():
        assert way(BatchNorm1d(20), z) != ORDINARY


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_traced_layer_normalises_what_it_is_given_later() -> None:
    first, second = fill((64, 20), torch.float32), fill((64, 20), torch.float32, seed=1)
    traced = torch.jit.trace(make_layer(20), first, check_trace=False)
    assert torch.equal(traced(second), make_layer(20)(second))


def test_without_a_way_to_look_at_tensors_nothing_fits() -> None:
    native, z = steps().native, torch.randn(4, 3)
    capsule = Tensor.__dlpack_c_exchange_api__
    try:
        assert not native.use_exchange(Tensor, nn.Parameter, None)
        assert native.fits(z, *[None] * 6) == 0
    finally:
        assert native.use_exchange(Tensor, nn.Parameter, capsule)
    assert native.fits(z, *[None] * 6) == 4 * 3 * 4  # bytes


def test_bits_of_sums_do_not_depend_on_gradients_being_recorded() -> None:
    z, first, second = fill((64, 20), torch.float32), make_layer(20), make_layer(20)
    with torch.no_grad():
        y = first(z)
    assert not y.requires_grad
    with torch.inference_mode():
        inferred = make_layer(20)(z)
    assert torch.equal(y, second(z))
    assert torch.equal(y, inferred.clone())
    assert_same_bits(dict(first.named_buffers()), dict(second.named_buffers()))


def test_one_value_per_channel_is_refused_and_changes_nothing() -> None:
    layer = make_layer(5)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(torch.randn(1, 5))
    assert_same_bits(dict(layer.named_buffers()), before)


def test_autograd_is_told_of_what_was_moved() -> None:
    layer = BatchNorm1d(4)
    buffers = [buffer for _, buffer in layer.named_buffers()]
    before = [buffer._version for buffer in buffers]
    layer(torch.randn(8, 4))
    assert [buffer._version - old for buffer, old in zip(buffers, before, strict=True)] == [1, 1, 1]
    assert layer.num_batches_tracked == 1


def change_weight_in_place(layer: BatchNorm1d) -> None:
    with torch.no_grad():
        layer.weight.mul_(2)


def change_weight_data(layer: BatchNorm1d) -> None:
    layer.weight.data = torch.linspace(-1, 1, 20)


def change_weight(layer: BatchNorm1d) -> None:
    layer.weight = nn.Parameter(torch.linspace(-1, 1, 20))


def change_running_statistics(layer: BatchNorm1d) -> None:
    layer.running_mean, layer.running_var = torch.full((20,), 3.0), torch.full((20,), 5.0)


def change_options(layer: BatchNorm1d) -> None:
    layer.eps, layer.momentum = 0.5, 0.75


def change_activation(layer: BatchNorm1d) -> None:
    layer.activation = nn.LeakyReLU(0.25)


def change_slope(layer: BatchNorm1d) -> None:
    assert isinstance(layer.activation, nn.LeakyReLU)
    layer.activation.negative_slope = 0.125


def change_dtype(layer: BatchNorm1d) -> None:
    layer.double()


def forget_statistics(layer: BatchNorm1d) -> None:
    layer.track_running_stats = False


CHANGES = [
    change_weight_in_place, change_weight_data, change_weight, change_running_statistics, change_options,
    change_activation, change_slope, change_dtype, forget_statistics,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_what_is_changed_between_steps_counts_in_the_next(change: Callable[[BatchNorm1d], None]) -> None:
    layer = make_layer(20, activation=nn.LeakyReLU(0.01))
    z, g = fill((64, 20), torch.float32), fill((64, 20), torch.float32, seed=1)
    for _ in range(3):
        step(layer, z, g)
    change(layer)
    dtype = layer.weight.dtype
    twin = nn.BatchNorm1d(20, layer.eps, layer.momentum, track_running_stats=layer.track_running_stats).to(dtype)
    twin.load_state_dict({**twin.state_dict(), **layer.state_dict()}, strict=False)
    twin.double()
    slope = layer.activation.negative_slope
    found = step(layer, z.to(dtype), g.to(dtype))
    expected = step(nn.Sequential(twin, nn.LeakyReLU(slope)), z.double(), g.double())
    for name in ("y", "dz", "dweight", "dbias"):
        near = expected.get(name, expected.get(name.replace("d", "d0.", 1)))
        assert near is not None
        # 64 rows of numbers up to 10: sums err by 64 * 10 * 2^-24 at most, and rstd is at most 2.
        torch.testing.assert_close(found[name].double(), near, atol=1e-4, rtol=1e-5)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        if layer.track_running_stats:
            torch.testing.assert_close(found[name].double(), expected[f"0.{name}"].double(), atol=1e-5, rtol=1e-5)


def test_evaluation_after_training_uses_what_training_moved() -> None:
    layer, z = make_layer(20), fill((64, 20), torch.float32)
    layer(z)
    layer.eval()
    mean, var = layer.running_mean, layer.running_var
    assert mean is not None
    expected = F.batch_norm(z.double(), mean.double(), var.double(), layer.weight.double(), layer.bias.double())
    torch.testing.assert_close(layer(z).double(), expected, atol=1e-5, rtol=1e-5)
    layer.train()
    assert way_of(layer(z)) == ORDINARY


def test_nothing_is_kept_beyond_the_graph() -> None:
    layer, z = BatchNorm1d(20, activation="relu"), torch.randn(64, 20, requires_grad=True)
    y = layer(z)
    y.sum().backward()
    kept = [weakref.ref(x) for x in (y, z, layer.weight, layer.running_mean, layer.num_batches_tracked)]
    gc.disable()
    try:
        del y, z, layer
        assert [ref() for ref in kept] == [None] * 5
    finally:
        gc.enable()


def test_steps_leave_no_cyclic_garbage() -> None:
    layer, z = BatchNorm1d(20, activation="relu"), torch.randn(64, 20, requires_grad=True)
    g = torch.randn(64, 20)
    layer(z).backward(g)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            layer(z).backward(g)
        assert gc.collect() == 0
    finally:
        gc.enable()


# Of this library, in a step forward and backward: forward, name of the activation, train_at_once, what is open, hanging
# in; backward, differentiate. One more costs a tenth of a microsecond, of about 15.
MOST_CALLS = 7


def count_own_calls(run: Callable[[], object]) -> list[str]:
    """Names of the library's functions in Python that are called."""
    package, found = str(Path(ordinary.__file__).parent), []

    def see(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(package):
            found.append(frame.f_code.co_qualname)

    sys.setprofile(see)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def test_a_step_is_few_calls_in_python() -> None:
    layer, z = BatchNorm1d(20, activation="relu"), torch.randn(64, 20, requires_grad=True)
    g = torch.randn(64, 20)
    layer(z).backward(g)
    calls = count_own_calls(lambda: layer(z).backward(g))
    assert "train_at_once" in calls
    assert len(calls) <= MOST_CALLS, calls
