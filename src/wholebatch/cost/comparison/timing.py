"""Time per step, interleaved: a round is one burst of every contender, in a new order, so that a noisy neighbour hits
all of them.

A burst trains whole epochs, or so many steps of one as fit: what an epoch costs beside its steps (gathering rows,
handing parameters to the engine) is spread over the steps as it is in a real training. Before a burst come a few steps
that are not timed: they wake the threads, and wait until those of the contender before are asleep.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

from wholebatch.cost.comparison.problem import Problem
from wholebatch.cost.comparison.trainer import Trainer
from wholebatch.cost.timing import Timing, summarise

WARM_STEPS = 2
WARM_SECONDS = 0.004
"""Threads of torch spin for about a millisecond after their last work, and hold a core meanwhile."""
LEAST_STEPS = 4
MOST_TIMES = 8
"""A burst may take so many times as long as asked for, if that makes it a whole epoch."""


class Burst:
    """A trainer, and how many of its steps take so long as a burst should.

    Args:
        seconds: that a burst should take; whole epochs may take longer.

    Attributes:
        first: seconds per step of the first few that were timed.
    """

    def __init__(self, trainer: Trainer, problem: Problem, seconds: float) -> None:
        self.trainer, self.problem = trainer, problem
        self._offsets, self._epoch = problem.offsets, 0
        self.warm(seconds)
        few = self._part(LEAST_STEPS)  # the least of several: one that was put aside would make every burst too short
        self.first = min(self._pass(few) for _ in range(5)) / few
        wanted = max(LEAST_STEPS, int(seconds / max(self.first, 1e-7)))
        whole = problem.steps_per_epoch
        self._call = whole if whole <= MOST_TIMES * wanted else wanted
        self._calls = max(1, wanted // self._call)

    @property
    def cost(self) -> float:
        """Seconds that a burst takes, the steps before it included, as the first few let expect."""
        return self.steps * self.first + max(WARM_SECONDS, WARM_STEPS * self.first)

    @property
    def steps(self) -> int:
        """Steps of a burst."""
        return self._call * self._calls

    def warm(self, seconds: float = WARM_SECONDS) -> None:
        """Untimed steps for at least so long."""
        until = time.perf_counter() + seconds
        while True:
            self._pass(self._part(WARM_STEPS))
            if time.perf_counter() >= until:
                return

    def run(self) -> float:
        """Seconds per step of one burst."""
        self.warm()
        return sum(self._pass(self._call) for _ in range(self._calls)) / self.steps

    def _part(self, steps: int) -> int:
        return min(steps, self.problem.steps_per_epoch)

    def _pass(self, steps: int) -> float:
        """The first ``steps`` mini-batches of the next epoch's order."""
        order = self.problem.order(0, self._epoch)
        self._epoch += 1
        return self.trainer.train(order, self._offsets[: steps + 1])


def affordable(bursts: Sequence[Burst], most: int, least: int, seconds: float) -> int:
    """Rounds that take about ``seconds``, but at least ``least`` and at most ``most``."""
    return min(most, max(least, int(seconds / sum(burst.cost for burst in bursts))))


def time_rounds(bursts: Sequence[Burst], rounds: int, tell: Callable[[float], None]) -> list[Timing]:
    """The time per step of each burst's trainer.

    Args:
        tell: called with the share that is done.
    """
    seconds: list[list[float]] = [[] for _ in bursts]
    order, shuffle = list(range(len(bursts))), random.Random(0).shuffle
    for turn in range(rounds):
        shuffle(order)
        for done, index in enumerate(order):
            seconds[index].append(bursts[index].run())
            tell((turn + (done + 1) / len(order)) / rounds)
    return [summarise(values, burst.steps) for values, burst in zip(seconds, bursts, strict=True)]
