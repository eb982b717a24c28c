"""What is said when parts cannot meet: where each of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wholebatch.sharing.diagnosis import write_table


class Position(NamedTuple):
    """Where a part stands.

    Attributes:
        part: its number, from 0.
        calls: how many batch norms it has come to.
        layer: the last one; empty: none.
        detail: shape and dtype there.
        doing: what it does there.
    """

    part: int
    calls: int
    layer: str
    detail: str
    doing: str


class LockstepError(RuntimeError):
    """Parts cannot meet at a batch norm. The text is a table of where each of them stands.

    Attributes:
        positions: the table, in the order of the parts.
    """

    def __init__(self, text: str, positions: Sequence[Position] = ()) -> None:
        super().__init__(text)
        self.positions = tuple(positions)

    def __reduce__(self) -> tuple[type[LockstepError], tuple[str, tuple[Position, ...]]]:
        return LockstepError, (str(self), self.positions)


def explain(cause: str, positions: Sequence[Position], remedy: str) -> LockstepError:
    """The error with its table."""
    rows = [[str(value) for value in position] for position in positions]
    lines = write_table(("part", "batch norms", "last", "input", "doing"), rows)
    return LockstepError(f"parts in lockstep cannot meet: {cause}\n{lines}\nTo do: {remedy}.", positions)
