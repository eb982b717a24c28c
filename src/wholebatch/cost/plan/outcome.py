"""What simulation and closed form are given, and what both give back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wholebatch.cost.plan.exchange import exchange_us
from wholebatch.cost.plan.record import Network, Slow
from wholebatch.cost.plan.stretches import Stretch


@dataclass(frozen=True)
class Team:
    """Workers in groups that take their batch norms' moments together.

    Attributes:
        workers: how many; gradients are added over all of them.
        group: workers of a group, which divides ``workers``; 1: each worker has its own moments.
        slow: one that is slower, worker ``slow.worker`` of them; None: all are alike.
    """

    workers: int
    group: int
    slow: Slow | None = None

    @property
    def groups(self) -> int:
        """How many groups."""
        return self.workers // self.group

    @property
    def mean_pace(self) -> float:
        """Compute of all workers over that of so many ordinary ones."""
        return 1.0 if self.slow is None else (self.workers - 1 + self.slow.by) / self.workers


@dataclass(frozen=True)
class Outcome:
    """A step, microseconds; mean, quantiles, and what a worker does in it on average."""

    mean_us: float
    error_us: float
    p50_us: float
    p95_us: float
    compute_us: float
    wait_us: float


def exchanges(stretches: Sequence[Stretch], network: Network, team: Team) -> list[float]:
    """Microseconds of the exchange that ends each stretch."""
    return [
        exchange_us(network.gradients, "allreduce", team.workers, stretch.size)
        if stretch.gradients
        else exchange_us(network.meetings, network.exchange, team.group, stretch.size)
        for stretch in stretches
    ]
