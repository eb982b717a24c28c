"""Delays of ranks that take turns: each computation holds up one of them, and no number changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wholebatch import kernels
from wholebatch.feedforward.data import Data, prepare
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.native import NativeEngine
from wholebatch.feedforward.recording import Doing
from wholebatch.feedforward.settings import Architecture, Loss, Optimizer

pytestmark = pytest.mark.skipif(not kernels.native_available(), reason="the compiled part is missing here")

STEPS, ROWS, TURNS = 40, 8, 3
LOSS = Loss("cross_entropy")


def run(turn: int | None) -> tuple[list[bool], torch.Tensor]:
    """Whether each of a thread's computations was held up, in order; and the first weights after the last step."""
    torch.manual_seed(0)
    net = FeedForward.of(Architecture(4, (6, 5), 3))
    engine = NativeEngine(net, LOSS, Optimizer("sgd"), n_threads=1, split="example")
    network = engine._network(ROWS)
    if turn is None:
        network.record(STEPS, -1, 1.0)
    else:
        network.record(STEPS, 0, 2.0, TURNS, turn)
    rows = STEPS * ROWS
    order, offsets = np.arange(rows), np.arange(0, rows + 1, ROWS)
    engine.train_epoch(table(rows), order, offsets, np.full(STEPS, 0.1))
    marks = np.empty((network.marks(0), 5), dtype=np.int64)
    network.read_marks(0, marks)
    doing = marks[:, 3].tolist()
    held = [
        after == Doing.INJECTED for what, after in zip(doing, [*doing[1:], -1], strict=True) if what == Doing.COMPUTE
    ]
    return held, net.parts()[0].linear.weight.detach().clone()


def table(rows: int) -> Data:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((rows, 4)), rng.integers(0, 3, rows)
    return prepare(x, y, None, Architecture(4, (6, 5), 3), LOSS, torch.float32)


def test_each_computation_holds_up_exactly_one_of_the_turns():
    free, weight = run(None)
    assert not any(free)
    found = []
    for turn in range(TURNS):
        held, same = run(turn)
        assert len(held) == len(free)
        assert torch.equal(same, weight)
        found.append(held)
    assert np.sum(found, axis=0).tolist() == [1] * len(free)
    shares = np.mean(found, axis=1)
    # Of n draws with a chance of 1/3 the share lies within four standard deviations, sqrt(2/9/n) each.
    assert np.abs(shares - 1 / TURNS).max() < 4 * np.sqrt(2 / 9 / len(free))
