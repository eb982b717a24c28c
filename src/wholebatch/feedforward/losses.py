"""The losses' values in torch: the reference engine differentiates them, validation reports them for every engine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from wholebatch.feedforward.settings import Loss


def loss_value(loss: Loss, out: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """``scale * sum_i w_i l_i / sum_i w_i``, without the penalty; see :class:`Loss` for ``l_i`` and ``w_i``.

    Where all ``w_i`` of a mini-batch are zero nothing counts in it: the loss and its gradient are 0, not 0/0.

    Args:
        out: ``(N, out_features)``.
        y: class indices ``(N,)`` for cross_entropy, else like ``out``.
        weight: ``(N,)``, or None for equal weights.
    """
    total = loss_weight(loss, y, weight, out.dtype)
    if total == 0.0:
        return (losses_of(loss, out, y) * 0).sum()
    return loss.scale * loss_sum(loss, out, y, weight) / total


def loss_sum(loss: Loss, out: Tensor, y: Tensor, weight: Tensor | None, class_weights: Tensor | None = None) -> Tensor:
    """``sum_i w_i l_i``: what the mini-batch's loss is made of, of any part of its rows.

    ``class_weights``: the loss's as a tensor beside ``out``, where they are there already.
    """
    each = losses_of(loss, out, y, class_weights)
    return (each * (torch.ones_like(each) if weight is None else weight)).sum()


def loss_weight(loss: Loss, y: Tensor, weight: Tensor | None, dtype: torch.dtype) -> float:
    """``sum_i w_i``, by which the loss is divided: sample weights, times class weights under cross-entropy."""
    weight = torch.ones(y.shape[0], dtype=dtype) if weight is None else weight
    if loss.kind == "cross_entropy" and loss.class_weights is not None:
        weight = weight * _class_weights(loss, weight)[y]
    return float(weight.sum())


def losses_of(loss: Loss, out: Tensor, y: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """``l_i`` of every row, ``(N,)``: under cross-entropy times the class weight, averaged over outputs otherwise.

    ``class_weights`` as for :func:`loss_sum`.
    """
    if class_weights is None and loss.class_weights is not None:
        class_weights = _class_weights(loss, out)
    if loss.kind == "cross_entropy":
        return F.cross_entropy(out, y, class_weights, reduction="none", label_smoothing=loss.label_smoothing)
    if loss.kind == "mse":
        return (out - y).square().mean(1)
    if loss.kind == "huber":
        return F.huber_loss(out, y, reduction="none", delta=loss.delta).mean(1)
    smooth = y * (1 - loss.label_smoothing) + loss.label_smoothing / 2
    return F.binary_cross_entropy_with_logits(out, smooth, class_weights, reduction="none").mean(1)


def _class_weights(loss: Loss, like: Tensor) -> Tensor:
    return torch.tensor(loss.class_weights).to(like)
