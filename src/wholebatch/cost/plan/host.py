"""What this host measures for a plan: one rank's step, and what messages between two ranks take."""

from __future__ import annotations

from wholebatch.cost.plan.measuring import (
    CHANNELS,
    FEW_BYTES,
    describe,
    fit_link,
    measure_links,
    measure_steps,
    meeting_bytes,
    more_bytes,
)
from wholebatch.cost.plan.record import Link, Network, Workload
from wholebatch.cost.plan.trial import Shape
from wholebatch.cost.ranks import run_ranks


def measure_workload(shape: Shape, seconds: float) -> Workload:
    """One rank's step, all by itself.

    Raises:
        RankError: the rank failed.
    """
    (measured,) = run_ranks(measure_steps, 1, shape, seconds, False)
    return describe(shape, measured.alone, workers=1)


def measure_network(gradient_bytes: int, seconds: float) -> tuple[Network, Link]:
    """Between two ranks of this host: batch norm's meetings as they are held here, and sums of gradients by gloo.

    Returns:
        The network as it is to be expected in a check here, and the usual link through gloo, to plan with.

    Raises:
        RankError: a rank failed.
    """
    times, _ = run_ranks(measure_links, 2, gradient_bytes, seconds)
    sizes = [FEW_BYTES, more_bytes(gradient_bytes)]
    expected = Network(
        meetings=fit_link([meeting_bytes(channels) for channels in CHANNELS], times.meetings, usual=False),
        gradients=fit_link(sizes, times.gradients, usual=False),
        exchange=times.way,
    )
    return expected, fit_link(sizes, times.gradients, usual=True)
