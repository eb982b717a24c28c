"""Interleaved timing: a round is one burst of every contender, in a new order, so that a noisy neighbour hits all."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.crew import Asked, Crew, WorkerError
from benchmarks.talk import Talk

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# So long that what a burst begins with is a few hundredths of it, as of an epoch: cold caches, threads that sleep, and
# for ours the copying of the parameters (1 ms at shape C, of which six steps fill 30 ms).
BURST_SECONDS = 0.1
# At shape E (3 million weights) the copying takes 30 ms: 6 % of one step, 1.5 % of four.
LEAST_STEPS = {"wholebatch": 4}


@dataclass(frozen=True, order=True)
class Contender:
    """One line of a table."""

    shape: str
    system: str
    norm: str
    threads: int

    def __str__(self) -> str:
        return f"{self.system} (shape {self.shape}, norm {self.norm}, {self.threads} thread{'s' * (self.threads > 1)})"


@dataclass
class Timings:
    """Seconds per step, by contender and round (nan in a round that it missed); and which variant each contender is.

    ``told``: what those that can tell more of themselves told after the rounds.
    """

    seconds: dict[Contender, list[float]] = field(default_factory=dict)
    notes: dict[Contender, str] = field(default_factory=dict)
    told: dict[Contender, Any] = field(default_factory=dict)

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

    def best(self, **fields: object) -> Contender | None:
        """The contender of the least median among those with these fields (``system=``, ``norm=``, ...), if any."""
        found = self.of(**fields)
        return min(found, key=self.median) if found else None

    def of(self, **fields: object) -> list[Contender]:
        """The contenders with these fields."""
        return [c for c in self.seconds if all(getattr(c, name) == value for name, value in fields.items())]

    def divide(self, by: float) -> None:
        """Count so many parts of what was a step as a step each."""
        self.seconds = {contender: [value / by for value in values] for contender, values in self.seconds.items()}

    def without(self, systems: Container[str]) -> Timings:
        """Those of all other systems."""
        left = [contender for contender in self.seconds if contender.system not in systems]
        return Timings({c: self.seconds[c] for c in left}, {c: self.notes[c] for c in left})

    def add(self, other: Timings) -> None:
        """Take another measurement's contenders in."""
        self.seconds |= other.seconds
        self.notes |= other.notes
        self.told |= other.told


def load(crew: Crew, systems: Iterable[str], threads: Iterable[int], talk: Talk) -> dict[str, str]:
    """Start a worker for each system and number of threads; returns the systems' versions, tells who is left out."""
    versions: dict[str, str] = {}
    for system in systems:
        for count in threads:
            talk.progress(f"starting {system}")
            worker = crew.start(system, count)
            try:
                versions[system] = worker.ask("load")["version"]
            except WorkerError as error:
                crew.dismiss(worker)
                versions.pop(system, None)
                talk.note(f"{system} is left out: {error}")
                break
    return versions


def measure(
    crew: Crew,
    problems: Mapping[Contender, DataclassInstance],
    repeats: int,
    talk: Talk,
    between: Callable[[], None] = lambda: None,
    least_steps: Mapping[str, int] = LEAST_STEPS,
    burst: float = BURST_SECONDS,
    telling: Container[str] = (),
) -> Timings:
    """Time ``repeats`` rounds; ``between()`` is called before each.

    A burst has so many steps as take ``burst`` seconds, but at least those that ``least_steps`` has for the system.
    Contenders of the systems ``telling`` are asked, after the rounds, to measure what they can tell beside their times.

    A contender that cannot be built, or whose worker fails, is told and left out of the result.
    """
    ready, timings = _build(crew, problems, talk, least_steps, burst)
    order = list(ready)
    shuffle = random.Random(0).shuffle
    timings.seconds = {contender: [float("nan")] * repeats for contender in order}
    for turn in range(repeats):
        talk.progress(f"round {turn + 1} of {repeats}")
        between()
        shuffle(order)
        for contender in list(order):
            worker, number = ready[contender]
            try:
                timings.seconds[contender][turn] = worker.ask("burst", number=number)["seconds"]
            except WorkerError as error:
                _lose(crew, worker, contender, error, talk)
                order.remove(contender)
                del timings.seconds[contender]
    for contender, (worker, number) in ready.items():
        if contender.system in telling and contender in timings.seconds and worker.alive:
            talk.progress(f"asking {contender}")
            try:
                timings.told[contender] = worker.ask("measure", number=number)["value"]
            except WorkerError as error:
                talk.note(f"what {contender} can tell of itself is left out: {error}")
    for worker in {id(worker): worker for worker, _ in ready.values()}.values():
        if worker.alive:
            worker.ask("drop")
    return timings


def _build(
    crew: Crew,
    problems: Mapping[Contender, DataclassInstance],
    talk: Talk,
    least_steps: Mapping[str, int],
    burst: float,
) -> tuple[dict[Contender, tuple[Asked, int]], Timings]:
    ready: dict[Contender, tuple[Asked, int]] = {}
    timings = Timings()
    for number, (contender, problem) in enumerate(problems.items()):
        worker = crew.workers.get((contender.system, contender.threads))
        if worker is None:  # it ended, which was told
            continue
        talk.progress(f"building {contender}")
        least = least_steps.get(contender.system, 1)
        try:
            built = worker.ask("build", number=number, problem=asdict(problem), seconds=burst, least=least)
        except WorkerError as error:
            _lose(crew, worker, contender, error, talk)
            continue
        ready[contender] = worker, number
        timings.notes[contender] = built["note"]
    # A worker that died over a later net took the earlier ones with it.
    return {contender: pair for contender, pair in ready.items() if pair[0].alive}, timings


def _lose(crew: Crew, worker: Asked, contender: Contender, error: WorkerError, talk: Talk) -> None:
    talk.note(f"{contender} is left out: {error}")
    if not worker.alive:
        crew.dismiss(worker)
