"""scikit-learn's transformers, built from kept state by public means only.

A transformer that was just fitted and one that was built from a file go through the same code, so both give the same
bits. Where an attribute can be set, it is set; where a transformer keeps private bookkeeping (the imputer, the
one-hot encoder), it is fitted on a few made-up rows whose statistics are exactly those that were kept.
"""

from __future__ import annotations

import itertools

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

MAX_CATEGORIES = 64
"""Outputs a text column may have; the rarest categories beyond share the last one."""


def make_imputer(fills: np.ndarray, indicators: np.ndarray) -> SimpleImputer:
    """Fills NaN in column k with ``fills[k]`` and appends a 0/1 column for each k where ``indicators[k]``."""
    rows = np.stack([fills, np.where(indicators, np.nan, fills)])  # the median of x, and of x and x, is x
    return SimpleImputer(strategy="median", add_indicator=True).fit(rows)


def learn_categories(values: np.ndarray, most: int = MAX_CATEGORIES) -> tuple[list[str | None], bool]:
    """``(N,)`` objects to (the categories with an output of their own, sorted; whether others share one more)."""
    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=most).fit(values.reshape(-1, 1))
    others = encoder.infrequent_categories_[0]
    rare = set() if others is None else set(others.tolist())
    return [c for c in encoder.categories_[0].tolist() if c not in rare], bool(rare)


def make_encoder(columns: list[tuple[list[str | None], bool]]) -> OneHotEncoder:
    """One output per category and one for the others, float32; without others an unknown category is all zeros."""
    height = 2 * max(len(categories) for categories, _ in columns) + 2
    made_up = np.empty((height, len(columns)), dtype=object)
    for k, (categories, others) in enumerate(columns):
        # Every category twice or more, the stand-in for all others once: with min_frequency=2 it alone is infrequent.
        rare = next(name for name in map(str, itertools.count()) if name not in categories)
        column = itertools.chain([rare] if others else [], itertools.cycle(categories))
        made_up[:, k] = list(itertools.islice(column, height))
    encoder = OneHotEncoder(
        handle_unknown="infrequent_if_exist", min_frequency=2, sparse_output=False, dtype=np.float32
    )
    return encoder.fit(made_up)
