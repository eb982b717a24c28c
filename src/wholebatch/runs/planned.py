"""Which rows are for what, and the target: all that is settled before a column is looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from wholebatch.feedforward.data import split_rows
from wholebatch.runs.parts import Whole
from wholebatch.runs.settings import Settings
from wholebatch.tables import TableError, Target, weights


@dataclass(frozen=True)
class Plan:
    """``whole``: the rows of each part that there is, by name, the training rows first."""

    target: Target
    whole: dict[str, Whole]


def plan(frame: pl.DataFrame, settings: Settings) -> Plan:
    """Of the columns, those of target and weights alone are looked at; of the others it needs the names.

    Raises:
        TableError: a target with holes or of one value, weights that are none, too few rows.
    """
    columns = list(settings.target)
    target = Target.infer(frame, columns, settings.task)
    settings.make_loss(target.task, None)
    y = target.encode(frame)
    weight = None if settings.weights_column is None else weights(frame, settings.weights_column)
    rows = _split(frame.height, y if target.task == "classification" else None, settings)
    if target.task == "regression":  # mean and standard deviation of the training rows alone
        target = Target.infer(frame[rows["training"]], columns, "regression")
        y = target.encode(frame)
    whole = {name: Whole(r, y[r], None if weight is None else weight[r]) for name, r in rows.items() if len(r)}
    return Plan(target, whole)


def _split(rows: int, classes: np.ndarray | None, settings: Settings) -> dict[str, np.ndarray]:
    """Row indices of each part by name, sorted; the training rows first."""
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
    return {"training": kept, "validation": held["validation"], "test": held["test"]}
