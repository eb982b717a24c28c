"""An estimator that learns together with those of other ranks: what they have to tell each other before they do."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch.distributed as dist
from sklearn.base import is_classifier
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data

from wholebatch.feedforward.agreement import check_equal, do_together, tell_numbers
from wholebatch.feedforward.engines import describe_engine
from wholebatch.feedforward.held import gather_rows
from wholebatch.feedforward.peers import Peers

# What may differ from rank to rank: no number depends on it. random_state is seen to by itself.
OWN = ("n_threads", "split", "device", "verbose", "random_state")


def peers_of(estimator: Any) -> Peers | None:
    """The ranks that this estimator learns with; None: it has all rows itself.

    Raises:
        ValueError: torchrun started this process, and torch.distributed is not initialised.
    """
    spread = estimator.spread
    if spread is None:
        return None
    group = dist.GroupMember.WORLD if dist.is_available() and dist.is_initialized() else None
    if group is None and dist.is_available() and dist.is_torchelastic_launched():
        raise ValueError(
            "spread is for the ranks of the default process group, and torch.distributed is not initialised in this "
            "process, which torchrun started: call torch.distributed.init_process_group() first"
        )
    if group is not None and dist.get_world_size(group) == 1:
        group = None
    live = vars(estimator).get("_live")
    if live is not None and live.work.peers is not None:  # partial_fit goes on with those of the call before
        known: Peers = live.work.peers
        if known.spread == spread and known.group is group:
            return known
    peers = Peers(spread, group)
    return None if peers.shards == 1 else peers


def check_table(
    estimator: Any, X: Any, y: Any, sample_weight: Any, *, reset: bool
) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """This rank's rows, checked as scikit-learn checks all rows; labels are still what a person gave.

    Raises:
        ValueError: as scikit-learn, and for labels that are neither numbers nor text.
    """
    X, y = validate_data(
        estimator,
        X,
        y,
        accept_sparse=["csr", "csc"],
        multi_output=True,
        y_numeric=not is_classifier(estimator),
        dtype=(np.float64, np.float32),
        reset=reset,
    )
    if y.ndim == 2 and y.shape[1] == 1:
        y = column_or_1d(y, warn=True)
    if is_classifier(estimator):
        check_classification_targets(y)
        _check_labels(y)
    return X, y, None if sample_weight is None else _check_weights(sample_weight, X)


def check_alike(peers: Peers, estimator: Any, X: Any, y: np.ndarray, *, first: bool) -> None:
    """Raise, on every rank, where estimators or tables could not be of one training.

    Raises:
        ValueError: naming what differs, and on which ranks.
    """
    parameters = {name: repr(value) for name, value in estimator.get_params(deep=False).items() if name not in OWN}
    names = getattr(estimator, "feature_names_in_", None)
    how = estimator.engine, estimator.n_threads, estimator.matmul_precision, estimator.device
    engine = do_together(peers, lambda: describe_engine(*how))
    check_equal(
        peers,
        {
            "matmul_precision": repr(estimator.matmul_precision),  # before the engine, whose description has it too
            "the engine": engine,
            **parameters,
            "the features": f"{X.shape[1]} columns" if names is None else json.dumps([str(name) for name in names]),
            "the dtype of X": str(X.dtype),
            "the targets": f"{_kind(y)}, {1 if y.ndim == 1 else y.shape[1]} for each row",
            "whether they were fitted": "no" if first else f"yes, in {vars(estimator).get('_steps', 0)} steps",
        },
    )


def union_labels(peers: Peers, labels: np.ndarray) -> np.ndarray:
    """The sorted labels of all ranks, from each rank's own ``(k,)``: numbers or text."""
    told = gather_rows(peers, labels.astype(str) if labels.dtype.kind == "O" else labels)
    return np.unique(told).astype(labels.dtype if labels.dtype.kind == "O" else told.dtype)


def balance(peers: Peers, labels: np.ndarray, classes: np.ndarray) -> Any:
    """scikit-learn's ``"balanced"`` over all ranks, ``n_samples / (n_classes * count)``, as dicts.

    Args:
        labels: this rank's, ``(N,)`` among ``classes``, or several of 0 and 1, ``(N, n_outputs)``.

    Returns:
        A dict, or for several labels a list of dicts; classes without rows are left out.
    """
    several = labels.ndim == 2
    columns, known = (labels.T, np.arange(2)) if several else (labels[None], classes)
    counts = np.array([[np.count_nonzero(column == label) for label in known] for column in columns])
    whole = tell_numbers(peers, counts.ravel()).sum(0).reshape(counts.shape)
    found = [
        {label: row.sum() / (np.count_nonzero(row) * n) for label, n in zip(known.tolist(), row, strict=True) if n}
        for row in whole
    ]
    return found if several else found[0]


def share_random_state(peers: Peers, random_state: Any) -> np.random.RandomState:
    """One generator for all ranks: a number begins it everywhere, and of anything else rank 0's decides."""
    own: np.random.RandomState = check_random_state(random_state)
    if isinstance(random_state, int | np.integer):
        told = {int(seed) for seed in tell_numbers(peers, [int(random_state)]).ravel()}
        if len(told) > 1:
            raise ValueError(f"the ranks disagree on random_state: {sorted(told)}; give all ranks the same")
        return own
    seed = int(peers.take(str(own.randint(2**31 - 1)).encode(), "random state"))
    return np.random.RandomState(seed)


def _kind(y: np.ndarray) -> str:
    names = {"b": "yes or no", "i": "whole numbers", "u": "whole numbers", "f": "numbers", "O": "text", "U": "text"}
    return names.get(y.dtype.kind, str(y.dtype))


def _check_labels(y: np.ndarray) -> None:
    if y.dtype.kind == "O":
        for label in y.ravel():
            if not isinstance(label, str):
                raise ValueError(
                    f"labels must be numbers or text where ranks learn together; one is of type {type(label).__name__}"
                )


def _check_weights(sample_weight: Any, X: Any) -> np.ndarray:
    """As scikit-learn checks the weights of all rows; those of one rank may all be zero."""
    if np.any(sample_weight):
        return np.asarray(_check_sample_weight(sample_weight, X))
    return 0 * np.asarray(_check_sample_weight(np.ones(np.shape(sample_weight)), X))
