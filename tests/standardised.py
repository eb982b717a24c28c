"""A table's columns standardised by the textbook, in float64, and the tolerance that float32 asks for."""

import math

import numpy as np
import polars as pl

from wholebatch.tables import Preprocessing

# The result is rounded to float32: 2^-24 of the value, doubled here. What float64 loses before that is a few 2^-53 of
# (largest value / standard deviation), which is below 100 where ATOL is used: 1e-14 at most, times a hundred.
RTOL, ATOL = 2.0**-23, 1e-12


def standardised(values: list[float | None]) -> np.ndarray:
    """(x or median - mean) / std, in float64, by the textbook."""
    x = np.array([math.nan if v is None else v for v in values], dtype=np.float64)
    x = np.where(np.isnan(x), np.nanmedian(x), x)
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean())


def column(frame: pl.DataFrame, name: str, fitted: Preprocessing | None = None) -> np.ndarray:
    """One output column by its name."""
    fitted = fitted or Preprocessing.fit(frame)
    return fitted.transform(frame)[:, fitted.feature_names.index(name)]
