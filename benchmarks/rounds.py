"""Interleaved timing: a round is one burst of every contender, in a new order, so that a noisy neighbour hits all."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field

import numpy as np

from benchmarks.crew import Crew, Worker, WorkerError
from benchmarks.problem import Problem

BURST_SECONDS = 0.03
# Each epoch of ours copies the parameters in and out, a real one once in hundreds of steps.
LEAST_STEPS = {"wholebatch": 2}


@dataclass(frozen=True, order=True)
class Contender:
    """One line of a table."""

    system: str
    norm: str
    threads: int

    def __str__(self) -> str:
        return f"{self.system}, norm {self.norm}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass
class Timings:
    """Seconds per step, by contender and round (nan in rounds that it missed), and what was built."""

    seconds: dict[Contender, list[float]] = field(default_factory=dict)
    notes: dict[Contender, str] = field(default_factory=dict)

    def quantiles(self, contender: Contender) -> tuple[float, float, float]:
        """p20, median and p80 of the seconds per step."""
        low, middle, high = np.nanquantile(self.seconds[contender], [0.2, 0.5, 0.8])
        return float(low), float(middle), float(high)

    def median(self, contender: Contender) -> float:
        """Median seconds per step."""
        return self.quantiles(contender)[1]

    def ratio(self, above: Contender, below: Contender) -> tuple[float, float, float]:
        """The ratio of the medians, and p20 and p80 of the rounds' own ratios."""
        pairs = np.divide(self.seconds[above], self.seconds[below])
        low, high = np.nanquantile(pairs, [0.2, 0.8])
        return self.median(above) / self.median(below), float(low), float(high)


Say = Callable[[str], None]


def build(
    crew: Crew, problems: dict[Contender, Problem], say: Say
) -> tuple[dict[Contender, tuple[Worker, int]], Timings]:
    """Have every contender's net built in its worker; one that cannot be is told and missing from the result."""
    ready: dict[Contender, tuple[Worker, int]] = {}
    timings = Timings()
    for number, (contender, problem) in enumerate(problems.items()):
        worker = crew.workers.get((contender.system, contender.threads))
        if worker is None:  # it was told already
            continue
        least = LEAST_STEPS.get(contender.system, 1)
        try:
            built = worker.ask("build", number=number, problem=asdict(problem), seconds=BURST_SECONDS, least=least)
        except WorkerError as error:
            _lose(crew, worker, contender, error, say)
            continue
        ready[contender] = worker, number
        timings.notes[contender] = built["note"]
    return ready, timings


def measure(
    crew: Crew,
    problems: dict[Contender, Problem],
    repeats: int,
    say: Say,
    between: Callable[[int], None] = lambda _: None,
) -> Timings:
    """Time ``repeats`` rounds; ``between(round)`` is called before each.

    A contender whose worker fails is told, and left out of the result.
    """
    ready, timings = build(crew, problems, say)
    order = list(ready)
    shuffle = random.Random(0).shuffle
    timings.seconds = {contender: [float("nan")] * repeats for contender in order}
    for turn in range(repeats):
        between(turn)
        shuffle(order)
        for contender in list(order):
            worker, number = ready[contender]
            try:
                timings.seconds[contender][turn] = worker.ask("burst", number=number)["seconds"]
            except WorkerError as error:
                _lose(crew, worker, contender, error, say)
                order.remove(contender)
                del timings.seconds[contender]
    for worker in list(crew.workers.values()):
        worker.process.poll()
        if worker.process.returncode is None:
            worker.ask("drop")
    return timings


def load(crew: Crew, systems: Iterable[str], threads: Iterable[int], say: Say) -> dict[str, str]:
    """Start a worker for each system and number of threads; returns the systems' versions, tells who is left out."""
    versions: dict[str, str] = {}
    for system in systems:
        for count in threads:
            worker = crew.start(system, count)
            try:
                versions[system] = worker.ask("load")["version"]
            except WorkerError as error:
                crew.dismiss(worker)
                say(f"{system} is left out: {error}")
                break
    return versions


def _lose(crew: Crew, worker: Worker, contender: Contender, error: WorkerError, say: Say) -> None:
    say(f"{contender} is left out: {error}")
    if worker.process.poll() is not None:
        crew.workers.pop((worker.system, worker.threads), None)
        worker.close()
