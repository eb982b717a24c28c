"""How a time grows: the exponent b of ``time = a * size^b``, by least squares in logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Fit:
    """``exponent`` and its standard error; nan where there are fewer than three sizes, which leave no error to tell."""

    exponent: float
    error: float


def fit_exponent(sizes: Sequence[float], times: Sequence[float]) -> Fit:
    """Fit ``log time = log a + b * log size``.

    Raises:
        ValueError: lengths that differ, fewer than two sizes, or a value that has no logarithm.
    """
    if len(sizes) != len(times) or len(sizes) < 2:
        raise ValueError(f"an exponent needs two or more sizes and as many times; got {len(sizes)} and {len(times)}")
    if min(*sizes, *times) <= 0:
        raise ValueError(f"sizes and times must be above 0; the least is {min(*sizes, *times)}")
    if len(sizes) == 2:
        return Fit(float(np.polyfit(np.log(sizes), np.log(times), 1)[0]), float("nan"))
    line, covariance = np.polyfit(np.log(sizes), np.log(times), 1, cov=True)
    return Fit(float(line[0]), float(np.sqrt(covariance[0, 0])))
