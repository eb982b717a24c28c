"""What a column of the training table is, and what becomes of it: a look at one column, whatever stands beside it."""

from __future__ import annotations

import numpy as np
import polars as pl

from wholebatch.tables.dates import PARTS, date_parts
from wholebatch.tables.encoders import learn_categories
from wholebatch.tables.errors import TableError
from wholebatch.tables.moments import YEAR_FIRST, as_moments, find_formats
from wholebatch.tables.state import CategoryState, ColumnState, Kind, Model
from wholebatch.tables.values import as_numbers, as_text, holds_text, stray_text

IDENTIFIER_SHARE = 0.9
"""A text column with more different values than this share of its rows says who a row is, not what it is like ..."""
IDENTIFIER_LEAST = 20
"""... unless it has no more than this many: a small table has few rows to repeat anything in."""


class Look(Model):
    """What was seen of a column.

    Attributes:
        column: None: it has no value in any row.
        parts: the numbers that are taken from it: itself (None), or parts of a date.
        category: where it becomes one.
        notes: sentences that a person should read.
    """

    name: str
    column: ColumnState | None
    parts: list[str | None]
    category: CategoryState | None
    notes: list[str]


def look_at(series: pl.Series) -> tuple[Look, list[np.ndarray]]:
    """A column, and the values ``(N,)`` float64 of each of its numbers, NaN where missing.

    Raises:
        TableError: an infinite value, or a type that no number can be made of.
    """
    values, kind, layouts = _read(series)
    if values.null_count() == len(values):
        return Look(name=series.name, column=None, parts=[], category=None, notes=[]), []
    notes, reason, category = [], None, None
    numbers: list[tuple[str | None, pl.Series]] = []
    if len(layouts) > 1:
        notes.append(
            f"column {series.name!r} has dates whose day and month could be either way round; the day is taken to "
            "come first. Write the year first (2031-12-24) if it does not"
        )
    if len(values) > 1 and values.null_count() == 0 and values.min() == values.max():
        reason = "it has the same value in every row"
    elif kind == "category":
        notes.extend(_look_at_text(values))
        reason = _find_identifier(values)
        if reason is None:
            categories, others = learn_categories(values)
            category = CategoryState(column=series.name, categories=categories, others=others)
    elif kind == "date":
        numbers.extend(_take_parts(values))
    else:
        numbers.append((None, values))
        notes.extend(_look_at_number(series))
    if reason is not None:
        notes.append(f"column {series.name!r} is left out: {reason}")
    column = ColumnState(name=series.name, kind=kind, layout=layouts[0] if layouts else YEAR_FIRST, dropped=reason)
    parts = [part for part, _ in numbers]
    look = Look(name=series.name, column=column, parts=parts, category=category, notes=notes)
    return look, [values.to_numpy() for _, values in numbers]


def kind_of(series: pl.Series) -> Kind:
    """What a column of this type becomes; text may still turn out to be dates.

    Raises:
        TableError: a type that no number can be made of (lists, structures, bytes).
    """
    dtype = series.dtype
    if dtype == pl.Boolean:
        return "boolean"
    if dtype.is_numeric() or dtype in (pl.Duration, pl.Null):
        return "number"
    if dtype.is_temporal():
        return "date"
    if holds_text(series):
        return "category"
    raise TableError(
        f"column {series.name!r} holds values of type {dtype}, which become no number by themselves; "
        f"leave it out (--ignore {series.name!r}) or make simple columns of it"
    )


def _read(series: pl.Series) -> tuple[pl.Series, Kind, list[str]]:
    """(values as numbers, text or moments; the kind; the ways in which text can be read as dates)."""
    kind = kind_of(series)
    if kind == "date":
        return as_moments(series), kind, []
    if kind != "category":
        return as_numbers(series), kind, []
    text = as_text(series)
    layouts = find_formats(text)
    return (as_moments(text, layouts[0]), "date", layouts) if layouts else (text, kind, [])


def _look_at_text(text: pl.Series) -> list[str]:
    stray = stray_text(text)
    if stray is None:
        return []
    row, value = stray
    return [
        f"column {text.name!r} is text because of {value!r} in row {row + 1}, while nearly all its other "
        "values are numbers; if that value stands for a missing one, empty the cell"
    ]


def _find_identifier(text: pl.Series) -> str | None:
    """Why the column tells a row's name and nothing else; None: it does not."""
    present = text.drop_nulls()
    distinct = present.n_unique()
    if distinct > max(IDENTIFIER_LEAST, IDENTIFIER_SHARE * len(present)):
        return f"{distinct} different texts in {len(present)} rows look like an identifier"
    return None


def _take_parts(moments: pl.Series) -> list[tuple[str | None, pl.Series]]:
    """The parts of a date that differ from row to row."""
    parts = list(PARTS)
    taken: list[tuple[str | None, pl.Series]] = [
        (part, series) for part, series in zip(parts, date_parts(moments, parts), strict=True) if _varies(series)
    ]
    # One moment or missing: that it is missing is the news.
    return taken or [("days", date_parts(moments, ["days"])[0])]


def _look_at_number(series: pl.Series) -> list[str]:
    rows = len(series)
    if rows <= IDENTIFIER_LEAST or not series.dtype.is_integer():
        return []
    low, high = int(series.min()), int(series.max())  # type: ignore[arg-type]
    if high - low != rows - 1 or series.n_unique() != rows:
        return []
    return [
        f"column {series.name!r} counts the rows from {low} to {high}; if it is an identifier, "
        f"leave it out (--ignore {series.name!r})"
    ]


def _varies(series: pl.Series) -> bool:
    return series.drop_nulls().n_unique() > 1
