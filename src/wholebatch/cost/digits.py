"""How measured numbers are put: their middle and spread, and three digits of each."""

from __future__ import annotations

from typing import Any

import numpy as np


def middle(values: Any) -> tuple[float, float, float]:
    """20th percentile, median and 80th percentile of at least one value."""
    low, median, high = np.quantile(np.asarray(values, dtype=float), [0.2, 0.5, 0.8]).tolist()
    return low, median, high


def three_digits(value: float) -> str:
    """``0.04``, ``1.31``, ``12.4``, ``144``, ``1,440``: two digits after the point at most."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
