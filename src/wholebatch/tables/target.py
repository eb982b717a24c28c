"""What the net is to predict: target columns as class indices or numbers, and the net's outputs as columns again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy.special import expit, softmax

from wholebatch.tables.errors import TableError, require_columns, unique_names
from wholebatch.tables.scaling import Scaling, to_unit
from wholebatch.tables.state import load
from wholebatch.tables.task import (
    Class,
    TargetState,
    Task,
    check_columns,
    check_filled,
    find_task,
    learn_classes,
    learn_labels,
    learn_scales,
    read_classes,
    read_numbers,
)
from wholebatch.tables.values import missing_rows

POLARS_TYPES = {"text": pl.String, "boolean": pl.Boolean, "integer": pl.Int64, "float": pl.Float64}


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
        self.classes: list[Class] = list(state.classes)
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
                rows, a task that the column does not allow; under ``auto``, numbers with a few words among them.
        """
        if task not in ("auto", "classification", "regression", "multilabel"):
            raise TableError(f"task is {task!r}; choose auto, classification, regression or multilabel")
        check_columns(frame, columns)
        if task == "auto":
            task = find_task(frame, columns)
        if task == "classification":
            return cls(learn_classes(frame, columns))
        numbers = [read_numbers(frame[name], task) for name in columns]
        return cls(learn_labels(numbers) if task == "multilabel" else learn_scales(numbers))

    @property
    def text_columns(self) -> list[str]:
        """Columns to read as text (``read_table(..., text=...)``), so that ``007`` stays the class it was."""
        return list(self.columns) if self._state.values == "text" else []

    def encode(self, frame: pl.DataFrame) -> np.ndarray:
        """The target as the net's loss takes it.

        Classification: ``(N,)`` int64 indices into ``classes``. Regression: ``(N, out_features)`` float32,
        standardised. Multilabel: ``(N, out_features)`` float32 of 0 and 1.

        Raises:
            TableError: a missing column or value, a class or label that training did not know, text in place of
                numbers.
        """
        require_columns(self.columns, frame.columns, "which the model was trained to predict")
        check_filled(frame, self.columns)
        if self.task == "classification":
            return self._encode_classes(frame[self.columns[0]])
        numbers = np.column_stack([read_numbers(frame[name], self.task).to_numpy() for name in self.columns])
        if self.task == "regression" and len(numbers):
            numbers = self._scaling.scale(to_unit(numbers, self._scaling.exponent))
        return np.ascontiguousarray(numbers, dtype=np.float32)

    def _encode_classes(self, series: pl.Series) -> np.ndarray:
        known = self._known()
        values = read_classes(series, self._state.values)
        found = values.replace_strict(known, np.arange(len(known)), default=None, return_dtype=pl.Int64)
        if found.null_count():
            row = int(found.is_null().arg_max() or 0)
            raise TableError(
                f"target column {series.name!r} has {series[row]!r} in row {row + 1}, which is none of the "
                f"{len(known)} classes the model was trained on"
            )
        return found.to_numpy().astype(np.int64)

    def decode(self, outputs: np.ndarray) -> pl.DataFrame:
        """The net's ``(N, out_features)`` outputs as columns.

        Classification takes logits and gives the class of the largest one, in its original type, and softmax's
        ``probability_<class>`` for each. Regression gives values in original units. Multilabel takes logits and gives
        0 or 1 per label (1 above a probability of one half), then ``probability_<label>`` for each.

        Raises:
            ValueError: outputs of another shape, or not finite.
        """
        outputs = np.asarray(outputs, dtype=np.float64)
        if outputs.ndim != 2 or outputs.shape[1] != self.out_features:
            raise ValueError(f"outputs have shape {outputs.shape}; this target takes (N, {self.out_features})")
        if not np.isfinite(outputs).all():
            row = int(np.argmin(np.isfinite(outputs).all(axis=1)))
            raise ValueError(f"outputs have a value that is not finite (nan or inf) in row {row + 1}")
        if self.task == "regression":
            values = self._scaling.restore(outputs) if len(outputs) else outputs
            return pl.DataFrame(dict(zip(self.columns, values.T, strict=True)))
        if self.task == "classification":
            decided = [self._known().gather(outputs.argmax(axis=1))]
            labels, chances = [label_text(value) for value in self.classes], softmax(outputs, axis=1)
        else:
            decided = [pl.Series((column > 0).astype(np.int64)) for column in outputs.T]
            labels, chances = self.columns, expit(outputs)
        names = unique_names([*self.columns, *(f"probability_{label}" for label in labels)])
        return pl.DataFrame(dict(zip(names, [*decided, *map(pl.Series, chances.T)], strict=True)))

    def _known(self) -> pl.Series:
        return pl.Series(self.classes, dtype=POLARS_TYPES[self._state.values])

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


def drop_missing(frame: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """The rows in which every one of the target ``columns`` has a value.

    Raises:
        TableError: no such column.
    """
    return frame.filter(present_rows(frame, columns))


def present_rows(frame: pl.DataFrame, columns: Sequence[str]) -> pl.Series:
    """Boolean: the rows that :func:`drop_missing` keeps; errors as there."""
    require_columns(columns, frame.columns, "which was to be the target")
    present = pl.repeat(True, frame.height, eager=True)
    for name in columns:
        present &= ~missing_rows(frame[name])
    return present
