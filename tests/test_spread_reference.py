"""The reference engine over shards and ranks: the oracle's numbers, and the same bits whoever owns a shard."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import wholebatch.feedforward.reference
from oracle import PLACES, assert_near, engine_of, make_data, make_model
from ranks import run_ranks
from small_problem import copy_of, same
from spread_oracle import SpreadOracle
from wholebatch import FeedForward, Loss, Optimizer
from wholebatch.feedforward.data import Data, batch_offsets
from wholebatch.feedforward.engine import Engine, EpochResult, NonFiniteLossError
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.sharding import Deal, shard_bounds
from wholebatch.feedforward.spread import Spread
from wholebatch.sharing import MeetingError

SEED, RATE, EPOCHS = 3, 0.02, 2

# In float64 a sum of 60 rows rounds by at most 60 * 2^-53; three layers, 12 steps forward and backward: 5e-13 of the
# largest value. The nets of these tests, and Adam with eps 0.01, make of it no more than 100 times as much.
TOLERANCE = 5e-11


@dataclass(frozen=True)
class Case:
    """A training that any number of ranks can do."""

    norm: str = "batch"
    position: str = "before"
    activation: str = "tanh"
    rows: int = 53
    batch_size: int = 10
    shards: int = 4
    sync: Any = "all"
    group_size: int | None = None
    dtype: torch.dtype = torch.float64
    loss: Loss = field(default_factory=lambda: Loss("cross_entropy"))
    optimizer: Optimizer = field(default_factory=lambda: Optimizer("adam", RATE, eps=0.01))
    weighted: bool = False
    mean: float = 0.0
    net: dict[str, Any] = field(default_factory=dict)
    engine: str = "reference"

    def spread(self) -> Spread:
        return Spread(self.shards, self.sync, self.group_size)

    def model(self) -> FeedForward:
        return make_model((5, 7, 6, 3), self.norm, self.position, self.activation, dtype=self.dtype, **self.net)

    def data(self, model: FeedForward) -> Data:
        data = make_data(model, self.loss, self.rows, weighted=self.weighted, mean=self.mean)
        if self.weighted and data.sample_weight is not None:
            data.sample_weight[::5] = 0
        return data

    def offsets(self, model: FeedForward) -> np.ndarray:
        return batch_offsets(self.rows, self.batch_size, model.architecture)

    def begin(self, group: str | None) -> tuple[Engine, Data, Deal]:
        """The engine, this rank's rows and how they are dealt."""
        model, peers = self.model(), Peers(self.spread(), group)
        engine = engine_of(self.engine, model, self.loss, self.optimizer, seed=SEED, peers=peers)
        bounds = shard_bounds(self.rows, self.shards)
        rows = np.arange(bounds[peers.own.start], bounds[peers.own.stop])
        deal = Deal.of(np.diff(bounds).tolist(), peers.own, self.offsets(model))
        return engine, self.data(model).take(rows), deal

    def oracle(self, ranks: int) -> tuple[list[float], SpreadOracle]:
        model = self.model()
        oracle = SpreadOracle(model, self.loss, self.optimizer, self.spread(), ranks, SEED)
        deal = Deal.of(np.diff(shard_bounds(self.rows, self.shards)).tolist(), range(self.shards), self.offsets(model))
        orders = [deal.order(SEED, epoch) for epoch in range(EPOCHS)]
        return oracle.train_spread(self.data(model), deal, orders, RATE), oracle


def train(group: str | None, case: Case) -> tuple[list[float], dict[str, Tensor]]:
    """The loss of each epoch, and then parameters, running statistics and optimizer state."""
    engine, data, deal = case.begin(group)
    results: list[EpochResult] = []
    for epoch in range(EPOCHS):
        order, rates = deal.order(SEED, epoch), np.full(deal.steps, RATE)
        results.append(engine.train_epoch(data, order, deal.offsets, rates, counts=deal.counts))
    assert {result.examples for result in results} == {case.rows}
    return [result.loss for result in results], copy_of(engine.model) | {
        name: state.clone() for name, state in engine.optimizer_state.items()
    }


def train_all(_: int, group: str | None, cases: list[Case]) -> list[tuple[list[float], dict[str, Tensor]]]:
    return [train(group, case) for case in cases]


WHOLE = {
    **{f"{norm} {position}": Case(norm, position) for norm, position in PLACES},
    "dropout": Case(net={"dropout": 0.3}),
    "weights": Case(weighted=True),
    "weighed moments": Case(weighted=True, loss=Loss("cross_entropy", weigh_moments=True)),
    "penalty and clipping": Case(
        loss=Loss("cross_entropy", alpha=0.3, class_weights=(1.0, 2.0, 0.5), label_smoothing=0.1),
        optimizer=Optimizer("adamw", RATE, eps=0.01, max_grad_norm=0.5, weight_decay=0.1),
    ),
    "weighted penalty": Case(weighted=True, loss=Loss("huber", alpha=0.3, delta=0.7, scale=1.5)),
    "sgd, average": Case(optimizer=Optimizer("sgd", RATE, momentum=0.9, nesterov=True), net={"momentum": None}),
    "labels": Case(loss=Loss("bce", class_weights=(1.0, 2.0, 0.5))),
    "far inputs": Case(mean=100.0, optimizer=Optimizer("sgd", RATE)),
    "rows for no shard": Case(rows=11, batch_size=3),
    "one row left": Case(rows=41, batch_size=8),
    "many shards": Case(shards=12),
    "single": Case(dtype=torch.float32, net={"dropout": 0.3}),
    "single, weighed": Case("batch", "after", weighted=True, dtype=torch.float32, loss=Loss("mse", weigh_moments=True)),
}


@pytest.fixture(scope="module")
def alone() -> dict[str, tuple[list[float], dict[str, Tensor]]]:
    return {name: train(None, case) for name, case in WHOLE.items()}


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_ends_with_the_same_bits(ranks: int, alone: dict[str, Any]):
    for rank, outcome in enumerate(run_ranks(train_all, ranks, "world", list(WHOLE.values()))):
        for (name, (losses, state)), (own_losses, own) in zip(alone.items(), outcome.value, strict=True):
            assert own_losses == losses, (name, rank)
            assert same(own, state), (name, rank)


@pytest.mark.parametrize("name", [name for name, case in WHOLE.items() if case.dtype == torch.float64])
def test_the_oracles_numbers_over_shards(name: str, alone: dict[str, Any]):
    case, (losses, state) = WHOLE[name], alone[name]
    expected, oracle = case.oracle(1)
    # W x of inputs at mean 100 loses as many digits in the oracle, which does not centre them.
    tolerance = TOLERANCE * (100 if case.mean else 1)
    assert losses == pytest.approx(expected, rel=tolerance)
    assert_near(state, oracle.state() | oracle.optimizer_state(), tolerance, floor=tolerance)


SPREAD = {
    f"{sync} {name}": Case(sync=sync, group_size=2 if sync == "group" else None, **more)
    for sync in ("all", "group", "none", "late")
    for name, more in {
        "before": {"net": {"dropout": 0.3}},
        "after": {"position": "after", "loss": Loss("mse", alpha=0.3)},
        "weighed": {"weighted": True, "loss": Loss("cross_entropy", weigh_moments=True)},
        "few rows": {"rows": 23, "batch_size": 6, "shards": 8},
        "far": {"mean": 100.0, "optimizer": Optimizer("sgd", RATE)},
        "layer": {"norm": "layer"},
    }.items()
}


def test_every_choice_of_sync_is_the_oracles():
    cases = list(SPREAD.values())
    outcomes = [outcome.value for outcome in run_ranks(train_all, 4, "world", cases)]
    for index, (name, case) in enumerate(SPREAD.items()):
        expected, oracle = case.oracle(4)
        losses, state = outcomes[0][index]
        tolerance = TOLERANCE * (100 if case.mean else 1)
        assert losses == pytest.approx(expected, rel=tolerance), name
        assert_near(state, oracle.state() | oracle.optimizer_state(), tolerance, floor=tolerance)
        for rank, outcome in enumerate(outcomes):
            assert outcome[index][0] == losses, (name, rank)
            assert same(outcome[index][1], state), (name, rank)


def test_the_choices_of_sync_differ():
    """Where the statistics are of other rows, so are the numbers: else the test above shows nothing."""
    ends = [case.oracle(4)[1].state()["layers.0.weight"] for name, case in SPREAD.items() if name.endswith("before")]
    for one in range(4):
        for other in range(one):
            assert (ends[one] - ends[other]).abs().max() > 1e-4


def gradients(_: int, group: str | None, case: Case) -> tuple[float, dict[str, Tensor], bool, dict[str, Tensor]]:
    engine, data, _deal = case.begin(group)
    before, counts = copy_of(engine.model), np.diff(shard_bounds(case.rows, case.shards))[None]
    loss, found = engine.gradients(data, counts=counts)
    kept = same(before, copy_of(engine.model))
    engine.gradients(data, counts=counts, update_running_statistics=True)
    return loss, found, kept, copy_of(engine.model)


def test_gradients_over_ranks():
    case = Case(weighted=True, loss=Loss("cross_entropy", alpha=0.3, weigh_moments=True))
    oracle = SpreadOracle(case.model(), case.loss, case.optimizer, case.spread(), 1, SEED)
    oracle.rows = [case.rows]
    expected = oracle.gradients(case.data(case.model()))
    whole = gradients(0, None, case)
    assert whole[0] == pytest.approx(expected[0], rel=TOLERANCE)
    assert_near(whole[1], expected[1], TOLERANCE, floor=TOLERANCE)
    assert_near(whole[3], oracle.state(), TOLERANCE)
    assert whole[2], "the running statistics moved"
    for outcome in run_ranks(gradients, 2, "world", case):
        loss, found, kept, state = outcome.value
        assert (loss, kept) == (whole[0], True)
        assert same(found, whole[1])
        assert same(state, whole[3])


def overflow(_: int, group: str | None, sync: str) -> tuple[str, bool]:
    case = Case(norm="batch", activation="relu", sync=sync, optimizer=Optimizer("sgd", 1e200))
    engine, data, deal = case.begin(group)
    before = copy_of(engine.model)
    with pytest.raises(NonFiniteLossError) as error:
        engine.train_epoch(data, deal.order(0, 0), deal.offsets, np.full(deal.steps, 1e200), counts=deal.counts)
    return str(error.value), same(before, copy_of(engine.model)) and engine.step == 0


@pytest.mark.parametrize("sync", ["all", "late"])
def test_a_loss_that_is_not_finite_is_so_on_every_rank(sync: str):
    said, kept = zip(*(outcome.value for outcome in run_ranks(overflow, 2, "world", sync)), strict=True)
    assert kept == (True, True)
    assert said[0] == said[1]
    assert "the loss is not finite in step 2; the first value that is not finite appeared in layer" in said[0]


def fail(rank: int, sync: str) -> tuple[str, bool]:
    wholebatch.feedforward.reference.PROGRESS_SECONDS = 0.0
    engine, data, deal = Case(sync=sync, shards=6).begin("world")
    before = copy_of(engine.model)

    def stumble(done: int, loss: float) -> None:
        if rank == 1:
            raise RuntimeError("stumbled")

    try:
        rates = np.full(deal.steps, RATE)
        engine.train_epoch(data, deal.order(0, 0), deal.offsets, rates, stumble, counts=deal.counts)
    except MeetingError as error:
        return str(error), same(before, copy_of(engine.model)) and engine.step == 0
    raise AssertionError("no rank failed")


@pytest.mark.parametrize("sync", ["all", "none"])
def test_the_others_learn_of_a_rank_that_fails(sync: str):
    outcomes = run_ranks(fail, 3, sync)
    assert outcomes[1].error == "RuntimeError: stumbled"
    for outcome in (outcomes[0], outcomes[2]):
        said, kept = outcome.value
        assert kept, "the net is not as before the epoch"
        assert "rank 1" in said
        assert "RuntimeError: stumbled" in said
