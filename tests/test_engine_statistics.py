"""Running statistics, prediction, and the identities of batch norm, in both engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import nn

from oracle import EPS, PLACES, Oracle, assert_near, engine_of, make_data, make_model
from wholebatch import Loss, Optimizer
from wholebatch.feedforward.data import Data, prepare_inputs

DTYPES = (torch.float32, torch.float64)


def train(engine: str, *, momentum: float | None, dtype: torch.dtype, mean: float = 0.0, batch: int = 16) -> None:
    """Two epochs of three steps; the statistics against the oracle's.

    Tolerance: a mean over m rows of sums of K products, in float32: sqrt(K) roundings of the size of the terms. The
    variance is asked for in its own size, whatever the mean: that is what sums of squares would lose.
    """
    loss, optimizer = Loss("mse"), Optimizer("sgd", 0.0)
    model = make_model((9, 17, 7, 3), "batch", "before", "tanh", dtype=dtype, momentum=momentum)
    data = make_data(model, loss, 3 * batch, mean=mean)
    oracle = Oracle(model, loss, optimizer)
    runner = engine_of(engine, model, loss, optimizer)
    rng = np.random.default_rng(0)
    for _ in range(2):
        order = rng.permutation(len(data))
        offsets = np.arange(0, len(data) + 1, batch)
        oracle.train(data, order, list(offsets), [0.0] * 3)
        runner.train_epoch(data, order, offsets, np.zeros(3))
    # the oracle's own variance at mean 1e4 errs by (1e4 * 1e-16 * sqrt(9)) of the spread
    allowed = max(200 * EPS[dtype], 1e-11 if mean else 0.0)
    assert_near(dict(model.state_dict()), oracle.state(), tolerance=allowed)
    counted = [t for name, t in model.state_dict().items() if name.endswith("tracked")]
    assert [int(t) for t in counted] == [6, 6]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_momentum(engine: str, momentum: float | None, dtype: torch.dtype):
    """torch's: 1 keeps the last mini-batch only, 0 keeps what was there, None averages over all steps."""
    train(engine, momentum=momentum, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [2, 3, 65])
def test_the_running_variance_is_unbiased(engine: str, batch: int, dtype: torch.dtype):
    """At 2 rows the biased one would be half of it."""
    train(engine, momentum=0.5, dtype=dtype, batch=batch)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_inputs_with_mean_1e4(engine: str, momentum: float | None, dtype: torch.dtype):
    train(engine, momentum=momentum, dtype=dtype, mean=1e4)


def test_a_constant_neuron_has_variance_0(engine: str):
    """Its running variance comes down to 0 exactly; nothing is divided by it."""
    loss, optimizer = Loss("mse"), Optimizer("sgd", 0.0)
    model = make_model((4, 5, 2), "batch", "before", "tanh", dtype=torch.float32, momentum=1.0)
    with torch.no_grad():
        model.parts()[0].linear.weight[2] = 0.0
    data = make_data(model, loss, 16)
    engine_of(engine, model, loss, optimizer).train_epoch(data, np.arange(16), np.array([0, 16]), np.zeros(1))
    norm = model.layers[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    assert norm.running_var[2] == 0.0
    assert norm.running_mean[2] == 0.0
    assert (norm.running_var[[0, 1, 3, 4]] > 0.05).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 2, 17, 300])
@pytest.mark.parametrize("place", PLACES)
def test_prediction(engine: str, place: tuple[str, str], rows: int, dtype: torch.dtype):
    """Running statistics and no dropout; one row is enough; the net stays as it is."""
    loss = Loss("cross_entropy")
    model = make_model((7, 17, 1, 9, 3), *place, "gelu", dtype=dtype, dropout=0.5).train()
    data = make_data(model, loss, rows)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    given = engine_of(engine, model, loss).predict(data.x)
    expected = Oracle(model, loss).predict(data)
    assert given.dtype == data.x.dtype
    roundings = 24 * len(model.parts()) * 17**0.5 * EPS[dtype]
    assert_near({"out": torch.from_numpy(given)}, {"out": expected}, tolerance=8 * roundings)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_prediction_of_a_sparse_table(engine: str, dtype: torch.dtype):
    model = make_model((33, 17, 3), "batch", "before", "relu", dtype=dtype)
    table = scipy.sparse.random_array((70, 33), density=0.1, rng=np.random.default_rng(0), format="csr")
    runner = engine_of(engine, model, Loss("mse"))
    sparse = runner.predict(prepare_inputs(table, 33, dtype))
    dense = runner.predict(prepare_inputs(table.toarray(), 33, dtype))
    np.testing.assert_allclose(sparse, dense, rtol=0, atol=33 * EPS[dtype] * np.abs(dense).max())


def test_prediction_of_no_rows(engine: str):
    model = make_model((4, 5, 2), "batch", "before", "relu", dtype=torch.float32)
    assert engine_of(engine, model, Loss("mse")).predict(np.zeros((0, 4), np.float32)).shape == (0, 2)


@pytest.mark.parametrize("activation", ["relu", "tanh", "silu"])
@pytest.mark.parametrize("rows", [2, 65])
def test_gamma_sigma_and_beta_mu_give_the_unnormalised_net_back(engine: str, rows: int, activation: str):
    """The identity that the batch-norm paper promises (section 3): gamma = sqrt(var + eps), beta = mean undo the norm.

    In training mode, over the whole mini-batch, layer after layer; the loss and the output layer's gradients are those
    of the same net without norms. Float64; each layer divides by the spread and multiplies by it again: some roundings.
    """
    loss = Loss("cross_entropy")
    normed = make_model((6, 17, 9, 3), "batch", "before", activation, dtype=torch.float64)
    plain = make_model((6, 17, 9, 3), "none", "before", activation, dtype=torch.float64)
    data = make_data(normed, loss, rows)
    h = torch.from_numpy(data.x)
    act = {"relu": torch.relu, "tanh": torch.tanh, "silu": nn.functional.silu}[activation]
    with torch.no_grad():
        for one, other in zip(normed.parts(), plain.parts(), strict=True):
            other.linear.weight.copy_(one.linear.weight)
            z = h @ one.linear.weight.T
            if isinstance(one.norm, nn.BatchNorm1d):
                other.linear.bias.zero_()
                mean = z.sum(0) / rows
                variance = ((z - mean) ** 2).sum(0) / rows
                one.norm.weight.copy_((variance + normed.architecture.eps).sqrt())
                one.norm.bias.copy_(mean)
                h = act(z)
            else:
                other.linear.bias.copy_(one.linear.bias)
    before = make_model((6, 17, 9, 3), "batch", "before", activation, dtype=torch.float64)
    with_norm, gradients = engine_of(engine, normed, loss).gradients(data)
    without, expected = engine_of(engine, plain, loss).gradients(data)
    assert with_norm == pytest.approx(without, rel=1e-12)
    names = dict(
        zip([n for n, _ in normed.named_parameters()][-2:], [n for n, _ in plain.named_parameters()][-2:], strict=True)
    )
    assert_near({n: gradients[n] for n in names}, {n: expected[o] for n, o in names.items()}, tolerance=1e-11)
    unmatched, _ = engine_of(engine, before, loss).gradients(data)
    assert abs(unmatched - without) > 0.01  # other gammas and betas give another net


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["cross_entropy", "mse"])
@pytest.mark.parametrize("place", [("batch", "before"), ("batch", "after"), ("layer", "before")])
def test_weighed_moments_take_a_weight_of_2_as_the_row_twice(
    engine: str, place: tuple[str, str], kind: Any, dtype: torch.dtype
):
    """With ``weigh_moments``: loss, gradients and running statistics are those of the repeated rows, zero times too."""
    loss = Loss(kind, alpha=0.25, weigh_moments=True)
    model = make_model((5, 17, 7, 3), *place, "tanh", dtype=dtype, momentum=0.3)
    data = make_data(model, loss, 24, mean=3.0)
    weight = np.arange(24) % 4
    weighted = Data(data.x, data.y, weight.astype(data.x.dtype))
    oracle = Oracle(model, Loss(kind, alpha=0.25))
    expected_loss, expected = oracle.gradients(data.take(np.repeat(np.arange(24), weight)))
    given_loss, given = engine_of(engine, model, loss).gradients(weighted, update_running_statistics=True)
    roundings = 24 * len(model.parts()) * 24**0.5 * EPS[dtype]
    assert given_loss == pytest.approx(expected_loss, rel=roundings)
    assert_near(given, expected, tolerance=8 * roundings, floor=roundings)
    assert_near(dict(model.state_dict()), oracle.state(), tolerance=8 * roundings)
