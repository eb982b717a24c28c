"""One rank of the measurement: its engine under one choice, and what steps of it take.

The functions whose first argument is ``rank`` run in ranks, see :mod:`wholebatch.cost.ranks`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
import torch.distributed as dist

from wholebatch.cost.ranks import tell
from wholebatch.cost.synchronisation.handout import Handout
from wholebatch.cost.synchronisation.record import Choice, Delay
from wholebatch.feedforward.data import Data
from wholebatch.feedforward.engine import EpochResult, NonFiniteLossError, Progress
from wholebatch.feedforward.evaluation import score
from wholebatch.feedforward.module import FeedForward
from wholebatch.feedforward.native import NativeEngine
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.sharding import Deal, shard_bounds
from wholebatch.feedforward.spread import Spread

TIMED_RATE = 1e-5
"""Steps are timed with it: how long one takes does not depend on the rate, and a net that is trained on and on while it
is timed stays in the range of ordinary numbers."""
WARM_STEPS, LEAST_STEPS = 2, 4


@dataclass(frozen=True)
class Entry:
    """A choice, and who is held up."""

    choice: Choice
    delay: Delay


@dataclass(frozen=True)
class Burst:
    """What steps in a row took one rank, seconds per step.

    Attributes:
        step: the whole, from the moment when all ranks were there.
        exchange: telling the others, and merging what they told.
        wait: for what the others have to tell.
    """

    step: float
    exchange: float
    wait: float


@dataclass(frozen=True)
class Course:
    """One training, as rank 0 saw it: seconds of each epoch, and scores before the first and after each of them.

    ``diverged``: the epoch, from 1, in which a value was no longer finite.
    """

    seconds: list[float]
    scores: list[float]
    diverged: int | None


@dataclass(frozen=True)
class Timed:
    """How steps are to be timed.

    Attributes:
        entries: that take turns.
        rounds, least: so many rounds; fewer, but ``least``, where they would take more than ``seconds``.
        burst_seconds: that a burst should take.
        seconds: of all rounds.
    """

    entries: Sequence[Entry]
    rounds: int
    least: int
    burst_seconds: float
    seconds: float


@dataclass(frozen=True)
class Trained:
    """Which trainings are to be done: from each seed those of some entries, over so many epochs."""

    entries: Sequence[Sequence[Entry]]
    epochs: int


def measure(
    rank: int, handout: Handout, timed: Timed, trained: Trained
) -> tuple[list[list[Burst]], list[list[Course]]]:
    """The bursts of each timed entry as this rank took them, by round; and by seed the course of each training.

    Rank 0 tells the stage that it is in, and the share of it that is done.
    """
    bursts = _time_steps(rank, handout, timed)
    courses = []
    for seed, entries in enumerate(trained.entries):
        courses.append(
            _train(rank, handout, entries, seed, trained.epochs, f"seed {seed + 1} of {len(trained.entries)}")
        )
    return bursts, courses


class Member:
    """This rank's engine, and its rows."""

    def __init__(self, handout: Handout, entry: Entry, seed: int, learning_rate: float) -> None:
        group_size = handout.group_size if entry.choice == "group" else None
        self.peers = Peers(Spread(sync=entry.choice, group_size=group_size), "world")
        self._handout, self._seed, self._learning_rate = handout, seed, learning_rate
        bounds = shard_bounds(handout.rows, self.peers.shards)  # as many as ranks
        self._deal = Deal.of(np.diff(bounds).tolist(), self.peers.own, handout.offsets)
        self._data = handout.training(int(bounds[self.peers.rank]), int(bounds[self.peers.rank + 1]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = FeedForward.of(handout.architecture)
        self._engine = _Clocked(
            net,
            handout.loss,
            replace(handout.optimizer, learning_rate=learning_rate),
            seed=seed,
            n_threads=1,
            split="example",
            peers=self.peers,
        )
        rank, ranks = self.peers.rank, self.peers.ranks
        if entry.delay == "changing":
            self._engine.hold_up = handout.straggler, ranks, rank
        elif entry.delay == "last" and rank == ranks - 1:
            self._engine.hold_up = handout.straggler, 1, 0
        self.epoch = 0

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return self._deal.steps

    def train(self, steps: int | None = None) -> Burst:
        """The next epoch, or its first ``steps``.

        Raises:
            NonFiniteLossError: the loss or a parameter is no longer finite; on all ranks.
        """
        steps = self.steps if steps is None else steps
        offsets, counts = self._deal.offsets[: steps + 1], self._deal.counts[:steps]
        order, rates = self._deal.order(self._seed, self.epoch)[: offsets[-1]], np.full(steps, self._learning_rate)
        self.epoch += 1
        dist.barrier()
        start = perf_counter()
        self._engine.train_epoch(self._data, order, offsets, rates, counts=counts)
        return self._engine.told(perf_counter() - start, steps)

    def score(self) -> float | None:
        """Of the validation rows; None: an output is not finite. Rank 0 finds it: every rank has the same net."""
        found = torch.full((1,), math.nan, dtype=torch.float64)
        if self.peers.rank == 0:
            rows = self._handout.validation()
            out = self._engine.predict(rows.x)
            if np.isfinite(out).all():
                found[0] = score(out, rows, self._handout.loss)
        dist.broadcast(found, src=0)
        return None if math.isnan(found) else float(found)


class _Clocked(NativeEngine):
    """An engine that tells what its last epoch took.

    Attributes:
        hold_up: how many times as long it computes; and in how many turns, of which it has which (native/timeline.h).
            None: nothing of that.
    """

    hold_up: tuple[float, int, int] | None = None

    def train_epoch(
        self,
        data: Data,
        order: np.ndarray,
        offsets: np.ndarray,
        learning_rates: np.ndarray,
        progress: Progress | None = None,
        *,
        counts: np.ndarray | None = None,
    ) -> EpochResult:
        if self.hold_up is not None:
            network = self._network(int(np.diff(offsets).max()))
            network.record(len(offsets) - 1, 0, *self.hold_up)  # how long it idles follows from what it marks
        return super().train_epoch(data, order, offsets, learning_rates, progress, counts=counts)

    def told(self, seconds: float, steps: int) -> Burst:
        """The parts of so many seconds that the last epoch of so many steps took."""
        (network,) = self._networks.values()  # one thread, by example: there is no other
        return Burst(seconds / steps, network.exchanged() / steps, network.awaited() / steps)


def _time_steps(rank: int, handout: Handout, timed: Timed) -> list[list[Burst]]:
    """One burst of each entry in each round, the entries in a new order every time."""
    entries, stage = timed.entries, "timing steps"
    members = [Member(handout, entry, 0, TIMED_RATE) for entry in entries]
    steps, cost = [], 0.0
    for done, member in enumerate(members):
        few = min(LEAST_STEPS, member.steps)
        member.train(few)
        took = _agreed(min(member.train(few).step for _ in range(3)))
        steps.append(min(member.steps, max(few, int(timed.burst_seconds / took))))
        cost += (steps[-1] + WARM_STEPS) * took
        _say(rank, stage, 0.2 * (done + 1) / len(members))
    rounds = min(timed.rounds, max(timed.least, int(timed.seconds / cost)))
    found: list[list[Burst]] = [[] for _ in entries]
    order, shuffle = list(range(len(entries))), random.Random(0).shuffle  # the same on all ranks
    for turn in range(rounds):
        shuffle(order)
        for index in order:
            members[index].train(min(WARM_STEPS, members[index].steps))
            found[index].append(members[index].train(steps[index]))
        _say(rank, stage, 0.2 + 0.8 * (turn + 1) / rounds)
    return found


def _train(rank: int, handout: Handout, entries: Sequence[Entry], seed: int, epochs: int, which: str) -> list[Course]:
    """A training of each entry from one seed; their epochs take turns, in a new order every time."""
    members = [Member(handout, entry, seed, handout.optimizer.learning_rate) for entry in entries]
    courses = [Course([], [_first(member)], None) for member in members]
    stage = f"training, {which}"
    going, shuffle = list(range(len(entries))), random.Random(seed).shuffle  # the same on all ranks
    for epoch in range(epochs):
        shuffle(going)
        for index in list(going):
            course = courses[index]
            try:
                burst = members[index].train()
                seconds, value = _agreed(burst.step) * members[index].steps, members[index].score()
            except NonFiniteLossError:
                value = None
            if value is None:
                courses[index] = replace(course, diverged=epoch + 1)
                going.remove(index)
                continue
            course.seconds.append(seconds)
            course.scores.append(value)
        _say(rank, stage, (epoch + 1) / epochs)
    return courses


def _say(rank: int, stage: str, share: float) -> None:
    if rank == 0:
        tell((stage, share))


def _first(member: Member) -> float:
    """The score before any training."""
    value = member.score()
    assert value is not None  # first weights are small
    return value


def _agreed(value: float) -> float:
    """The most of all ranks' values: the same on each."""
    found = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return float(found)
