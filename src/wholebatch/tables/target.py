"""What the net is to predict: target columns as class indices or numbers, and the net's outputs as columns again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from pydantic import model_validator
from scipy.special import expit, softmax

from wholebatch.tables.errors import TableError, columns_word, require_columns
from wholebatch.tables.scaling import Scale, Scaling, exponents, to_unit
from wholebatch.tables.state import Model, load
from wholebatch.tables.values import as_numbers, as_text, kind_words

Task = Literal["classification", "regression", "multilabel"]
Value = Literal["text", "boolean", "integer", "float"]
Class = str | bool | int | float

MAX_WHOLE_CLASSES = 20
"""So many different whole numbers at most are taken for classes when the task is to be found out."""
PURPOSE = "which was to be the target"


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
            raise ValueError("the target's columns are none, or one stands twice")
        if self.task == "classification":
            kind = {"text": str, "boolean": bool, "integer": int, "float": float}[self.values]
            if any(type(value) is not kind for value in self.classes):
                raise ValueError(f"a class is not of type {self.values}")
            if len(self.columns) != 1 or len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
                raise ValueError("classification needs one column and two different classes or more")
        elif self.classes:
            raise ValueError(f"{self.task} has no classes")
        if len(self.scales) != (len(self.columns) if self.task == "regression" else 0):
            raise ValueError("scales and columns do not agree")
        return self


class Target:
    """The target columns of a table.

    Attributes:
        task: ``classification``, ``regression`` or ``multilabel``.
        columns: the target columns.
        classes: str, bool, int or float, sorted; empty unless classification.
        out_features: outputs the net needs: one per class, or one per column.
        notes: sentences that a person should read.
    """

    def __init__(self, state: TargetState) -> None:
        self._state = state
        self.task: Task = state.task
        self.columns = list(state.columns)
        self.classes = list(state.classes)
        self.notes = list(state.notes)
        self.out_features = len(self.classes) or len(self.columns)
        self._scaling = Scaling(state.scales)

    @classmethod
    def infer(cls, frame: pl.DataFrame, columns: Sequence[str], task: str = "auto") -> Target:
        """Find out the task and learn classes or scales.

        ``auto``, one column: text, true/false and categories are classification. Whole numbers (also written as 1.0)
        are classification where there are at most 2 different ones, or at most 20 and on average 2 rows or more for
        each. All else is regression. Several columns: all of true/false or 0/1 is multilabel, numbers are regression.

        Raises:
            TableError: no such column, a missing value, an infinite one, one class or value only, fewer than two
                rows, a task that the column does not allow.
        """
        if task not in ("auto", "classification", "regression", "multilabel"):
            raise TableError(f"task is {task!r}; choose auto, classification, regression or multilabel")
        _check(frame, columns)
        if task == "auto":
            task = _find_task(frame, columns)
        if task == "classification":
            return cls(_learn_classes(frame, columns))
        numbers = [_numbers(frame[name], task) for name in columns]
        return cls(_learn_labels(numbers) if task == "multilabel" else _learn_scales(numbers))

    @property
    def text_columns(self) -> list[str]:
        """Columns to read as text (``read_table(..., text=...)``), so that ``007`` stays the class it was."""
        return list(self.columns) if self._state.values == "text" else []

    def encode(self, frame: pl.DataFrame) -> np.ndarray:
        """The target as the net's loss takes it.

        Classification: ``(N,)`` int64 indices into ``classes``. Regression: ``(N, out_features)`` float32, standardised.
        Multilabel: ``(N, out_features)`` float32 of 0 and 1.

        Raises:
            TableError: a missing column or value, a class or label that training did not know, text in place of
                numbers.
        """
        require_columns(self.columns, frame.columns, "the target")
        _check_missing(frame, self.columns)
        if self.task == "classification":
            series = frame[self.columns[0]]
            values = _as_values(series, self._state.values)
            dtype = {"text": pl.String, "boolean": pl.Boolean, "integer": pl.Int64, "float": pl.Float64}[
                self._state.values
            ]
            known = pl.Series(self.classes, dtype=dtype)
            found = values.replace_strict(known, np.arange(len(known)), default=None, return_dtype=pl.Int64)
            if found.null_count():
                row = int(found.is_null().arg_max() or 0)
                raise TableError(
                    f"target column {series.name!r} has {series[row]!r} in row {row + 1}, which is none of the "
                    f"{len(known)} classes the model was trained on"
                )
            return found.to_numpy().astype(np.int64)
        columns = [_numbers(frame[name], self.task).to_numpy() for name in self.columns]
        values_ = np.column_stack(columns)
        if self.task == "regression":
            values_ = self._scaling.scale(to_unit(values_, self._scaling.exponent))
        return np.ascontiguousarray(values_, dtype=np.float32)

    def decode(self, outputs: np.ndarray) -> pl.DataFrame:
        """The net's ``(N, out_features)`` outputs as columns.

        Classification takes logits and gives the class of the largest one, in its original type, and softmax's
        ``probability_<class>`` for each. Regression gives values in original units. Multilabel takes logits and gives
        0 or 1 per label (1 above a probability of one half), then ``probability_<label>`` for each.

        Raises:
            ValueError: outputs of another shape.
        """
        outputs = np.asarray(outputs, dtype=np.float64)
        if outputs.ndim != 2 or outputs.shape[1] != self.out_features:
            raise ValueError(f"outputs have shape {outputs.shape}; this target takes (N, {self.out_features})")
        if self.task == "regression":
            values = self._scaling.restore(outputs) if len(outputs) else outputs
            return pl.DataFrame(dict(zip(self.columns, values.T, strict=True)))
        if self.task == "classification":
            chosen = (
                pl.Series(self.columns[0], self.classes).gather(outputs.argmax(axis=1))
                if len(outputs)
                else (pl.Series(self.columns[0], self.classes).head(0))
            )
            decided, of, chances = [chosen], [label_text(c) for c in self.classes], softmax(outputs, axis=1)
        else:
            decided = [pl.Series(name, (outputs[:, k] > 0).astype(np.int64)) for k, name in enumerate(self.columns)]
            of, chances = self.columns, expit(outputs)
        taken = list(self.columns)
        for k, name in enumerate(of):
            free = f"probability_{name}"
            while free in taken:  # a target that is itself called probability_...
                free += "_"
            taken.append(free)
            decided.append(pl.Series(free, chances[:, k]))
        return pl.DataFrame(decided)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return self._state.model_dump(mode="json")

    @classmethod
    def from_dict(cls, data: Any) -> Target:
        """What :meth:`to_dict` gave.

        Raises:
            ValueError: content that is corrupt or foreign; says where and what.
        """
        return cls(load(TargetState, data, "the target's description"))


def label_text(value: Class) -> str:
    """A class as a table shows it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check(frame: pl.DataFrame, columns: Sequence[str]) -> None:
    if not columns:
        raise TableError("no target column was named (--target COLUMN)")
    if len(set(columns)) < len(columns):
        raise TableError(f"a target column is named twice among {', '.join(map(repr, columns))}")
    require_columns(columns, frame.columns, PURPOSE)
    if frame.height < 2:
        raise TableError(f"the table has {frame.height} row; there must be at least 2 to learn from")
    _check_missing(frame, columns)


def _check_missing(frame: pl.DataFrame, columns: Sequence[str]) -> None:
    for name in columns:
        series = frame[name]
        if series.dtype.is_float():
            series = series.fill_nan(None)
        elif not (series.dtype.is_numeric() or series.dtype.is_temporal() or series.dtype.is_nested()):
            series = as_text(series)
        missing = series.is_null()
        if missing.any():
            first = int(missing.arg_max() or 0) + 1
            raise TableError(
                f"target column {name!r} has no value in {missing.sum()} of {len(series)} rows (the first is row "
                f"{first}); fill them or drop those rows (--drop-missing-target)"
            )


def _is_binary(series: pl.Series) -> bool:
    if series.dtype == pl.Boolean:
        return True
    return series.dtype.is_numeric() and bool(series.is_in([0, 1]).all())


def _is_text(series: pl.Series) -> bool:
    return series.dtype == pl.String or isinstance(series.dtype, (pl.Categorical, pl.Enum))


def _find_task(frame: pl.DataFrame, columns: Sequence[str]) -> Task:
    if len(columns) > 1:
        if all(_is_binary(frame[name]) for name in columns):
            return "multilabel"
        _require_numbers([frame[name] for name in columns], "several target columns")
        return "regression"
    series = frame[columns[0]]
    if series.dtype == pl.Boolean or _is_text(series):
        return "classification"
    _require_numbers([series], "a target")
    numbers = as_numbers(series)
    distinct = numbers.n_unique()
    whole = bool((numbers == numbers.round()).all())
    few = distinct <= 2 or (distinct <= MAX_WHOLE_CLASSES and 2 * distinct <= len(numbers))
    return "classification" if whole and few else "regression"


def _require_numbers(columns: list[pl.Series], what: str) -> None:
    for series in columns:
        if not (series.dtype.is_numeric() or series.dtype == pl.Boolean):
            raise TableError(
                f"target column {series.name!r} holds {kind_words(series.dtype)}; {what} must be "
                f"{'classes or numbers' if what == 'a target' else 'all numbers or all yes/no (0 and 1)'}"
            )


def _numbers(series: pl.Series, task: str) -> pl.Series:
    """Float64 of a regression target, or 0/1 of a label."""
    if not (series.dtype.is_numeric() or series.dtype == pl.Boolean):
        remedy = "use --task classification" if _is_text(series) else "make a number of it"
        raise TableError(
            f"target column {series.name!r} holds {kind_words(series.dtype)}, {task} needs numbers; {remedy}"
        )
    numbers = as_numbers(series)
    if task == "multilabel":
        other = ~numbers.is_in([0.0, 1.0])
        if other.any():
            row = int(other.arg_max() or 0)
            raise TableError(f"label column {series.name!r} has {series[row]!r} in row {row + 1}; a label is 0 or 1")
    return numbers


def _as_values(series: pl.Series, kind: Value) -> pl.Series:
    """The column in the classes' own type; null where a value cannot be of it."""
    if kind == "text":
        return as_text(series)
    numbers = as_text(series).cast(pl.Float64, strict=False) if _is_text(series) else as_numbers(series)
    if kind == "float":
        return numbers
    if kind == "integer":
        if series.dtype.is_integer():
            return series.cast(pl.Int64, strict=False)
        return numbers.set(numbers != numbers.round(), None).cast(pl.Int64, strict=False)
    return numbers.replace_strict([0.0, 1.0], [False, True], default=None, return_dtype=pl.Boolean)


def _learn_classes(frame: pl.DataFrame, columns: Sequence[str]) -> TargetState:
    if len(columns) != 1:
        raise TableError(
            f"classification takes one target column, {len(columns)} were named; for several yes/no columns use "
            "--task multilabel"
        )
    series = frame[columns[0]]
    dtype = series.dtype
    if not (_is_text(series) or dtype == pl.Boolean or dtype.is_numeric()):
        raise TableError(f"target column {series.name!r} holds {kind_words(dtype)}, which cannot be classes")
    kind: Value = "text" if _is_text(series) else "boolean" if dtype == pl.Boolean else "float"
    if dtype.is_integer():
        kind = "integer"
    values = _as_values(series, kind)
    if values.null_count():
        raise TableError(f"target column {series.name!r} has whole numbers beyond 64 bits; make text of them")
    counts = values.value_counts(name="rows").sort(series.name)
    classes, rows = counts[series.name].to_list(), counts["rows"]
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
    notes = []
    single = [repr(c) for c, n in zip(classes, rows.to_list(), strict=True) if n == 1]
    if single:
        shown = ", ".join(single[:8]) + (f" and {len(single) - 8} more" if len(single) > 8 else "")
        notes.append(
            f"{len(single)} of {len(classes)} classes stand in a single row: {shown}; no row is left to check them"
        )
    return TargetState(
        task="classification", columns=list(columns), values=kind, classes=classes, scales=[], notes=notes
    )


def _learn_labels(labels: list[pl.Series]) -> TargetState:
    constant = [series.name for series in labels if series.n_unique() == 1]
    if len(constant) == len(labels):
        raise TableError(
            f"label {columns_word(constant)}: the same value in all {len(labels[0])} rows; nothing to learn"
        )
    notes = [f"label {columns_word(constant)}: the same value in every row"] if constant else []
    return TargetState(
        task="multilabel", columns=[s.name for s in labels], values="integer", classes=[], scales=[], notes=notes
    )


def _learn_scales(numbers: list[pl.Series]) -> TargetState:
    constant = [series.name for series in numbers if series.n_unique() == 1]
    if constant:
        raise TableError(
            f"target {columns_word(constant)}: the same value in all {len(numbers[0])} rows; nothing to learn"
        )
    values = np.column_stack([series.to_numpy() for series in numbers])
    exponent = exponents(values)
    scaling = Scaling.fit(to_unit(values, exponent), exponent)
    return TargetState(
        task="regression",
        columns=[s.name for s in numbers],
        values="float",
        classes=[],
        scales=scaling.scales,
        notes=[],
    )
