"""The whole measurement.

1. prepare the table, refuse what cannot be measured, and lay it out for the ranks
2. time the steps of all choices, interleaved, without and with ranks that are held up
3. train each choice from every seed, their epochs in turn; from the first seed with ranks held up, too
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from wholebatch import kernels
from wholebatch.cost.comparison.problem import Problem, describe, make
from wholebatch.cost.comparison.settings import Wanted as Compared
from wholebatch.cost.ranks import PATIENCE, run_ranks
from wholebatch.cost.synchronisation.handout import Handout, hand_out
from wholebatch.cost.synchronisation.member import Burst, Course, Entry, Timed, Trained, measure
from wholebatch.cost.synchronisation.record import Steps, Synchronisation, Training
from wholebatch.cost.synchronisation.settings import Wanted
from wholebatch.cost.timing import LEAST_ROUNDS, summarise
from wholebatch.feedforward.sharding import shard_bounds
from wholebatch.feedforward.threads import usable_cores
from wholebatch.runs.prepared import Prepared

SILENCE = 10 * PATIENCE
"""Seconds without a word of any rank after which they are ended: they tell of each epoch."""

Tell = Callable[[str, float], None]
"""Called with what is being done and which share of it is done, 0 to 1."""


def synchronise(wanted: Wanted, tell: Tell = lambda what, share: None) -> Synchronisation:
    """Measure what ``wanted`` asks for.

    Raises:
        ValueError: whatever is wrong with the table (TableError) or a setting, nets that do not fit in memory, or no
            compiled part.
        OSError: the table cannot be read, or there is no room for the ranks' copy of it.
        RankError: a rank failed.
    """
    tell("reading the table", 0.0)
    kernels.native_module()  # says what to do where it is missing
    problem, prepared, notes = make(
        Compared(wanted.run, norms=("batch",), engines=("wholebatch",), most_rows=wanted.most_rows)
    )
    if not problem.plain.hidden_layer_sizes:
        raise ValueError("the net has no hidden layer, so there is no batch norm to synchronise; give --hidden sizes")
    with TemporaryDirectory(prefix="wholebatch-") as folder:
        handout = hand_out(problem, Path(folder), wanted.group, wanted.straggler)
        steps, trainings = _measure(handout, wanted, tell)
    return _record(problem, prepared, wanted, steps, trainings, [*notes, *order_notes(problem, wanted.processes)])


def order_notes(problem: Problem, ranks: int) -> list[str]:
    """What the order of the table means where batch norm is over fewer rows than all."""
    y = problem.training.y
    assert y is not None
    bounds = shard_bounds(len(y), ranks)
    shards = [y[begin:end] for begin, end in pairwise(bounds)]
    if problem.loss.takes_classes:
        classes = problem.plain.out_features
        shares = [np.bincount(part, minlength=classes) / len(part) for part in (y, *shards)]
        apart = max(float(np.abs(share - shares[0]).sum()) / 2 for share in shares[1:])
        said, much = f"{apart:.0%} of a rank's rows would have to be of another class to have the shares", 0.1
    else:
        spread = np.where(y.std(0) > 0, y.std(0), 1)
        apart = max(float((np.abs(part.mean(0) - y.mean(0)) / spread).max()) for part in shards)
        said, much = f"the mean target of a rank's rows lies {apart:.2g} standard deviations from that", 0.25
    if apart <= much:
        return []
    return [
        f"The table is ordered by its target: a rank owns rows that stand together, and {said} of the whole table. "
        "Batch norm over all ranks does not mind; over fewer it normalises by rows that are unlike those it predicts. "
        "Shuffle the table once, or stay with all."
    ]


def _measure(handout: Handout, wanted: Wanted, tell: Tell) -> tuple[list[Steps], list[Training]]:
    entries = [Entry(choice, delay) for delay in wanted.delays for choice in wanted.choices]
    plain = entries[: len(wanted.choices)]
    timed = Timed(entries, wanted.rounds, min(LEAST_ROUNDS, wanted.rounds), wanted.burst_seconds, wanted.timing_seconds)
    trained = Trained([plain if seed else entries for seed in range(wanted.seeds)], wanted.run.epochs)
    tell("starting ranks", 0.0)
    found: list[tuple[list[list[Burst]], list[list[Course]]]] = run_ranks(
        measure, wanted.processes, handout, timed, trained, patience=SILENCE, told=lambda said: tell(*said)
    )
    steps = [take_together(entry, [bursts[index] for bursts, _ in found]) for index, entry in enumerate(timed.entries)]
    trainings = [
        _training(entry, seed, course)
        for seed, (entries, courses) in enumerate(zip(trained.entries, found[0][1], strict=True))
        for entry, course in zip(entries, courses, strict=True)
    ]
    return steps, trainings


def take_together(entry: Entry, bursts: Sequence[Sequence[Burst]]) -> Steps:
    """The bursts of each rank, round by round, as one entry of the record."""

    def medians(part: Callable[[Burst], float]) -> list[float]:
        return [float(np.median([part(burst) for burst in of_rank])) for of_rank in bursts]

    return Steps(
        choice=entry.choice,
        delay=entry.delay,
        timing=summarise([max(burst.step for burst in turn) for turn in zip(*bursts, strict=True)], 1),
        compute=medians(lambda burst: max(0.0, burst.step - burst.exchange - burst.wait)),
        exchange=medians(lambda burst: burst.exchange),
        wait=medians(lambda burst: burst.wait),
    )


def _training(entry: Entry, seed: int, course: Course) -> Training:
    return Training(
        choice=entry.choice,
        delay=entry.delay,
        seed=seed,
        seconds=list(accumulate(course.seconds, initial=0.0)),
        scores=course.scores,
        diverged=course.diverged,
    )


def _record(
    problem: Problem,
    prepared: Prepared,
    wanted: Wanted,
    steps: list[Steps],
    trainings: list[Training],
    notes: list[str],
) -> Synchronisation:
    return Synchronisation(
        **dict(describe(problem, prepared, wanted.run, wanted.seeds, notes)),
        learning_rate=problem.optimizer.learning_rate,
        ranks=wanted.processes,
        cores=usable_cores(),
        choices=list(wanted.choices),
        group_size=wanted.group if "group" in wanted.choices else None,
        straggler=wanted.straggler,
        steps=steps,
        trainings=trainings,
    )
