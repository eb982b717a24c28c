"""A moment in time as numbers a net can use: the year, where in month, week and day it lies, and time gone by.

Month, weekday and hour come round again, so each is a point on a circle (sine and cosine): December lies next to
January.
"""

from __future__ import annotations

import math

import polars as pl


def _circle(phase: pl.Expr, name: str) -> dict[str, pl.Expr]:
    angle = phase * (2 * math.pi)
    return {f"{name}_sin": angle.sin(), f"{name}_cos": angle.cos()}


def _hours(moment: pl.Expr) -> pl.Expr:
    return moment.dt.hour().cast(pl.Float64) + moment.dt.minute().cast(pl.Float64) / 60


_MOMENT = pl.col("moment")
PARTS: dict[str, pl.Expr] = {
    "days": _MOMENT.dt.timestamp("us").cast(pl.Float64) / 86_400e6,  # since 1970-01-01, with the fraction of the day
    "year": _MOMENT.dt.year().cast(pl.Float64),
    **_circle((_MOMENT.dt.month().cast(pl.Float64) - 1) / 12, "month"),
    **_circle((_MOMENT.dt.weekday().cast(pl.Float64) - 1) / 7, "weekday"),
    **_circle(_hours(_MOMENT) / 24, "hour"),
}
"""Each part's name and how polars takes it from a Datetime column called ``moment``."""


def date_parts(moments: pl.Series, parts: list[str]) -> list[pl.Series]:
    """Float64 columns, one per part, null where the moment is."""
    frame = moments.rename("moment").to_frame().select([PARTS[part].alias(part) for part in parts])
    return frame.get_columns()
