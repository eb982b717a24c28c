"""How well a net does on a part of the rows: what the report's pictures show, as plain values."""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, Field
from sklearn.metrics import (
    confusion_matrix,
    mean_absolute_error,
    precision_recall_fscore_support,
    r2_score,
    root_mean_squared_error,
)

from wholebatch.tables import Target

MOST_CLASSES = 40
"""Rows of a confusion matrix that are still told apart on a screen; of more classes, the most confused are shown."""
MOST_POINTS = 2000
"""Points of a scatter that a phone still draws at once; of more rows, evenly spaced ones are shown."""


class ClassScore(BaseModel):
    """One class or label; None where it has no meaning (no row of it, or never predicted)."""

    name: str
    precision: float | None
    recall: float | None
    f1: float | None
    rows: int


class Confusion(BaseModel):
    """Classification: ``counts[i][j]`` rows of ``names[i]`` were taken for ``names[j]``.

    Where there were too many classes, ``merged`` of them share the last name.
    """

    kind: Literal["classification"] = "classification"
    names: list[str]
    counts: list[list[int]]
    merged: int
    classes: list[ClassScore]


class Values(BaseModel):
    """One output of a regression, in the table's units; ``shown_*`` are the rows drawn."""

    name: str
    r2: float | None
    mean_absolute_error: float
    root_mean_squared_error: float
    shown_true: list[float]
    shown_predicted: list[float]
    residual_edges: list[float]
    residual_counts: list[int]


class Residuals(BaseModel):
    """Regression: predicted against true, for each output."""

    kind: Literal["regression"] = "regression"
    outputs: list[Values]


class Labels(BaseModel):
    """Several labels: each on its own."""

    kind: Literal["multilabel"] = "multilabel"
    labels: list[ClassScore]


Evaluation = Annotated[Confusion | Residuals | Labels, Field(discriminator="kind")]


def evaluate(target: Target, outputs: np.ndarray, y: np.ndarray) -> Confusion | Residuals | Labels:
    """What the net's ``outputs`` (N, K) are worth against ``y``, both as the loss takes them."""
    if target.task == "classification":
        return _confusion([str(c) for c in target.classes or ()], y, outputs.argmax(1))
    if target.task == "multilabel":
        return Labels(labels=_class_scores(list(target.columns), y > 0.5, outputs > 0))
    true, predicted = (target.decode(values) for values in (y, outputs))
    names = list(target.columns)
    pairs = zip(names, true.iter_columns(), predicted.iter_columns(), strict=True)
    return Residuals(outputs=[_values(name, t.to_numpy(), p.to_numpy()) for name, t, p in pairs])


def _confusion(names: list[str], true: np.ndarray, predicted: np.ndarray) -> Confusion:
    counts = confusion_matrix(true, predicted, labels=np.arange(len(names)))
    classes = _class_scores(names, true, predicted)
    merged = 0
    if len(names) > MOST_CLASSES:
        wrong = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
        kept = np.sort(np.argsort(-wrong, kind="stable")[: MOST_CLASSES - 1])
        merged = len(names) - len(kept)
        group = np.full(len(names), len(kept))
        group[kept] = np.arange(len(kept))
        small = np.zeros((len(kept) + 1, len(kept) + 1), dtype=counts.dtype)
        np.add.at(small, (group[:, None], group[None, :]), counts)
        names, counts = [*(names[k] for k in kept), f"{merged} others"], small
    return Confusion(names=names, counts=counts.tolist(), merged=merged, classes=classes)


def _class_scores(names: list[str], true: np.ndarray, predicted: np.ndarray) -> list[ClassScore]:
    """Each class's (vectors of class numbers) or label's (0/1 matrices) own scores, by scikit-learn."""
    columns = precision_recall_fscore_support(true, predicted, labels=np.arange(len(names)), zero_division=np.nan)
    rows = zip(names, *columns, strict=True)
    return [
        ClassScore(name=n, precision=_finite(p), recall=_finite(r), f1=_finite(f), rows=int(s))
        for n, p, r, f, s in rows
    ]


def _values(name: str, true: np.ndarray, predicted: np.ndarray) -> Values:
    true, predicted = true.astype(np.float64), predicted.astype(np.float64)
    shown = np.unique(np.linspace(0, len(true) - 1, min(len(true), MOST_POINTS)).astype(np.int64))
    counts, edges = np.histogram(predicted - true, bins=min(40, max(5, round(len(true) ** 0.5))))
    return Values(
        name=name,
        r2=_finite(r2_score(true, predicted)) if len(true) > 1 else None,
        mean_absolute_error=float(mean_absolute_error(true, predicted)),
        root_mean_squared_error=float(root_mean_squared_error(true, predicted)),
        shown_true=true[shown].tolist(),
        shown_predicted=predicted[shown].tolist(),
        residual_edges=edges.tolist(),
        residual_counts=counts.tolist(),
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
