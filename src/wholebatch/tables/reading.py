"""A table from a file: CSV (also tab, semicolon or bar separated, also gzipped), Parquet, or a bundled set by name."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from wholebatch.tables.bundled import BUNDLED, bundled_table
from wholebatch.tables.errors import TableError, did_you_mean
from wholebatch.tables.text import UNREADABLE, find_layout, read_text, reason

CSV_SUFFIXES = (".csv", ".tsv", ".txt", ".tab")
AS_UTF8 = "; save it as UTF-8 (in Excel: CSV UTF-8)"
PARQUET_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True)
class Source:
    """What a table is read from.

    Attributes:
        name: as the person gave it.
        kind: a bundled set, Parquet, text, or text that is gzipped.
        tabs: the file's name says that it is cut at tabs.
    """

    name: str
    kind: Literal["bundled", "parquet", "text", "packed"]
    tabs: bool = False

    @property
    def path(self) -> Path:
        return Path(self.name)


def read_table(source: str | Path, text: Collection[str] = ()) -> pl.DataFrame:
    """The table in ``source``, with column names as the file has them.

    A file whose first bytes say Parquet is Parquet; ``.csv``, ``.tsv``, ``.tab`` and ``.txt``, each also with
    ``.gz``, are text, whose separator (comma, tab, semicolon, bar) is the one that cuts the header into most columns.
    Types come from all rows: numbers, true/false, dates that begin with the year, else text. Rows without any value
    (blank lines) are left out of text files. Where no file is called ``digits``, ``iris``, ``wine``,
    ``breast_cancer`` or ``diabetes``, that name is scikit-learn's bundled set.

    Args:
        text: columns to keep as text even where all their values look like something else (``007``), as they were
            when a model was trained: :attr:`Preprocessing.text_columns` and :attr:`Target.text_columns`.

    Raises:
        TableError: no such file, a folder, an unknown kind of file, no permission, no rows, two columns of one name,
            lines that are longer or shorter than the header, a file that is cut off or not UTF-8.
    """
    found = recognise(source)
    with in_words(found):
        if found.kind == "bundled":
            return bundled_table(found.name)
        if found.kind == "parquet":
            frame = read_parquet(found)
        else:
            frame = read_text(found.path, find_layout(found.path, found.tabs), set(text))
    check_rows(found, frame.height, frame.width)
    return frame


def recognise(source: str | Path) -> Source:
    """What ``source`` is, from its name and its first bytes; errors as :func:`read_table`."""
    name, path = str(source), Path(source)
    with in_words(Source(name, "text")):
        if not path.exists():
            if name in BUNDLED:
                return Source(name, "bundled")
            near = did_you_mean(name, list(BUNDLED)) or f"; bundled sets are {', '.join(BUNDLED)}"
            raise TableError(f"there is no file {name!r}{near if path.suffix == '' else ''}")
        if path.is_dir():
            raise TableError(f"{name!r} is a folder; name the CSV or Parquet file in it")
        with path.open("rb") as file:
            start = file.read(4)
    if not start:
        raise TableError(f"{name!r} is empty: it has no header and no rows")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = next((s for s in reversed(suffixes) if s != ".gz"), "")
    if start == b"PAR1":
        return Source(name, "parquet")
    if kind in PARQUET_SUFFIXES:
        raise TableError(f"{name!r} is called Parquet but does not begin like one; it may be cut off or be CSV")
    if kind not in CSV_SUFFIXES:
        known = ", ".join((*CSV_SUFFIXES, *PARQUET_SUFFIXES))
        raise TableError(f"{name!r} is of no kind known here; its name should end in one of {known}")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise TableError(f"{name!r} is UTF-16 text{AS_UTF8}")
    return Source(name, "packed" if start[:2] == b"\x1f\x8b" else "text", kind in (".tsv", ".tab"))


@contextlib.contextmanager
def in_words(source: Source) -> Iterator[None]:
    """Tells what a reader says of a file it cannot read as a TableError."""
    try:
        yield
    except UNREADABLE as error:
        why = reason(error)
        remedy = AS_UTF8 if "utf" in why.lower() else ""  # the readers have no error of one type for it
        raise TableError(f"{source.name!r} cannot be read: {why}{remedy}") from error


def read_parquet(source: Source, columns: list[str] | None = None) -> pl.DataFrame:
    """All rows; with ``columns``, no other column is read from the disk."""
    return pl.read_parquet(source.path, columns=columns, glob=False, hive_partitioning=False)


def check_rows(source: Source, rows: int, columns: int) -> None:
    """Raise where a table has no rows."""
    if columns == 0 or rows == 0:
        raise TableError(f"{source.name!r} has no rows, only a header of {columns}")
