"""What the loss of accuracy of rounded products is measured on: tables, how they are split and learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits, load_wine, make_classification
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

SYNTHETIC_ROWS = 20_000


def _synthetic() -> tuple[np.ndarray, np.ndarray]:
    """Five classes of three clusters each in 20 of 40 columns; 10 more are sums of those; 5 % of labels are noise."""
    found: tuple[np.ndarray, np.ndarray] = make_classification(
        SYNTHETIC_ROWS,
        40,
        n_informative=20,
        n_redundant=10,
        n_classes=5,
        n_clusters_per_class=3,
        flip_y=0.05,
        random_state=0,
    )
    return found


def _bundled(load: Callable[..., Any]) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    return lambda: load(return_X_y=True)


@dataclass(frozen=True)
class Case:
    """A table and how it is learned: hidden layers under batch norm, AdamW, a cosine to 0.

    Attributes:
        epochs, batch_size: the same at every precision.
    """

    name: str
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    epochs: int
    batch_size: int
    hidden: tuple[int, ...] = (128, 128)
    learning_rate: float = 3e-3


CASES = {
    case.name: case
    for case in (
        Case("digits", _bundled(load_digits), 40, 64),
        Case("breast_cancer", _bundled(load_breast_cancer), 40, 64),
        Case("wine", _bundled(load_wine), 60, 32),
        Case("synthetic", _synthetic, 15, 256),
    )
}


@dataclass(frozen=True)
class Table:
    """Rows to train on and to test with; columns have mean 0 and standard deviation 1 over those to train on.

    ``x`` in float32, of the same numbers also where the net is in float64.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def classes(self) -> int:
        return int(max(self.y.max(), self.y_test.max())) + 1


def make_table(case: Case, seed: int) -> Table:
    """A quarter of the rows, drawn by ``seed`` from each class alike, is the test."""
    x, y = case.load()
    x, x_test, y, y_test = train_test_split(x, y.astype(np.int64), test_size=0.25, random_state=seed, stratify=y)
    scaler = StandardScaler().fit(x)
    return Table(scaler.transform(x).astype(np.float32), y, scaler.transform(x_test).astype(np.float32), y_test)
