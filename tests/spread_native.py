"""Trainings of the native engine that any number of ranks can do, for the tests of its bits and of its numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
import torch
from torch import Tensor

from oracle import make_data, make_model
from small_problem import copy_of
from spread_oracle import SpreadOracle
from wholebatch import FeedForward, Loss, Optimizer
from wholebatch.feedforward.data import Data, batch_offsets
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.recording import RecordingEngine
from wholebatch.feedforward.sharding import Deal, shard_bounds
from wholebatch.feedforward.spread import Spread

SEED, RATE, EPOCHS = 3, 0.02, 2


@dataclass(frozen=True)
class Case:
    """A table, a net, how it is trained, and how that is spread."""

    norm: str = "batch"
    position: str = "before"
    activation: str = "tanh"
    rows: int = 530
    batch_size: int = 150
    sizes: tuple[int, ...] = (9, 17, 33, 3)
    spread: Spread = field(default_factory=lambda: Spread(shards=4))
    dtype: torch.dtype = torch.float32
    loss: Loss = field(default_factory=lambda: Loss("cross_entropy"))
    optimizer: Optimizer = field(default_factory=lambda: Optimizer("adam", RATE, eps=0.01))
    weighted: bool = False
    sparse: bool = False
    mean: float = 0.0
    net: dict[str, Any] = field(default_factory=dict)

    def model(self) -> FeedForward:
        return make_model(self.sizes, self.norm, self.position, self.activation, dtype=self.dtype, **self.net)

    def data(self, model: FeedForward) -> Data:
        data = make_data(model, self.loss, self.rows, weighted=self.weighted, mean=self.mean)
        if data.sample_weight is not None:
            data.sample_weight[::5] = 0
        if self.sparse:
            data.x[np.random.default_rng(0).random(data.x.shape) < 0.8] = 0
            data = replace(data, x=scipy.sparse.csr_matrix(data.x))
        return data

    def deal(self, model: FeedForward, own: range) -> Deal:
        sizes = np.diff(shard_bounds(self.rows, self.spread.shards or 1)).tolist()
        return Deal.of(sizes, own, batch_offsets(self.rows, self.batch_size, model.architecture))

    def begin(self, group: str | None, **how: Any) -> tuple[RecordingEngine, Data, Deal]:
        """The engine, this rank's rows and how they are dealt."""
        model, peers = self.model(), Peers(self.spread, group)
        engine = RecordingEngine(model, self.loss, self.optimizer, seed=SEED, peers=peers, **how)
        bounds = shard_bounds(self.rows, peers.shards)
        rows = np.arange(bounds[peers.own.start], bounds[peers.own.stop])
        return engine, self.data(model).take(rows), self.deal(model, peers.own)

    def oracle(self, ranks: int) -> tuple[list[float], SpreadOracle]:
        """The losses, and the oracle as it is at the end."""
        model = self.model()
        oracle = SpreadOracle(model, self.loss, self.optimizer, self.spread, ranks, SEED)
        deal = self.deal(model, range(self.spread.shards or 1))
        orders = [deal.order(SEED, epoch) for epoch in range(EPOCHS)]
        return oracle.train_spread(self.data(model), deal, orders, RATE), oracle


class Trained(NamedTuple):
    """The loss of each epoch; parameters, running statistics and optimizer state; gradients of a mini-batch more."""

    losses: list[float]
    state: dict[str, Tensor]
    gradients: dict[str, Tensor]


def train(group: str | None, case: Case, threads: int = 1, split: str = "example") -> Trained:
    engine, data, deal = case.begin(group, n_threads=threads, split=split)
    losses = []
    for epoch in range(EPOCHS):
        order, rates = deal.order(SEED, epoch), np.full(deal.steps, RATE)
        result = engine.train_epoch(data, order, deal.offsets, rates, counts=deal.counts)
        assert result.examples == case.rows
        losses.append(result.loss)
    sizes = np.asarray([deal.sizes], dtype=np.int64)
    loss, gradients = engine.gradients(data, counts=sizes)
    state = copy_of(engine.model) | {name: value.clone() for name, value in engine.optimizer_state.items()}
    return Trained([*losses, loss], state, gradients)


def train_all(rank: int, group: str | None, cases: list[Case], threads: int) -> list[Trained]:
    """Each case with a number of threads and a split of its own, another one on each rank."""
    splits = ("example", "neuron")
    return [
        train(group, case, 1 + (rank + index + threads) % threads, splits[(rank + index) // 2 % 2])
        for index, case in enumerate(cases)
    ]


def assert_same(given: Trained, expected: Trained, name: object) -> None:
    """The same bits in everything."""
    assert given.losses == expected.losses, name
    for values, others in ((given.state, expected.state), (given.gradients, expected.gradients)):
        assert values.keys() == others.keys()
        for key, tensor in others.items():
            assert torch.equal(values[key], tensor), (name, key)
