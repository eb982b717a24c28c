"""The model held against real ranks of this host: it predicts their steps from one that computes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wholebatch.cost.digits import middle
from wholebatch.cost.plan.forecast import STEPS
from wholebatch.cost.plan.measuring import Measured, describe, measure_steps
from wholebatch.cost.plan.others import count_others, crowd
from wholebatch.cost.plan.outcome import Team, exchanges
from wholebatch.cost.plan.record import Check, Checked, Network, Slept, Synchronisation
from wholebatch.cost.plan.simulation import simulate
from wholebatch.cost.plan.slept import compare_slept, count_steps, sleep_steps
from wholebatch.cost.plan.stretches import split
from wholebatch.cost.plan.trial import Shape, Times
from wholebatch.cost.ranks import run_ranks


def check(
    shape: Shape,
    ranks: Sequence[int],
    network: Network,
    cores: int,
    seconds: float,
    say: Callable[[str], None] = lambda _: None,
) -> Check:
    """Predict and measure steps of each number of ``ranks``.

    A rank's compute is predicted as that of a rank alone, times :func:`wholebatch.cost.plan.others.crowd`: ranks over
    cores where there are more ranks than cores, and what else runs on this host counted in.

    Args:
        shape: of the net and of a rank's mini-batch.
        ranks: numbers of ranks, each at least 2.
        network: of this host, measured between two ranks.
        cores: that the ranks may use.
        seconds: to measure each number of ranks for.
        say: is told what is done.

    Raises:
        RankError: a rank failed.
    """
    lines: list[Checked] = []
    slept: list[Slept] = []
    for number in ranks:
        say(f"check: {number} ranks on {cores} cores")
        others = count_others()
        measured = run_ranks(measure_steps, number, shape, seconds)
        lines += compare(shape, measured, network, cores, others)
        say(f"check: {number} ranks that sleep")
        slept += compare_slept(run_ranks(sleep_steps, number, count_steps(seconds)), network)
    return Check(hidden=list(shape.hidden), rows=shape.rows, cores=cores, network=network, lines=lines, slept=slept)


def compare(shape: Shape, measured: Sequence[Measured], network: Network, cores: int, others: float) -> list[Checked]:
    """What the ranks measured beside what the model makes of it, for batch norm over all of them and over each."""
    number = len(measured)
    crowding = crowd(number, others, cores)
    network = network.model_copy(update={"exchange": measured[0].way})
    alone = [times for one in measured for times in one.alone]
    stretches = split(describe(shape, alone, number), factor=crowding)
    teams: list[tuple[Synchronisation, Team, list[list[Times]]]] = [
        ("all", Team(number, number), [one.together for one in measured]),
        ("none", Team(number, 1), [one.apart for one in measured]),
    ]
    messages = {team: exchanges(stretches, network, team) for _, team, _ in teams}
    predicted = simulate(stretches, messages, STEPS, seed=0)
    alone_us = float(np.median([times.step - times.idle for times in alone])) * 1e6
    lines = []
    for synchronisation, team, by_rank in teams:
        steps = np.mean([[times.step for times in of_rank] for of_rank in by_rank], axis=0) * 1e6
        idle = float(np.mean([[times.idle for times in of_rank] for of_rank in by_rank])) * 1e6
        p20, p50, p80 = middle(steps)
        exchanged = sum(messages[team])
        told = float(np.median(last_to_come(by_rank, len(shape.hidden)))) + exchanged
        lines.append(
            Checked(
                workers=number,
                synchronisation=synchronisation,
                steps=len(steps),
                predicted_us=predicted[team].p50_us,
                median_us=p50,
                p20_us=p20,
                p80_us=p80,
                error_percent=100 * (predicted[team].p50_us / p50 - 1),
                alone_us=alone_us,
                others=others,
                crowding=crowding,
                predicted_idle_us=predicted[team].wait_us + exchanged,
                measured_idle_us=idle,
                compute_us=float(steps.mean()) - idle,
                told_us=told,
                told_error_percent=100 * (told / p50 - 1),
            )
        )
    return lines


def last_to_come(by_rank: Sequence[Sequence[Times]], hidden: int) -> np.ndarray:
    """Microseconds of each measured step if meetings took no time: the sum of the slowest rank's stretches.

    Args:
        by_rank: the same steps of each rank.
        hidden: layers with batch norm. Steps without shared batch norm are a single stretch.
    """
    pieces = np.array([[times.pieces for times in of_rank] for of_rank in by_rank]) * 1e6
    if pieces.shape[2] == 1 + 2 * (hidden + 1):
        # Update with the first layer, each further layer, the output both ways, each layer backward.
        starts = [0, *range(2, hidden + 2), *range(hidden + 3, 2 * hidden + 3)]
    else:
        starts = [0]
    slowest: np.ndarray = np.add.reduceat(pieces, starts, axis=2).max(axis=0).sum(axis=1)
    return slowest
