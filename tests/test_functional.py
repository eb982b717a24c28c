"""`wholebatch.functional.batch_norm` against torch's and against float64 autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.kernel_inputs import native_only
from tests.twice import Twice
from wholebatch.functional import batch_norm
from wholebatch.kernels.batch_norm import Affine, Steps

SHAPES = [(5, 3), (1, 3, 7), (4, 3, 5), (2, 3, 4, 6), (2, 3, 2, 2, 3), (9, 1), (2, 3, 1, 1)]


def draw(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64, grad: bool = True) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_(grad)


def parameters(channels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return draw((channels,), 1, dtype), draw((channels,), 2, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_it_is_torchs_batch_norm_forward_backward_and_in_its_running_statistics(
    shape: tuple[int, ...], training: bool
) -> None:
    z, (weight, bias) = draw(shape), parameters(shape[1])
    g = draw(shape, 3, grad=False)
    found, running = [], []
    for function in (F.batch_norm, batch_norm):
        stats = [torch.full((shape[1],), 0.3, dtype=torch.float64), torch.full((shape[1],), 1.7, dtype=torch.float64)]
        y = function(z, *stats, weight, bias, training, 0.2, 1e-3)
        found.append([y, *torch.autograd.grad(y, (z, weight, bias), g)])
        running.append(stats)
    # Each value is a few dozen float64 operations on numbers of size one away from torch's.
    for ours, theirs in zip(found[1] + running[1], found[0] + running[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("activation", [None, "relu", "leaky_relu", "gelu"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(6, 3), (3, 2, 4)], ids=str)
def test_gradcheck_and_gradgradcheck(shape: tuple[int, ...], masked: bool, activation: str | None) -> None:
    z, residual, (weight, bias) = draw(shape), draw(shape, 4), parameters(shape[1])
    mask = (draw((shape[0], *shape[2:]), 5) > -0.6).detach() if masked else None

    def call(*inputs: Tensor) -> Tensor:
        return batch_norm(
            inputs[0], None, None, *inputs[2:], True, residual=inputs[1], mask=mask, activation=activation
        )

    assert torch.autograd.gradcheck(call, (z, residual, weight, bias))
    assert torch.autograd.gradgradcheck(call, (z, residual, weight, bias))


def test_evaluation_can_be_differentiated_twice() -> None:
    z, (weight, bias) = draw((4, 3, 2)), parameters(3)
    mean, var = draw((3,), 6, grad=False), draw((3,), 7, grad=False).abs()

    def call(*inputs: Tensor) -> Tensor:
        return batch_norm(inputs[0], mean, var, *inputs[1:], False, activation="leaky_relu")

    assert torch.autograd.gradcheck(call, (z, weight, bias))
    assert torch.autograd.gradgradcheck(call, (z, weight, bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "activation",
    ["relu", "leaky_relu", "gelu", "tanh", nn.ReLU(), nn.LeakyReLU(0.2), F.relu, nn.PReLU(init=0.1), F.silu],
)
def test_a_fused_activation_and_residual_change_no_number(dtype: torch.dtype, activation: Any) -> None:
    z, residual = (draw((6, 5, 4), seed).detach().to(dtype).requires_grad_() for seed in (0, 4))
    weight, bias = (p.detach().float().requires_grad_() for p in parameters(5))
    function = getattr(F, activation) if isinstance(activation, str) else activation
    if isinstance(activation, nn.PReLU):
        activation.to(dtype)
    fused = batch_norm(z, None, None, weight, bias, True, activation=activation, residual=residual)
    apart = function(batch_norm(z, None, None, weight, bias, True) + residual)
    assert torch.equal(fused, apart)
    g = draw((6, 5, 4), 9, grad=False).to(dtype)
    for one, other in zip(
        torch.autograd.grad(fused, (z, residual, weight, bias), g),
        torch.autograd.grad(apart, (z, residual, weight, bias), g),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", [(8, 3), (4, 3, 5), (3, 2, 4, 4)], ids=str)
@pytest.mark.parametrize("per", ["example", "position", "position with a channel dimension"])
def test_what_is_masked_counts_for_nothing_and_is_zero(shape: tuple[int, ...], per: str) -> None:
    z, g, (weight, bias) = draw(shape), draw(shape, 3, grad=False), parameters(shape[1])
    drawn = draw(shape[:1] if per == "example" else (shape[0], *shape[2:]), 5, grad=False)
    kept = drawn >= drawn.median()
    wide = kept.view(-1, 1, *[1] * (len(shape) - 2)) if per == "example" else kept.unsqueeze(1)
    full = wide.expand(shape)
    assert 1 < int(kept.sum()) < kept.numel()
    poisoned = z.detach().where(full, torch.tensor(float("nan"), dtype=z.dtype)).requires_grad_()
    stats = [torch.zeros(shape[1], dtype=torch.float64), torch.ones(shape[1], dtype=torch.float64)]
    mask = wide if per.endswith("dimension") else kept
    y = batch_norm(poisoned, *stats, weight, bias, True, mask=mask)
    y.backward(g)

    # The oracle: torch's batch norm of what counts alone, as rows of channels.
    rows = z.detach().movedim(1, -1)[full.movedim(1, -1)[..., 0]].requires_grad_()
    expected = [torch.zeros(shape[1], dtype=torch.float64), torch.ones(shape[1], dtype=torch.float64)]
    alone = F.batch_norm(rows, *expected, weight, bias, True)
    alone.backward(g.movedim(1, -1)[full.movedim(1, -1)[..., 0]])
    assert poisoned.grad is not None
    for ours, theirs in ((y, alone), (poisoned.grad, rows.grad)):
        torch.testing.assert_close(ours.movedim(1, -1)[full.movedim(1, -1)[..., 0]], theirs, rtol=1e-11, atol=1e-12)
        assert torch.equal(ours[~full], torch.zeros_like(ours[~full]))
    for ours, theirs in zip(stats, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 2), (2, 3, 0, 0), (2, 3, 0)], ids=str)
def test_no_elements_change_nothing(shape: tuple[int, ...]) -> None:
    z, (weight, bias) = draw(shape), parameters(3)
    stats = [torch.full((3,), 0.5, dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)]
    y = batch_norm(z, *stats, weight, bias, True)
    assert y.shape == shape
    y.sum().backward()
    assert z.grad is not None
    assert z.grad.shape == shape
    assert torch.equal(weight.grad, torch.zeros(3, dtype=torch.float64))
    assert stats[0].tolist() == [0.5] * 3
    assert stats[1].tolist() == [2.0] * 3


@pytest.mark.parametrize("way", ["alone", "shared", "masked", "twice differentiable", "compiled"])
def test_gradients_are_whole_tensors(way: str) -> None:
    """None is a view of what another is a view of: such are written twice by torch.save, and refused by safetensors."""
    z, (weight, bias) = draw((6, 3)), parameters(3)
    sharing, mask = Twice() if way == "shared" else None, torch.arange(6) < 4 if way == "masked" else None

    def call(z: Tensor) -> Tensor:
        return batch_norm(z, None, None, weight, bias, True, process_group=sharing, mask=mask, residual=z)

    y = (torch.compile(call, backend="aot_eager", fullgraph=True) if way == "compiled" else call)(z)
    given = torch.autograd.grad(y.square().sum(), (z, weight, bias), create_graph=way.startswith("twice"))
    for tensor in (y.detach(), *given):
        assert tensor.storage_offset() == 0
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@native_only
def test_the_sums_for_other_ranks_are_not_the_gradients() -> None:
    z, g = draw((6, 3), grad=False), draw((6, 3), 1, grad=False)
    kernel, affine = Steps(), Affine(*(p.detach() for p in parameters(3)))
    statistics, count = kernel.begin(z)
    kernel.finish(z, 1e-5, affine, statistics, count, None, None, 0.0)
    sums, dweight, dbias = kernel.find_sums(g, z, statistics, affine)
    assert dweight is not None
    assert dbias is not None
    assert torch.equal(torch.stack([dbias, dweight]), sums)
    assert len({x.untyped_storage().data_ptr() for x in (sums, dweight, dbias)}) == 3


def test_training_between_evaluation_and_its_backward_changes_no_gradient() -> None:
    z, (weight, bias) = draw((6, 3)), parameters(3)
    found = []
    for moves in (False, True):
        running = torch.full((3,), 0.3, dtype=torch.float64), torch.full((3,), 1.7, dtype=torch.float64)
        y = batch_norm(z, *running, weight, bias, training=False, activation="relu")
        if moves:
            batch_norm(z.detach(), *running, training=True)
            assert running[0].ne(0.3).all()
        found.append(torch.autograd.grad(y.square().sum(), (z, weight, bias)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)  # the compiled kernels' and their twin's
@pytest.mark.parametrize("training", [True, False])
def test_no_channels_are_no_error(training: bool, dtype: torch.dtype) -> None:
    z, running = torch.zeros(5, 0, 3, dtype=dtype, requires_grad=True), torch.zeros(0)
    y = batch_norm(z, running, running, running, running, training, activation="relu")
    y.sum().backward()
    assert z.grad is not None
    assert y.shape == z.grad.shape == (5, 0, 3)


def test_offset_inputs_keep_their_digits() -> None:
    # The oracle is float64 on the same float32 numbers. What is left is the mean, rounded to float32: half a unit
    # of 1e4's last place is 5e-4, times a weight of 1 and a standard deviation of 1. E[x^2]-E[x]^2 would give noise.
    z = (draw((4096, 3), grad=False) + 1e4).float()
    expected = F.batch_norm(z.double(), None, None, training=True)
    torch.testing.assert_close(batch_norm(z, None, None, training=True).double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input": torch.zeros(3)}, "1 dimensions"),
        ({"input": torch.zeros(4, 3, dtype=torch.int64)}, "int64"),
        ({"weight": torch.ones(4)}, r"weight has shape \(4,\).*3 channels"),
        ({"running_var": torch.ones(2)}, r"running_var has shape \(2,\)"),
        ({"residual": torch.zeros(4, 4)}, r"residual is \(4, 4\)"),
        ({"residual": torch.zeros(4, 3, dtype=torch.float64)}, "float64"),
        ({"mask": torch.ones(4)}, "must be bool"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"mask has shape \(3,\).*\(4,\)"),
        ({"activation": "swish"}, "'swish'.*known names"),
        ({"activation": 3}, "int"),
        ({"training": False}, "running_mean and running_var"),
        ({"input": torch.zeros(1, 3)}, "more than 1 value per channel"),
        ({"mask": torch.tensor([True, False, False, False])}, "more than 1 value per channel"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {"input": torch.ones(4, 3), "running_mean": None, "running_var": None, "training": True}
    with pytest.raises((ValueError, TypeError), match=says):
        batch_norm(**{**arguments, **change})


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var", "mask", "residual"])
def test_a_tensor_on_another_device_is_refused(name: str, training: bool) -> None:
    arguments: dict[str, Any] = {
        "weight": torch.ones(3),
        "bias": torch.ones(3),
        "running_mean": torch.zeros(3),
        "running_var": torch.ones(3),
        "mask": torch.ones(4, dtype=torch.bool),
        "residual": torch.ones(4, 3),
    }
    if name != "mask":
        del arguments["mask"]  # only without one the compiled kernel serves, which reads addresses
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(ValueError, match=f"{name} is on meta and the input on cpu: .*to_empty"):
        batch_norm(torch.ones(4, 3), **arguments, training=training)
    assert arguments["running_mean"].is_meta or arguments["running_mean"].eq(0).all()


def test_an_input_elsewhere_is_refused_with_the_way_back() -> None:
    with pytest.raises(ValueError, match=r"weight is on cpu and the input on meta: .*input\.to\('cpu'\)"):
        batch_norm(torch.ones(4, 3, device="meta"), None, None, torch.ones(3), training=True)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor:UserWarning")  # no kernel reads it
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "residual"])
def test_a_tensor_without_memory_beside_a_plain_input_is_not_taken_for_absent(name: str) -> None:
    arguments: dict[str, Any] = {"running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    with FakeTensorMode():
        arguments[name] = torch.ones((4, 3) if name == "residual" else (3,))
    with pytest.raises(Exception, match="FakeTensor"):  # ours, or torch's own of the same kind
        batch_norm(torch.randn(4, 3), **arguments, training=name != "running_mean")


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch.func's own
def test_torch_func_and_forward_mode_differentiate_it() -> None:
    z, (weight, bias) = draw((5, 3, 2), grad=False), parameters(3)

    def ours(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return batch_norm(z, None, None, weight, bias, True, activation="relu")

    def theirs(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.relu(F.batch_norm(z, None, None, weight, bias, True))

    arguments = (z, weight.detach(), bias.detach())
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        one = transform(lambda *a: ours(*a).square().sum(), argnums=(0, 1, 2))(*arguments)
        other = transform(lambda *a: theirs(*a).square().sum(), argnums=(0, 1, 2))(*arguments)
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    found = torch.func.hessian(lambda *a: ours(*a).square().sum(), argnums=(0, 1, 2))(*arguments)
    # Not torch.func's own Hessian of torch's batch norm: in 2.13 that differs by 5 from torch.autograd's.
    expected = torch.autograd.functional.hessian(lambda *a: theirs(*a).square().sum(), arguments)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z, torch.ones_like(z))
        tangents = [torch.autograd.forward_ad.unpack_dual(f(dual, *arguments[1:])).tangent for f in (ours, theirs)]
    torch.testing.assert_close(*tangents, rtol=1e-10, atol=1e-10)
    batch = torch.func.vmap(lambda z: ours(z, *arguments[1:]))(torch.stack([z, 2 * z + 1]))
    torch.testing.assert_close(batch[0], batch[1], rtol=1e-4, atol=1e-4)  # eps is 1e-5 of a variance of about 1


def test_torch_func_does_not_follow_other_workers() -> None:
    class Two:
        def merge(self, moments: Any, meeting: Any) -> Any:
            raise AssertionError("nobody may be waited for")

        def sum(self, vectors: Tensor, meeting: Any) -> Tensor:
            raise AssertionError("nobody may be waited for")

    with pytest.raises(ValueError, match="layer4 shares its mini-batch"):
        torch.func.grad(lambda z: batch_norm(z, None, None, training=True, process_group=Two(), layer="layer4").sum())(
            draw((4, 3), grad=False)
        )


def test_tensors_without_memory_give_shapes() -> None:
    with FakeTensorMode():
        z = torch.randn(2, 3, 4, requires_grad=True)
        y = batch_norm(z, torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(3), True, activation="relu")
        y.sum().backward()
        assert z.grad is not None
        assert y.shape == z.grad.shape == (2, 3, 4)
    assert batch_norm(torch.empty(2, 3, 4, device="meta"), None, None, training=True).device.type == "meta"
