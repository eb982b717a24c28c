"""How measured numbers are put: their middle and spread, three digits of each, times in a unit that suits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

UNITS = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))


def middle(values: Any) -> tuple[float, float, float]:
    """20th percentile, median and 80th percentile of at least one value."""
    low, median, high = np.quantile(np.asarray(values, dtype=float), [0.2, 0.5, 0.8]).tolist()
    return low, median, high


def three_digits(value: float) -> str:
    """``0.04``, ``1.31``, ``12.4``, ``144``, ``1,440``: two digits after the point at most."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def four_decimals(value: float) -> str:
    """A score: ``0.9722``."""
    return f"{round(value, 4) + 0.0:.4f}"  # the sum makes -0 a 0


def duration(seconds: float | None) -> str:
    """Three significant digits in the unit that suits; a dash for None."""
    return durations([seconds])[0]


def durations(seconds: Sequence[float | None]) -> list[str]:
    """The first with its unit, the others in the same unit without it; a dash for None."""
    first = next((value for value in seconds if value), 0.0)
    unit, size = next(((u, s) for u, s in UNITS if first >= s * 0.9995), UNITS[-1]) if first else UNITS[0]
    texts = ["–" if value is None else "0" if value == 0 else three_digits(value / size) for value in seconds]
    return [f"{texts[0]} {unit}" if seconds[0] is not None else texts[0], *texts[1:]]
