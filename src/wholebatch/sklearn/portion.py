"""The rows that an estimator's epochs learn from and are judged by: all of a table, or this rank's part of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.model_selection import train_test_split
from sklearn.utils import _safe_indexing

from wholebatch.feedforward.data import Data, batch_offsets, split_rows
from wholebatch.feedforward.engines import engine_kind
from wholebatch.feedforward.held import Held
from wholebatch.feedforward.peers import Peers
from wholebatch.feedforward.rows import check_rows, cut_shards, tell_sizes
from wholebatch.feedforward.sharding import Deal
from wholebatch.sklearn import parameters

TOO_SMALL = "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."


@dataclass(frozen=True)
class Portion:
    """Rows, and how epochs take them.

    Attributes:
        data: this rank's table, as an engine takes it; it keeps the rows held out, which are in no order.
        rows: to train on, of all ranks.
        offsets, counts: of each epoch, as :meth:`Engine.train_epoch` takes them.
        orders: of one epoch after the other.
        held: what scikit-learn's rule of early stopping is given: x, y and weight.
    """

    data: Data
    rows: int
    offsets: np.ndarray
    counts: np.ndarray | None
    orders: Iterator[np.ndarray]
    held: tuple[Any, Any, Any] | None


def take_all(estimator: Any, x: Any, y: np.ndarray, weight: np.ndarray | None) -> Portion:
    """Split and shuffled with scikit-learn's generator in scikit-learn's order.

    The rows to train on stay where they are in the table; only those to validate on are copied.

    Raises:
        ValueError: fewer than 2 rows to validate on.
    """
    kept, held = np.arange(x.shape[0], dtype=np.int64), None
    if estimator.early_stopping:
        classifies = is_classifier(estimator)
        kept, out = train_test_split(
            kept,
            random_state=estimator._random_state,
            test_size=estimator.validation_fraction,
            stratify=y if classifies and estimator.n_outputs_ == 1 else None,
        )
        if len(out) < 2:
            raise ValueError(TOO_SMALL)
        y_held = estimator._label_binarizer.inverse_transform(y[out]) if classifies else y[out]
        held = _safe_indexing(x, out), y_held, None if weight is None else weight[out]
    rows = len(kept)
    offsets = batch_offsets(rows, parameters.batch_rows(estimator.batch_size, rows), estimator._architecture)

    def shuffle() -> Iterator[np.ndarray]:
        order = kept
        while True:
            if estimator.shuffle:
                steps = np.arange(rows)
                estimator._random_state.shuffle(steps)  # what sklearn.utils.shuffle does, without its many checks
                order = order[steps]
            yield order

    return Portion(estimator._data(x, y, weight), rows, offsets, None, shuffle(), held)


def take_own(estimator: Any, x: Any, y: np.ndarray, weight: np.ndarray | None, peers: Peers) -> Portion:
    """Each shard split and shuffled by itself, so that it does not matter which rank owns it.

    Raises:
        ValueError: on every rank; fewer than 2 rows to validate on, over all of them.
    """
    data = check_rows(peers, estimator._data(x, y, weight))
    split_seed, seed = estimator._random_state.randint(2**31 - 1, size=2).tolist()
    bounds, held = cut_shards(peers, len(data)), None
    kept = [np.arange(begin, end) for begin, end in pairwise(bounds)]
    if estimator.early_stopping:
        stratify = y[:, 0] if is_classifier(estimator) and estimator.n_outputs_ == 1 else None
        cuts = [_split(rows, estimator.validation_fraction, split_seed, stratify) for rows in kept]
        kept = [rows for rows, _ in cuts]
        out = np.concatenate([rows for _, rows in cuts])
        block = engine_kind(estimator.engine, estimator.device).predicted_rows
        held = Held(data.take(out), estimator._objective(), peers, block)
        if len(held.whole) < 2:
            raise ValueError(TOO_SMALL)
    sizes = tell_sizes(peers, np.cumsum([0, *map(len, kept)]))
    rows = sum(sizes)
    offsets = batch_offsets(rows, parameters.batch_rows(estimator.batch_size, rows), estimator._architecture)
    deal, own = Deal.of(sizes, peers.own, offsets), np.concatenate(kept)
    orders = (own[deal.order(seed, epoch, shuffle=estimator.shuffle)] for epoch in count())
    return Portion(data, rows, deal.offsets, deal.counts, orders, None if held is None else (held, None, None))


def _split(rows: np.ndarray, fraction: float, seed: int, stratify: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """(to train on, to validate on); a shard with too few rows for both keeps them to train on."""
    if math.ceil(fraction * len(rows)) >= len(rows):
        return rows, rows[:0]
    kept, out = split_rows(len(rows), fraction, seed, None if stratify is None else stratify[rows])
    return rows[kept], rows[out]
