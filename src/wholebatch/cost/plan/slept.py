"""The model of waiting held against ranks that sleep in place of computing: who sleeps needs no core.

Real ranks, real meetings, and the lognormal stretches of the model, drawn anew in each rank. What computing ranks take
from each other is not in the error. What is left is the waiting's own and, on a crowded host, that a rank wakes late.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from time import perf_counter

import numpy as np
import torch
import torch.distributed as dist

from wholebatch.cost.digits import middle
from wholebatch.cost.plan.clocked import Clocked
from wholebatch.cost.plan.closed_form import solve
from wholebatch.cost.plan.exchange import exchange_us
from wholebatch.cost.plan.outcome import Team
from wholebatch.cost.plan.record import Network, Slept, Synchronisation
from wholebatch.cost.plan.stretches import Stretch
from wholebatch.sharing import Meeting

STRETCHES, MEAN_US, SPREAD = 5, 10_000.0, 0.3
"""Of a step. A sleep takes about 0.1 ms longer than asked for, which is little of 10 ms."""
LEAST_STEPS, STEPS_PER_SECOND = 12, 10


def count_steps(seconds: float) -> int:
    """Steps of each kind that take about ``seconds``, at least 12."""
    return max(LEAST_STEPS, round(STEPS_PER_SECOND * seconds))


def sleep_steps(rank: int, steps: int) -> dict[Synchronisation, list[float]]:
    """In a rank: seconds of steps with a meeting after each stretch (``all``), and with one at the end (``none``)."""
    group = dist.GroupMember.WORLD
    assert group is not None
    sharing, random = Clocked(group), np.random.default_rng([rank])
    sigma = Stretch(MEAN_US, SPREAD, 0).sigma
    found: dict[Synchronisation, list[float]] = {"all": [], "none": []}
    vector, meeting = torch.zeros(1), Meeting("slept", "forward")
    sharing.sum(vector, meeting)  # the first one opens the way
    for synchronisation, times in found.items():
        dist.barrier()
        start = perf_counter()
        for _ in range(steps):
            naps = MEAN_US / 1e6 * np.exp(sigma * random.standard_normal(STRETCHES) - sigma**2 / 2)
            for place, nap in enumerate(naps.tolist()):
                time.sleep(nap)
                if synchronisation == "all" or place == STRETCHES - 1:
                    sharing.sum(vector, meeting)
            end = perf_counter()
            times.append(end - start)
            start = end
    return found


def compare_slept(measured: Sequence[dict[Synchronisation, list[float]]], network: Network) -> list[Slept]:
    """What the ranks took beside what the model predicts, in closed form."""
    number, lines = len(measured), []
    stretches = [Stretch(MEAN_US, SPREAD, 8, gradients=place == STRETCHES - 1) for place in range(STRETCHES)]
    message = exchange_us(network.meetings, network.exchange, number, 8)
    groups: tuple[tuple[Synchronisation, int], ...] = (("all", number), ("none", 1))
    for synchronisation, group in groups:
        meetings = STRETCHES if synchronisation == "all" else 1
        steps = np.mean([of_rank[synchronisation] for of_rank in measured], axis=0) * 1e6
        predicted = solve(stretches, [message] * meetings, Team(number, group)).p50_us
        p20, p50, p80 = middle(steps)
        lines.append(
            Slept(
                workers=number,
                synchronisation=synchronisation,
                steps=len(steps),
                predicted_us=predicted,
                median_us=p50,
                p20_us=p20,
                p80_us=p80,
                error_percent=100 * (predicted / p50 - 1),
            )
        )
    return lines
