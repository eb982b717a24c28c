"""What a person asks of a measurement of the choices of synchronisation, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from wholebatch import runs
from wholebatch.cost.synchronisation.record import Choice, Delay
from wholebatch.feedforward.recording import MOST_FACTOR


def default_choices(processes: int, group_size: int | None) -> tuple[Choice, ...]:
    """All of them; groups where a size was given, or there are two of at least two ranks."""
    return ("all", "group", "none", "late") if group_size or processes % 4 == 0 else ("all", "none", "late")


@dataclass(frozen=True)
class Wanted:
    """The settings of the measurement.

    Args:
        run: the table, its target, the net and its training, as a training run has them; the seed stands below.
        processes: ranks, of one thread each; the mini-batch is spread over them.
        choices: whose rows batch norm is over, see :class:`wholebatch.feedforward.spread.Spread`.
        group_size: ranks of a group; None: half of them.
        straggler: in steps and trainings beside the others one rank computes so many times as long: the last, always;
            and now this one and now that. 1: none does.
        seeds: trainings of each choice: 0, 1, ...
        rounds, burst_seconds: of the timing of steps: so many interleaved bursts of each, of so long.
        timing_seconds: that all of them may take; where steps are long there are fewer rounds.
        most_rows: of a longer table, so many are drawn; None: all.

    Raises:
        ValueError: fewer than two ranks, groups that do not divide them, a choice twice, a number out of its range.
    """

    run: runs.Settings
    processes: int = 2
    choices: tuple[Choice, ...] = ("all", "none", "late")
    group_size: int | None = None
    straggler: float = 2.0
    seeds: int = 5
    rounds: int = 41
    burst_seconds: float = 0.03
    timing_seconds: float = 30.0
    most_rows: int | None = None

    def __post_init__(self) -> None:
        if self.processes < 2:
            raise ValueError(f"processes is {self.processes}; there is nobody to synchronise with: choose at least 2")
        if not self.choices or len(set(self.choices)) < len(self.choices):
            raise ValueError(f"choices are {', '.join(self.choices) or 'none'}; name at least one, each once")
        if "group" in self.choices and (self.processes % self.group or not 1 < self.group < self.processes):
            raise ValueError(
                f"{self.processes} ranks cannot be cut into groups of {self.group}; choose a group size above 1 that "
                "divides the ranks and leaves more than one group, or leave the choice 'group' out"
            )
        if "group" not in self.choices and self.group_size is not None:
            raise ValueError(f"group_size is {self.group_size}, but 'group' is not among the choices; name it too")
        if not 1 <= self.straggler <= MOST_FACTOR:
            raise ValueError(f"straggler is {self.straggler:g}; a rank can be 1 (none) to {MOST_FACTOR} times as slow")
        for name in ("seeds", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.run.batch_size < 2 * self.processes:
            raise ValueError(
                f"batch_size is {self.run.batch_size}, which leaves fewer than 2 rows to each of {self.processes} "
                f"ranks: batch norm of a rank's own rows needs 2; choose at least {2 * self.processes}"
            )

    @property
    def delays(self) -> tuple[Delay, ...]:
        """That are measured."""
        return ("none", "last", "changing") if self.straggler > 1 else ("none",)

    @property
    def group(self) -> int:
        """Ranks of a group."""
        return self.processes // 2 if self.group_size is None else self.group_size
