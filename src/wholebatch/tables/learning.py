"""What a preprocessing learns from the training table."""

from __future__ import annotations

import numpy as np
import polars as pl

from wholebatch.tables.dates import PARTS, date_parts
from wholebatch.tables.encoders import learn_categories, make_imputer
from wholebatch.tables.errors import TableError, columns_word
from wholebatch.tables.moments import YEAR_FIRST, as_moments, find_formats
from wholebatch.tables.scaling import Scaling, exponents, to_unit
from wholebatch.tables.state import CategoryState, ColumnState, Kind, NumberState, PreprocessingState
from wholebatch.tables.values import as_numbers, as_text, holds_text, stray_text

IDENTIFIER_SHARE = 0.9
"""A text column with more different values than this share of its rows says who a row is, not what it is like ..."""
IDENTIFIER_LEAST = 20
"""... unless it has no more than this many: a small table has few rows to repeat anything in."""


def learn(frame: pl.DataFrame) -> PreprocessingState:
    """The state that :class:`Preprocessing` is made of, from all columns of ``frame``."""
    if frame.height == 0:
        raise TableError("the table has no rows to learn from")
    learner = _Learner(frame.height)
    empty = []
    for series in frame:
        values, kind, layouts = _read(series)
        if values.null_count() == len(values):
            empty.append(series.name)
        else:
            learner.add(series, values, kind, layouts)
    if empty:
        raise TableError(
            f"{columns_word(empty)} {'has' if len(empty) == 1 else 'have'} no value in any of the {frame.height} rows; "
            f"leave {'it' if len(empty) == 1 else 'them'} out ({' '.join(f'--ignore {name!r}' for name in empty[:8])})"
        )
    return learner.state()


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


class _Learner:
    """Gathers columns; numbers are learned together at the end, as one matrix."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.columns: list[ColumnState] = []
        self.categories: list[CategoryState] = []
        self.notes: list[str] = []
        self._numbers: list[tuple[str, str | None, np.ndarray]] = []

    def add(self, series: pl.Series, values: pl.Series, kind: Kind, layouts: list[str]) -> None:
        reason = None
        if len(layouts) > 1:
            self.notes.append(
                f"column {series.name!r} has dates whose day and month could be either way round; the day is taken to "
                "come first. Write the year first (2031-12-24) if it does not"
            )
        if self.rows > 1 and values.null_count() == 0 and values.min() == values.max():
            reason = "it has the same value in every row"
        elif kind == "category":
            reason = self._add_category(values)
        elif kind == "date":
            self._add_date(values)
        else:
            self._numbers.append((series.name, None, values.to_numpy()))
            self._look_at_number(series)
        layout = layouts[0] if layouts else YEAR_FIRST
        self.columns.append(ColumnState(name=series.name, kind=kind, layout=layout, dropped=reason))
        if reason is not None:
            self.notes.append(f"column {series.name!r} is left out: {reason}")

    def _add_category(self, text: pl.Series) -> str | None:
        """Take the column in, or say why not."""
        stray = stray_text(text)
        if stray is not None:
            row, value = stray
            self.notes.append(
                f"column {text.name!r} is text because of {value!r} in row {row + 1}, while nearly all its other "
                "values are numbers; if that value stands for a missing one, empty the cell"
            )
        present = text.drop_nulls()
        distinct = present.n_unique()
        if distinct > max(IDENTIFIER_LEAST, IDENTIFIER_SHARE * len(present)):
            return f"{distinct} different texts in {len(present)} rows look like an identifier"
        categories, others = learn_categories(text)
        self.categories.append(CategoryState(column=text.name, categories=categories, others=others))
        return None

    def _add_date(self, moments: pl.Series) -> None:
        parts = list(PARTS)
        taken = [(part, s) for part, s in zip(parts, date_parts(moments, parts), strict=True) if _varies(s)]
        if not taken:  # one moment or missing: that it is missing is the news
            taken = [("days", date_parts(moments, ["days"])[0])]
        self._numbers.extend((moments.name, part, series.to_numpy()) for part, series in taken)

    def _look_at_number(self, series: pl.Series) -> None:
        if self.rows <= IDENTIFIER_LEAST or not series.dtype.is_integer():
            return
        low, high = int(series.min()), int(series.max())  # type: ignore[arg-type]
        if high - low == self.rows - 1 and series.n_unique() == self.rows:
            self.notes.append(
                f"column {series.name!r} counts the rows from {low} to {high}; if it is an identifier, "
                f"leave it out (--ignore {series.name!r})"
            )

    def state(self) -> PreprocessingState:
        if not self._numbers and not self.categories:
            why = "; ".join(self.notes) or "there is no column besides the target and those left out"
            raise TableError(f"no column is left to learn from: {why}")
        return PreprocessingState(
            columns=self.columns, numbers=self._learn_numbers(), categories=self.categories, notes=self.notes
        )

    def _learn_numbers(self) -> list[NumberState]:
        if not self._numbers:
            return []
        raw = np.column_stack([values for *_, values in self._numbers])
        exponent = exponents(raw)
        unit = to_unit(raw, exponent)
        missing = np.isnan(unit).any(axis=0)
        # One marker per column is enough: the parts of a date are missing together.
        first = np.array([k == 0 or self._numbers[k - 1][0] != name for k, (name, *_) in enumerate(self._numbers)])
        indicators = missing & first
        fills = np.nanmedian(unit, axis=0)
        filled = make_imputer(fills, np.zeros_like(missing)).transform(unit)
        scaling = Scaling.fit(filled, exponent)
        return [
            NumberState(column=name, part=part, fill=fill, indicator=bool(indicator), scale=scale)
            for (name, part, _), fill, indicator, scale in zip(
                self._numbers, fills.tolist(), indicators, scaling.scales, strict=True
            )
        ]


def _varies(series: pl.Series) -> bool:
    return series.drop_nulls().n_unique() > 1
