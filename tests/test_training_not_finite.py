"""Losses and updates that are not finite: the epoch, step and layer are named, the net is as before the epoch."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from oracle import engine_of, make_data, make_model
from small_problem import X, Y, copy_of, same
from wholebatch import FeedForward, Loss, Optimizer, Training
from wholebatch.feedforward.engine import NonFiniteLossError


def rotten(engine: str, spoil: Callable[[FeedForward], None], **settings: Any) -> NonFiniteLossError:
    model = make_model((6, 9, 7, 3), "batch", "before", "silu", dtype=torch.float64)
    spoil(model)
    before = copy_of(model)
    with pytest.raises(NonFiniteLossError) as caught:
        model.fit(X, Y, training=Training(epochs=3, batch_size=30, **settings), engine=engine)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    assert not model.training
    return caught.value


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_layer_where_it_first_appeared_is_named(engine: str, layer: int, value: float):
    def spoil(model: FeedForward) -> None:
        with torch.no_grad():
            model.parts()[layer - 1].linear.weight[2, 1] = value

    error = rotten(engine, spoil)
    assert (error.epoch, error.step, error.layer, error.layers) == (1, 1, layer, 3)
    assert f"not finite in epoch 1, step 1; the first value that is not finite appeared in layer {layer} of 3" in str(
        error
    )
    assert "Lower the learning rate, or clip the gradient" in str(error)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("role", ["weight", "bias"])
def test_a_norms_parameters_belong_to_their_layer(engine: str, layer: int, role: str):
    def spoil(model: FeedForward) -> None:
        with torch.no_grad():
            getattr(model.parts()[layer - 1].norm, role)[0] = float("nan")

    error = rotten(engine, spoil)
    assert (error.epoch, error.step, error.layer) == (1, 1, layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_learning_rate_that_is_far_too_large(engine: str, dtype: torch.dtype):
    model = make_model((6, 9, 3), "none", "before", "relu", dtype=dtype)
    before = copy_of(model)
    with pytest.raises(NonFiniteLossError, match=r"not finite in epoch 1, step [2-9]; the first") as caught:
        model.fit(
            X,
            Y,
            training=Training(epochs=3, batch_size=10),
            optimizer=Optimizer("sgd", 1e200 if dtype == torch.float64 else 1e30),
            engine=engine,
        )
    assert same(copy_of(model), before)
    assert 1 <= caught.value.layer <= 2


def test_an_overflow_in_the_last_update_does_not_pass_for_a_trained_net(engine: str):
    """The loss of the only step is finite, its update is not: no later loss would tell."""
    model = make_model((6, 9, 3), "none", "before", "relu", dtype=torch.float32)
    before = copy_of(model)
    optimizer = Optimizer("sgd", 1e30)
    with pytest.raises(NonFiniteLossError, match="the update is not finite in epoch 1, step 1"):
        model.fit(X * 1e12, Y, training=Training(epochs=1, batch_size=90), optimizer=optimizer, engine=engine)
    assert same(copy_of(model), before)


def test_the_step_is_counted_within_the_epoch(engine: str):
    """Rows of a size whose square overflows, where the order is known: in the third mini-batch of the first epoch."""
    model = make_model((1, 4, 1), "none", "before", "identity", dtype=torch.float32)
    x = np.ones((40, 1))
    y = np.ones(40)
    y[25] = 1e30
    with pytest.raises(NonFiniteLossError) as caught:
        model.fit(
            x,
            y,
            training=Training(epochs=2, batch_size=10, shuffle=False),
            optimizer=Optimizer("sgd", 0.0),
            engine=engine,
        )
    assert (caught.value.epoch, caught.value.step, caught.value.layer) == (1, 3, 2)


def test_gradients_tell_too_and_leave_the_statistics(engine: str):
    loss = Loss("cross_entropy")
    model = make_model((6, 9, 7, 3), "batch", "before", "tanh", dtype=torch.float64)
    data = make_data(model, loss, 20)
    with torch.no_grad():
        model.parts()[1].linear.weight[0, 0] = float("inf")
    before = copy_of(model)
    with pytest.raises(NonFiniteLossError, match=r"in step 1; .* layer 2 of 3"):
        engine_of(engine, model, loss).gradients(data)
    assert same(copy_of(model), before)


def test_the_error_survives_a_process_boundary():
    error = pickle.loads(pickle.dumps(NonFiniteLossError(3, 2, 4).in_epoch(5)))
    assert isinstance(error, NonFiniteLossError)
    assert (error.epoch, error.step, error.layer, error.layers) == (5, 3, 2, 4)
    assert str(error) == str(NonFiniteLossError(3, 2, 4, 5))
    assert "the input" in str(NonFiniteLossError(1, 0, 2))
