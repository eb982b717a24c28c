"""scikit-learn's transformers, built from kept state by public means only.

A transformer that was just fitted and one that was built from a file go through the same code, so both give the same
bits. Both keep private bookkeeping beside their attributes, so they are not filled but fitted, on a few made-up rows
whose statistics are exactly those that were kept.
"""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder

MAX_CATEGORIES = 64
"""Outputs a text column may have; the rarest categories beyond share the last one."""


def make_imputer(fills: np.ndarray, indicators: np.ndarray) -> SimpleImputer:
    """Fills NaN in column k with ``fills[k]`` and appends a 0/1 column for each k where ``indicators[k]``."""
    rows = np.stack([fills, np.where(indicators, np.nan, fills)])  # the median of x, and of x and x, is x
    return SimpleImputer(strategy="median", add_indicator=True).fit(rows)


def learn_categories(text: pl.Series, most: int = MAX_CATEGORIES) -> tuple[list[str | None], bool]:
    """The categories with an output of their own, sorted, None (missing) last; and whether others share one more."""
    categories = text.unique().sort(nulls_last=True)
    encoder = OneHotEncoder(handle_unknown="infrequent_if_exist", max_categories=most)
    encoder.fit(_positions(text, categories).reshape(-1, 1))  # it counts whole numbers far faster than text
    others = encoder.infrequent_categories_[0]
    rare = set() if others is None else set(others.tolist())
    return [category for k, category in enumerate(categories) if k not in rare], bool(rare)


def make_encoder(categories: list[str | None], others: bool) -> OneHotEncoder:
    """An output for each category and one for the others, float32; without others an unknown one is all zeros."""
    # Every category twice, the stand-in for all others once: with min_frequency=2 it alone is infrequent.
    rare = next(name for name in map(str, itertools.count()) if name not in categories)
    made_up = [*categories, *categories, *([rare] if others else [])]
    encoder = OneHotEncoder(
        handle_unknown="infrequent_if_exist", min_frequency=2, sparse_output=False, dtype=np.float32
    )
    return encoder.fit(_as_column(made_up))


def encode(encoder: OneHotEncoder, text: pl.Series) -> np.ndarray:
    """``(N, outputs)`` float32. Each different text is encoded once, then rows are gathered."""
    different = text.unique(maintain_order=True)
    encoded: np.ndarray = encoder.transform(_as_column(different.to_list()))
    rows: np.ndarray = encoded[_positions(text, different)]
    return rows


def _positions(text: pl.Series, categories: pl.Series) -> np.ndarray:
    """Where each text stands among ``categories``: ``(N,)`` int64."""
    return text.replace_strict(categories, np.arange(len(categories)), return_dtype=pl.Int64).to_numpy()


def _as_column(values: list[str | None]) -> np.ndarray:
    column = np.empty((len(values), 1), dtype=object)
    column[:, 0] = values
    return column
