"""A table's columns as a float32 matrix: numbers and dates filled and standardised, categories one output each."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from wholebatch.tables.dates import date_parts
from wholebatch.tables.encoders import encode, make_encoder, make_imputer
from wholebatch.tables.errors import require_columns, unique_names
from wholebatch.tables.learning import learn
from wholebatch.tables.moments import as_moments
from wholebatch.tables.scaling import Scaling, to_unit
from wholebatch.tables.state import Kind, PreprocessingState, load
from wholebatch.tables.values import as_numbers, as_text


@dataclass(frozen=True)
class Column:
    """A column of the training table. ``features``: the outputs made of it; ``became``: the same in words.

    ``dropped``: the reason why nothing was made of it, or None.
    """

    name: str
    kind: Kind
    features: tuple[str, ...]
    dropped: str | None
    became: str


class Preprocessing:
    """From a table to ``(N, F)`` float32, with what was learned from the training table.

    Numbers and booleans: ``((x or the median where missing) - mean) / std``, statistics in float64. Dates: year, time
    gone by, and month, weekday and hour on circles, then as numbers. Each of these that had missing values gets a 0/1
    output more.
    Categories: a 0/1 output each, a missing value being one of them; the 64 most frequent, the rest share one. A
        category that training never saw is one of that rest, or all zeros where there is none.

    Attributes:
        feature_names: one per output column.
        columns: every column of the training table that was not excluded, and what became of it.
        notes: sentences that a person should read: columns left out, columns that look like a mistake.
    """

    def __init__(self, state: PreprocessingState) -> None:
        self._state = state
        numbers, categories = state.numbers, state.categories
        self._scaling = Scaling([number.scale for number in numbers])
        self._indicators = np.array([number.indicator for number in numbers], dtype=bool)
        if numbers:
            self._imputer = make_imputer(np.array([number.fill for number in numbers]), self._indicators)
        self._encoders = [make_encoder(category.categories, category.others) for category in categories]
        named = self._name_features()
        self.feature_names = unique_names([name for name, _ in named])
        self.notes = list(state.notes)
        features: dict[str, list[str]] = {}
        for name, (_, column) in zip(self.feature_names, named, strict=True):
            features.setdefault(column, []).append(name)
        became = self._describe()
        self.columns = [
            Column(
                c.name, c.kind, tuple(features.get(c.name, ())), c.dropped, became.get(c.name, f"left out: {c.dropped}")
            )
            for c in state.columns
        ]

    @classmethod
    def fit(cls, frame: pl.DataFrame, exclude: Collection[str] = ()) -> Preprocessing:
        """Learn from every column but those in ``exclude`` (target, weights, ignored).

        Raises:
            TableError: an excluded column that is not there, no rows, a column without any value, an infinite value,
                a type no number can be made of, no column that is of use.
        """
        require_columns(list(exclude), frame.columns, "which was to be left out of the features")
        return cls(learn(frame.drop(list(exclude))))

    @property
    def needed(self) -> list[str]:
        """The columns that :meth:`transform` takes, in the order of the training table."""
        return [c.name for c in self._state.columns if c.dropped is None]

    @property
    def text_columns(self) -> list[str]:
        """Columns to read as text (``read_table(..., text=...)``), so that ``007`` stays the category it was."""
        return [c.name for c in self._state.columns if c.kind == "category" and c.dropped is None]

    def transform(self, frame: pl.DataFrame) -> np.ndarray:
        """``(N, F)`` float32, C-contiguous, finite; columns in any order, others passed over.

        Raises:
            TableError: columns that are missing (all are named); text where a number or a date was, an infinite value
                (column, row, value).
        """
        require_columns(self.needed, frame.columns, "which the model was trained on")
        out = np.empty((frame.height, len(self.feature_names)), dtype=np.float32)
        if frame.height == 0:
            return out
        end = len(self._scaling.scales)
        if end:
            filled = self._imputer.transform(to_unit(self._raw_numbers(frame), self._scaling.exponent))
            out[:, :end] = self._scaling.scale(filled[:, :end])
            out[:, end : filled.shape[1]] = filled[:, end:]
            end = filled.shape[1]
        for category, encoder in zip(self._state.categories, self._encoders, strict=True):
            block = encode(encoder, as_text(frame[category.column]))
            out[:, end : end + block.shape[1]] = block
            end += block.shape[1]
        return out

    def check_column(self, series: pl.Series) -> pl.Series:
        """A column of the training table as numbers, moments or text; errors as :meth:`transform`."""
        column = next(column for column in self._state.columns if column.name == series.name)
        if column.kind == "date":
            return as_moments(series, column.layout)
        return as_text(series) if column.kind == "category" else as_numbers(series)

    def _raw_numbers(self, frame: pl.DataFrame) -> np.ndarray:
        """``(N, K)`` float64 with NaN where missing."""
        columns = {c.name: c for c in self._state.columns}
        parts: dict[str, list[str]] = {}
        for number in self._state.numbers:
            parts.setdefault(number.column, []).extend([] if number.part is None else [number.part])
        blocks: list[pl.Series] = []
        for name, wanted in parts.items():
            values = self.check_column(frame[name])
            blocks.extend(date_parts(values, wanted) if columns[name].kind == "date" else [values])
        return np.column_stack([block.to_numpy() for block in blocks])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self._state.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: Any) -> Preprocessing:
        """What :meth:`to_dict` gave; its :meth:`transform` gives the same bits.

        Raises:
            ValueError: content that is corrupt or foreign; says where and what.
        """
        return cls(load(PreprocessingState, data, "the preprocessing"))

    def _name_features(self) -> list[tuple[str, str]]:
        """(feature name, column) for each output, in order."""
        named: list[tuple[str, str]] = []
        for n in self._state.numbers:
            named.append((n.column if n.part is None else f"{n.column}.{n.part}", n.column))
        for n in self._state.numbers:
            if n.indicator:
                named.append((f"{n.column} is missing", n.column))
        for c in self._state.categories:
            labels = [f"{c.column} is missing" if label is None else f"{c.column}={label}" for label in c.categories]
            labels += [f"{c.column}: any other"] if c.others else []
            named.extend((label, c.column) for label in labels)
        return named

    def _describe(self) -> dict[str, str]:
        """In words, what each column that was not dropped became."""
        words: dict[str, str] = {}
        for c in self._state.categories:
            words[c.column] = f"{len(c.categories)} categories, an output each"
            words[c.column] += "; all others share one more" if c.others else ""
        for n in self._state.numbers:
            if n.part is not None:
                words[n.column] = f"{words[n.column]}, {n.part}" if n.column in words else f"standardised {n.part}"
            else:
                words[n.column] = "standardised"
        for n in self._state.numbers:
            if n.indicator:
                fill = "" if n.part is not None else f" ({np.ldexp(n.fill, n.scale.exponent):.6g})"
                words[n.column] += f"; missing values become the median{fill} and are marked by an output of their own"
        return words
