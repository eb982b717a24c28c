"""Products of rounded operands: the reference engine against the formulas by hand, in float64.

A float64 net cannot be asked for them (``make_engine`` refuses), but the engine itself rounds operands of any dtype. So
in float64 it has to agree with the hand to the rounding of float64, and in float32 with itself in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import precision_oracle
from oracle import EPS, PLACES, Oracle, assert_near, make_data, make_model
from precision_oracle import product, rounded
from small_problem import copy_of
from wholebatch import FeedForward, Loss, Optimizer
from wholebatch.feedforward.engine import NonFiniteLossError
from wholebatch.feedforward.products import apply_linear, multiply, round_to_bfloat16
from wholebatch.feedforward.reference import ReferenceEngine

LOSS = Loss("cross_entropy")
ROUNDED = ("high", "medium")
# A product of rounded operands against one of the operands themselves, as a share of the sum of |a| |b|.
SHARES = {"medium": 2 * 2.0**-8 + 2.0**-16, "high": 3 * 2.0**-16}


def engine_of(model: FeedForward, precision: Any) -> ReferenceEngine:
    return ReferenceEngine(model, LOSS, Optimizer("sgd"), n_threads=1, matmul_precision=precision)


def matrices(*shapes: tuple[int, int], seed: int = 0) -> list[Tensor]:
    """float32 numbers of many sizes, with zeros and numbers that bfloat16 has in the middle between two."""
    rng = np.random.default_rng(seed)
    found = []
    for shape in shapes:
        values = rng.standard_normal(shape) * 2.0 ** rng.integers(-6, 7, shape)
        values[rng.random(shape) < 0.1] = 0
        ties = rng.random(shape) < 0.1
        values[ties] = rounded(values[ties]) * (1 + 2.0**-8)
        found.append(torch.from_numpy(values.astype(np.float32)))
    return found


def test_rounding_is_to_the_nearest_and_to_even():
    x = torch.cat([matrix.flatten() for matrix in matrices((40, 50), (1, 1))])
    x = torch.cat([x, torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 2.0**-126, 0.0])])
    assert np.array_equal(round_to_bfloat16(x).double().numpy(), rounded(x.double().numpy()))
    assert round_to_bfloat16(torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8])).tolist() == [1, 1 + 4 * 2.0**-8]


def test_what_is_not_finite_stays_so_and_the_largest_numbers_become_infinite():
    largest = torch.finfo(torch.float32).max
    special = torch.tensor([float("inf"), -float("inf"), float("nan"), largest, -largest, 2.0**-140])
    inf = float("inf")
    torch.testing.assert_close(
        round_to_bfloat16(special), torch.tensor([inf, -inf, float("nan"), inf, -inf, 0.0]), equal_nan=True,
        rtol=0, atol=2.0**-134,  # of subnormal numbers bfloat16 has multiples of 2^-133
    )  # fmt: skip
    for precision in ROUNDED:
        for value in special[:5]:
            row = torch.tensor([[1.0, value, 2.0]])
            assert not multiply(row, torch.ones(3, 1), precision).isfinite().any()


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(13, 37, 5), (1, 1, 1), (1, 64, 3), (50, 1, 2), (7, 300, 33)])
def test_the_three_products_of_a_layer(precision: Any, rows: int, inputs: int, outputs: int):
    """Each is a sum of exact products: K additions in float32 round by at most K * 2^-24 of the sum of |a| |b|; in
    "high" three such sums are added."""
    x, weight, dz = matrices((rows, inputs), (outputs, inputs), (rows, outputs))
    x.requires_grad_()
    weight.requires_grad_()
    z = apply_linear(x, weight, None, precision)
    z.backward(dz)
    assert x.grad is not None
    assert weight.grad is not None
    x_, weight_, dz_ = (tensor.detach().double().numpy() for tensor in (x, weight, dz))
    for given, a, b in ((z.detach(), x_, weight_.T), (x.grad, dz_, weight_), (weight.grad, dz_.T, x_)):
        sizes = np.abs(a) @ np.abs(b)
        sum_bound = (a.shape[1] + 2) * EPS[torch.float32] * sizes * (1 + 2.0**-6)  # operands may be rounded up
        off = np.abs(given.double().numpy() - product(a, b, precision))
        assert (off <= sum_bound).all()
        lost = np.abs(given.double().numpy() - a @ b)
        assert (lost <= SHARES[precision] * sizes + sum_bound).all()


def test_a_bias_is_added_as_it_is():
    x, weight, bias = matrices((6, 9), (4, 9), (1, 4))
    bias = bias[0].requires_grad_()
    dz = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    z = apply_linear(x, weight, bias, "medium")
    assert torch.equal(z, apply_linear(x, weight, None, "medium") + bias)
    (gradient,) = torch.autograd.grad(z, bias, dz)
    assert torch.equal(gradient, dz.sum(0))


def test_the_highest_precision_is_torchs_own_layer():
    layer = torch.nn.Linear(9, 4)
    (x,) = matrices((6, 9))
    assert torch.equal(apply_linear(x, layer.weight, layer.bias, "highest"), layer(x))


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("inputs", [{}, {"mean": 1e4}, {"constant": True}], ids=["", "offset", "constant column"])
def test_every_gradient_is_the_one_by_hand(precision: Any, norm: str, inputs: dict[str, Any]):
    """Both in float64, of the same operands, with sums in another order: some hundred roundings."""
    model = make_model((6, 17, 9, 3), norm, "before", "tanh", dtype=torch.float64)
    if norm == "none" and inputs:
        with torch.no_grad():  # or all units are saturated, and all gradients nothing
            model.parts()[0].linear.weight *= 1e-4
    data = make_data(model, LOSS, 40, **inputs)
    engine = engine_of(model, precision)
    expected_loss, expected, means = precision_oracle.gradients(model, data.x, data.y, precision)
    loss, given = engine.gradients(data)
    # Inputs at 1e4 and std 1 bring 1e4 times the rounding of their sums, and a few roundings come apart by a rounding.
    tolerance = 1e3 * EPS[torch.float64] * (1e4 if "mean" in inputs else 1)
    assert loss == pytest.approx(expected_loss, rel=tolerance)
    assert_near(given, expected, tolerance, floor=tolerance)

    unrounded_loss, unrounded = engine_of(model, "highest").gradients(data)
    assert loss != unrounded_loss
    weights = [name for name in given if name.endswith("weight") and given[name].ndim == 2]
    assert all(not torch.equal(given[name], unrounded[name]) for name in weights)

    before = copy_of(model)
    engine.gradients(data, update_running_statistics=True)
    for name, mean in means.items():
        running = 0.9 * before[f"{name}.running_mean"] + 0.1 * mean
        assert_near({name: model.state_dict()[f"{name}.running_mean"]}, {name: running}, tolerance)


def distance(given: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Of all gradients as one vector, each parameter's part scaled to length 1: the 2-norm of the difference."""
    assert given.keys() == expected.keys()
    parts = [(given[n].double() - e).flatten() / max(float(e.norm()), 1e-30) for n, e in expected.items()]
    return float(torch.cat(parts).norm()) / len(parts) ** 0.5


@pytest.mark.parametrize("place", PLACES, ids="-".join)
def test_in_float32_the_same_arithmetic(place: tuple[str, str]):
    """An operand in float32 is off by some roundings, say d = 32 * 2^-24 of its size, and so it is rounded to the other
    neighbour with a probability of about 2 d / 2^-8 = 1e-3. Such operands are off by up to 2^-7, so all of them
    together, as a 2-norm, by 2^-7 * sqrt(1e-3) = 2.5e-4; rounding itself takes about 2^-8 / sqrt(3) = 2.3e-3 of each.
    In "high" the lower part goes to the other neighbour with a probability of 2 d / 2^-16 = 1/4, and is then off by up
    to 2^-15: 2^-16 together, as much as rounding takes."""
    model = make_model((12, 24, 16, 5), *place, "tanh", dtype=torch.float32)
    data = make_data(model, LOSS, 200)
    exact = Oracle(model, LOSS).gradients(data)[1]
    wide = make_model((12, 24, 16, 5), *place, "tanh", dtype=torch.float64)
    wide.load_state_dict(model.state_dict())
    wide_data = make_data(wide, LOSS, 200)
    assert np.array_equal(wide_data.x, data.x)

    def distances(precision: str) -> tuple[float, float]:
        given = engine_of(model, precision).gradients(data)[1]
        return distance(given, engine_of(wide, precision).gradients(wide_data)[1]), distance(given, exact)

    off, lost = distances("medium")
    assert off <= 2.5e-4
    assert 5e-4 <= lost <= 2.0**-6
    off, lost = distances("high")
    assert off <= 2.0**-16
    assert lost <= 2.0**-14


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("norm", ["layer", "rms", "none"])
def test_a_mini_batch_of_one_row(precision: Any, norm: str):
    """Each gradient of a weight matrix is then an outer product, and has an operand's rounding in every element."""
    model = make_model((6, 17, 3), norm, "before", "tanh", dtype=torch.float64)
    data = make_data(model, LOSS, 1)
    given = engine_of(model, precision).gradients(data)[1]
    hidden = model.parts()[0]
    weight = given[f"{hidden.linear_name}.weight"].numpy()
    dz = given[f"{hidden.linear_name}.bias"].numpy()[:, None]  # the sum over one row
    assert np.array_equal(weight, product(dz, data.x, precision))


@pytest.mark.parametrize("precision", ROUNDED)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), torch.finfo(torch.float32).max])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_a_weight_that_rounds_to_no_number_is_told_by_its_layer(precision: Any, value: float, layer: int):
    model = make_model((6, 9, 7, 3), "batch", "before", "silu", dtype=torch.float32)
    with torch.no_grad():
        model.parts()[layer - 1].linear.weight[2, 1] = value
    before = copy_of(model)
    data = make_data(model, LOSS, 20)
    with pytest.raises(NonFiniteLossError) as caught:
        engine_of(model, precision).train_epoch(data, np.arange(20), np.array([0, 20]), np.full(1, 0.1))
    assert (caught.value.step, caught.value.layer) == (1, layer)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("precision", ROUNDED)
def test_predictions_are_of_the_highest_precision(precision: Any):
    model = make_model((6, 17, 3), "batch", "before", "tanh", dtype=torch.float32)
    data = make_data(model, LOSS, 40)
    engine = engine_of(model, precision)
    engine.train_epoch(data, np.arange(40), np.array([0, 20, 40]), np.full(2, 0.1))
    assert np.array_equal(engine.predict(data.x), engine_of(model, "highest").predict(data.x))
