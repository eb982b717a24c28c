"""Dates and times as moments, whatever the file held: dates, moments with or without a time zone, or text.

Text that begins with the year (2031-12-24) means one thing. 03/04/2031 does not: it is in March for some and in April
for others. So the order is read from the whole training column, where a day beyond the 12th settles it, and kept, so
that a new table of few rows is read the same way.
"""

from __future__ import annotations

from datetime import datetime
from itertools import product

import polars as pl

from wholebatch.tables.errors import TableError
from wholebatch.tables.values import as_text, holds_text, kind_words, refuse_where

YEAR_FIRST = ""
"""The format of text that begins with the year, in any of polars' ways; every other is one of :data:`FORMATS`."""
_CLOCKS = ("", " %H:%M", " %H:%M:%S%.f", " %I:%M %p", " %I:%M:%S %p")
FORMATS = tuple(
    f"{first}{mark}{second}{mark}%Y{clock}"
    for mark, (first, second), clock in product("/.-", (("%d", "%m"), ("%m", "%d")), _CLOCKS)
)
_BEGINS_WITH_YEAR = r"^\d{4}[-/.]\d{1,2}[-/.]\d{1,2}"
_ENDS_WITH_YEAR = r"^\d{1,2}[-/.]\d{1,2}[-/.]\d{4}"


def find_formats(text: pl.Series) -> list[str]:
    """Every format in which all of ``text`` (as :func:`as_text` gives it) is a date; the day comes before the month."""
    present = text.drop_nulls()
    if present.is_empty():
        return []
    if present.str.contains(_BEGINS_WITH_YEAR).all():
        return [YEAR_FIRST] if _fits(parse(present)) else []
    if not present.str.contains(_ENDS_WITH_YEAR).all():
        return []
    likely = [layout for layout in FORMATS if _fits(parse(present.head(1), layout))]
    return [layout for layout in likely if _fits(parse(present, layout))]


def parse(text: pl.Series, layout: str = YEAR_FIRST) -> pl.Series | None:
    """Text as Date or Datetime, null where a value does not fit; None where polars finds no value that does."""
    if layout != YEAR_FIRST:
        return text.str.to_datetime(layout, strict=False, time_unit="us")
    try:
        days = text.str.to_date(strict=False)
        if days.null_count() == text.null_count():
            return days
        return text.str.to_datetime(strict=False, time_unit="us")
    except pl.exceptions.PolarsError:  # "could not find an appropriate format"
        return None


def as_moments(series: pl.Series, layout: str = YEAR_FIRST) -> pl.Series:
    """Datetime in microseconds, in UTC where a time zone is known; times of day lie on 1970-01-01.

    Raises:
        TableError: a value that is no date; names column, value and row.
    """
    dtype = series.dtype
    if holds_text(series):
        text = as_text(series)
        moments = parse(text, layout)
        if moments is None:
            moments = pl.Series(series.name, [None] * len(series), dtype=pl.Date)
        example = datetime(2031, 12, 24, 18, 30).strftime(layout.replace("%.f", "") or "%Y-%m-%d")
        refuse_where(moments.is_null() & text.is_not_null(), text, f"a date (write it as {example})")
        series = moments
    elif dtype == pl.Time:
        series = series.cast(pl.Int64).cast(pl.Datetime("ns"))
    elif dtype != pl.Null and dtype not in (pl.Date, pl.Datetime):
        raise TableError(f"column {series.name!r} holds {kind_words(dtype)} where dates are needed")
    if isinstance(series.dtype, pl.Datetime) and series.dtype.time_zone is not None:
        series = series.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return series.cast(pl.Datetime("us"))


def _fits(moments: pl.Series | None) -> bool:
    return moments is not None and moments.null_count() == 0
