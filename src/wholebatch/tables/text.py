"""A table in a text file: how it is cut into lines and fields, and its cells."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import polars as pl

from wholebatch.tables.cells import find_type
from wholebatch.tables.errors import TableError, columns_word
from wholebatch.tables.values import as_text

SEPARATORS = (",", "\t", ";", "|")
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError, EOFError, csv.Error)
"""What readers raise of a file that they cannot read."""


@dataclass(frozen=True)
class Layout:
    """How a text file is cut into records and fields."""

    names: list[str]
    separator: str
    line_end: str


def find_layout(path: Path, tabs: bool) -> Layout:
    """From the file's beginning; ``tabs``: it is known to be cut at them.

    Raises:
        TableError: no header, two columns of one name.
        Exception: one of :data:`UNREADABLE`.
    """
    names, separator = _header(path, "\t" if tabs else None)
    with _open(path) as file:
        start = file.read(2**16)
    # as old Macs wrote, and some instruments
    return Layout(names, separator, "\r" if "\r" in start and "\n" not in start else "\n")


def _open(path: Path) -> IO[str]:
    """The file as text, unpacked where it is gzipped."""
    raw: IO[bytes] = path.open("rb")
    if raw.read(2) == b"\x1f\x8b":
        raw.close()
        raw = gzip.open(path, "rb")  # type: ignore[assignment]  # noqa: SIM115
    else:
        raw.seek(0)
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def _header(path: Path, separator: str | None) -> tuple[list[str], str]:
    """The column names, and the separator: that which cuts the header into most columns, the comma where none does."""
    best: tuple[list[str], str] = ([], ",")
    for candidate in [separator] if separator else SEPARATORS:
        with _open(path) as file:
            names = next((row for row in csv.reader(file, delimiter=candidate) if row), [])
        if len(names) > len(best[0]):
            best = names, candidate
    names, separator = best
    if not names:
        raise TableError(f"{str(path)!r} is empty: it has no header and no rows")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise TableError(f"{str(path)!r} has {columns_word(twice)} more than once; give each column a name of its own")
    return names, separator


def read_text(path: Path, layout: Layout, text: set[str]) -> pl.DataFrame:
    """The table; columns in ``text`` are kept as text, whatever they hold.

    Raises:
        TableError: lines that are longer or shorter than the header, or cannot be read.
        Exception: one of :data:`UNREADABLE`.
    """
    try:
        frame = parse_text(path, layout)
    except UNREADABLE as error:
        _check_lines(path, layout)
        raise TableError(f"{str(path)!r} is broken: {reason(error)}; is a quotation mark left open?") from error
    if may_be_short(frame):
        _check_lines(path, layout)
    if frame.width != len(layout.names):
        raise TableError(f"{str(path)!r} is broken: {frame.width} columns where the header names {len(layout.names)}")
    frame = name_cells(frame, layout)
    typed = (as_text(cells) if cells.name in text else find_type(cells, layout.separator == ";") for cells in frame)
    return frame.with_columns(typed)


def parse_text(file: Path | bytes, layout: Layout) -> pl.DataFrame:
    """All cells as text, under whatever names; raises one of :data:`UNREADABLE`."""
    return pl.read_csv(file, separator=layout.separator, eol_char=layout.line_end, infer_schema=False, glob=False)


def may_be_short(frame: pl.DataFrame) -> bool:
    """Whether a line may have been shorter than the header: polars fills it up with nulls, to the last column."""
    return frame.height > 0 and frame[:, -1].null_count() > 0


def name_cells(frame: pl.DataFrame, layout: Layout) -> pl.DataFrame:
    """Under the header's names, without blank lines."""
    frame = frame.rename(dict(zip(frame.columns, layout.names, strict=True)))
    return frame.filter(~pl.all_horizontal(pl.all().is_null()))


def _check_lines(path: Path, layout: Layout) -> None:
    """Raise where a line has more or fewer fields than the header."""
    with _open(path) as file:
        found = find_uneven(file, layout)
    if found is not None:
        row, line, fields = found
        raise TableError(
            f"{str(path)!r} has {fields} field{'s' if fields > 1 else ''} in row {row} (line {line}), the header has "
            f"{len(layout.names)}; is a separator missing or a text with one in it not quoted?"
        )


def find_uneven(file: IO[str], layout: Layout) -> tuple[int, int, int] | None:
    """(row, line, fields) of the first line after the header that has more or fewer fields than it."""
    reader = csv.reader(file, delimiter=layout.separator)
    with contextlib.suppress(csv.Error):  # a field beyond 128 KiB: polars reads those, csv does not
        rows = (row for row in reader if row)
        next(rows, None)
        for number, row in enumerate(rows, start=1):
            if len(row) != len(layout.names):
                return number, reader.line_num, len(row)
    return None


def reason(error: BaseException) -> str:
    """The first line of what the reader said."""
    if isinstance(error, FileNotFoundError | PermissionError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]
