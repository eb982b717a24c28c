"""The plan: a step for each number of workers, simulated where that is feasible and in closed form beyond."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from wholebatch.cost.plan.closed_form import solve
from wholebatch.cost.plan.exchange import exchange_us
from wholebatch.cost.plan.outcome import Outcome, Team, exchanges
from wholebatch.cost.plan.record import Forecast, Network, Plan, Slow, Synchronisation, Workload
from wholebatch.cost.plan.simulation import simulate
from wholebatch.cost.plan.stretches import Stretch, split

MOST_SIMULATED = 256
"""Workers up to which steps are simulated: 256 take about 0.3 s with three layers, beyond that it would be minutes."""
STEPS = 4000
"""Simulated steps of each number of workers: a standard error of 0.2 % of the mean where steps vary by 10 %."""
GROUP = 8


def plan(
    workload: Workload,
    network: Network,
    workers: Sequence[int],
    *,
    jitter: float | None = None,
    slow: Slow | None = None,
    strong: bool = False,
    group_size: int | None = None,
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> Plan:
    """A step of each number of workers, with batch norm over all of them, over groups and over each worker alone.

    Args:
        workload: one worker's step.
        network: between the workers.
        workers: numbers of workers, each at least 1.
        jitter: coefficient of variation of the compute between two meetings; None: the workload's own.
        slow: a worker that is slower than the others.
        strong: the whole mini-batch is divided, and compute with it, in proportion to rows; otherwise each worker keeps
            its rows, and the mini-batch grows.
        group_size: workers of a group; there are no groups of as many workers or fewer. None: 8, and no groups where 8
            does not divide.
        seed: of the simulation.
        progress: is told which share of the workers is done.

    Raises:
        ValueError: a group size that does not divide a number of workers, a slow worker that there is not, or, where
            the mini-batch is divided, more workers than rows.
    """
    check_request(workers, workload.whole_rows, slow=slow, strong=strong, group_size=group_size)
    forecasts: list[Forecast] = []
    for done, number in enumerate(sorted(set(workers))):
        progress(done / len(workers))
        factor = workload.whole_rows / (number * workload.rows) if strong else 1.0
        stretches = split(workload, jitter, factor)
        forecasts += _forecast(stretches, network, _teams(number, slow, group_size), seed)
    most = max(workers)
    gathering = exchanges(stretches, network.model_copy(update={"exchange": "allgather"}), Team(most, most))
    return Plan(
        workload=workload,
        network=network,
        jitter=jitter,
        slow=slow,
        scaling="strong" if strong else "weak",
        group_size=group_size or GROUP,
        seed=seed,
        forecasts=forecasts,
        gathering_us=sum(gathering),
    )


def _teams(workers: int, slow: Slow | None, group_size: int | None) -> dict[Synchronisation, Team]:
    teams: dict[Synchronisation, Team] = {"all": Team(workers, workers, slow)}
    group = group_size or GROUP
    if group < workers and workers % group == 0:
        teams["groups"] = Team(workers, group, slow)
    teams["none"] = Team(workers, 1, slow)
    return teams


def _forecast(
    stretches: Sequence[Stretch], network: Network, teams: dict[Synchronisation, Team], seed: int
) -> list[Forecast]:
    messages = {team: exchanges(stretches, network, team) for team in teams.values()}
    workers = teams["all"].workers
    simulated = workers <= MOST_SIMULATED
    outcomes: dict[Team, Outcome]
    if simulated:
        outcomes = simulate(stretches, messages, STEPS, seed)
    else:
        outcomes = {team: solve(stretches, of_team, team) for team, of_team in messages.items()}
    gradients = exchange_us(network.gradients, "allreduce", workers, stretches[-1].size)
    return [
        Forecast(
            workers=workers,
            synchronisation=name,
            group=team.group,
            method="simulated" if simulated else "closed form",
            steps=STEPS if simulated else 0,
            mean_us=outcomes[team].mean_us,
            error_us=outcomes[team].error_us,
            p50_us=outcomes[team].p50_us,
            p95_us=outcomes[team].p95_us,
            compute_us=outcomes[team].compute_us,
            wait_us=outcomes[team].wait_us,
            exchange_us=math.fsum(messages[team]),
            gradients_us=gradients,
        )
        for name, team in teams.items()
    ]


def check_request(
    workers: Sequence[int], whole_rows: int, *, slow: Slow | None, strong: bool, group_size: int | None
) -> None:
    """Refuse what :func:`plan` cannot do; ``whole_rows`` are those of the workload.

    Raises:
        ValueError: see there.
    """
    if not workers or min(workers) < 1:
        raise ValueError(f"numbers of workers are whole numbers of at least 1; these are {list(workers)}")
    if group_size is not None:
        uneven = [number for number in workers if number > group_size and number % group_size]
        if uneven:
            raise ValueError(
                f"groups of {group_size} do not divide {uneven[0]} workers; choose a --group-size that divides every "
                "number of --workers"
            )
    if slow is not None and slow.worker >= min(workers):
        raise ValueError(
            f"worker {slow.worker} is to be slow, and of {min(workers)} workers the last one is {min(workers) - 1} "
            "(they are counted from 0)"
        )
    if strong and max(workers) > whole_rows:
        raise ValueError(
            f"{max(workers)} workers cannot divide a mini-batch of {whole_rows} rows; plan for fewer workers "
            "or leave --strong out"
        )
