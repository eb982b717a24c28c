"""What ranks of this host measure: a step alone, a step together, and what messages between two of them take.

The functions whose first argument is ``rank`` run in ranks, see :mod:`wholebatch.cost.ranks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
import torch.distributed as dist

from wholebatch.cost.plan.clocked import Clocked
from wholebatch.cost.plan.record import Exchange, Layer, Link, Workload
from wholebatch.cost.plan.trial import Shape, Times, Trial
from wholebatch.sharing import Meeting

BLOCK = 10
"""Steps in a row of one kind, and meetings of one size; the kinds take turns."""
LEAST_ROUNDS, MOST_ROUNDS = 4, 200
MOST_SECONDS = 20.0
"""After so many seconds more than were asked for a round is the last: ranks that share cores may take long."""
CHANNELS = (16, 1024)
"""Of the meetings from whose times latency and bandwidth are found."""
FEW_BYTES = 1024
"""Of the smaller sum of gradients; the larger one is the net's."""
FASTEST = 1e6
"""MB/s: taken where a larger message took no longer than a smaller one."""


@dataclass(frozen=True)
class Measured:
    """What one rank measured.

    Attributes:
        alone: its steps while the others stood still.
        together: steps with batch norm over all ranks.
        apart: steps with each rank's own batch norm.
        way: how ranks met in batch norm.
    """

    alone: list[Times]
    together: list[Times]
    apart: list[Times]
    way: Exchange


@dataclass(frozen=True)
class LinkTimes:
    """What exchanges between two ranks took.

    Attributes:
        meetings: seconds of each meeting of batch norm, for each number of :data:`CHANNELS`.
        gradients: seconds of each sum of gradients, of :data:`FEW_BYTES` and of more.
        way: how the ranks met.
    """

    meetings: list[list[float]]
    gradients: list[list[float]]
    way: Exchange


def measure_steps(rank: int, shape: Shape, seconds: float, together: bool = True) -> Measured:
    """Steps of the ranks, in rounds: one rank alone (each in its turn), then, if ``together``, all of them with batch
    norm over all and with batch norm over each. ``seconds`` bounds the rounds, of which there are at least four where
    these do not take very long.
    """
    sharing = Clocked(_world())
    trial = Trial(shape, sharing)
    ranks, start = sharing.ranks, perf_counter()
    found = Measured([], [], [], "allgather")
    if together:
        trial.run("all", BLOCK)
        trial.run("none", BLOCK)
    for number in range(MOST_ROUNDS):
        dist.barrier()
        if rank == number % ranks:
            found.alone.extend(trial.run("alone", BLOCK))
        dist.barrier()
        if together:
            found.together.extend(trial.run("all", BLOCK))
            dist.barrier()
            found.apart.extend(trial.run("none", BLOCK))
        if _is_last(number, perf_counter() - start, seconds):
            break
    return Measured(found.alone, found.together, found.apart, sharing.way)


def measure_links(rank: int, gradient_bytes: int, seconds: float) -> LinkTimes:
    """Between two ranks; a sum of gradients of ``gradient_bytes`` is the larger one. ``seconds`` bounds the rounds."""
    sharing = Clocked(_world())
    vectors = [torch.zeros(2, channels) for channels in CHANNELS]
    sums = [torch.zeros(size // 4) for size in (FEW_BYTES, more_bytes(gradient_bytes))]
    meetings: list[list[float]] = [[], []]
    gradients: list[list[float]] = [[], []]
    start = perf_counter()
    for number in range(MOST_ROUNDS):
        for place, vector in enumerate(vectors):
            dist.barrier()
            sharing.marks.clear()
            for _ in range(BLOCK + 1):
                sharing.sum(vector, Meeting("link", "forward"))
            times = np.subtract(sharing.marks[1::2], sharing.marks[::2])
            meetings[place].extend(times[1:].tolist())
        for place, vector in enumerate(sums):
            dist.barrier()
            for again in range(BLOCK + 1):
                came = perf_counter()
                dist.all_reduce(vector)
                if again:
                    gradients[place].append(perf_counter() - came)
        if _is_last(number, perf_counter() - start, seconds):
            break
    return LinkTimes(meetings, gradients, sharing.way)


def fit_link(sizes: Sequence[int], seconds: Sequence[Sequence[float]], *, usual: bool) -> Link:
    """Latency and bandwidth from two sizes, of an exchange that is one message between two ranks.

    Args:
        sizes: bytes, the smaller one first.
        seconds: of exchanges of each size.
        usual: the latency is a median, what is usual here; otherwise a mean, in which the exchanges count that took
            milliseconds since a rank had no core. The bandwidth is from medians, for it is small differences.
    """
    (few, many), (short, long) = sizes, (float(np.median(times)) * 1e6 for times in seconds)
    speed = min((many - few) / (long - short), FASTEST) if long > short else FASTEST
    whole = short if usual else float(np.mean(seconds[0])) * 1e6
    return Link(latency_us=max(whole - few / speed, 0.0), megabytes_per_second=speed, source="measured")


def more_bytes(gradient_bytes: int) -> int:
    """Of the larger sum of gradients that :func:`measure_links` takes."""
    return max(gradient_bytes, 2 * FEW_BYTES)


def meeting_bytes(channels: int) -> int:
    """What a rank brings to a meeting of batch norm: a count and two vectors, as float64."""
    return 8 * (1 + 2 * channels)


def describe(shape: Shape, alone: Sequence[Times], workers: int) -> Workload:
    """The workload of steps that ranks took alone.

    Args:
        shape: of the net.
        alone: at least 2 steps that had meetings in their batch norms.
        workers: whose rows made up the whole mini-batch.
    """
    times_us, spreads = (found.tolist() for found in fit_lognormal(np.array([times.pieces for times in alone])))
    count = len(shape.hidden) + 1
    forward, backward = slice(1, 1 + count), slice(1 + count, 1 + 2 * count)
    layers = [
        Layer(
            name=f"hidden {place + 1} ({shape.hidden[place]})" if place < len(shape.hidden) else "output",
            forward_us=times_us[forward][place],
            backward_us=times_us[backward][count - 1 - place],
            forward_spread=spreads[forward][place],
            backward_spread=spreads[backward][count - 1 - place],
            forward_bytes=meeting_bytes(shape.hidden[place]) if place < len(shape.hidden) else 0,
            backward_bytes=meeting_bytes(shape.hidden[place]) if place < len(shape.hidden) else 0,
        )
        for place in range(count)
    ]
    net = ", ".join(map(str, shape.hidden))
    return Workload(
        source=f"a net with hidden layers {net}, measured here: one rank of one thread",
        rows=shape.rows,
        whole_rows=shape.rows * workers,
        layers=layers,
        update_us=times_us[0],
        update_spread=spreads[0],
        gradient_bytes=shape.gradient_bytes,
    )


def fit_lognormal(seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean in microseconds and coefficient of variation, of ``(samples, ...)`` over the samples.

    By maximum likelihood: mean and standard deviation of the logarithm. A step that was interrupted for long counts
    with its logarithm, and does not make the mean.
    """
    logs = np.log(np.maximum(seconds, 1e-9))
    means, variances = logs.mean(axis=0), logs.var(axis=0)
    return np.exp(means + variances / 2) * 1e6, np.sqrt(np.expm1(variances))


def _is_last(number: int, passed: float, seconds: float) -> bool:
    """Whether round ``number`` was the last. Rank 0's clock decides for all, or some would wait for others."""
    done = torch.tensor([passed > seconds + (MOST_SECONDS if number + 1 < LEAST_ROUNDS else 0)])
    dist.broadcast(done, src=0)
    return bool(done)


def _world() -> dist.ProcessGroup:
    group = dist.GroupMember.WORLD
    assert group is not None
    return group
