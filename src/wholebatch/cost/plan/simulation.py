"""Steps simulated event by event: every worker has a clock, and every meeting sets the clocks of those who meet.

::

    clock[w] += compute * factor[w]                 factor: lognormal of mean 1, drawn anew for each worker and stretch
    met       = max(clock[w] of the group)          the last one to come
    wait[w]  += met - clock[w]
    clock[w]  = met + exchange

Draws are independent between workers, stretches and steps. What a neighbour on the machine takes away for longer than a
step is therefore not in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from wholebatch.cost.plan.outcome import Outcome, Team
from wholebatch.cost.plan.stretches import Stretch

_DRAWN_AT_ONCE = 1 << 18
"""Steps times workers: 2 MiB of float64, which a core's second cache holds."""


def simulate(
    stretches: Sequence[Stretch], exchanges: Mapping[Team, Sequence[float]], steps: int, seed: int
) -> dict[Team, Outcome]:
    """Several teams of equally many workers, over the same draws: what differs between them is the meetings alone.

    Args:
        stretches: of a step; the last one ends in the sum of gradients, where all workers meet.
        exchanges: for each team the microseconds that end each stretch.
        steps: to simulate.
        seed: of the draws.
    """
    (workers,) = {team.workers for team in exchanges}
    random = np.random.default_rng([seed, workers])
    most = max(1, _DRAWN_AT_ONCE // workers)
    parts: dict[Team, list[tuple[np.ndarray, np.ndarray]]] = {team: [] for team in exchanges}
    for start in range(0, steps, most):
        for team, part in _simulate(stretches, exchanges, min(most, steps - start), random).items():
            parts[team].append(part)
    outcomes = {}
    for team, found in parts.items():
        ends, waits = (np.concatenate(of_all) for of_all in zip(*found, strict=True))
        outcomes[team] = _summarise(ends, waits, sum(exchanges[team]))
    return outcomes


def _simulate(
    stretches: Sequence[Stretch], exchanges: Mapping[Team, Sequence[float]], steps: int, random: np.random.Generator
) -> dict[Team, tuple[np.ndarray, np.ndarray]]:
    """For each team: when each step ended, and the mean wait of its workers."""
    (workers,) = {team.workers for team in exchanges}
    clocks = {team: np.zeros((steps, workers)) for team in exchanges}
    waits = {team: np.zeros(steps) for team in exchanges}
    for place, stretch in enumerate(stretches):
        compute = _draw(stretch, (steps, workers), random)
        for team, clock in clocks.items():
            clock += compute if team.slow is None else _slowed(compute, team)
            group = workers if stretch.gradients else team.group
            if group > 1:
                together = clock.reshape(steps, -1, group)
                met = together.max(axis=2, keepdims=True)
                waits[team] += (met - together).mean(axis=(1, 2))
                together[:] = met
            clock += exchanges[team][place]
    return {team: (clocks[team][:, 0], waits[team]) for team in exchanges}


def _draw(stretch: Stretch, shape: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Compute of one stretch, microseconds."""
    sigma = stretch.sigma
    factor = np.exp(sigma * random.standard_normal(shape) - sigma**2 / 2)
    return factor * stretch.compute_us


def _slowed(compute: np.ndarray, team: Team) -> np.ndarray:
    assert team.slow is not None
    slowed = compute.copy()
    slowed[:, team.slow.worker] *= team.slow.by
    return slowed


def _summarise(steps: np.ndarray, waits: np.ndarray, exchanged: float) -> Outcome:
    p50, p95 = np.quantile(steps, [0.5, 0.95])
    mean, wait = float(steps.mean()), float(waits.mean())
    error = float(steps.std(ddof=1) / np.sqrt(len(steps))) if len(steps) > 1 else 0.0
    # Every worker's step is its compute, its waits and the exchanges.
    return Outcome(mean, error, float(p50), float(p95), max(mean - wait - exchanged, 0.0), wait)
