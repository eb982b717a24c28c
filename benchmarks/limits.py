"""The machine's limits beside the times: measured in the same run, on the same cores, between the rounds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.crew import Crew, WorkerError
from benchmarks.talk import Talk

BURSTS = 4  # of 5 ms, in every round
# Below this a note is due. Two free cores reach 0.97 to 1 of twice one's peak, a shared one or two hyperthreads 0.5; on
# a free machine the median round reaches 0.95 of the best, where another process shares the cores 0.5 to 0.6.
CROWDED = 0.75


@dataclass
class Limits:
    """What the machine reached, by number of threads: ``bandwidth`` in bytes per second.

    ``rounds``: float32 operations per second in each round since the last :meth:`forget_peak`. Without the compiled
    part both stay empty, which is told.
    """

    bandwidth: dict[int, float] = field(default_factory=dict)
    rounds: dict[int, list[float]] = field(default_factory=dict)

    @property
    def peak(self) -> dict[int, float]:
        """The best round's operations per second, by number of threads."""
        return {count: max(values) for count, values in sorted(self.rounds.items())}

    def measure_bandwidth(self, crew: Crew, threads: Iterable[int], talk: Talk) -> None:
        """Once in a run: the arrays are large."""
        for count in threads:
            talk.progress(f"measuring the memory bandwidth of {count} threads")
            value = self._ask(crew, count, "bandwidth", talk)
            if value is not None:
                self.bandwidth[count] = value

    def describe_bandwidth(self) -> str:
        """A line for the head of a report."""
        shown = ", ".join(f"{value / 1e9:.1f} GB/s on {n}" for n, value in sorted(self.bandwidth.items()))
        return f"memory bandwidth (triad), threads: {shown or 'not measured'}"

    def measure_peak(self, crew: Crew, threads: Iterable[int], talk: Talk) -> None:
        """The best of a few bursts, as one more round."""
        for count in threads:
            value = self._ask(crew, count, "peak", talk, bursts=BURSTS)
            if value is not None:
                self.rounds.setdefault(count, []).append(value)

    def forget_peak(self) -> None:
        """Begin a new shape: the processor's clock and its neighbours change."""
        self.rounds.clear()

    def tell_crowding(self, where: str, talk: Talk) -> None:
        """Say where the cores were not free: times on them say little."""
        peak = self.peak
        for count, values in sorted(self.rounds.items()):
            if 1 in peak and peak[count] < CROWDED * count * peak[1]:
                talk.note(
                    f"{where}: {count} threads reached {peak[count] / peak[1]:.2f} times the multiply-adds of one, so "
                    "their cores are not free, and times on them say little. Choose others with --cores"
                )
            elif (usual := statistics.median(values) / peak[count]) < CROWDED:
                talk.note(
                    f"{where}: {count} {'thread' if count == 1 else 'threads'} reached {usual:.0%} of the best round's "
                    "multiply-adds in the median round, so others use the machine, and times say little"
                )

    def _ask(self, crew: Crew, count: int, what: str, talk: Talk, **values: int) -> float | None:
        try:
            value: float = crew.start("limits", count).ask(what, **values)["value"]
        except WorkerError as error:
            sentence = f"the machine's limits are left out: {error}"
            if sentence not in talk.notes:
                talk.note(sentence)
            return None
        return value
