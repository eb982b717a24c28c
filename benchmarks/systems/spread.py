"""wholebatch over ranks: each holds a shard of the table, and every mini-batch has rows of all shards.

The time includes what that of one process does: the gather of the rows, and the copying of the parameters into the
engine and back, once in an epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.problem import SpreadProblem as Problem
from benchmarks.systems import LeftOut, ours
from benchmarks.systems.group import Together, join, of_each
from wholebatch.feedforward import data
from wholebatch.feedforward.native import NativeEngine
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.sharding import Deal, shard_bounds
from wholebatch.feedforward.spread import Spread

__all__ = ["Problem", "load", "make"]

BURSTS, MEASURED = 7, 10  # bursts of so many steps, of which the shares of wait and exchange are taken


def load() -> str:
    """The version, and the instruction set in use."""
    version = ours.load()
    join()
    return version


class Clocked(NativeEngine):
    """An engine that tells of its last epoch how long it told the other ranks something, and waited for them."""

    def told(self) -> tuple[float, float]:
        """Seconds of exchange, and of waiting."""
        (network,) = self._networks.values()
        return network.exchanged(), network.awaited()


class Ranked(Together):
    """One rank's engine and its shard of the table."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(self._prepare)
        group_size = problem.threads // 2 if problem.sync == "group" else None
        spread = Spread(sync=problem.sync, group_size=group_size, overlap=problem.overlap)  # type: ignore[arg-type]
        self.peers = Peers(spread, "world")
        model, optimizer = ours.make_net(problem)
        self.engine = Clocked(model, ours.LOSS, optimizer, n_threads=1, split="example", peers=self.peers)
        x, y = problem.table()
        bounds, own = shard_bounds(len(x), self.peers.shards), self.peers.own
        rows = slice(bounds[own.start], bounds[own.stop])
        self.data = data.prepare(x[rows], y[rows], None, model.architecture, ours.LOSS, torch.float32)
        self.deal = Deal.of(np.diff(bounds).tolist(), own, np.arange(0, len(x) + 1, problem.batch))
        self.problem, self.epoch = problem, 0

    def measure(self) -> dict[str, Any]:
        """Shares of a step, medians over bursts with p20 and p80: waiting and exchange, means over ranks; and ``most``:
        exchange and the least wait of a rank, which is in part that for the messages' way."""
        found = []
        for _ in range(BURSTS):
            seconds = self.run(MEASURED)
            exchange, wait = np.transpose(of_each([*self.engine.told()])) / seconds
            found.append((wait.mean(), exchange.mean(), (wait + exchange).mean(), exchange.mean() + wait.min()))
        low, middle, high = np.quantile(found, [0.2, 0.5, 0.8], axis=0).tolist()
        names = ("wait", "exchange", "idle", "most")
        ranges = {f"{name}_range": [low[i], high[i]] for i, name in enumerate(names)}
        return dict(zip(names, middle, strict=True)) | ranges

    def _prepare(self, steps: int) -> Callable[[], None]:
        passes = -(-steps // self.deal.steps)
        orders = [self.deal.order(0, self.epoch + i) for i in range(passes)]
        self.epoch += passes
        counts = np.concatenate([self.deal.counts] * passes)[:steps]
        offsets = np.append(0, counts[:, self.peers.own.start : self.peers.own.stop].sum(1).cumsum())
        order, rates = np.concatenate(orders)[: offsets[-1]], np.full(steps, self.problem.learning_rate)

        def take() -> None:
            self.engine.train_epoch(self.data, order, offsets, rates, counts=counts)

        return take


def make(problem: Problem) -> Ranked:
    """This rank's part."""
    if problem.sync == "group" and problem.threads % 4:
        raise LeftOut(f"{problem.threads} ranks cannot be cut into two groups of at least 2")
    return Ranked(problem)
