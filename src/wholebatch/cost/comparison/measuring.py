"""The whole comparison.

1. prepare the table, refuse what cannot be measured
2. choose threads and variant of each contender by a short trial
3. time their steps, interleaved
4. choose each norm's learning rate, where several were named
5. train and score every contender from every seed
6. train them again, timed and not stopped, in turn
7. find the target, who reached it and when, and check the claim
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from wholebatch.cost.comparison import claim, rates
from wholebatch.cost.comparison.contenders import Entry, choose, parameters
from wholebatch.cost.comparison.curves import join, score, time_epochs
from wholebatch.cost.comparison.problem import Problem, describe, make
from wholebatch.cost.comparison.reaching import constant_score, find_target, reach
from wholebatch.cost.comparison.record import Comparison, Contender, NormName, Run, Trial
from wholebatch.cost.comparison.settings import Wanted
from wholebatch.cost.comparison.timing import Burst, affordable, time_rounds
from wholebatch.cost.subject import doubt_rows
from wholebatch.cost.timing import LEAST_ROUNDS, Timing
from wholebatch.runs.prepared import Prepared

EVALUATIONS = 100
"""Of a training, at most, where nothing else was asked for."""

Tell = Callable[[str, float], None]
"""Called with what is being done and which share of it is done, 0 to 1."""


def compare(wanted: Wanted, tell: Tell = lambda what, share: None) -> Comparison:
    """Measure what ``wanted`` asks for.

    Raises:
        ValueError: whatever is wrong with the table (TableError) or a setting, or nets that do not fit in memory.
        OSError: the table cannot be read.
    """
    tell("reading the table", 0.0)
    problem, prepared, notes = make(wanted)
    every = wanted.evaluate_every or _every(problem, wanted.run.epochs)
    with _threads_of_torch():
        chosen = choose(
            problem,
            wanted.norms,
            wanted.engines,
            wanted.threads,
            wanted.burst_seconds / 2,
            lambda share: tell("choosing threads and variants", share),
        )
        entries, bursts = [entry for entry, _ in chosen], [burst for _, burst in chosen]
        rounds = affordable(bursts, wanted.rounds, min(LEAST_ROUNDS, wanted.rounds), wanted.timing_seconds)
        timings = time_rounds(bursts, rounds, lambda share: tell("timing steps", share))
        trials = _try_rates(problem, entries, wanted, every, tell)
        rate_of = {trial.norm: trial.learning_rate for trial in trials if trial.chosen}
        learning_rates = [rate_of.get(entry.norm, wanted.learning_rates[0]) for entry in entries]
        runs = _train(problem, entries, bursts, learning_rates, wanted, every, tell)
    constant = constant_score(problem.training, problem.validation, problem.loss, problem.plain.out_features)
    target = find_target(runs, constant, wanted.target_score)
    contenders = _contenders(problem, entries, timings, learning_rates)
    return Comparison(
        **dict(describe(problem, prepared, wanted.run, wanted.seeds, [*notes, *_doubts(prepared, wanted)])),
        evaluated_every=min(every, problem.steps_per_epoch),
        most_threads=wanted.threads,
        target=target,
        contenders=contenders,
        runs=[reach(run, target.score) for run in runs],
        trials=trials,
        trials_engine=wanted.engines[0] if trials else None,
        claims=claim.check(contenders),
    )


def _every(problem: Problem, epochs: int) -> int:
    """Steps between evaluations: a hundredth of a training, but so many that scoring takes no longer than training.

    A row is scored by one pass through the net, and learned from by three.
    """
    cheap = -(-len(problem.validation) // (3 * problem.mini_batch))
    return max(cheap, -(-problem.steps_per_epoch * epochs // EVALUATIONS))


def _try_rates(problem: Problem, entries: Sequence[Entry], wanted: Wanted, every: int, tell: Tell) -> list[Trial]:
    if len(wanted.learning_rates) == 1:
        return []
    tried = [entry for entry in entries if entry.engine == wanted.engines[0]]
    seeds = range(wanted.seeds)
    total = len(tried) * len(wanted.learning_rates) * len(seeds) * wanted.run.epochs * problem.steps_per_epoch
    count = _Count(total, "choosing learning rates", tell)
    return rates.search(problem, tried, wanted.learning_rates, seeds, wanted.run.epochs, every, count.add)


def _train(
    problem: Problem,
    entries: Sequence[Entry],
    bursts: Sequence[Burst],
    learning_rates: Sequence[float],
    wanted: Wanted,
    every: int,
    tell: Tell,
) -> list[Run]:
    """Every contender from every seed: scored, then timed."""
    epochs, steps = wanted.run.epochs, problem.steps_per_epoch
    total = len(entries) * wanted.seeds * epochs * steps
    count = _Count(total, "training, scored", tell)
    curves = {
        (entry, seed): score(problem, entry, seed, rate, epochs, every, count.add)
        for seed in range(wanted.seeds)
        for entry, rate in zip(entries, learning_rates, strict=True)
    }
    count = _Count(total, "training, timed", tell)
    runs: dict[tuple[Entry, int], Run] = {}
    for seed in range(wanted.seeds):
        seconds = time_epochs(problem, entries, bursts, learning_rates, seed, epochs, count.add)
        for entry, spent in zip(entries, seconds, strict=True):
            runs[entry, seed] = join(entry, seed, *curves[entry, seed], spent, steps)
    return [runs[entry, seed] for entry in entries for seed in range(wanted.seeds)]


def _contenders(
    problem: Problem, entries: Sequence[Entry], timings: Sequence[Timing], learning_rates: Sequence[float]
) -> list[Contender]:
    sizes: dict[NormName, int] = {e.norm: parameters(problem.architecture(e.norm)) for e in entries}
    return [
        Contender(
            norm=entry.norm,
            engine=entry.engine,
            threads=entry.threads,
            how=entry.how,
            parameters=sizes[entry.norm],
            learning_rate=rate,
            timing=timing,
        )
        for entry, timing, rate in zip(entries, timings, learning_rates, strict=True)
    ]


def _doubts(prepared: Prepared, wanted: Wanted) -> Iterator[str]:
    """What makes the numbers weaker than they look."""
    if not wanted.run.hidden:
        yield "The net has no hidden layer, so there is nothing to normalise: all norms are the same net."
    assert prepared.validation is not None
    yield from doubt_rows(len(prepared.validation))


class _Count:
    """Steps done, as shares of all."""

    def __init__(self, total: int, what: str, tell: Tell) -> None:
        self.total, self.what, self.tell, self.done = total, what, tell, 0
        tell(what, 0.0)

    def add(self, steps: int) -> None:
        """So many more."""
        self.done += steps
        self.tell(self.what, self.done / self.total)


@contextmanager
def _threads_of_torch() -> Iterator[None]:
    """Give torch its number of threads back."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
