"""The native engine's promise: the same bits for any number of threads, either split, run after run, resumed or not.

Equality throughout, never closeness: parameters, running statistics, optimizer state and losses.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from torch import Tensor

from oracle import PLACES, make_model
from wholebatch import Loss, Optimizer, Training
from wholebatch.feedforward.data import prepare
from wholebatch.feedforward.engines import make_engine
from wholebatch.feedforward.training import History, State
from wholebatch.kernels import native_available

pytestmark = pytest.mark.skipif(not native_available(), reason="the compiled part of wholebatch is missing")


@dataclass(frozen=True)
class Shape:
    """A table, a net and how it is trained: dropout and shuffling are on."""

    rows: int
    sizes: tuple[int, ...]
    batch_size: int
    norm: tuple[str, str] = ("batch", "before")
    activation: str = "relu"
    loss: Loss = field(default_factory=lambda: Loss("cross_entropy"))
    optimizer: Optimizer = field(default_factory=lambda: Optimizer("adam", 0.01))
    dtype: torch.dtype = torch.float32
    sparse: bool = False
    weighted: bool = False
    dropout: float = 0.25
    epochs: int = 2


SHAPES = {
    "tall": Shape(5000, (9, 17, 100, 7, 3), 2500),
    "tall, remainder": Shape(2051, (9, 17, 100, 7, 3), 300, weighted=True),
    "tall, one matrix too large for groups": Shape(1100, (9, 400, 400, 3), 1100),
    "tall, sparse, layer norm": Shape(2200, (300, 40, 33, 4), 1100, norm=("layer", "before"), sparse=True),
    "wide": Shape(66, (30, 200, 130, 5), 33, epochs=4),
    "wide, after": Shape(66, (30, 200, 130, 5), 33, norm=("batch", "after"), activation="tanh"),
    "wide, packed operands": Shape(140, (40, 530, 517, 5), 70),  # where a worker has 16 panels of 32 columns
    "wide, packed operands, two blocks": Shape(400, (40, 530, 9, 5), 200),
    "wide, packed operands, float64": Shape(80, (40, 290, 270, 5), 40, dtype=torch.float64),
    "sparse": Shape(400, (300, 40, 4), 90, sparse=True),
    "float64": Shape(400, (9, 33, 17, 3), 130, dtype=torch.float64, activation="gelu"),
    "clipped": Shape(
        500, (9, 40, 40, 3), 128, optimizer=Optimizer("sgd", 0.1, momentum=0.9, nesterov=True, max_grad_norm=0.5)
    ),
    "penalty": Shape(300, (9, 33, 2), 64, loss=Loss("mse", alpha=0.5), optimizer=Optimizer("adamw", weight_decay=0.1)),
    "labels": Shape(300, (9, 33, 4), 64, loss=Loss("bce", class_weights=(1.0, 2.0, 0.5, 1.5)), activation="silu"),
    "linear": Shape(500, (40, 3), 64),
    "one neuron": Shape(129, (1, 1, 2), 64),
    **{
        f"{norm} {position}": Shape(600, (9, 70, 33, 3), 200, norm=(norm, position), activation="elu")
        for norm, position in PLACES
        if norm != "batch"
    },
}


def train(shape: Shape, **how: Any) -> dict[str, Tensor]:
    """Everything that a run ends with, as tensors by name."""
    model = make_model(shape.sizes, *shape.norm, shape.activation, dtype=shape.dtype, dropout=shape.dropout)
    rng = np.random.default_rng(0)
    features, outputs = shape.sizes[0], shape.sizes[-1]
    x: Any = rng.standard_normal((shape.rows, features)) + 3.0
    if shape.sparse:
        x = scipy.sparse.random_array((shape.rows, features), density=0.05, rng=rng, format="csr")
    y: Any = rng.standard_normal((shape.rows, outputs))
    if shape.loss.takes_classes:
        y = rng.integers(0, outputs, shape.rows)
    elif shape.loss.kind == "bce":
        y = (y > 0).astype(float)
    weight = rng.uniform(0.5, 2.0, shape.rows) if shape.weighted else None
    states: list[State] = []
    history = model.fit(
        x, y, sample_weight=weight, loss=shape.loss, optimizer=shape.optimizer, engine="native",
        training=Training(epochs=shape.epochs, batch_size=shape.batch_size, seed=7), after_epoch=states.append, **how,
    )  # fmt: skip
    losses = torch.tensor([row["loss"] for row in history.epochs], dtype=torch.float64)
    assert torch.isfinite(losses).all()
    return {"losses": losses, **states[-1].tensors}


@cache
def alone(name: str) -> dict[str, Tensor]:
    return train(SHAPES[name], n_threads=1, split="example")


def assert_same(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(given[name], tensor), name


@pytest.mark.parametrize("split", ["example", "neuron", "auto"])
@pytest.mark.parametrize("n_threads", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("name", SHAPES)
def test_any_number_of_threads_and_either_split(name: str, n_threads: int, split: str):
    assert_same(train(SHAPES[name], n_threads=n_threads, split=split), alone(name))


@pytest.mark.parametrize("name", ["tall", "wide", "sparse"])
def test_run_after_run_and_by_default(name: str):
    assert_same(train(SHAPES[name], n_threads=4), alone(name))
    assert_same(train(SHAPES[name], n_threads=4), alone(name))
    assert_same(train(SHAPES[name]), alone(name))


@pytest.mark.parametrize("name", SHAPES)
def test_the_bits_are_of_a_training_that_moved(name: str):
    """Equal states prove nothing where nothing moves: every parameter has left its start, by another way with another
    seed of the shuffling and dropout."""
    shape, end = SHAPES[name], alone(name)
    start = make_model(shape.sizes, *shape.norm, shape.activation, dtype=shape.dtype, dropout=shape.dropout)
    for parameter, tensor in start.named_parameters():
        assert not torch.equal(end[f"model.{parameter}"], tensor.detach()), parameter


def test_another_seed_gives_other_bits():
    shape = SHAPES["wide"]
    model = make_model(shape.sizes, *shape.norm, shape.activation, dtype=shape.dtype, dropout=shape.dropout)
    runs = []
    for seed in (1, 2):
        net = type(model).of(model.architecture)
        net.load_state_dict(model.state_dict())
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((66, 30)), rng.integers(0, 5, 66)
        net.fit(x, y, engine="native", training=Training(epochs=1, batch_size=33, seed=seed))
        runs.append(net.state_dict()["layers.0.weight"])
    assert not torch.equal(*runs)


@pytest.mark.parametrize("name", ["tall, remainder", "wide, after", "sparse", "float64", "clipped", "penalty"])
def test_a_resumed_run_ends_with_the_bits_of_an_undisturbed_one(name: str):
    """Also with other threads after the pause. The state goes through plain values, as a file would have it."""
    shape = SHAPES[name]
    model = make_model(shape.sizes, *shape.norm, shape.activation, dtype=shape.dtype, dropout=shape.dropout)
    rng = np.random.default_rng(0)
    features, outputs = shape.sizes[0], shape.sizes[-1]
    x = rng.standard_normal((shape.rows, features))
    y: Any = (
        rng.integers(0, outputs, shape.rows) if shape.loss.takes_classes else rng.standard_normal((shape.rows, outputs))
    )
    states: list[State] = []
    settings: dict[str, Any] = {
        "loss": shape.loss,
        "optimizer": shape.optimizer,
        "training": Training(epochs=4, batch_size=shape.batch_size, seed=3, schedule="cosine"),
        "engine": "native",
    }
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.fit(x, y, n_threads=2, after_epoch=states.append, **settings)
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for pause in (1, 3):
        plain = states[pause - 1].values()
        kept = State(History(**plain["history"]), plain["step"], states[pause - 1].tensors)
        net = type(model).of(model.architecture, dtype=shape.dtype)  # with other parameters
        again: list[State] = []
        history = net.fit(x, y, n_threads=3, resume=kept, after_epoch=again.append, **settings)
        assert len(again) == 4 - pause
        assert [row["epoch"] for row in history.epochs] == [1, 2, 3, 4]
        assert_same(dict(net.state_dict()), whole)
        assert_same(again[-1].tensors, states[-1].tensors)
    assert not torch.equal(start["layers.0.weight"], whole["layers.0.weight"])


def test_gradients_and_predictions_too():
    model = make_model((9, 100, 33, 3), "batch", "before", "relu", dtype=torch.float32, dropout=0.25)
    rng = np.random.default_rng(0)
    data = prepare(
        rng.standard_normal((700, 9)),
        rng.integers(0, 3, 700),
        None,
        model.architecture,
        Loss("cross_entropy"),
        torch.float32,
    )
    results = []
    for n_threads in (1, 2, 3, 8):
        for split in ("example", "neuron"):
            runner = make_engine(
                model,
                Loss("cross_entropy"),
                Optimizer(),
                n_threads=n_threads,
                split=split,
                engine="native",  # type: ignore[arg-type]
            )
            loss, gradients = runner.gradients(data)
            out = torch.from_numpy(runner.predict(data.x))
            results.append({"loss": torch.tensor(loss, dtype=torch.float64), "out": out, **gradients})
    for result in results[1:]:
        assert_same(result, results[0])
