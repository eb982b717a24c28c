"""Trainings at every precision, from the same weights over the same rows in the same order; and a step's gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from benchmarks.precision_cases import Case, Table, make_table
from wholebatch import FeedForward, Loss, Optimizer, Training
from wholebatch.feedforward.data import prepare
from wholebatch.feedforward.engines import describe_products, make_engine
from wholebatch.feedforward.settings import MatmulPrecision
from wholebatch.feedforward.training import fit

Way = Literal["float64", "highest", "high", "medium"]
LOSS = Loss("cross_entropy")


class Run(TypedDict):
    """One training, and the gradients of its net.

    ``products``: what made them, in words. ``gradient_first`` and ``gradient_last``: the relative error of the first
    mini-batch's gradients against float64, ``||g - g64|| / ||g64||`` over all parameters together, at the weights that
    training began with, and at those that "highest" ended with; None for float64.
    """

    case: str
    way: Way
    seed: int
    epochs: int
    engine: str
    products: str
    loss: float
    test_loss: float
    test_accuracy: float
    gradient_first: float | None
    gradient_last: float | None


def run_seed(case: Case, ways: Sequence[Way], seed: int, epochs: int, engine: str, threads: int) -> list[Run]:
    """All ways of one seed, which also draws the test rows; "highest" is trained first, whatever ``ways`` says."""
    table = make_table(case, seed)
    settings: dict[str, Any] = {"engine": engine, "n_threads": threads}
    first = make_net(case, table, seed)
    trained = {"highest": _train(case, table, first, "highest", seed, epochs, settings)}
    last = trained["highest"][0]
    runs: list[Run] = []
    for way in ways:
        if way not in trained:
            trained[way] = _train(case, table, first, way, seed, epochs, settings)
        errors = [
            None if way == "float64" else gradient_error(case, table, net, way, settings) for net in (first, last)
        ]
        row = trained[way][1]
        runs.append(
            {
                "case": case.name,
                "way": way,
                "seed": seed,
                "epochs": epochs,
                "engine": engine,
                "products": "float64" if way == "float64" else describe_products(engine, way),
                "loss": row["loss"],
                "test_loss": row["validation_loss"],
                "test_accuracy": row["validation_score"],
                "gradient_first": errors[0],
                "gradient_last": errors[1],
            }
        )
    return runs


def make_net(case: Case, table: Table, seed: int) -> FeedForward:
    """The net with the first weights of this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FeedForward(table.x.shape[1], case.hidden, table.classes)


def gradient_error(case: Case, table: Table, net: FeedForward, way: MatmulPrecision, settings: dict[str, Any]) -> float:
    """``||g - g64|| / ||g64||`` of the first mini-batch's gradients, over all parameters together; as a net in float64,
    of the same weights and rows, has them from the same engine."""
    found = []
    for precision, dtype in ((way, torch.float32), ("highest", torch.float64)):
        model = copy_of(net, dtype)
        rows = prepare(table.x[: case.batch_size], table.y[: case.batch_size], None, model.architecture, LOSS, dtype)
        runner = make_engine(model, LOSS, Optimizer("sgd"), matmul_precision=precision, **settings)
        gradients = runner.gradients(rows)[1]
        found.append(torch.cat([gradients[name].double().flatten() for name in sorted(gradients)]))
    given, exact = found
    return float((given - exact).norm() / exact.norm())


def copy_of(net: FeedForward, dtype: torch.dtype) -> FeedForward:
    """The same net in another dtype, or a copy in its own."""
    model = FeedForward.of(net.architecture, dtype=dtype)
    state: dict[str, Tensor] = net.state_dict()
    model.load_state_dict(state)
    return model


def _train(
    case: Case, table: Table, first: FeedForward, way: Way, seed: int, epochs: int, settings: dict[str, Any]
) -> tuple[FeedForward, dict[str, float]]:
    """The net, and its last line of history."""
    net = copy_of(first, torch.float64 if way == "float64" else torch.float32)
    history = fit(
        net,
        table.x,
        table.y,
        validation=(table.x_test, table.y_test),
        optimizer=Optimizer("adamw", case.learning_rate),
        training=Training(epochs, case.batch_size, "cosine", seed=seed),
        matmul_precision="highest" if way == "float64" else way,
        **settings,
    )
    return net, history.epochs[-1]
