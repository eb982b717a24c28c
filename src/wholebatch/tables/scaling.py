"""Standardising numbers of any magnitude: ``(x - mean) / std`` per column, in float64, and back.

A variance squares its numbers: beyond 1e154 it overflows, below 1e-162 it vanishes. So each column is first divided
by the power of two next to its largest absolute value, which is exact, and then given to scikit-learn's
StandardScaler.
"""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from sklearn.preprocessing import StandardScaler

BOUND = 1e6
"""A scaled value beyond this is cut to it. No training row of N lies beyond sqrt(N), so only new rows are cut."""


class Scale(BaseModel):
    """One column: ``scaled = (x / 2**exponent - mean) / std``."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    exponent: int = Field(ge=-1100, le=1100)
    mean: float
    std: float = Field(gt=0)


def exponents(x: np.ndarray) -> np.ndarray:
    """The power of two above each column's largest absolute value, NaN passed over: ``(N, K)`` -> ``(K,)`` int32."""
    largest: np.ndarray = np.nanmax(np.abs(x), axis=0, initial=0.0)
    exponent: np.ndarray = np.frexp(largest)[1]
    return exponent


def to_unit(x: np.ndarray, exponent: np.ndarray) -> np.ndarray:
    """``x / 2**exponent``; finite values stay finite."""
    with np.errstate(over="ignore", under="ignore"):
        unit: np.ndarray = np.clip(np.ldexp(x, -exponent), -1e300, 1e300)
    return unit


class Scaling:
    """The scales of K columns, with scikit-learn's arithmetic."""

    def __init__(self, scales: list[Scale]) -> None:
        self.scales = scales
        self.exponent = np.array([s.exponent for s in scales], dtype=np.int32)
        self._scaler = StandardScaler(copy=True)
        self._scaler.mean_ = np.array([s.mean for s in scales])
        self._scaler.scale_ = np.array([s.std for s in scales])
        self._scaler.var_ = self._scaler.scale_**2
        self._scaler.n_features_in_ = len(scales)

    @classmethod
    def fit(cls, unit: np.ndarray, exponent: np.ndarray) -> Scaling:
        """From ``(N, K)`` values that :func:`to_unit` gave; a column without spread gets std 1."""
        scaler = StandardScaler().fit(unit)
        rows = zip(exponent.tolist(), scaler.mean_.tolist(), scaler.scale_.tolist(), strict=True)
        return cls([Scale(exponent=e, mean=m, std=s) for e, m, s in rows])

    def scale(self, unit: np.ndarray) -> np.ndarray:
        """``(N, K)`` float64 in units of each column's standard deviation, within :data:`BOUND`."""
        with np.errstate(over="ignore"):
            scaled: np.ndarray = np.clip(self._scaler.transform(unit), -BOUND, BOUND)
        return scaled

    def restore(self, scaled: np.ndarray) -> np.ndarray:
        """Back to the original units, ``(N, K)`` float64; what lies beyond float64 is cut to its largest number."""
        limit = np.finfo(np.float64).max
        with np.errstate(over="ignore", under="ignore"):
            unit: np.ndarray = self._scaler.inverse_transform(np.asarray(scaled, dtype=np.float64))
            values: np.ndarray = np.clip(np.ldexp(unit, self.exponent), -limit, limit)
        return values
