"""A table read by several ranks, each a part of it: :func:`wholebatch.tables.read_table` over a process group.

- Parquet: each rank reads its columns. (A slice of rows would not do: of a file of one row group, as many are, polars
  reads all columns whole for any slice of it; of columns it reads those alone, whatever the row groups.)
- Text: each rank reads its portion of the bytes, and columns are exchanged.
- Gzipped text, and text that cannot be cut: the first rank reads all of it and deals out columns.
- A bundled set: every rank has it anyway.
"""

from __future__ import annotations

import hashlib

import polars as pl

from wholebatch.sharing.messages import Group, rank_in, tell, tell_first
from wholebatch.tables.agreeing import agree, agree_first
from wholebatch.tables.bundled import bundled_table
from wholebatch.tables.cells import find_type
from wholebatch.tables.errors import TableError
from wholebatch.tables.portions import read_portion
from wholebatch.tables.reading import Source, check_rows, in_words, read_parquet, read_table, recognise
from wholebatch.tables.shared import SharedTable, choose_owners, deal_columns, sizes_of
from wholebatch.tables.text import UNREADABLE, Layout, find_layout

_EDGE = 1 << 12  # bytes at both ends of a file by which ranks know that it is the same


def read_together(source: str, group: Group) -> SharedTable:
    """The table in ``source`` over the ranks of ``group``; every rank calls it.

    Raises:
        TableError: as ``read_table``, the same sentence on all ranks; also a file that is not the same for all.
        MeetingError: a rank is missing.
    """
    found = agree(lambda: recognise(source), group, "the table's file")
    _check_same(found, group)
    shared = None
    if found.kind == "bundled":
        frame = bundled_table(found.name)
        owners = choose_owners(sizes_of(frame), rank_in(group)[1])
        shared = SharedTable(frame.columns, frame.height, owners, frame.select(_own(owners, group)), group)
    elif found.kind == "parquet":
        shared = _read_parquet(found, group)
    elif found.kind == "text":
        shared = _read_text(found, group)
    if shared is None:
        shared = _read_by_first(found, group)
    check_rows(found, shared.height, len(shared.names))
    return shared


def _own(owners: dict[str, int], group: Group) -> list[str]:
    return [name for name, owner in owners.items() if owner == rank_in(group)[0]]


def _check_same(found: Source, group: Group) -> None:
    """Raise where ranks have different files of this name."""

    def look() -> list[object]:
        if found.kind == "bundled":
            return [found.kind, 0, ""]
        with in_words(found), found.path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(_EDGE)
            file.seek(max(size - _EDGE, 0))
            return [found.kind, size, hashlib.sha256(start + file.read(_EDGE)).hexdigest()]

    own = agree(look, group, "the table's file")
    seen = tell(own, group, "the table's file")
    for rank, other in enumerate(seen):
        if other != seen[0]:
            bytes_of = [f"{size} bytes" if kind != "bundled" else "a bundled set" for kind, size, _ in (seen[0], other)]
            differ = bytes_of[1] if bytes_of[1] != bytes_of[0] else "as many of another content"
            raise TableError(
                f"{found.name!r} is not the same file for all ranks: {bytes_of[0]} for rank 0, {differ} for rank "
                f"{rank}; give every rank the same file"
            )


def _read_parquet(found: Source, group: Group) -> SharedTable | None:
    """Each rank its columns; None on every rank where one could not."""
    shared = None
    try:
        scan = pl.scan_parquet(found.path, glob=False, hive_partitioning=False)
        schema = scan.collect_schema()
        height = int(scan.select(pl.len()).collect().item())
        owners = choose_owners({name: _weight(dtype) for name, dtype in schema.items()}, rank_in(group)[1])
        own = [name for name in schema.names() if owners[name] == rank_in(group)[0]]
        frame = read_parquet(found, own) if own else pl.DataFrame()
        if not own or frame.height == height:
            shared = SharedTable(schema.names(), height, owners, frame, group)
    except UNREADABLE:
        pass
    return shared if all(tell(shared is not None, group, "the columns")) else None


def _weight(dtype: pl.DataType) -> int:
    """How much a column of this type takes against others: text more than numbers."""
    return 1 if dtype.is_numeric() or dtype.is_temporal() or dtype == pl.Boolean else 4


def _read_text(found: Source, group: Group) -> SharedTable | None:
    """Each rank its portion; None on every rank where one could not."""
    layout = agree(lambda: _find_layout(found), group, "the table's header")
    portion = read_portion(found.path, layout, group)
    if portion is None:
        return None
    chunk = portion.to_dict()
    del portion
    each = tell(sizes_of(chunk.values()), group, "the sizes of columns")
    sizes = {name: sum(sizes[name] for sizes in each) for name in layout.names}
    return deal_columns(chunk, sizes, group, lambda cells: find_type(cells, layout.separator == ";"))


def _find_layout(found: Source) -> Layout:
    with in_words(found):
        return find_layout(found.path, found.tabs)


def _read_by_first(found: Source, group: Group) -> SharedTable:
    """The first rank reads all and deals it out."""
    chunk = agree_first(lambda: read_table(found.name).to_dict(), group, "the table") or {}
    sizes = tell_first(sizes_of(chunk.values()), group, "the sizes of columns")
    return deal_columns(chunk, sizes, group)
