"""Which learning rate each norm is shown with: the one that is best for it, of those that were named."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from wholebatch.cost.comparison.contenders import Entry
from wholebatch.cost.comparison.curves import score
from wholebatch.cost.comparison.problem import Problem
from wholebatch.cost.comparison.record import NormName, Trial


def search(
    problem: Problem,
    entries: Sequence[Entry],
    learning_rates: Sequence[float],
    seeds: Sequence[int],
    epochs: int,
    every: int,
    tell: Callable[[int], None],
) -> list[Trial]:
    """Train every entry (a norm each, all on one engine) with every learning rate from every seed, and choose."""
    trials: list[Trial] = []
    for entry in entries:
        curves = [[score(problem, entry, seed, rate, epochs, every, tell) for seed in seeds] for rate in learning_rates]
        trials += choose(entry.norm, learning_rates, curves)
    return trials


def choose(
    norm: NormName,
    learning_rates: Sequence[float],
    curves: Sequence[Sequence[tuple[Sequence[tuple[int, float]], int | None]]],
) -> list[Trial]:
    """The rate of the highest validation score, averaged over seeds; of equals the one whose whole curves are higher.

    Where every rate made some training diverge, the smallest is chosen.

    Args:
        curves: for each rate and seed the (step, score) pairs, and the step until which it diverged.
    """
    found: list[tuple[float, float] | None] = []
    for of_rate in curves:
        whole = all(diverged is None for _, diverged in of_rate)
        scores = [[value for _, value in pairs] for pairs, _ in of_rate]
        best, mean = np.mean([max(s) for s in scores]), np.mean([np.mean(s) for s in scores])
        found.append((float(best), float(mean)) if whole else None)
    ranked = [i for i, value in enumerate(found) if value is not None]
    if ranked:
        chosen = max(ranked, key=lambda i: found[i] or (0.0, 0.0))
    else:
        chosen = min(range(len(learning_rates)), key=lambda i: learning_rates[i])
    return [
        Trial(
            norm=norm,
            learning_rate=rate,
            best=None if value is None else value[0],
            mean=None if value is None else value[1],
            chosen=index == chosen,
        )
        for index, (rate, value) in enumerate(zip(learning_rates, found, strict=True))
    ]
