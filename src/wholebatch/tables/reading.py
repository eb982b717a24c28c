"""A table from a file: CSV (also tab, semicolon or bar separated, also gzipped), Parquet, or a bundled set by name."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import IO

import polars as pl

from wholebatch.tables.bundled import BUNDLED, bundled_table
from wholebatch.tables.errors import TableError, columns_word, did_you_mean
from wholebatch.tables.moments import YEAR_FIRST, find_formats, parse
from wholebatch.tables.values import as_text

CSV_SUFFIXES = (".csv", ".tsv", ".txt", ".tab")
PARQUET_SUFFIXES = (".parquet", ".pq")
SEPARATORS = (",", "\t", ";", "|")
UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError, EOFError, csv.Error)


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
    path = Path(source)
    try:
        if not path.exists():
            if str(source) in BUNDLED:
                return bundled_table(str(source))
            near = did_you_mean(str(source), list(BUNDLED)) or f"; bundled sets are {', '.join(BUNDLED)}"
            raise TableError(f"there is no file {str(source)!r}{near if path.suffix == '' else ''}")
        if path.is_dir():
            raise TableError(f"{str(source)!r} is a folder; name the CSV or Parquet file in it")
        with path.open("rb") as file:
            start = file.read(4)
        if not start:
            raise TableError(f"{str(source)!r} is empty: it has no header and no rows")
        frame = _read(path, start, set(text))
    except UNREADABLE as error:
        raise TableError(f"{str(source)!r} cannot be read: {_reason(error)}") from error
    if frame.width == 0 or frame.height == 0:
        raise TableError(f"{str(source)!r} has no rows, only a header of {frame.width}")
    return frame


def _read(path: Path, start: bytes, text: set[str]) -> pl.DataFrame:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = next((s for s in reversed(suffixes) if s != ".gz"), "")
    if start == b"PAR1" or kind in PARQUET_SUFFIXES:
        if start != b"PAR1":
            raise TableError(
                f"{str(path)!r} is called Parquet but does not begin like one; it may be cut off or be CSV"
            )
        return pl.read_parquet(path, glob=False, hive_partitioning=False)
    if kind not in CSV_SUFFIXES:
        known = ", ".join((*CSV_SUFFIXES, *PARQUET_SUFFIXES))
        raise TableError(f"{str(path)!r} is of no kind known here; its name should end in one of {known}")
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise TableError(f"{str(path)!r} is UTF-16 text; save it as UTF-8 (in Excel: CSV UTF-8)")
    return _read_text(path, "\t" if kind in (".tsv", ".tab") else None, text)


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


def _read_text(path: Path, separator: str | None, text: set[str]) -> pl.DataFrame:
    names, separator = _header(path, separator)
    with _open(path) as file:
        start = file.read(2**16)
    line_end = "\r" if "\r" in start and "\n" not in start else "\n"  # as old Macs wrote, and some instruments
    try:
        frame = pl.read_csv(path, separator=separator, eol_char=line_end, infer_schema=False, glob=False)
    except UNREADABLE as error:
        _check_lines(path, separator, len(names))
        raise TableError(f"{str(path)!r} is broken: {_reason(error)}; is a quotation mark left open?") from error
    # polars fills a short line up with nulls, which reach the last column.
    if frame.height and frame[:, -1].null_count():
        _check_lines(path, separator, len(names))
    if frame.width != len(names):
        raise TableError(f"{str(path)!r} is broken: {frame.width} columns where the header names {len(names)}")
    frame = frame.rename(dict(zip(frame.columns, names, strict=True)))
    frame = frame.filter(~pl.all_horizontal(pl.all().is_null()))  # blank lines
    typed = (as_text(cells) if cells.name in text else _find_type(cells, separator == ";") for cells in frame)
    return frame.with_columns(typed)


def _check_lines(path: Path, separator: str, width: int) -> None:
    """Raise where a line has more or fewer fields than the header."""
    with (
        _open(path) as file,
        contextlib.suppress(csv.Error),
    ):  # a field beyond 128 KiB: polars reads those, csv does not
        reader = csv.reader(file, delimiter=separator)
        rows = (row for row in reader if row)
        next(rows, None)
        for number, row in enumerate(rows, start=1):
            if len(row) != width:
                raise TableError(
                    f"{str(path)!r} has {len(row)} field{'s' if len(row) > 1 else ''} in row {number} "
                    f"(line {reader.line_num}), the header has {width}; is a separator missing or a text with one in "
                    "it not quoted?"
                )


def _find_type(cells: pl.Series, decimal_comma: bool) -> pl.Series:
    """What all cells of a column are: whole numbers, numbers, true/false, dates, else text.

    polars' own inference over all rows, dates included, takes a quoted empty cell for text, and its time: 14.4 s for
    100,000 rows of 20 numbers and 5 texts, where reading cells (0.2 s) and casting them (0.2 s) is enough.
    """
    typed = _as_numbers(cells)
    if typed is not None:  # the common case, spared the search for words that mean "missing"
        return typed
    text = as_text(cells)
    present = text.drop_nulls()
    if present.is_empty():
        return text
    typed = _as_numbers(text)
    if typed is None and decimal_comma:
        typed = _as_numbers(text.str.replace(",", ".", literal=True))
    if typed is not None:
        return typed
    if present.str.to_lowercase().is_in(["true", "false"]).all():
        return text.str.to_lowercase() == "true"
    moments = parse(text) if YEAR_FIRST in find_formats(text) else None
    return text if moments is None else moments


def _as_numbers(text: pl.Series) -> pl.Series | None:
    """Int64 or Float64, or None where some text is neither or all is missing."""
    if text.null_count() == len(text):
        return None
    for dtype in (pl.Int64, pl.Float64):
        numbers = text.cast(dtype, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers.fill_nan(None) if dtype == pl.Float64 else numbers
    return None


def _reason(error: BaseException) -> str:
    """The first line of what the reader said."""
    if isinstance(error, FileNotFoundError | PermissionError) and error.strerror:
        return error.strerror
    return (str(error).strip() or type(error).__name__).splitlines()[0]
