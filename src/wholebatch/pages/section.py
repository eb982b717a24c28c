"""A section of a page: an answer in words, then pictures, each with the table of what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wholebatch.pages.pictures import Picture

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Numbers under a picture; ``None`` is shown as a dash.

    Attributes:
        caption: what the rows are.
        columns: their heads, with units.
        rows: cells as values: whoever renders formats numbers and escapes text.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Shown:
    """A picture, and its table; either may be missing."""

    picture: Picture | None
    table: Table | None


@dataclass(frozen=True)
class Tile:
    """A main answer in the page's header: a number and what it is.

    Attributes:
        value: short and formatted, with its unit: ``"1.31 ×"``, ``"12.4 µs"``.
        label: a few words: ``"time per step with batch norm, over none"``.
    """

    value: str
    label: str


@dataclass(frozen=True)
class Section:
    """What one measurement has to say.

    Attributes:
        name: identifier, unique on the page.
        title: heading.
        answer: sentences that say what was found, the first one alone is a full answer. Plain text.
        shown: pictures and tables, in order.
        notes: how it was measured and what is doubtful. Plain text.
        tiles: one to four main answers as numbers, the first the most important.
    """

    name: str
    title: str
    answer: Sequence[str]
    shown: Sequence[Shown]
    notes: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
