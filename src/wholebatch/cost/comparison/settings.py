"""What a person asks of a comparison, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from wholebatch import runs
from wholebatch.cost.comparison.record import EngineName, NormName


@dataclass(frozen=True)
class Wanted:
    """The settings of a comparison.

    Args:
        run: the table, its target, the net and its training, as a training run has them; the norm, the learning rate
            and the seed stand below.
        norms, engines: to compare, in this order.
        seeds: trainings of each: 0, 1, ...
        learning_rates: one for all norms, or several of which each norm gets its best.
        target_score: to reach; None: what the weakest of the well-trained norms reaches.
        evaluate_every: steps between evaluations; None: a hundredth of a training.
        threads: to try beside 1.
        rounds, burst_seconds: of the timing of steps: so many interleaved bursts of each contender, of so long.
        timing_seconds: that all of them may take; where steps are long there are fewer rounds.
        most_rows: of a longer table, so many are drawn; None: all.
    """

    run: runs.Settings
    norms: tuple[NormName, ...] = ("batch", "batch-after", "layer", "rms", "none")
    engines: tuple[EngineName, ...] = ("wholebatch", "torch")
    seeds: int = 5
    learning_rates: tuple[float, ...] = (3e-3,)
    target_score: float | None = None
    evaluate_every: int | None = None
    threads: int = 1
    rounds: int = 61
    burst_seconds: float = 0.015
    timing_seconds: float = 20.0
    most_rows: int | None = None

    def __post_init__(self) -> None:
        for name in ("norms", "engines", "learning_rates"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} is empty; name at least one")
            if len(set(values)) < len(values):
                twice = next(value for value in values if values.count(value) > 1)
                raise ValueError(f"{name} names {twice} more than once; each is measured once")
        for name in ("seeds", "threads", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.evaluate_every is not None and self.evaluate_every < 1:
            raise ValueError(f"evaluate_every is {self.evaluate_every}; it must be at least 1")
