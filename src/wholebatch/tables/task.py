"""Finding out what is to be predicted, and learning the classes or the scales."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

import numpy as np
import polars as pl
from pydantic import model_validator

from wholebatch.tables.errors import TableError, columns_word, quoted, require_columns
from wholebatch.tables.scaling import Scale, Scaling, exponents, to_unit
from wholebatch.tables.state import Model
from wholebatch.tables.values import (
    as_numbers,
    as_text,
    holds_numbers,
    holds_text,
    kind_words,
    missing_rows,
    stray_text,
)

Task = Literal["classification", "regression", "multilabel"]
Value = Literal["text", "boolean", "integer", "float"]
Class = str | bool | int | float

MAX_WHOLE_CLASSES = 20
"""So many different whole numbers at most are taken for classes when the task is to be found out."""
PYTHON_TYPES = {"text": str, "boolean": bool, "integer": int, "float": float}


class TargetState(Model):
    """Everything :class:`Target` is. ``values``: the type of the classes."""

    task: Task
    columns: list[str]
    values: Value
    classes: list[Class]
    scales: list[Scale]
    notes: list[str]

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not self.columns or len(set(self.columns)) < len(self.columns):
            raise ValueError("there is no target column, or one stands twice")
        if self.task == "classification":
            kind = PYTHON_TYPES[self.values]
            if any(type(value) is not kind for value in self.classes):
                raise ValueError(f"a class is not of type {self.values}")
            if len(self.columns) != 1 or len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
                raise ValueError("classification needs one column and at least two classes, all different")
        elif self.classes:
            raise ValueError(f"{self.task} has no classes")
        if len(self.scales) != (len(self.columns) if self.task == "regression" else 0):
            raise ValueError("scales and columns do not agree")
        return self


def check_columns(frame: pl.DataFrame, columns: Sequence[str]) -> None:
    """Raise where the target columns are not there, not filled, or the table has fewer than two rows."""
    if not columns:
        raise TableError("no target column was named (--target COLUMN)")
    if len(set(columns)) < len(columns):
        raise TableError(f"a target column is named twice among {quoted(columns)}")
    require_columns(columns, frame.columns, "which was to be the target")
    if frame.height < 2:
        rows = "1 row" if frame.height == 1 else "0 rows"
        raise TableError(f"the table has {rows}; there must be at least 2 to learn from")
    check_filled(frame, columns)


def check_filled(frame: pl.DataFrame, columns: Sequence[str]) -> None:
    """Raise where a target column has a missing value."""
    for name in columns:
        missing = missing_rows(frame[name])
        if missing.any():
            first = int(missing.arg_max() or 0) + 1
            raise TableError(
                f"target column {name!r} has no value in {missing.sum()} of {len(missing)} rows (the first is row "
                f"{first}); fill them or drop those rows (--drop-missing-target)"
            )


def find_task(frame: pl.DataFrame, columns: Sequence[str]) -> Task:
    """The rule of :meth:`Target.infer`'s ``auto``."""
    if len(columns) > 1:
        if all(_is_binary(frame[name]) for name in columns):
            return "multilabel"
        for name in columns:
            if not holds_numbers(frame[name]):
                raise TableError(
                    f"target column {name!r} holds {kind_words(frame[name].dtype)}; several target columns must be all "
                    "numbers, or all yes/no (0 and 1, true and false)"
                )
        return "regression"
    series = frame[columns[0]]
    if holds_text(series):
        _refuse_stray_text(series)
        return "classification"
    if not holds_numbers(series):
        raise TableError(
            f"target column {series.name!r} holds {kind_words(series.dtype)}; a target must be classes or numbers"
        )
    numbers = as_numbers(series)
    distinct = numbers.n_unique()
    whole = bool((numbers == numbers.round()).all())
    few = distinct <= 2 or (distinct <= MAX_WHOLE_CLASSES and 2 * distinct <= len(numbers))
    return "classification" if whole and few else "regression"


def read_numbers(series: pl.Series, task: str) -> pl.Series:
    """Float64 of a regression target, or 0.0 and 1.0 of a label."""
    if not (holds_numbers(series) or holds_text(series)):
        raise TableError(f"target column {series.name!r} holds {kind_words(series.dtype)}; {task} needs numbers")
    try:
        numbers = as_numbers(series)
    except TableError as error:
        remedy = f"; {task} needs numbers: mend the table, or use --task classification" if holds_text(series) else ""
        raise TableError(f"{error}{remedy}") from None
    if task == "multilabel":
        other = ~numbers.is_in([0.0, 1.0])
        if other.any():
            row = int(other.arg_max() or 0)
            raise TableError(f"label column {series.name!r} has {series[row]!r} in row {row + 1}; a label is 0 or 1")
    return numbers


def read_classes(series: pl.Series, kind: Value) -> pl.Series:
    """The column in the classes' own type; null where a value cannot be of it."""
    if kind == "text":
        return as_text(series)
    if kind == "integer" and series.dtype.is_integer():
        return series.cast(pl.Int64, strict=False)
    numbers = as_text(series).cast(pl.Float64, strict=False) if holds_text(series) else as_numbers(series)
    if kind == "float":
        return numbers
    if kind == "integer":
        return numbers.set((numbers != numbers.round()).fill_null(False), None).cast(pl.Int64, strict=False)
    return numbers.replace_strict([0.0, 1.0], [False, True], default=None, return_dtype=pl.Boolean)


def learn_classes(frame: pl.DataFrame, columns: Sequence[str]) -> TargetState:
    """The sorted classes of one column."""
    if len(columns) != 1:
        raise TableError(
            f"classification takes one target column, {len(columns)} were named; for several yes/no columns use "
            "--task multilabel"
        )
    series = frame[columns[0]]
    if not (holds_text(series) or holds_numbers(series)):
        raise TableError(f"target column {series.name!r} holds {kind_words(series.dtype)}, which cannot be classes")
    values = read_classes(series, kind := _class_type(series))
    if values.null_count():
        raise TableError(f"target column {series.name!r} has whole numbers beyond 64 bits; make text of them")
    counts = values.value_counts(name="rows").sort(pl.first())
    classes, rows = counts.to_series(0).to_list(), counts.to_series(1).to_list()
    if len(classes) < 2:
        raise TableError(
            f"target column {series.name!r} has one class only ({classes[0]!r} in all {len(series)} rows); "
            "there must be at least two to tell apart"
        )
    if len(classes) == len(series) > MAX_WHOLE_CLASSES:
        raise TableError(
            f"target column {series.name!r} has a class of its own for each of the {len(series)} rows; "
            "name another target, or use --task regression if they are quantities"
        )
    single = [value for value, n in zip(classes, rows, strict=True) if n == 1]
    notes = [f"{len(single)} of {len(classes)} classes have a single row: {quoted(single)}"] if single else []
    return TargetState(
        task="classification", columns=list(columns), values=kind, classes=classes, scales=[], notes=notes
    )


def learn_labels(labels: list[pl.Series]) -> TargetState:
    """Several yes/no columns; a constant one is told in a note."""
    constant = [series.name for series in labels if series.n_unique() == 1]
    if len(constant) == len(labels):
        raise TableError(
            f"target {columns_word(constant)}: the same value in all {len(labels[0])} rows, there is nothing to learn"
        )
    notes = [f"target {columns_word(constant)}: the same value in every row"] if constant else []
    names = [series.name for series in labels]
    return TargetState(task="multilabel", columns=names, values="integer", classes=[], scales=[], notes=notes)


def learn_scales(numbers: list[pl.Series]) -> TargetState:
    """Mean and standard deviation of each column, in float64."""
    constant = [series.name for series in numbers if series.n_unique() == 1]
    if constant:
        raise TableError(
            f"target {columns_word(constant)}: the same value in all {len(numbers[0])} rows, there is nothing to learn"
        )
    values = np.column_stack([series.to_numpy() for series in numbers])
    exponent = exponents(values)
    scaling = Scaling.fit(to_unit(values, exponent), exponent)
    names = [series.name for series in numbers]
    return TargetState(task="regression", columns=names, values="float", classes=[], scales=scaling.scales, notes=[])


def _class_type(series: pl.Series) -> Value:
    if holds_text(series):
        return "text"
    if series.dtype == pl.Boolean:
        return "boolean"
    return "integer" if series.dtype.is_integer() else "float"


def _is_binary(series: pl.Series) -> bool:
    return holds_numbers(series) and bool(as_numbers(series).is_in([0.0, 1.0]).all())


def _refuse_stray_text(series: pl.Series) -> None:
    """A target of numbers with a few words in it is more likely a mistake than classes; the person decides."""
    found = stray_text(as_text(series))
    if found is not None:
        row, value = found
        raise TableError(
            f"target column {series.name!r} has {value!r} in row {row + 1} while nearly all its other values are "
            "numbers; mend it, or use --task classification if they are classes"
        )
