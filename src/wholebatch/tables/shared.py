"""A table that ranks hold together: each has some of its columns, over all rows, until rows are dealt out.

Whatever is found in a column (its type, what a preprocessing learns) needs all of its rows and no other column. So
columns are dealt out before it and rows after it, and each rank holds its share of the table twice at most. What goes
over the wire in one go is at most :data:`GO` bytes for each rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from wholebatch.sharing.messages import Group, rank_in, tell
from wholebatch.tables.wire import broadcast_frame, exchange_frames

GO = 16 << 20


@dataclass(frozen=True)
class SharedTable:
    """All ranks have the same of everything but ``own``.

    Attributes:
        names: of all columns, as the file has them.
        height: rows of the whole.
        owners: which rank has a column.
        own: this rank's columns, over all rows, in the order of ``names``.
    """

    names: list[str]
    height: int
    owners: dict[str, int]
    own: pl.DataFrame
    group: Group

    def outline(self, columns: Sequence[str]) -> pl.DataFrame:
        """A table of all names and rows in which ``columns``, where they are there, are filled, and all else is null.

        Every rank calls it with the same columns.
        """
        filled: dict[str, pl.Series] = {}
        for owner in sorted({self.owners[name] for name in columns if name in self.owners}):
            wanted = [name for name in self.names if name in columns and self.owners[name] == owner]
            mine = self.own.select(wanted) if owner == rank_in(self.group)[0] else None
            filled.update(broadcast_frame(mine, self.group, "whole columns", owner).to_dict())
        nothing = pl.repeat(None, self.height, dtype=pl.Null, eager=True)
        return pl.DataFrame([filled.get(name, nothing).alias(name) for name in self.names])

    def filter(self, rows: pl.Series) -> SharedTable:
        """The rows where ``rows`` is true."""
        return replace(self, height=int(rows.sum()), own=self.own.filter(rows) if self.own.width else self.own)

    def deal_rows(self, rows: Sequence[np.ndarray], columns: Sequence[str]) -> pl.DataFrame:
        """``columns`` of the rows ``rows[r]`` to rank r; returns this rank's. Every rank calls it with the same."""
        wanted = [name for name in self.names if name in columns]
        ranks = rank_in(self.group)[1]
        mine = [[name for name in wanted if self.owners[name] == rank] for rank in range(ranks)]
        here = mine[rank_in(self.group)[0]]
        sizes = tell(sum(sizes_of(self.own.select(here)).values()), self.group, "how much is dealt")
        goes = _count_goes(max(sizes), max(map(len, mine)))
        pieces: list[pl.DataFrame] = []
        for go in range(goes):
            taken = self.own.select(here[go::goes])
            given = [taken[r] if taken.width else taken for r in rows]
            pieces.extend(exchange_frames(given, self.group, "rows"))
        if not pieces:
            return pl.DataFrame()
        return pl.concat(pieces, how="horizontal").select(wanted)


def choose_owners(sizes: dict[str, int], ranks: int) -> dict[str, int]:
    """Each column to the rank that has least so far, the large ones first: about as many bytes for each."""
    held = [0] * ranks
    owners = {}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        owners[name] = held.index(min(held))
        held[owners[name]] += max(sizes[name], 1)
    return owners


def sizes_of(columns: Iterable[pl.Series]) -> dict[str, int]:
    """Bytes of each column, by name."""
    return {series.name: int(series.estimated_size()) for series in columns}


def deal_columns(
    chunk: dict[str, pl.Series],
    sizes: dict[str, int],
    group: Group,
    finish: Callable[[pl.Series], pl.Series] = lambda series: series,
) -> SharedTable:
    """A table from chunks of its rows.

    Args:
        chunk: this rank's rows of all columns, those of rank r before those of rank r + 1; it may have none. Columns
            are taken out of it as they are sent.
        sizes: bytes of each column on all ranks together, in the order of the file.
        finish: what is made of a column once all of its rows are there.
    """
    rank, ranks = rank_in(group)
    names, owners = list(sizes), choose_owners(sizes, ranks)
    each = [[name for name in names if owners[name] == r] for r in range(ranks)]
    largest = max(sum(sizes[name] for name in columns) for columns in each)
    goes = _count_goes(largest, max(map(len, each)))
    own: list[pl.Series] = []
    for go in range(goes):
        given = [pl.DataFrame([chunk.pop(name) for name in columns[go::goes] if name in chunk]) for columns in each]
        pieces = exchange_frames(given, group, "columns")
        del given
        if pieces:
            own.extend(finish(series) for series in pl.concat(pieces))
    height = max(tell(len(own[0]) if own else 0, group, "how many rows there are"))
    frame = pl.DataFrame(own).select(each[rank]) if own else pl.DataFrame()
    return SharedTable(names, height, owners, frame, group)


def _count_goes(size: int, columns: int) -> int:
    """In how many goes so many bytes of so many columns are dealt."""
    return max(1, min(columns, math.ceil(size / GO)))
