"""The native engine over shards and ranks: the same bits whoever owns a shard, and the oracle's numbers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from oracle import PLACES, assert_near
from ranks import run_ranks
from small_problem import copy_of, same
from spread_native import EPOCHS, RATE, SEED, Case, Trained, assert_same, train, train_all
from wholebatch import Loss, Optimizer
from wholebatch.feedforward.native import NativeEngine
from wholebatch.feedforward.spread import Spread
from wholebatch.kernels import native_available

pytestmark = pytest.mark.skipif(not native_available(), reason="the compiled part of wholebatch is missing")

# As in test_spread_reference.py: a sum of 150 rows rounds by at most 150 * 2^-53 in float64; three layers, ten steps
# forward and backward: 1e-12 of the largest value, of which nets and optimizers like these make at most 100 times more.
TOLERANCE = 1e-10

WHOLE = {
    **{f"{norm} {position}": Case(norm, position) for norm, position in PLACES},
    "dropout": Case(net={"dropout": 0.3}),
    "tall": Case(rows=4600, batch_size=4500, sizes=(9, 17, 100, 7, 3), weighted=True, net={"dropout": 0.3}),
    "one shard of several groups": Case(rows=3590, batch_size=3590),
    "large matrices": Case(sizes=(9, 400, 400, 3), rows=300, optimizer=Optimizer("sgd", 0.1, momentum=0.9)),
    "weighed moments": Case(weighted=True, loss=Loss("cross_entropy", weigh_moments=True)),
    "penalty and clipping": Case(
        loss=Loss("cross_entropy", alpha=0.3, class_weights=(1.0, 2.0, 0.5), label_smoothing=0.1),
        optimizer=Optimizer("adamw", 0.02, max_grad_norm=0.5, weight_decay=0.1, eps_hat=True),
        weighted=True,
    ),
    "huber, average": Case(loss=Loss("huber", alpha=0.3, delta=0.7), net={"momentum": None}, weighted=True),
    "labels": Case(loss=Loss("bce", class_weights=(1.0, 2.0, 0.5))),
    "sparse": Case(sizes=(300, 40, 33, 3), sparse=True, norm="layer"),
    "far inputs": Case(mean=1000.0, sparse=True),
    "double": Case(dtype=torch.float64, activation="gelu", net={"dropout": 0.3}),
    "linear": Case(sizes=(40, 3)),
    "one hidden layer": Case(sizes=(9, 17, 3)),
    "rows for no shard": Case(rows=11, batch_size=3, dtype=torch.float64, weighted=True),
    "a rank without rows": Case(rows=3, batch_size=3, dtype=torch.float64),
    "no overlap": Case(spread=Spread(shards=4, overlap=False)),
    "many shards": Case(spread=Spread(shards=12)),
    "one row left": Case(rows=401, batch_size=100),
}
NAMES = list(WHOLE)


@cache
def alone(name: str) -> Trained:
    return train(None, WHOLE[name])


@cache
def over(ranks: int, transport: str, threads: int) -> list[list[Trained]]:
    """Of each rank, all cases."""
    environment = {"WHOLEBATCH_TRANSPORT": transport}
    outcomes = run_ranks(train_all, ranks, "world", list(WHOLE.values()), threads, environment=environment)
    return [outcome.value for outcome in outcomes]


@pytest.mark.parametrize(("threads", "split"), [(2, "neuron"), (3, "example")])
@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_threads_over_shards(name: str, threads: int, split: str):
    assert_same(train(None, WHOLE[name], threads, split), alone(name), name)


@pytest.mark.parametrize(
    ("ranks", "transport", "threads"),
    [(2, "shared_memory", 3), (4, "shared_memory", 1), (2, "gloo", 2), (4, "gloo", 1)],
)
def test_any_number_of_ranks_ends_with_the_same_bits(ranks: int, transport: str, threads: int):
    for rank, results in enumerate(over(ranks, transport, threads)):
        for name, result in zip(NAMES, results, strict=True):
            assert_same(result, alone(name), (name, rank))


def test_one_shard_is_the_engine_without_shards():
    """Bits of the net that knows nothing of shards, by the same order of rows."""
    case = Case(spread=Spread(shards=1), net={"dropout": 0.3}, weighted=True)
    engine, data, deal = case.begin(None)
    plain = NativeEngine(case.model(), case.loss, case.optimizer, seed=SEED)
    for epoch in range(EPOCHS):
        order, rates = deal.order(SEED, epoch), np.full(deal.steps, RATE)
        engine.train_epoch(data, order, deal.offsets, rates, counts=deal.counts)
        plain.train_epoch(data, order, deal.offsets, rates)
    assert same(copy_of(engine.model), copy_of(plain.model))


def assert_is_oracles(case: Case, ranks: int, given: Trained) -> None:
    losses, oracle = case.oracle(ranks)
    assert given.losses[:EPOCHS] == pytest.approx(losses, rel=TOLERANCE)
    state = {name: value for name, value in given.state.items() if name.startswith("layers.")}
    assert_near(state, oracle.state(), TOLERANCE, floor=TOLERANCE)


ORACLES: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout": {"net": {"dropout": 0.3}},
    "weights": {"weighted": True, "loss": Loss("cross_entropy", weigh_moments=True)},
    "layer": {"norm": "layer"},
    "penalty": {"loss": Loss("mse", alpha=0.3), "position": "after"},
    "rows for no shard": {"rows": 61, "batch_size": 7},
    "far inputs": {"mean": 5.0, "optimizer": Optimizer("sgd", 0.02)},  # moved to zero, but for late
}
SPREADS = {
    "all": Spread(shards=4),
    "group": Spread(shards=4, sync="group", group_size=2),
    "none": Spread(shards=4, sync="none"),
    "late": Spread(shards=4, sync="late"),
}


def cases(spread: str) -> list[Case]:
    return [Case(dtype=torch.float64, spread=SPREADS[spread], **settings) for settings in ORACLES.values()]


@cache
def spread_over(spread: str, ranks: int) -> list[list[Trained]]:
    return [outcome.value for outcome in run_ranks(train_all, ranks, "world", cases(spread), 1)]


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("spread", SPREADS)
def test_the_oracles_numbers_over_ranks(spread: str, name: str):
    index = list(ORACLES).index(name)
    results = [results[index] for results in spread_over(spread, 4)]
    assert_is_oracles(cases(spread)[index], 4, results[0])
    for rank, result in enumerate(results):
        assert_same(result, results[0], (name, rank))


def test_choices_of_sync_end_differently():
    """Else the tests above would prove nothing of them."""
    ends = [spread_over(spread, 4)[0][0].state["layers.0.weight"] for spread in SPREADS]
    assert not any(torch.equal(a, b) for i, a in enumerate(ends) for b in ends[:i])
