"""Small tables, and runs on them, for the tests of runs and commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from wholebatch.runs import Settings

#: Options of a training that takes well under a second.
QUICK = ("--hidden", "8,8", "--epochs", "3", "--batch-size", "16", "--engine", "reference", "--quiet")


def small_frame(rows: int = 80) -> pl.DataFrame:
    """Numbers with holes, a category, a date, two classes, a value, two labels, weights."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, rows))
    color = rng.choice(["red", "green", "blue"], rows)
    days = pl.Series(rng.integers(0, 1000, rows)).cast(pl.Int32).cast(pl.Date)
    kind = np.where(a + (color == "red") > 0.3, "yes", "no")
    return pl.DataFrame({"a": a, "b": b, "color": color, "day": days, "kind": kind}).with_columns(
        pl.when(pl.int_range(pl.len()) % 7 == 3).then(None).otherwise(pl.col("b")).alias("b"),
        (3 * pl.col("a") + 10).alias("value"),
        (pl.col("a") > 0).cast(pl.Int64).alias("up"),
        (pl.col("color") == "red").cast(pl.Int64).alias("red"),
        (pl.int_range(pl.len()) % 3 + 1).alias("weight"),
    )


def write_small(path: Path, *keep: str, rows: int = 80) -> Path:
    """:func:`small_frame`'s columns ``keep`` (all where none is named) as CSV."""
    frame = small_frame(rows)
    frame.select(keep or frame.columns).write_csv(path)
    return path


def quick_settings(table: Path | str, *target: str, **more: object) -> Settings:
    """The same as :data:`QUICK`."""
    small = {"hidden": (8, 8), "epochs": 3, "batch_size": 16, "engine": "reference"}
    return Settings.model_validate({"table": str(table), "target": target, **small, **more})
