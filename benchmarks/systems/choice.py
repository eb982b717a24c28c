"""A peer at its best: of several ways to write its step, the one that is fastest here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from benchmarks.systems import Trainer


def fastest(candidates: Mapping[str, Trainer], rounds: int = 5, seconds: float = 0.02) -> Trainer:
    """The trainer with the least median time per step, all of them timed in turn, after a warm-up each."""
    steps = {}
    for name, trainer in candidates.items():
        trainer.run(2)
        steps[name] = max(1, min(1000, int(seconds / max(trainer.run(1), 1e-7))))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, trainer in candidates.items():
            times[name].append(trainer.run(steps[name]) / steps[name])
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min(medians, key=medians.__getitem__)
    chosen = candidates[best]
    chosen.note = ", ".join([best, *(f"{medians[n] / medians[best]:.2f} x with {n}" for n in candidates if n != best)])
    return chosen
