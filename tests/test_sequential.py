"""To and from nn.Sequential: equal outputs in eval and in training mode, and refusals that name the module."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from wholebatch import FeedForward
from wholebatch.feedforward.settings import Activation, Norm, NormPosition

MODULES = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "identity": nn.Identity,
}
NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "rms": nn.RMSNorm}


def shake(module: nn.Module, seed: int = 0) -> None:
    """Values that no initialisation gives, so that a tensor which is not copied is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.dtype.is_floating_point:
                noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.copy_(noise.abs() + 0.5 if "var" in name else noise)
            else:
                tensor.fill_(7)


def both_modes(one: nn.Module, other: nn.Module, features: int, tolerance: float) -> None:
    """Outputs of both in eval mode, in training mode (same random state for dropout), and in eval mode thereafter."""
    generator = torch.Generator().manual_seed(1)
    dtype = next(one.parameters()).dtype
    x = torch.randn(9, features, generator=generator, dtype=dtype)
    for training in (False, True, False):
        one.train(training)
        other.train(training)
        torch.manual_seed(2)
        expected = one(x)
        torch.manual_seed(2)
        given = other(x)
        assert expected.abs().max() > 0.01
        torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)


def sequential(norm: str, position: str, activation: str, dropout: float, bias: bool = True) -> nn.Sequential:
    modules: list[nn.Module] = []
    for fan_in, fan_out in ((5, 7), (7, 4)):
        modules.append(nn.Linear(fan_in, fan_out, bias=bias))
        normed = [] if norm == "none" else [NORMS[norm](fan_out)]
        active = [MODULES[activation]()]
        modules += normed + active if position == "before" else active + normed
        if dropout:
            modules.append(nn.Dropout(dropout))
    made = nn.Sequential(*modules, nn.Linear(4, 3)).double()
    shake(made)
    return made


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize(
    ("norm", "position"), [*itertools.product(("batch", "layer", "rms"), get_args(NormPosition)), ("none", "before")]
)
def test_there_and_back(norm: Norm, position: NormPosition, activation: Activation, dropout: float):
    net = FeedForward(5, (7, 4), 3, norm=norm, norm_position=position, activation=activation, dropout=dropout).double()
    shake(net)
    plain = net.to_sequential()
    assert type(plain) is nn.Sequential
    both_modes(net, plain, 5, tolerance=0.0)
    back = FeedForward.from_sequential(plain)
    assert back.architecture == net.architecture
    assert back.state_dict().keys() == net.state_dict().keys()
    for name, tensor in back.state_dict().items():
        assert torch.equal(tensor, net.state_dict()[name]), name


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize(
    ("norm", "position"), [*itertools.product(("batch", "layer", "rms"), get_args(NormPosition)), ("none", "before")]
)
def test_from_torch_modules(norm: str, position: str, activation: str, bias: bool):
    """Also with a bias before batch norm, which goes into the running mean, and without one where the net has one.

    Tolerance: where a bias is folded, z - (mean - b) stands for (z + b) - mean: some eps = 2^-53 of |z| + |b| + |mean|,
    below 30 here, times gamma * rstd, below 6, in each of 2 layers: 2 * 1.1e-16 * 30 * 36 = 7e-15 before the last sum
    of 4 terms. 1e-12 leaves room for sums of 7. Without folding the arithmetic is the same and the outputs are equal.
    """
    made = sequential(norm, position, activation, dropout=0.25, bias=bias)
    net = FeedForward.from_sequential(made)
    folded = norm == "batch" and position == "before" and bias
    both_modes(made, net, 5, tolerance=1e-12 if folded else 0.0)
    assert (net.architecture.norm, net.architecture.norm_position) == (norm, position)
    assert (net.architecture.activation, net.architecture.dropout) == (activation, 0.25)


def test_a_bias_under_batch_norm_is_folded_into_the_running_mean():
    made = sequential("batch", "before", "relu", 0.0)
    net = FeedForward.from_sequential(made)
    norm, part = made[1], net.parts()[0]
    assert part.linear.bias is None
    assert isinstance(norm, nn.BatchNorm1d)
    assert isinstance(part.norm, nn.BatchNorm1d)
    torch.testing.assert_close(part.norm.running_mean, norm.running_mean - made[0].bias, rtol=0, atol=0)
    assert torch.equal(part.norm.running_var, norm.running_var)
    assert part.norm.num_batches_tracked.item() == 7


@pytest.mark.parametrize("norm", ["batch", "layer", "rms"])
def test_a_norm_without_gamma_and_beta_gets_ones_and_zeros(norm: str):
    plain = NORMS[norm](4, affine=False) if norm == "batch" else NORMS[norm](4, elementwise_affine=False)
    made = nn.Sequential(nn.Linear(3, 4, bias=False), plain, nn.Tanh(), nn.Linear(4, 2)).double()
    shake(made)
    net = FeedForward.from_sequential(made)
    both_modes(made, net, 3, tolerance=0.0)
    part = net.parts()[0]
    assert part.norm is not None
    assert torch.equal(part.norm.weight, torch.ones(4, dtype=torch.float64))
    if norm != "rms":
        assert torch.equal(part.norm.bias, torch.zeros(4, dtype=torch.float64))


def test_settings_of_the_norms_are_kept():
    norm = nn.BatchNorm1d(4, eps=0.5, momentum=None)
    plain = nn.Sequential(nn.Linear(3, 4, bias=False), norm, nn.ReLU(), nn.Linear(4, 2)).double()
    shake(plain)
    net = FeedForward.from_sequential(plain)
    assert (net.architecture.eps, net.architecture.momentum) == (0.5, None)
    both_modes(plain, net, 3, tolerance=0.0)
    plain = nn.Sequential(nn.Linear(3, 4), nn.RMSNorm(4), nn.ReLU(), nn.Linear(4, 2))
    shake(plain)
    net = FeedForward.from_sequential(plain)
    assert net.architecture.eps == torch.finfo(torch.float32).eps
    both_modes(plain, net, 3, tolerance=0.0)


def test_a_linear_model_and_layers_without_anything():
    linear = nn.Sequential(nn.Linear(3, 2, bias=False))
    net = FeedForward.from_sequential(linear)
    assert net.architecture.hidden_layer_sizes == ()
    both_modes(linear, net, 3, tolerance=0.0)
    deep = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net = FeedForward.from_sequential(deep)
    assert (net.architecture.norm, net.architecture.activation) == ("none", "identity")
    both_modes(deep, net, 3, tolerance=0.0)


def test_nested_sequentials_no_ops_and_one_activation_used_twice():
    relu = nn.ReLU()

    def block(fan_in: int, fan_out: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(fan_in, fan_out), nn.Identity(), nn.BatchNorm1d(fan_out), relu)

    made = nn.Sequential(
        nn.Identity(), block(3, 6), nn.Dropout(0.0), block(6, 4), nn.Linear(4, 2), nn.Dropout(0.0)
    ).double()
    shake(made)
    net = FeedForward.from_sequential(made)
    assert net.architecture.hidden_layer_sizes == (6, 4)
    assert net.architecture.activation == "relu"
    both_modes(made, net, 3, tolerance=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_flags_and_independence(dtype: torch.dtype):
    made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)).to(dtype)
    made.train()
    made[1].eval()  # a frozen norm
    net = FeedForward.from_sequential(made)
    assert {parameter.dtype for parameter in net.parameters()} == {dtype}
    assert net.training
    assert [module.training for module in net.layers] == [True, False, True, True, True]
    assert not FeedForward.from_sequential(made.eval()).training
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    with torch.no_grad():
        for tensor in net.state_dict().values():
            tensor.fill_(9)
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    plain = net.to_sequential()
    with torch.no_grad():
        for tensor in plain.state_dict().values():
            tensor.fill_(5)
    assert all((tensor == 9).all() for tensor in net.state_dict().values())


def linear(fan_in: int = 3, fan_out: int = 4) -> nn.Linear:
    return nn.Linear(fan_in, fan_out)


class MyLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


SHARED = nn.Linear(4, 4)
REFUSED: dict[str, tuple[list[nn.Module], str]] = {
    "slope": ([linear(), nn.LeakyReLU(0.2), linear(4, 2)], r"module 1 \(LeakyReLU\) has negative_slope=0.2.*0.01"),
    "alpha": ([linear(), nn.ELU(0.5), linear(4, 2)], r"module 1 \(ELU\) has alpha=0.5.*use alpha=1.0"),
    "gelu": ([linear(), nn.GELU("tanh"), linear(4, 2)], r"module 1 \(GELU\) has approximate='tanh'.*'none'"),
    "activations": (
        [linear(), nn.ReLU(), linear(4, 4), nn.Tanh(), linear(4, 2)],
        r"module 3 \(Tanh\) gives hidden layer 2 the activation 'tanh', hidden layer 1 has 'relu'",
    ),
    "no activation": (
        [linear(), nn.ReLU(), linear(4, 4), linear(4, 2)],
        r"module 2 \(Linear\) gives hidden layer 2 the activation 'identity'",
    ),
    "norms": (
        [linear(), nn.BatchNorm1d(4), nn.ReLU(), linear(4, 4), nn.LayerNorm(4), nn.ReLU(), linear(4, 2)],
        r"module 4 \(LayerNorm\) gives hidden layer 2 the norm 'layer', hidden layer 1 has 'batch'",
    ),
    "norm missing": (
        [linear(), nn.BatchNorm1d(4), nn.ReLU(), linear(4, 4), nn.ReLU(), linear(4, 2)],
        r"module 3 \(Linear\) gives hidden layer 2 the norm 'none'",
    ),
    "positions": (
        [linear(), nn.BatchNorm1d(4), nn.ReLU(), linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), linear(4, 2)],
        r"module 5 \(BatchNorm1d\) gives hidden layer 2 the norm_position 'after'",
    ),
    "eps": (
        [linear(), nn.BatchNorm1d(4), nn.ReLU(), linear(4, 4), nn.BatchNorm1d(4, eps=1.0), nn.ReLU(), linear(4, 2)],
        r"module 4 \(BatchNorm1d\) gives hidden layer 2 the eps 1.0",
    ),
    "momentum": (
        [
            linear(),
            nn.BatchNorm1d(4),
            nn.ReLU(),
            linear(4, 4),
            nn.BatchNorm1d(4, momentum=0.3),
            nn.ReLU(),
            linear(4, 2),
        ],
        r"module 4 \(BatchNorm1d\) gives hidden layer 2 the momentum 0.3",
    ),
    "dropouts": (
        [linear(), nn.ReLU(), nn.Dropout(0.5), linear(4, 4), nn.ReLU(), nn.Dropout(0.2), linear(4, 2)],
        r"module 5 \(Dropout\) gives hidden layer 2 the dropout 0.2, hidden layer 1 has 0.5",
    ),
    "dropout missing": (
        [linear(), nn.ReLU(), nn.Dropout(0.5), linear(4, 4), nn.ReLU(), linear(4, 2)],
        r"module 3 \(Linear\) gives hidden layer 2 the dropout 0.0",
    ),
    "softmax": (
        [linear(), nn.ReLU(), linear(4, 2), nn.Softmax(1)],
        r"module 3 \(Softmax\) .*the loss holds the softmax",
    ),
    "sigmoid after": ([linear(), nn.ReLU(), linear(4, 2), nn.Sigmoid()], r"module 3 \(Sigmoid\) stands after the last"),
    "norm after": (
        [linear(), nn.ReLU(), linear(4, 2), nn.BatchNorm1d(2)],
        r"module 3 \(BatchNorm1d\) stands after the",
    ),
    "dropout after": ([linear(), nn.ReLU(), linear(4, 2), nn.Dropout(0.1)], r"module 3 \(Dropout\) stands after the"),
    "no statistics": (
        [linear(), nn.BatchNorm1d(4, track_running_stats=False), nn.ReLU(), linear(4, 2)],
        r"module 1 \(BatchNorm1d\) keeps no running statistics.*track_running_stats=True",
    ),
    "unknown": (
        [nn.Flatten(), linear(), nn.ReLU(), linear(4, 2)],
        r"module 0 \(Flatten\) has no place in a FeedForward",
    ),
    "own class": ([MyLinear(3, 4), nn.ReLU(), linear(4, 2)], r"module 0 \(MyLinear\) has no place in a FeedForward"),
    "norm first": ([nn.BatchNorm1d(3), linear(3, 2)], r"module 0 \(BatchNorm1d\) stands before the first Linear"),
    "sizes": ([linear(), nn.ReLU(), linear(5, 2)], r"module 2 \(Linear\) takes 5 features, module 0 gives 4"),
    "norm size": (
        [linear(), nn.BatchNorm1d(5), nn.ReLU(), linear(4, 2)],
        r"module 1 \(BatchNorm1d\) has 5 features.* 4",
    ),
    "layer norm size": (
        [linear(), nn.LayerNorm((2, 4)), linear(4, 2)],
        r"module 1 \(LayerNorm\).*\(2, 4\).* 4 features",
    ),
    "two norms": ([linear(), nn.BatchNorm1d(4), nn.LayerNorm(4), linear(4, 2)], r"module 2 .* is the second norm"),
    "two activations": ([linear(), nn.Tanh(), nn.ReLU(), linear(4, 2)], r"module 2 \(ReLU\) is the second activation"),
    "two dropouts": ([linear(), nn.Dropout(0.1), nn.Dropout(0.1), linear(4, 2)], r"module 2 \(Dropout\) is the second"),
    "dropout between": (
        [linear(), nn.Dropout(0.1), nn.ReLU(), linear(4, 2)],
        r"module 2 \(ReLU\) stands after.*Dropout",
    ),
    "all dropped": ([linear(), nn.ReLU(), nn.Dropout(1.0), linear(4, 2)], r"module 2 \(Dropout\) has p=1.0"),
    "dtypes": ([linear(), nn.ReLU(), linear(4, 2).double()], r"module 2 \(Linear\) is torch.float64 .*torch.float32"),
    "shared": (
        [linear(), nn.ReLU(), SHARED, nn.ReLU(), SHARED, nn.ReLU(), linear(4, 2)],
        r"module 4 .* is module 2 once more",
    ),
    "nested": ([nn.Sequential(linear(), nn.Hardtanh()), linear(4, 2)], r"module 0.1 \(Hardtanh\) has no place"),
    "empty": ([], "has no Linear"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_represented_is_refused_by_name(case: str):
    modules, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        FeedForward.from_sequential(nn.Sequential(*modules))


def test_only_a_sequential():
    with pytest.raises(TypeError, match=r"takes an nn\.Sequential, not a Linear"):
        FeedForward.from_sequential(nn.Linear(3, 2))  # type: ignore[arg-type]
