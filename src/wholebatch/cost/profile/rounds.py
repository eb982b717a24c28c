"""Steps of all kinds in rounds, one of each in every round, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from wholebatch.cost.profile.change import Change
from wholebatch.cost.profile.clock import Clock
from wholebatch.cost.profile.norms import Norm
from wholebatch.cost.profile.probes import Probes, Stay, Visit
from wholebatch.cost.profile.samples import Samples

LEAST, MOST = 6, 100
"""Rounds: six pairs are the fewest of which all together give a 95 % interval of the median."""


BURST_SECONDS, MOST_BURST = 0.02, 8
"""A round has so long a burst of steps of a kind, at most so many, after one that is not counted: the change may leave
caches and branch predictors cold. Longer steps have none: of 70 ms, the first was like those after it. Ranks always
have one: steps that do not meet leave them at different places, and the next meeting would pay for that."""


class Measured(NamedTuple):
    """A step: its seconds, and what probes saw."""

    seconds: float
    visits: list[Visit] | None = None
    stays: list[Stay] | None = None


class Plan(NamedTuple):
    """So many rounds of bursts of so many steps, each after one that is not counted where ``settled`` says so."""

    rounds: int
    burst: int
    settled: bool


class Kind(NamedTuple):
    """How a step is run: with the batch norms changed or as they are, with probes or without."""

    changed: bool
    probed: bool


class Stepper:
    """Runs steps of each kind.

    Args:
        step: one training step.
        norms: on which the probes stand.
        clock: of the device that they run on.
        change: of the model; None: there is none, and no step is run changed.
    """

    def __init__(self, step: Callable[[], None], norms: Sequence[Norm], clock: Clock, change: Change | None) -> None:
        self.step, self.clock, self.change = step, clock, change
        self.probes = Probes(norms, clock)
        forms = (False, True) if change is not None else (False,)
        self.kinds = [Kind(changed, probed) for changed in forms for probed in (False, True)]
        self.visits: list[Visit] = []  # what the probes saw while the steps did not count yet

    def run(self, kind: Kind, steps: int = 1, *, settled: bool = False) -> list[Measured]:
        """So many steps on end; ``settled``: after one more that is not counted."""
        if kind.changed and self.change is not None:
            self.change.apply()
        if kind.probed:
            self.probes.attach()
        try:
            if settled:
                self._run_one(kind)
            return [self._run_one(kind) for _ in range(steps)]
        finally:
            self.probes.detach()
            if kind.changed and self.change is not None:
                self.change.undo()

    def _run_one(self, kind: Kind) -> Measured:
        if kind.probed:
            self.probes.begin()
        self.clock.settle()
        start = time.perf_counter()
        self.step()
        self.clock.settle()
        seconds = time.perf_counter() - start
        if not kind.probed:
            return Measured(seconds)
        visits, stays = self.probes.end()
        if self.probes.surveying and not kind.changed:
            self.visits = visits
        return Measured(seconds, visits, stays)

    def warm_up(self) -> float:
        """Two steps of each kind that are not counted; seconds of the later ones, per kind."""
        seconds = sum(self.run(kind, settled=True)[0].seconds for kind in self.kinds) / len(self.kinds)
        self.probes.surveying = False
        return seconds

    def measure(self, plan: Plan, tell: Callable[[int], None]) -> Samples:
        """So many rounds; ``tell`` is called with the number of those that are done."""
        samples = Samples(burst=plan.burst)
        gc.collect()
        for number in range(plan.rounds):
            for kind in arrange(self.kinds, number):
                for measured in self.run(kind, plan.burst, settled=plan.settled):
                    samples.add(measured.seconds, measured.visits, measured.stays, kind.changed, kind.probed)
            tell(number + 1)
        return samples


def arrange(kinds: Sequence[Kind], number: int) -> list[Kind]:
    """The order of round ``number``: each kind comes first, and after each other, as often as any."""
    turned = [*kinds[number // 2 % len(kinds) :], *kinds[: number // 2 % len(kinds)]]
    return turned[::-1] if number % 2 else turned


def plan_rounds(seconds: float, kinds: int, ranks: int, asked: int | None, budget: float) -> Plan:
    """A burst of about ``BURST_SECONDS``, and rounds as asked or as fit into ``budget``; a step takes ``seconds``."""
    settled = seconds < BURST_SECONDS or ranks > 1
    burst = max(1, min(MOST_BURST, int(BURST_SECONDS / max(seconds, 1e-6))))
    fitting = int(budget / max(seconds * kinds * (burst + settled), 1e-6))
    return Plan(asked if asked is not None else max(LEAST, min(MOST, fitting)), burst, settled)
