"""How good a net is on rows it does not learn from: the loss, and a score where higher is better."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from wholebatch.feedforward.data import Data, as_tensor
from wholebatch.feedforward.losses import loss_value
from wholebatch.feedforward.settings import Loss


def default_loss(y: Any) -> Loss:
    """Cross-entropy for a vector of integers, else MSE."""
    y = np.asarray(y.detach().cpu() if isinstance(y, Tensor) else y)
    return Loss("cross_entropy") if y.ndim == 1 and np.issubdtype(y.dtype, np.integer) else Loss("mse")


def check_scorable(data: Data, loss: Loss) -> None:
    """Raise where :func:`score` could not tell better from worse.

    Raises:
        ValueError: fewer than two rows to compute R^2 on.
    """
    if loss.kind in ("mse", "huber") and len(data) < 2:
        raise ValueError(f"validation has {len(data)} row; R^2, which scores it, needs at least 2")


def score(out: np.ndarray, data: Data, loss: Loss) -> float:
    """Higher is better: accuracy; exact-match accuracy for several labels; R^2 (averaged over outputs) for values."""
    from sklearn.metrics import accuracy_score, r2_score  # here, for it takes longer to import than it is often needed

    y, weight = data.y, data.sample_weight
    assert y is not None
    if loss.kind == "cross_entropy":
        return float(accuracy_score(y, out.argmax(1), sample_weight=weight))
    if loss.kind == "bce":
        return float(accuracy_score(y > 0.5, out > 0, sample_weight=weight))
    return float(r2_score(y, out, sample_weight=weight))


def rate(out: np.ndarray, data: Data, loss: Loss) -> tuple[float, float]:
    """(loss, score) of a net's outputs ``(N, out_features)`` in eval mode.

    Raises:
        ValueError: an output that is not finite.
    """
    if not np.isfinite(out).all():
        raise ValueError(
            "the net gives values that are not finite for rows held out, though its training loss is finite: "
            "lower the learning rate, or clip the gradient (max_grad_norm)"
        )
    assert data.y is not None
    weight = None if data.sample_weight is None else as_tensor(data.sample_weight)
    return float(loss_value(loss, torch.from_numpy(out), as_tensor(data.y), weight)), score(out, data, loss)
