"""What the tests of the estimators share."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits

ARRAYS = ["coefs_", "intercepts_", "norm_weights_", "norm_biases_", "running_means_", "running_vars_"]


def few(rows: int = 120) -> tuple[np.ndarray, np.ndarray]:
    x, y = load_digits(n_class=3, return_X_y=True)
    return x[:rows] / 16, y[:rows]


def arrays(estimator: Any) -> list[np.ndarray]:
    return [array for name in ARRAYS for array in getattr(estimator, name)]


def same_arrays(a: Any, b: Any) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(arrays(a), arrays(b), strict=True))
