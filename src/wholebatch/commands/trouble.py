"""What happened to ranks that did not come to their end, in words; and whether starting them again may help."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from wholebatch.commands.ending import Ending

MOST_TOLD = 8


@dataclass(frozen=True)
class Lost:
    """One rank.

    Attributes:
        code: its exit code, negative for a signal.
        hung: it had to be killed, for it did not end when others had.
        ending: what it said.
    """

    rank: int
    pid: int | None
    code: int | None
    hung: bool
    ending: Ending | None

    def __str__(self) -> str:
        who = f"rank {self.rank} (process {self.pid})"
        if self.ending is not None:
            return f"{who} {'could not go on: ' if self.ending.kind != 'fault' else ''}{self.ending.sentence}"
        if self.hung:
            return f"{who} did not answer and was killed"
        if self.code is not None and self.code < 0:
            return f"{who} was killed by {_name(-self.code)}"
        return f"{who} ended without a word, with the exit code {self.code}"


class Trouble:
    """All ranks of a start that failed."""

    def __init__(self, ranks: Sequence[Lost]) -> None:
        self.ranks = ranks

    @property
    def mistake(self) -> Lost | None:
        """The first rank that ended because of what would come again."""
        return self._first("mistake")

    @property
    def unwritten(self) -> Lost | None:
        """The first rank that could not write a file now, and may be able to later."""
        return self._first("unwritten")

    @property
    def causes(self) -> list[Lost]:
        """The ranks that the others stopped for; all of them where nobody knows better."""
        told = {"absence", "interrupted"}
        found = [
            lost for lost in self.ranks if self._failed(lost) and (not lost.ending or lost.ending.kind not in told)
        ]
        # One that hung is a cause; one that was only slow to end is none, where there are others.
        dead = [lost for lost in found if not lost.hung]
        return dead or found or [lost for lost in self.ranks if self._failed(lost)]

    def describe(self) -> str:
        """In one sentence."""
        causes = self.causes
        more = f", and {len(causes) - MOST_TOLD} more" if len(causes) > MOST_TOLD else ""
        return "; ".join(map(str, causes[:MOST_TOLD])) + more

    def diagnoses(self) -> list[str]:
        """What the other ranks said when they stopped, a line each."""
        causes = {lost.rank for lost in self.causes}
        return [
            f"rank {lost.rank}: {lost.ending.sentence}"
            for lost in self.ranks
            if lost.rank not in causes and lost.ending is not None
        ]

    def _first(self, kind: str) -> Lost | None:
        return next((lost for lost in self.ranks if lost.ending and lost.ending.kind == kind), None)

    @staticmethod
    def _failed(lost: Lost) -> bool:
        return lost.hung or lost.ending is not None or lost.code != 0


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
