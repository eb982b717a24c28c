"""The tables that whole fits are measured on: scikit-learn's digits, and a large one of mixed columns, made here.

The large one is like covertype (Blackard and Dean, 1999), which a machine without a network cannot fetch: 10 numbers, a
group of 4 and a group of 40 indicator columns, seven classes of unequal size, a border between them that is not
linear, and noise, so that no net gets all rows right. It is a function of the number of rows and the seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LARGE_ROWS = 400_000  # of which 320,000 to learn from
NUMBERS, GROUPS, CLASSES = 10, (4, 40), 7


@dataclass(frozen=True)
class Recipe:
    """How every system trains on a table."""

    hidden: tuple[int, ...]
    batch: int
    epochs: int
    learning_rate: float = 1e-3


# digits: what scikit-learn's MLPClassifier does by default, but for the number of epochs.
RECIPES = {"digits": Recipe((100,), 200, 50), "large": Recipe((128, 128), 512, 10)}


@dataclass(frozen=True)
class FitTable:
    """``x`` ``(N, F)`` and classes ``y`` ``(N,)`` int64, to learn from and to test on."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def make_table(name: str, dtype: str, rows: int | None = None) -> FitTable:
    """The table by its name, or so many rows of it; every fifth row, after a shuffle, is for the test."""
    x, y = _digits() if name == "digits" else make_large(LARGE_ROWS if rows is None else rows)
    order = np.random.default_rng(0).permutation(len(y))[:rows]
    x, y = x[order].astype(dtype), y[order].astype(np.int64)
    test = np.arange(len(y)) % 5 == 0
    return FitTable(x[~test], y[~test], x[test], y[test])


def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return x / 16, y


def make_large(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """``(rows, 54)`` float64 and ``(rows,)`` int64.

    Numbers: ten correlated normal variables, some seen through a skewed or a folded scale, standardised. Groups: a draw
    by a linear score of the same variables, in which the first kinds are the commoner. Classes: a draw by the scores of
    a random net of two hidden layers over all of these.
    """
    random = np.random.default_rng(seed)
    hidden = random.standard_normal((rows, NUMBERS)) @ random.standard_normal((NUMBERS, NUMBERS)) / np.sqrt(NUMBERS)
    numbers = hidden.copy()
    numbers[:, 1] = np.exp(hidden[:, 1])
    numbers[:, 2] = np.abs(hidden[:, 2])
    numbers[:, 3] = np.sin(3 * hidden[:, 3])
    numbers[:, 4] = np.round(2 * hidden[:, 4])
    numbers = (numbers - numbers.mean(0)) / numbers.std(0)
    columns = [numbers]
    for size in GROUPS:
        score = hidden @ random.standard_normal((NUMBERS, size)) - 0.5 * np.log1p(np.arange(size))
        kind = (score + random.gumbel(size=score.shape)).argmax(1)
        columns.append((kind[:, None] == np.arange(size)).astype(np.float64))
    x = np.concatenate(columns, axis=1)
    inner = np.tanh(1.5 * x @ random.standard_normal((x.shape[1], 24)) / 2)
    inner = np.tanh(inner @ random.standard_normal((24, 24)) / 2)
    score = 3 * inner @ random.standard_normal((24, CLASSES)) - 0.7 * np.arange(CLASSES)
    return x, (score + random.gumbel(size=score.shape)).argmax(1)
