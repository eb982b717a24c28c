"""A norm on an engine, as something that can be started from any seed; and its best variant, by a short trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from wholebatch.cost.comparison import eager, ours
from wholebatch.cost.comparison.problem import Problem
from wholebatch.cost.comparison.record import EngineName, NormName
from wholebatch.cost.comparison.timing import Burst
from wholebatch.cost.comparison.trainer import Trainer
from wholebatch.feedforward.settings import Architecture

TRIAL_ROUNDS = 5
HOPELESS = 2.0
TIMED_RATE = 1e-5
"""Steps are timed with it: how long one takes does not depend on the rate, and a net that is trained on and on while it
is timed stays in the range of ordinary numbers."""


@dataclass(frozen=True)
class Entry:
    """A norm on an engine, with threads and variant."""

    norm: NormName
    engine: EngineName
    threads: int
    how: str

    def start(self, problem: Problem, seed: int, learning_rate: float) -> Trainer:
        """A net with the seed's first weights, ready to be trained."""
        make = ours.Ours if self.engine == "wholebatch" else eager.Eager
        return make(problem, self.norm, seed, learning_rate, self.threads, self.how)


def choose(
    problem: Problem,
    norms: Sequence[NormName],
    engines: Sequence[EngineName],
    threads: int,
    burst_seconds: float,
    tell: Callable[[float], None],
) -> list[tuple[Entry, Burst]]:
    """Each norm on each engine with the threads and the variant that were fastest in a trial, ready to be timed.

    The trial is interleaved, like the timing that follows. Architectures that are the same net (no hidden layer, hence
    no norm) are still measured one by one.

    Args:
        threads: tried beside 1.
        burst_seconds: that a burst should take.
        tell: called with the share that is done.
    """
    counts = sorted({1, threads})
    candidates = [
        Entry(norm, engine, count, how)
        for norm in norms
        for engine in engines
        for count in counts
        for how in (ours.variants() if engine == "wholebatch" else eager.VARIANTS)
    ]
    bursts = []
    for done, entry in enumerate(candidates):
        bursts.append(Burst(entry.start(problem, 0, TIMED_RATE), problem, burst_seconds))
        tell(0.5 * done / len(candidates))
    groups: dict[tuple[NormName, EngineName], list[int]] = {}
    for index, entry in enumerate(candidates):
        groups.setdefault((entry.norm, entry.engine), []).append(index)
    best = _fastest(bursts, list(groups.values()), lambda done: tell(0.5 + 0.5 * done))
    return [(candidates[index], bursts[index]) for index in best]


def _fastest(bursts: Sequence[Burst], groups: Sequence[Sequence[int]], tell: Callable[[float], None]) -> list[int]:
    """The burst of the least median in each group, after interleaved rounds.

    One that is :data:`HOPELESS` times as slow as the best of its group takes no further part: on busy cores a team of
    threads may wait for its slowest so long that the trial would take a minute.
    """
    active = [list(group) for group in groups]
    seconds: list[list[float]] = [[burst.first] for burst in bursts]
    for turn in range(TRIAL_ROUNDS):
        for group in active:
            least = min(median(seconds[index]) for index in group)
            group[:] = [index for index in group if median(seconds[index]) <= HOPELESS * least]
        for group in active:
            for index in group:
                if len(group) > 1:
                    seconds[index].append(bursts[index].run())
        tell((turn + 1) / TRIAL_ROUNDS)
    return [min(group, key=lambda index: median(seconds[index])) for group in active]


def parameters(architecture: Architecture) -> int:
    """Numbers that the net learns."""
    from wholebatch.feedforward import FeedForward

    return sum(tensor.numel() for tensor in FeedForward.of(architecture, device="meta").parameters())
