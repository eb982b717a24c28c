"""The machine's limits beside the times: measured in the same run, on the same cores, between the rounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.crew import Crew, WorkerError
from benchmarks.talk import Talk

BURSTS = 4  # of 5 ms, in every round
CROWDED = 0.75  # two free cores reach 0.97 to 1 of twice one's; two hyperthreads of a core, or a shared one, about 0.5


@dataclass
class Limits:
    """By number of threads: ``peak`` in float32 operations per second, ``bandwidth`` in bytes per second.

    Without the compiled part both stay empty, which is told.
    """

    peak: dict[int, float] = field(default_factory=dict)
    bandwidth: dict[int, float] = field(default_factory=dict)

    def measure_bandwidth(self, crew: Crew, threads: Iterable[int], talk: Talk) -> None:
        """Once in a run: the arrays are large."""
        for count in threads:
            talk.progress(f"measuring the memory bandwidth of {count} threads")
            self._ask(crew, count, "bandwidth", self.bandwidth, talk)

    def measure_peak(self, crew: Crew, threads: Iterable[int], talk: Talk) -> None:
        """A few bursts; the best since the last :meth:`forget_peak` counts."""
        for count in threads:
            self._ask(crew, count, "peak", self.peak, talk, bursts=BURSTS)

    def tell_crowding(self, where: str, talk: Talk) -> None:
        """Say where threads do not add up: then another process, or a hyperthread, shares their cores."""
        one = self.peak.get(1)
        for count, peak in sorted(self.peak.items()):
            if one and peak < CROWDED * count * one:
                talk.note(
                    f"{where}: {count} threads reached {peak / one:.2f} times the multiply-adds of one, so their "
                    "cores are not free; times on them say little. Choose others with --cores"
                )

    def forget_peak(self) -> None:
        """Begin a new shape: the processor's clock and its neighbours change."""
        self.peak.clear()

    def _ask(self, crew: Crew, count: int, what: str, into: dict[int, float], talk: Talk, **values: int) -> None:
        try:
            value = crew.start("limits", count).ask(what, **values)["value"]
        except WorkerError as error:
            sentence = f"the machine's limits are left out: {error}"
            if sentence not in talk.notes:
                talk.note(sentence)
            return
        into[count] = max(into.get(count, 0.0), value)
