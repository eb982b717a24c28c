"""What a preprocessing learns from the training table: each column by itself, then the numbers of all."""

from __future__ import annotations

import numpy as np
import polars as pl

from wholebatch.tables.encoders import make_imputer
from wholebatch.tables.errors import TableError, columns_word
from wholebatch.tables.looking import Look, look_at
from wholebatch.tables.scaling import Scale, Scaling, exponents, to_unit
from wholebatch.tables.state import NumberState, PreprocessingState

FEW = 4
"""Numbers that are learned in one go: of a large table, copies of a few columns at a time are enough."""


def learn(frame: pl.DataFrame) -> PreprocessingState:
    """The state that :class:`Preprocessing` is made of, from all columns of ``frame``."""
    check_height(frame.height)
    seen = [look_at(series) for series in frame]
    looks = [look for look, _ in seen]
    check(looks, frame.height)
    values = [value for _, given in seen for value in given]
    return assemble(looks, learn_numbers(looks, values, alone=len(values) == 1))


def check_height(rows: int) -> None:
    """Raise where there are no rows."""
    if rows == 0:
        raise TableError("the table has no rows to learn from")


def check(looks: list[Look], rows: int) -> None:
    """Raise where a column has no value, or none is of use."""
    empty = [look.name for look in looks if look.column is None]
    if empty:
        raise TableError(
            f"{columns_word(empty)} {'has' if len(empty) == 1 else 'have'} no value in any of the {rows} rows; "
            f"leave {'it' if len(empty) == 1 else 'them'} out ({' '.join(f'--ignore {name!r}' for name in empty[:8])})"
        )
    if not any(look.parts or look.category for look in looks):
        why = "; ".join(note for look in looks for note in look.notes)
        why = why or "there is no column besides the target and those left out"
        raise TableError(f"no column is left to learn from: {why}")


def learn_numbers(looks: list[Look], values: list[np.ndarray], *, alone: bool) -> list[NumberState]:
    """Median, mean and standard deviation of each number that was seen.

    Args:
        values: those of all looks, one behind the other, each ``(N,)`` float64 with NaN where missing.
        alone: there is one number in the whole table. numpy adds up a single column in another order than several
            beside each other, where each column's sum is the same whatever stands beside it.
    """
    # One marker per column is enough: the parts of a date are missing together.
    names = [(look.name, part, k == 0) for look in looks for k, part in enumerate(look.parts)]
    learned = []
    for start in range(0, len(values), FEW):
        few = values[start : start + FEW]
        fills, missing, scales = _learn_few(few if alone or len(few) > 1 else few * 2)
        for (name, part, first), fill, lacks, scale in zip(names[start:], fills, missing, scales, strict=False):
            state = NumberState(column=name, part=part, fill=fill, indicator=lacks and first, scale=scale)
            learned.append(state)
    return learned


def _learn_few(values: list[np.ndarray]) -> tuple[list[float], list[bool], list[Scale]]:
    """Of each: the median, whether values are missing, and the scale."""
    raw = np.column_stack(values)
    exponent = exponents(raw)
    unit = to_unit(raw, exponent)
    missing = np.isnan(unit).any(axis=0)
    fills = np.nanmedian(unit, axis=0)
    filled = make_imputer(fills, np.zeros_like(missing)).transform(unit)
    return fills.tolist(), missing.tolist(), Scaling.fit(filled, exponent).scales


def assemble(looks: list[Look], numbers: list[NumberState]) -> PreprocessingState:
    """From the looks at all columns, in order, and the numbers of all."""
    return PreprocessingState(
        columns=[look.column for look in looks if look.column is not None],
        numbers=numbers,
        categories=[look.category for look in looks if look.category is not None],
        notes=[note for look in looks for note in look.notes],
    )
