"""From a table to what the engine takes: rows split, columns prepared by the training rows alone, and a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from wholebatch.feedforward.data import split_rows
from wholebatch.runs.settings import Settings
from wholebatch.tables import Preprocessing, TableError, Target, drop_missing, weights


@dataclass(frozen=True)
class Part:
    """Rows of the table, as numbers: ``x`` (N, F) float32, ``y`` as the loss takes it, ``weight`` (N,) or None."""

    rows: np.ndarray
    x: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None

    def __len__(self) -> int:
        return len(self.rows)

    def as_tuple(self) -> tuple[np.ndarray, ...]:
        """``(x, y)`` or ``(x, y, weight)``: what ``fit`` takes as validation rows."""
        return (self.x, self.y) if self.weight is None else (self.x, self.y, self.weight)


@dataclass(frozen=True)
class Prepared:
    """A table made ready; ``digest`` is equal exactly where a run on it has the same bits."""

    preprocessing: Preprocessing
    target: Target
    training: Part
    validation: Part | None
    test: Part | None
    shape: tuple[int, int]
    digest: str

    @property
    def class_counts(self) -> np.ndarray:
        """Training rows of each class ``(K,)``."""
        return np.bincount(self.training.y, minlength=self.target.out_features)


def prepare(frame: pl.DataFrame, settings: Settings) -> Prepared:
    """Split the rows, fit the preprocessing on the training rows, and turn every part into numbers.

    Test rows are set aside first, then validation rows; both stratified by class where every class allows it. Nothing
    of them reaches the preprocessing.

    Raises:
        TableError: whatever the table cannot give: a column that is missing, a target with holes, too few rows.
    """
    columns = list(settings.target)
    if settings.drop_missing_target:
        frame = drop_missing(frame, columns)
    target = Target.infer(frame, columns, settings.task)
    settings.make_loss(target.task, None)
    y = target.encode(frame)
    weight = None if settings.weights_column is None else weights(frame, settings.weights_column)
    kept, validation, test = _split(frame.height, y if target.task == "classification" else None, settings)
    if target.task == "regression":  # mean and standard deviation of the training rows alone
        target = Target.infer(frame[kept], columns, "regression")
        y = target.encode(frame)
    aside = [*settings.target, *settings.ignore, *([settings.weights_column] if settings.weights_column else [])]
    try:
        preprocessing = Preprocessing.fit(frame[kept], aside)
    except TableError:
        Preprocessing.fit(
            frame, aside
        )  # the same fault, with the row's number in the table and not among training rows
        raise
    x = preprocessing.transform(frame)

    def part(rows: np.ndarray) -> Part:
        return Part(rows, x[rows], y[rows], None if weight is None else weight[rows])

    parts = [part(rows) if len(rows) else None for rows in (kept, validation, test)]
    assert parts[0] is not None
    digest = _digest(preprocessing.feature_names, parts)
    return Prepared(preprocessing, target, parts[0], parts[1], parts[2], frame.shape, digest)


def class_weights(prepared: Prepared, settings: Settings) -> tuple[float, ...] | None:
    """``N / (K n_k)`` for class k with n_k training rows (scikit-learn's "balanced"); None where not asked for."""
    if settings.class_weight is None:
        return None
    if prepared.target.task != "classification":
        raise ValueError(
            f"--class-weight balanced weighs classes, but the task is {prepared.target.task}; leave it out"
        )
    counts = prepared.class_counts
    return tuple(len(prepared.training) / (len(counts) * max(int(n), 1)) for n in counts)


def _split(rows: int, classes: np.ndarray | None, settings: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(training, validation, test) row indices, each sorted."""
    kept, none = np.arange(rows), np.empty(0, dtype=np.int64)
    held = {"test": none, "validation": none}
    for name, fraction in (("test", settings.test_fraction), ("validation", settings.validation_fraction)):
        if fraction == 0:
            continue
        if len(kept) < 3:
            raise TableError(
                f"the table has {rows} {'row' if rows == 1 else 'rows'}, too few to set {fraction:.0%} aside for "
                f"{name}; give more rows, or --{name}-fraction 0"
            )
        inner, outer = split_rows(len(kept), fraction, settings.seed, None if classes is None else classes[kept])
        kept, held[name] = kept[inner], kept[outer]
    return kept, held["validation"], held["test"]


def _digest(names: Iterable[str], parts: list[Part | None]) -> str:
    """SHA-256 over everything the result depends on: names, row numbers, inputs, targets and weights of each part."""
    total = hashlib.sha256(repr(list(names)).encode())
    for part in parts:
        for values in () if part is None else (part.rows, part.x, part.y, part.weight):
            total.update(b"-" if values is None else repr((values.shape, str(values.dtype))).encode())
            total.update(b"" if values is None else np.ascontiguousarray(values).tobytes())
        total.update(b"|")
    return total.hexdigest()
