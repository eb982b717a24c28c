"""A column's values as numbers or text; the first value that does not fit is named.

A missing value is a null, a NaN, or text that says so (:data:`MISSING`): all are null here. Rows are counted from 1,
without the header.
"""

from __future__ import annotations

import polars as pl

from wholebatch.tables.errors import TableError

MISSING = (
    *("", "NA", "N/A", "n/a", "<NA>", "#N/A", "#N/A N/A", "#NA", "NULL", "null", "None", "NaN", "nan", "-NaN", "-nan"),
    *("1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN", "?"),
)
"""Text that stands for a missing value: pandas' list, and the question mark of the UCI sets."""


def as_text(series: pl.Series) -> pl.Series:
    """String values without the spaces around them; missing where :data:`MISSING` says so.

    Raises:
        TableError: lists, structures, bytes.
    """
    dtype = series.dtype
    if dtype.is_nested() or dtype in (pl.Binary, pl.Object):
        raise TableError(f"column {series.name!r} holds {kind_words(dtype)} where text is needed")
    return series.cast(pl.String).str.strip_chars().replace(list(MISSING), [None] * len(MISSING))


def as_numbers(series: pl.Series) -> pl.Series:
    """Float64 values, null where missing; booleans are 0 and 1, durations seconds.

    Raises:
        TableError: text that is no number, dates, an infinite value; names column, value and row.
    """
    dtype = series.dtype
    if dtype == pl.Duration:
        numbers = series.dt.total_microseconds().cast(pl.Float64) / 1e6
    elif holds_text(series):
        text = as_text(series)
        numbers = text.cast(pl.Float64, strict=False)
        refuse_where(numbers.is_null() & text.is_not_null(), text, "a number")
    elif dtype.is_numeric() or dtype in (pl.Boolean, pl.Null):
        numbers = series.cast(pl.Float64)
    else:
        raise TableError(f"column {series.name!r} holds {kind_words(dtype)} where numbers are needed")
    numbers = numbers.fill_nan(None)
    infinite = numbers.is_infinite().fill_null(False)
    if infinite.any():
        row = infinite.arg_max()
        assert row is not None
        raise TableError(
            f"column {series.name!r} has an infinite value ({series[row]}) in row {row + 1}; "
            "leave the cell empty if the value is not known, or drop the row"
        )
    return numbers


def holds_text(series: pl.Series) -> bool:
    """Text, or categories of it."""
    return series.dtype == pl.String or isinstance(series.dtype, (pl.Categorical, pl.Enum))


def holds_numbers(series: pl.Series) -> bool:
    """Numbers, or true and false."""
    return series.dtype.is_numeric() or series.dtype == pl.Boolean


def missing_rows(series: pl.Series) -> pl.Series:
    """Boolean: where there is no value, by the rule of this file."""
    if series.dtype.is_float():
        series = series.fill_nan(None)
    elif holds_text(series):
        series = as_text(series)
    return series.is_null()


def stray_text(text: pl.Series) -> tuple[int, str] | None:
    """(row from 0, value) of the first text that is no number, where at least nine values of ten are numbers."""
    stray = text.cast(pl.Float64, strict=False).is_null() & text.is_not_null()
    if not 0 < stray.sum() <= 0.1 * (len(text) - text.null_count()):
        return None
    row = int(stray.arg_max() or 0)
    return row, str(text[row])


def kind_words(dtype: pl.DataType) -> str:
    """``dates``, ``text``, ...: a dtype in a person's words."""
    if dtype.is_temporal():
        return "dates" if dtype in (pl.Date, pl.Datetime) else "times"
    if dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum)):
        return "text"
    if dtype == pl.Boolean:
        return "true and false"
    return "numbers" if dtype.is_numeric() else f"values of type {dtype}"


def refuse_where(bad: pl.Series, values: pl.Series, needed: str) -> None:
    """Raise for the first row where ``bad`` holds."""
    if bad.any():
        row = bad.arg_max()
        assert row is not None
        count = int(bad.sum())
        more = f" ({count} such values)" if count > 1 else ""
        raise TableError(f"column {values.name!r} has {values[row]!r} in row {row + 1}{more}, which is not {needed}")
