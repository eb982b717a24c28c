"""How much each row counts, from a column of the table."""

from __future__ import annotations

import numpy as np
import polars as pl

from wholebatch.tables.errors import TableError, require_columns
from wholebatch.tables.values import as_numbers


def weights(frame: pl.DataFrame, column: str) -> np.ndarray:
    """Sample weights ``(N,)`` float32 from ``column``.

    Raises:
        TableError: no such column; a weight that is missing, negative, infinite, no number or beyond float32; all zero.
    """
    require_columns([column], frame.columns, "which was to hold the sample weights")
    numbers = as_numbers(frame[column])
    remedy = "a weight is a number of 0 or more"
    if numbers.null_count():
        row = int(numbers.is_null().arg_max() or 0) + 1
        raise TableError(f"weight column {column!r} has no value in row {row} ({numbers.null_count()} rows); {remedy}")
    values = numbers.to_numpy()
    if (values < 0).any():
        row = int(np.argmax(values < 0))
        raise TableError(f"weight column {column!r} has {values[row]:g} in row {row + 1}; {remedy}")
    if (values > np.finfo(np.float32).max).any():
        row = int(np.argmax(values))
        raise TableError(f"weight column {column!r} has {values[row]:g} in row {row + 1}; float32 ends at 3.4e38")
    values = values.astype(np.float32)
    if not values.any():
        raise TableError(f"weight column {column!r} is zero in all {len(values)} rows; at least one row must count")
    return values
