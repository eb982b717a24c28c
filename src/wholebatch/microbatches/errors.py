"""What is said when parts cannot meet: where each of them stands."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from typing import NamedTuple


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
    # Only here, where something has gone wrong already: importing it takes a while.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 3, 0, 0), header_style="")
    for name in ("part", "batch norms", "last", "input", "doing"):
        table.add_column(name, no_wrap=True)
    for position in positions:
        table.add_row(*(Text(str(value)) for value in position))
    written = StringIO()
    Console(file=written, width=1000, color_system=None).print(table)
    lines = "\n".join(line.rstrip() for line in written.getvalue().splitlines())
    return LockstepError(f"parts in lockstep cannot meet: {cause}\n{lines}\nTo do: {remedy}.", positions)
