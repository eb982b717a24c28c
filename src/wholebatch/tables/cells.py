"""What the cells of a text file's column are: numbers, true and false, dates, or text."""

from __future__ import annotations

import polars as pl

from wholebatch.tables.moments import YEAR_FIRST, find_formats, parse
from wholebatch.tables.values import as_text


def find_type(cells: pl.Series, decimal_comma: bool) -> pl.Series:
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
