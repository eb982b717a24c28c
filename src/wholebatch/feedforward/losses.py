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
    class_weights = None if loss.class_weights is None else torch.tensor(loss.class_weights).to(out)
    weight = out.new_ones(out.shape[0]) if weight is None else weight
    total = weight.sum()
    if loss.kind == "cross_entropy":
        each = F.cross_entropy(out, y, class_weights, reduction="none", label_smoothing=loss.label_smoothing)
        if class_weights is not None:
            total = (weight * class_weights[y]).sum()
    elif loss.kind == "mse":
        each = (out - y).square().mean(1)
    elif loss.kind == "huber":
        each = F.huber_loss(out, y, reduction="none", delta=loss.delta).mean(1)
    else:
        smooth = y * (1 - loss.label_smoothing) + loss.label_smoothing / 2
        each = F.binary_cross_entropy_with_logits(out, smooth, class_weights, reduction="none").mean(1)
    if float(total) == 0.0:
        return (each * 0).sum()
    return loss.scale * (each * weight).sum() / total
